"""The commands of docs/launch.md and the Slurm script, each from an empty environment and a new home."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_world import TINY

from common.ports import free_port
from launch.graph.builder import make_plan

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "launch" / "examples"
PAGE = ROOT / "docs" / "launch.md"
MARK = "SFT_THEN_RL_EXAMPLE"


def page_commands():
    """The lines of the page's block that submits a job."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "ray job submit" in block]
    return block.splitlines()


def slurm(name):
    return re.search(rf"^#SBATCH --{name}=(\S+)$", (EXAMPLES / "slurm.sh").read_text(), re.MULTILINE).group(1)


def test_the_slurm_script_asks_for_what_its_recipe_needs(tmp_path):
    files = {}
    for name in ("sft_train", "rl_train", "benchmarks.target"):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text('{"messages": []}\n')
    given = [f"data.files.{name}={path}" for name, path in files.items()]
    asked = int(slurm("nodes")) * int(slurm("gpus-per-node"))
    plan = make_plan("math_1p5b", [*given, f"platform.nodes={slurm('nodes')}"])
    wanted = [stage.placement["nodes"] * stage.placement["gpus_per_node"] for stage in plan.stages.values()]
    assert max(wanted) == asked and min(filter(None, wanted)) >= 1
    cores = max(stage.placement["cpus"] for stage in plan.stages.values())
    assert cores <= int(slurm("cpus-per-task")) and slurm("mem") == "0"
    # and with the two nodes of the script's second line
    (line,) = re.findall(
        r"^#   sbatch --nodes=2 \S+ math_1p5b (.*?) run\.root", (EXAMPLES / "slurm.sh").read_text(), re.M
    )
    plan = make_plan("math_1p5b", [*given, "platform.nodes=2", "run.root=/shared/runs", *line.split()])
    assert max(s.placement["nodes"] * s.placement["gpus_per_node"] for s in plan.stages.values()) == 2 * asked


def test_the_kuberay_job_uses_all_devices_of_its_cluster(tmp_path):
    job = yaml.safe_load((EXAMPLES / "rayjob.yaml").read_text())["spec"]
    (workers,) = job["rayClusterSpec"]["workerGroupSpecs"]
    devices = workers["replicas"] * 8
    assert {f"rl.processes={devices}", f"cache.workers={devices}"} <= set(job["entrypoint"].split())


def test_the_page_sets_the_token_first_and_counts_logical_devices():
    lines = page_commands()
    assert lines[0].startswith("export RAY_AUTH_MODE=token") and "get-auth-token --generate" in lines[1]
    assert re.search(r"ray start --head .*--num-gpus=\d", lines[2]) and lines[3].startswith("ray job submit ")


@pytest.fixture
def bare():
    """An empty environment with a new home: (environment, home). What is started with it is ended."""
    home = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))
    mark = uuid.uuid4().hex
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    yield {"HOME": str(home), "PATH": path, MARK: mark}, home
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                process.kill()
    time.sleep(0.5)
    subprocess.run(["rm", "-rf", str(home)], check=False)


def sh(script, environment, home, seconds=600):
    """Runs a script in one shell; returns its exit code and what it said."""
    log = home / "log"
    with log.open("w") as file:
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=seconds
        )
    return done.returncode, log.read_text()


@pytest.mark.e2e
def test_the_slurm_scripts_token_is_made_in_a_bare_home_and_private(bare):
    environment, home = bare
    text = (EXAMPLES / "slurm.sh").read_text()
    (line,) = [line for line in text.splitlines() if "get-auth-token" in line]
    code, said = sh(f"set -euo pipefail\numask 022\nexport RAY_ADDRESS=127.0.0.1:1\n{line}\n{line}", environment, home)
    token = home / ".ray" / "auth_token"
    assert code == 0, said
    assert len(token.read_text()) >= 32 and stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() not in said


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_pages_commands_run_from_a_bare_environment(bare, tmp_path):
    environment, home = bare
    gcs, jobs = str(free_port()), str(free_port())
    runtime = yaml.safe_load((EXAMPLES / "runtime_env.yaml").read_text())
    runtime["env_vars"]["HF_HOME"] = str(home / "huggingface")
    (home / "runtime_env.yaml").write_text(yaml.safe_dump(runtime))
    script = "\n".join(["set -euo pipefail", *page_commands()])
    agent = f"--dashboard-agent-listen-port={free_port()}"  # no job runs where another Ray has the usual one
    for old, new in (
        ("6379", gcs),
        ("8265", jobs),
        ("launch/examples/runtime_env.yaml", str(home / "runtime_env.yaml")),
        ("run.root=/shared/runs", " ".join(map(shlex.quote, [f"run.root={tmp_path / 'store'}", *TINY]))),
        (
            "ray start --head",
            f"ray start --head --num-cpus=2 --node-ip-address=127.0.0.1 --temp-dir={home / 'ray'} {agent}",
        ),
    ):
        assert old in script
        script = script.replace(old, new)
    # a job server answers before it can run a job
    waits = (
        f"for i in $(seq 60); do ray job submit --address=http://127.0.0.1:{jobs} -- true >/dev/null 2>&1 && break; "
        "sleep 2; done"
    )
    script = script.replace("ray job submit", f"{waits}\nray job submit")
    code, said = sh(script, environment, home, 1000)
    assert code == 0, said[-4000:]
    kinds = sorted({path.parts[-3] for path in (tmp_path / "store").glob("*/*/record.json")})
    assert kinds == ["prepare", "pretrain", "sft"]
    without = {**environment, "RAY_AUTH_MODE": "disabled"}
    submit = f"ray job submit --address=http://127.0.0.1:{jobs} --working-dir launch/examples -- python -c 0"
    assert sh(submit, without, home)[0] != 0  # the shell that submits has to know about the token


SCONTROL = '#!/bin/bash\n[[ "$1 $2" == "show hostnames" ]] && echo 127.0.0.1\n'
SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@" --num-cpus=2 --temp-dir="$HOME/ray"\n'


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_slurm_script_runs_a_recipe_from_a_bare_home(bare, tmp_path):
    environment, home = bare
    programs = home / "bin"
    programs.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    given = {"SLURM_JOB_NODELIST": "node", "SLURM_JOB_ID": str(free_port()), "SLURM_GPUS_ON_NODE": "1"}
    environment = {**environment, **given, "PATH": f"{programs}:{environment['PATH']}"}
    words = ["microworld", f"run.root={tmp_path / 'store'}", *TINY]
    code, said = sh(f"bash launch/examples/slurm.sh {' '.join(map(shlex.quote, words))}", environment, home, 1000)
    assert code == 0, said[-4000:]
    kinds = sorted({path.parts[-3] for path in (tmp_path / "store").glob("*/*/record.json")})
    assert kinds == ["prepare", "pretrain", "sft"]
