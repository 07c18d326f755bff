"""`fit` with sequences spread over ranks: all of them validate, choose and export alike."""

import json

import pytest
from rank_processes import run_script

from common.ports import free_port
from common.settings import describe


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_ranks_of_a_sequence_agree_on_the_best_step(tiny_world, settings_of, tmp_path):
    """RL starts from `best`. A rank that saw no validation loss would take the first step for it, and not join the
    collective export of a later one: the step before the last is validated, and the best one at that."""
    settings = settings_of(
        sft__processes=2, sft__steps=5, sft__validate_every=2, sft__lr=3e-3, sft__schedule="constant"
    )
    inputs = {name: str(tiny_world[name]) for name in ("model", "data")}
    job = {"settings": describe(settings), "inputs": inputs, "scratch": str(tmp_path), "sequence_parallel": 2}
    (tmp_path / "job.json").write_text(json.dumps(job))
    run_script("fit_split.py", tmp_path / "job.json", settings, ranks=2, port=free_port(), timeout=300)
    outcomes = [json.loads((tmp_path / f"outcome_{rank}.json").read_text()) for rank in range(2)]
    chosen = [{name: outcome[name] for name in ("final", "best", "steps")} for outcome in outcomes]
    assert chosen[0] == chosen[1]
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    assert list(losses) == [2, 4, 5] and min(losses.values()) > 0
    assert losses[4] < losses[2], "the case needs a later step that is better"
    best = min(losses, key=lambda step: losses[step])
    assert chosen[0] == {"final": 5, "best": best, "steps": sorted({best, 5})}

    from transformers import AutoModelForCausalLM

    for step in chosen[0]["steps"]:  # what `rl.from=best` and `final` start from
        AutoModelForCausalLM.from_pretrained(tmp_path / "exports" / f"step_{step}")
    assert {path.name for path in (tmp_path / "exports").iterdir()} == {f"step_{s}" for s in chosen[0]["steps"]}
