"""Clusters on one machine: several Ray nodes, lost nodes, submitted jobs, and the files in launch/examples."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import toy
import yaml
from packaging.requirements import Requirement
from test_run import outcomes, payloads
from tiny_world import TINY

from common.ports import free_port
from common.processes import attempt_processes
from launch.execution.cluster import cluster, fits
from launch.recipe.platform import Platform
from launch.store import Store

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "launch" / "examples"
PACKAGE_BYTES = 5 * 2**20
NODE = {"GPU": 2.0, "CPU": 8.0}


def placed(nodes, gpus, strategy="PACK", cpus=1.0):
    return {"nodes": nodes, "gpus_per_node": gpus, "cpus": cpus, "strategy": strategy}


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (placed(1, 2), True),
        (placed(1, 3), False),
        (placed(2, 2), True),
        (placed(3, 2), False),
        (placed(4, 1), True),
        (placed(4, 1, "STRICT_SPREAD"), False),
        (placed(2, 2, "STRICT_PACK"), False),
        (placed(2, 1, "STRICT_PACK"), True),
        (placed(8, 0.5), True),
        (placed(9, 0.5), False),
        (placed(1, 0, cpus=9), False),
        (placed(2, 1.5), True),
    ],
)
def test_a_placement_is_held_against_the_nodes_that_there_are(placement, expected):
    assert fits(placement, [NODE, NODE]) is expected


def test_stages_without_a_device_have_a_core_beside_all_devices(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"})
    started = []
    monkeypatch.setattr("launch.execution.cluster.start_ray", lambda where, **given: started.append(given))
    devices = 2 * os.cpu_count()
    with cluster([toy.steps()], Platform(name="cpu", gpus_per_node=devices), str(tmp_path)):
        assert started == [{"cpus": devices + 1, "gpus": devices}]


# --- the files that ship


def test_the_working_directory_of_a_job_is_small_by_rays_own_packing(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "working_directory.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size <= PACKAGE_BYTES
    names = zipfile.ZipFile(package).namelist()
    for needed in ("launch/execution/driver.py", "recipes/base.yaml", "data_prep/prepare.py", "evaluation/generate.py"):
        assert needed in names
    assert not [name for name in names if name.split("/")[0] in ("tests", "docs", "runs", ".git", ".venv")]


def rayjob():
    return yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())


def test_the_kuberay_job_asks_for_what_its_recipe_places():
    job = rayjob()
    words = job["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "launch", "run"]
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert f"platform.nodes={workers['replicas']}" in words
    (container,) = workers["template"]["spec"]["containers"]
    recipe = yaml.safe_load((ROOT / "recipes" / f"{words[4]}.yaml").read_text())
    (group,) = (entry["platform"] for entry in recipe["defaults"] if isinstance(entry, dict) and "platform" in entry)
    platform = yaml.safe_load((ROOT / "recipes" / "platform" / f"{group}.yaml").read_text())
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(platform["gpus_per_node"])
    assert cluster["authOptions"]["mode"] == "token"
    root = next(word for word in words if word.startswith("run.root="))
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert any(root.removeprefix("run.root=").startswith(mount + "/") for mount in mounts)
    ray = next(r for r in (ROOT / "requirements" / "gpu.txt").read_text().splitlines() if r.startswith("ray=="))
    assert cluster["rayVersion"] == ray.removeprefix("ray==")
    inner = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    given = yaml.safe_load((EXAMPLES / "runtime_env.yaml").read_text())
    assert inner["env_vars"] == given["env_vars"]


def slurm_entry_point():
    (line,) = re.findall(r'^(python -m launch run "\$@") &$', (EXAMPLES / "slurm.sh").read_text(), re.MULTILINE)
    return line


def test_the_slurm_script_is_bash_asks_for_token_authentication_and_passes_the_term_signal_on():
    path = EXAMPLES / "slurm.sh"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert slurm_entry_point() and "RAY_AUTH_MODE=token" in text and "--requeue" in text
    assert re.search(r"^#SBATCH --signal=B:TERM@\d+$", text, re.MULTILINE) and "trap 'kill -TERM" in text


def pinned(name):
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {}
    for requirement in found:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        versions[requirement.name.lower().replace("_", "-")] = specifier.version
    assert len(versions) == len(found)
    return versions


def test_the_pinned_gpu_set_is_what_verl_and_this_project_allow():
    versions = pinned("gpu.txt")
    project = re.findall(r'^\s+"([^"]+)",$', (ROOT / "pyproject.toml").read_text().split("optional")[0], re.MULTILINE)
    wanted = [Requirement(text) for text in project]
    for extra in ("vllm", "verl-core"):
        wanted += [
            r for r in map(Requirement, requires("verl") or []) if r.marker and r.marker.evaluate({"extra": extra})
        ]
    assert len(wanted) > 20
    for requirement in wanted:
        name = requirement.name.lower().replace("_", "-")
        if name == "verl":
            continue
        assert name in versions, f"{name} is not pinned"
        assert requirement.specifier.contains(versions[name], prereleases=True), f"{requirement}, not {versions[name]}"
    assert versions["verl"] == "0.9.1"


def test_the_dockerfile_installs_the_pinned_set_and_keeps_to_the_rules():
    text = (EXAMPLES / "Dockerfile").read_text()
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    assert set(words) <= {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    assert words.index("FROM") <= 1 and words[-2:] == ["USER", "CMD"]
    assert re.search(r"^ARG CUDA_IMAGE=\S+:13\.0\.\d+-cudnn-devel-", text, re.MULTILINE)  # torch's CUDA is 13.0
    assert pinned("gpu.txt")["nvidia-cuda-runtime"].startswith("13.0.")
    (install,) = [line for line in lines if "requirements/gpu.txt" in line and line.startswith("RUN")]
    assert "--no-deps" in install
    assert "flash-attn==2.8.3" in text and "--no-build-isolation" in text
    for line in lines:
        if "apt-get install" in line:
            assert "apt-get update" in line and "--no-install-recommends" in line and "rm -rf /var/lib/apt" in line
        assert not re.search(r"(TOKEN|SECRET|PASSWORD)=|curl|wget|ADD |:latest", line)
    assert (ROOT / ".dockerignore").read_text() == (ROOT / ".rayignore").read_text()


# --- several nodes


@pytest.fixture
def short():
    """A directory whose path is short enough for Ray's sockets."""
    path = tempfile.mkdtemp(prefix="c", dir="/tmp")
    yield Path(path)
    shutil.rmtree(path, ignore_errors=True)


