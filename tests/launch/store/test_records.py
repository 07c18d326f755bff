from __future__ import annotations

import toy

from launch.store import Store
from launch.store.records import redact, seeds


def test_no_secret_reaches_the_record(tmp_path):
    store = Store(tmp_path)
    stage = toy.steps(
        platform={"env": {"HF_TOKEN": "hf_abc"}}, sections={"rl": {"verl": {"trainer.wandb_api_key": "k123"}}}
    )
    toy.published(store, stage)
    text = (store.directory(stage) / "record.json").read_text()
    assert "HF_TOKEN" in text and "hf_abc" not in text and "k123" not in text
    assert redact({"tokens_per_batch": 5, "hf_token": "x", "env": {"A": "b"}}) == {
        "tokens_per_batch": 5,
        "hf_token": "***",
        "env": {"A": "***"},
    }


def test_seeds_are_found_at_any_depth():
    assert seeds({"seed": 3, "data": {"seed": 4, "files": {}}, "sft": {"lr": 1}}) == {"seed": 3, "data.seed": 4}
