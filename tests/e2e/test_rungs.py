"""Successive halving with real RL: a survivor that paused is the run that never did."""

import json
import shutil

import pytest
from small_runs import attempts, run_small

from common.pauses import pauses

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(5400)]
TRAINED = ("rl.validate_every=1", "rl.full_determinism=true", "eval.enabled=false", "rl.steps=2")
HALVED = ("selection.fields=[sft.lr]", "selection.rungs=[1,2]", "selection.metric=rl/validation_pass_rate")


def test_a_survivor_equals_an_unpaused_run_byte_for_byte(tmp_path):
    root, whole = tmp_path / "halved", tmp_path / "whole"
    run_small(root, *TRAINED, *HALVED, "sft.lr=1e-5,1e-3", seconds=3600)
    ended = attempts(root, "rl")
    (survivor,) = root.glob("rl/*/record.json")
    record = json.loads(survivor.read_text())
    assert [outcome for _, outcome in ended] == ["paused", "paused", "ok"]
    assert len({mark for mark, _ in ended}) == 2 and ended[-1][0] == record["fingerprint"]
    (scratch,) = root.glob("rl/.scratch-*")
    assert list(pauses(scratch)) == [1] and list(scratch.glob("checkpoints/global_step_1")), "the loser stays paused"
    (report,) = root.glob("microworld/**/report.md")
    assert "stopped at step 1" in report.read_text()

    for kind in ("prepare", "pretrain", "sft"):
        shutil.copytree(root / kind, whole / kind)
    lr = next(
        json.loads(path.read_text())["settings"]["sft"]["lr"]
        for path in root.glob("sft/*/record.json")
        if json.loads(path.read_text())["fingerprint"] == record["inputs"]["model"]["stage"]
    )
    run_small(whole, *TRAINED, f"sft.lr={lr}", seconds=1800)
    (other,) = whole.glob("rl/*/record.json")
    unpaused = json.loads(other.read_text())
    assert other.parent.name == survivor.parent.name and unpaused["fingerprint"] == record["fingerprint"]
    assert [outcome for _, outcome in attempts(whole, "rl")] == ["ok"]
    same = {path: entry["sha256"] for path, entry in unpaused["payload"].items() if path != "timings.jsonl"}
    assert same == {path: entry["sha256"] for path, entry in record["payload"].items() if path != "timings.jsonl"}
