"""The whole pipeline through the command line, on a world small enough for minutes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.microworld.pretrain_examples=1200",
    "data.microworld.sft_examples=96",
    "data.microworld.rl_prompts=32",
    "data.microworld.target_problems=12",
    "data.microworld.skill_problems=4",
    "model.pretrain.hidden=48",
    "model.pretrain.layers=2",
    "model.pretrain.heads=4",
    "model.pretrain.steps=40",
    "sft.steps=6",
    "sft.batch_size=16",
    "sft.save_every=2",
    "rl.steps=2",
    "rl.prompts=4",
    "rl.samples=4",
    "rl.mini_batch=4",
    "rl.probe.prompts=2",
    "rl.probe.samples=2",
    "run.backoff=0.5",
]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def command(root, *overrides):
    return [sys.executable, "-m", "launch", "run", "microworld", *SMALL, f"run.root={root}", *overrides]


def start(root, *overrides):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(root, *overrides),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, seconds):
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == 0, output[-4000:]
    return output


def records(root):
    return {
        path.parent.relative_to(root): json.loads(path.read_text()) for path in sorted(root.glob("*/*/record.json"))
    }


def payloads(root):
    """Artifact -> file -> checksum, without the files that hold wall times."""
    return {
        address: {
            name: entry["sha256"] for name, entry in record["payload"].items() if Path(name).name != "timings.jsonl"
        }
        for address, record in records(root).items()
    }


@pytest.mark.timeout(1200)
def test_every_stage_runs_and_a_second_run_recomputes_nothing(tmp_path):
    root = tmp_path / "runs"
    finish(start(root, "objective=sft,lp_sft"), 1100)
    kinds = [address.parts[0] for address in records(root)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "prepare": 1,
        "pretrain": 1,
        "cache": 1,
        "sft": 2,
        "rl": 2,
        "evaluate": 5,
    }
    report = (root / "microworld" / "report.md").read_text()
    assert "lp_sft" in report
    assert (root / "microworld" / "report.html").read_text().count("<svg") >= 1
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*/record.json")}
    begun = time.monotonic()
    finish(start(root, "objective=sft,lp_sft"), 60)
    assert time.monotonic() - begun < 30  # 10 s on a free machine; Ray is not started
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/*/record.json")} == before


@pytest.mark.timeout(1200)
def test_a_killed_driver_leaves_what_an_undisturbed_run_leaves(tmp_path):
    overrides = ("objective=lp_sft", "rl.enabled=false")
    finish(start(tmp_path / "undisturbed", *overrides), 500)
    root = tmp_path / "killed"
    moments = random.Random(0)
    for kind in ("pretrain", "sft"):
        process = start(root, *overrides)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not list(root.glob(f"{kind}/*.logs/progress.json")):
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(root, *overrides), 500)
    assert payloads(root) == payloads(tmp_path / "undisturbed")
