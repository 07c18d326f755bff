"""Selection on readiness with real stages: the losers get no RL, the winner does."""

import json

import pytest
from small_runs import run_small

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]
SMALLER = (
    "readiness.prompts=8",
    "rl.steps=1",
    "analyses=[]",
    "eval.benchmarks=[{name: target, num_samples: 16, temperature: 1.0, top_p: 1.0, max_tokens: 16, greedy: true}]",
    "data.microworld.target_problems=6",
)
CHOSEN = ("readiness.enabled=true", "selection.fields=[objective]", "selection.metric=readiness/pass@16")


def test_the_objective_that_is_ready_alone_gets_rl(tmp_path):
    root = tmp_path / "runs"
    run_small(root, *SMALLER, *CHOSEN, "objective=sft,dft", seconds=1500)
    records = [json.loads(path.read_text()) for path in root.glob("*/*/record.json")]
    labels = {kind: [one["label"] for one in records if one["kind"] == kind] for kind in ("sft", "readiness", "rl")}
    assert sorted(labels["sft"]) == ["dft", "sft"] and sorted(labels["readiness"]) == ["base", "dft", "sft"]
    figures = {
        path.parent.name.rpartition("-")[0]: json.loads((path.parent / "metrics.json").read_text())["figures"]
        for path in root.glob("readiness/*/record.json")
    }
    ready = {name: figures[name]["pass@16"]["value"] for name in ("sft", "dft")}
    winner = "dft" if ready["dft"] > ready["sft"] else "sft"  # of equals the first one
    assert labels["rl"] == [winner], ready
    loser = {"sft": "dft", "dft": "sft"}[winner]
    measured = {one["label"] for one in records if one["kind"] == "measure"}
    assert {f"{winner}.rl.target", f"{loser}.target"} <= measured
    assert not any(label.startswith(f"{loser}.rl") for label in measured)
    (report,) = root.glob("microworld/**/report.md")
    assert "chosen by readiness/pass@16" in report.read_text()