DRIVER = """
import pickle, sys
from launch.execution.run import run
sys.exit(run(pickle.load(open(sys.argv[1], "rb"))))
"""


@contextlib.contextmanager
def cluster_of(temporary, devices):
    """A head without devices and a node for each entry of `devices`."""
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster = Cluster(True, head_node_args={"num_cpus": 2, "num_gpus": 0, "temp_dir": str(temporary), **quiet})
    try:
        nodes = [cluster.add_node(num_cpus=2, num_gpus=n, object_store_memory=80 * 2**20) for n in devices]
        cluster.wait_for_nodes()
        yield cluster, nodes
    finally:
        cluster.shutdown()


def drive(tmp_path, plan, address):
    import pickle

    (tmp_path / "plan.pickle").write_bytes(pickle.dumps(plan))
    log = (tmp_path / "driver.log").open("ab")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "plan.pickle")]
    environment = {**os.environ, "RAY_ADDRESS": address}
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def end(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.e2e
@pytest.mark.slow
def test_stages_spread_over_nodes_and_a_lost_node_costs_one_attempt(tmp_path, short):
    gpu = {"gpus_per_node": 1}
    stages = [toy.steps(f"s{seed}", seed=seed, count=40, sleep=0.1, placement=gpu) for seed in (1, 2)]
    below = toy.steps("below", "rl", inputs={s.label: s for s in stages}, placement=gpu)
    plan = toy.plan(tmp_path / "store", *stages, below, gpus=1, nodes=2, retries=3)
    store = Store(plan.root)
    with cluster_of(short, [1, 1]) as (cluster, nodes):
        driver = drive(tmp_path, plan, cluster.address)
        try:
            deadline = time.monotonic() + 120
            # one device a node: both can run at once only on different nodes
            while not all((store.logs(stage) / "progress.json").exists() for stage in stages):
                assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "driver.log").read_text()
                time.sleep(0.05)
            runs = [driver.run for driver in store.list_drivers()]
            cluster.remove_node(nodes[0], allow_graceful=False)
            assert driver.wait(timeout=200) == 0, (tmp_path / "driver.log").read_text()
        finally:
            end(driver)
    found = sorted(outcomes(plan, stage) for stage in stages)
    assert found[0][-1] == found[1][-1] == "ok" and sorted(map(len, found)) == [1, 2]
    payloads(plan)
    assert not any(attempt_processes(run) for run in runs)
    alone = toy.plan(tmp_path / "alone", *stages, below)
    with cluster_of(short / "alone", [1]) as (cluster, _):
        driver = drive(tmp_path, alone, cluster.address)
        try:
            assert driver.wait(timeout=200) == 0
        finally:
            end(driver)
    assert payloads(alone) == payloads(plan)


@pytest.mark.e2e
def test_a_placement_that_the_cluster_can_never_hold_and_a_relative_store_are_refused(tmp_path, short):
    with cluster_of(short, [1]) as (cluster, _):
        big = toy.plan(tmp_path / "store", toy.steps(placement={"gpus_per_node": 2}))
        driver = drive(tmp_path, big, cluster.address)
        assert driver.wait(timeout=100) == 1
        assert "sft toy wants 1 x 2 devices" in (tmp_path / "driver.log").read_text()
        relative = toy.plan(Path(os.path.relpath(tmp_path / "store")), toy.steps())
        driver = drive(tmp_path, relative, cluster.address)
        assert driver.wait(timeout=100) == 1
        assert "an absolute path that every node sees" in (tmp_path / "driver.log").read_text()


