"""Successive halving with real RL: a survivor that paused has the schedule of the run that never did.

Its bytes would be equal under `rl.full_determinism`, which a CPU does not have: the samples differ.
"""

import json
import shutil

import pytest
from small_runs import attempts, run_small

from common.pauses import pauses

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(5400)]
TRAINED = ("rl.validate_every=1", "eval.enabled=false", "rl.steps=2")
HALVED = ("selection.fields=[sft.lr]", "selection.rungs=[1,2]", "selection.metric=rl/validation_pass_rate")


def test_a_survivor_has_the_schedule_of_an_unpaused_run(tmp_path):
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
    assert record["payload"].keys() == unpaused["payload"].keys()
    curves = [[json.loads(line) for line in (one.parent / "curve.jsonl").open()] for one in (survivor, other)]
    assert [row["step"] for row in curves[0]] == [row["step"] for row in curves[1]] == [0, 1, 2]
    for name in next(zip(*curves, strict=True))[0].keys() & curves[1][-1].keys():
        if "lr" in name:
            assert [row.get(name) for row in curves[0]] == [row.get(name) for row in curves[1]], name
    assert curves[0][0] == curves[1][0], "the first validation is of the same model, greedily"
