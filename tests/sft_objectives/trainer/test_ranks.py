"""SFT over two Ray nodes of one machine: the same numbers as on one, also after a node was lost."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.settings import describe
from sft_objectives.trainer.ranks import node_count

ROOT = Path(__file__).resolve().parents[3]
STAGE = """
import json, sys
from pathlib import Path
from common.settings import rebuild
from sft_objectives.trainer import stage
job = json.loads(Path(sys.argv[1]).read_text())
def report(done, total, **metrics):
    Path(job["progress"]).write_text(str(done))
inputs = {name: Path(path) for name, path in job["inputs"].items()}
stage.run(rebuild(job["settings"]), inputs, Path(job["output"]), Path(job["scratch"]), report)
"""


@contextmanager
def two_nodes():
    """A cluster of a head without devices and two nodes with one each."""
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp", ignore_cleanup_errors=True) as short:
        cluster = Cluster(True, head_node_args={"num_cpus": 1, "num_gpus": 0, "temp_dir": short, **quiet})
        try:
            add = lambda: cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=80 * 2**20)  # noqa: E731
            nodes = [add(), add()]
            cluster.wait_for_nodes()
            yield cluster, nodes, add
        finally:
            cluster.shutdown()


def start(settings, inputs, root: Path, address: str | None = None) -> tuple[subprocess.Popen, Path]:
    """The stage in a process of its own; (process, output)."""
    output = root / f"output_{time.monotonic_ns()}"
    output.mkdir(parents=True)
    job = {
        "settings": describe(settings),
        "inputs": {name: str(path) for name, path in inputs.items()},
        "output": str(output),
        "scratch": str(root / "scratch"),
        "progress": str(root / "progress"),
    }
    (root / "stage.json").write_text(json.dumps(job))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"RAY_ADDRESS": address} if address else {})
    log = (root / "log.txt").open("ab")
    command = [sys.executable, "-c", STAGE, str(root / "stage.json")]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log), output


def weights(output: Path) -> bytes:
    return next(output.glob("checkpoints/step_6/*.safetensors")).read_bytes()


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_equal_one_and_a_lost_node_costs_an_attempt(tiny_world, settings_of, tmp_path):
    changes = {"sft__processes": 2, "sft__save_every": 1}
    process, one = start(settings_of(**changes), tiny_world, tmp_path / "one")
    assert process.wait(timeout=300) == 0, (tmp_path / "one" / "log.txt").read_text()[-3000:]
    settings = settings_of(**changes, platform__nodes=2)
    assert node_count(settings) == 2
    root = tmp_path / "two"
    with two_nodes() as (cluster, nodes, add):
        process, _ = start(settings, tiny_world, root, cluster.address)
        deadline = time.monotonic() + 400
        while not (root / "progress").exists() or int((root / "progress").read_text() or 0) < 2:
            assert process.poll() is None and time.monotonic() < deadline, (root / "log.txt").read_text()[-3000:]
            time.sleep(0.02)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert process.wait(timeout=120) != 0
        assert "a node of the SFT stage was lost" in (root / "log.txt").read_text()
        add()
        cluster.wait_for_nodes()
        process, output = start(settings, tiny_world, root, cluster.address)
        assert process.wait(timeout=300) == 0, (root / "log.txt").read_text()[-3000:]
    assert (output / "curve.jsonl").read_text() == (one / "curve.jsonl").read_text()
    assert weights(output) == weights(one)


def test_processes_that_do_not_divide_over_the_nodes_are_refused(settings_of):
    with pytest.raises(ValueError, match=r"sft\.processes=3 does not divide over 2 nodes"):
        node_count(settings_of(sft__batch_size=6, sft__processes=3, platform__nodes=2, platform__gpus_per_node=2))