def intervals(plan, stages):
    """When each stage's last attempt began and ended, by its record."""
    records = [Store(plan.root).find(stage) for stage in stages]
    return [(record.started, record.started + record.seconds) for record in records]


@pytest.mark.e2e
@pytest.mark.slow
def test_runs_of_which_a_cluster_serves_one_at_a_time_are_queued(tmp_path, short):
    """Two RL stages of two nodes each on four: the second waits its turn, and neither fails; SFT stages do not wait."""
    wide = {"nodes": 2, "gpus_per_node": 1}
    for kind, apart in (("rl", True), ("sft", False)):
        stages = [toy.steps(f"{kind}{seed}", kind, seed=seed, count=30, sleep=0.1, placement=wide) for seed in (1, 2)]
        plan = toy.plan(tmp_path / kind, *stages, gpus=1, nodes=4)
        with cluster_of(short / kind, [1, 1, 1, 1]) as (cluster, _):
            driver = drive(tmp_path, plan, cluster.address)
            try:
                assert driver.wait(timeout=250) == 0, (tmp_path / "driver.log").read_text()
            finally:
                end(driver)
        assert [outcomes(plan, stage) for stage in stages] == [["ok"], ["ok"]]
        first, second = sorted(intervals(plan, stages))
        assert (second[0] >= first[1]) is apart


# --- jobs


@pytest.fixture
def guarded_cluster(short):
    """`ray start --head` with the job server and token authentication: (GCS address, job server, environment)."""
    gcs, jobs = free_port(), free_port()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    environment |= {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = ["ray", "start", "--head", f"--port={gcs}", f"--dashboard-port={jobs}", "--dashboard-host=127.0.0.1"]
    command += ["--node-ip-address=127.0.0.1", "--num-cpus=2", "--num-gpus=1", f"--temp-dir={short}", "--block"]
    with (short / "ray.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield f"127.0.0.1:{gcs}", f"http://127.0.0.1:{jobs}", environment
    finally:
        import psutil

        below = psutil.Process(head.pid).children(recursive=True)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        end(head)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(800)
def test_entry_points_of_the_examples_run_on_a_cluster_that_asks_for_a_token(tmp_path, guarded_cluster):
    address, server, environment = guarded_cluster
    runtime = yaml.safe_load((EXAMPLES / "runtime_env.yaml").read_text())
    runtime["env_vars"]["HF_HOME"] = str(tmp_path / "huggingface")
    (tmp_path / "runtime_env.yaml").write_text(yaml.safe_dump(runtime))

    def submit(*entry, **changes):
        command = ["ray", "job", "submit", f"--address={server}", "--working-dir=."]
        command += [f"--runtime-env={tmp_path / 'runtime_env.yaml'}", "--", *entry]
        given = {k: v for k, v in (environment | changes).items() if v is not None}
        return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=400)

    root = tmp_path / "store"
    own = (f"run.root={root}", *TINY)
    ours = ("data.", "platform.", "rl.", "cache.")
    entry = [word for word in rayjob()["spec"]["entrypoint"].split() if not word.startswith(ours)]
    entry = [*(own if w.startswith("run.root=") else ("microworld" if w == "math_1p5b" else w,) for w in entry)]
    words = [word for part in entry for word in ((part,) if isinstance(part, str) else part)]
    deadline = time.monotonic() + 120
    while (first := submit("python", "-c", "0")).returncode:  # the job server answers before it can run a job
        assert time.monotonic() < deadline, first.stderr[-2000:]
        time.sleep(2)
    assert submit("python", "-c", "0", RAY_AUTH_TOKEN="0" * 64).returncode != 0
    refused = submit("python", "-m", "launch", "run", "microworld", *TINY)
    assert refused.returncode != 0 and "an absolute path that every node sees" in refused.stdout
    done = submit(*words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    kinds = sorted({path.parts[-3] for path in root.glob("*/*/record.json")})
    assert kinds == ["prepare", "pretrain", "sft"]
    arguments = ["microworld", *own, "seed=1"]
    slurm = subprocess.run(
        ["bash", "-c", slurm_entry_point(), "slurm", *arguments],
        cwd=ROOT, env={**environment, "RAY_ADDRESS": address}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert slurm.returncode == 0, slurm.stdout[-3000:] + slurm.stderr[-1000:]
    assert len(list(root.glob("sft/*/record.json"))) == 2
    rows = [json.loads(line) for line in (root / "costs.jsonl").read_text().splitlines()]
    assert {row["outcome"] for row in rows} == {"ok"}
    assert environment["RAY_AUTH_TOKEN"] not in "".join(p.read_text() for p in root.rglob("*.json"))
