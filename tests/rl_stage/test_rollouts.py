"""The sampling of RL prompts before RL, with a scripted engine."""

import json
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet as pq
import pytest

from common.errors import ConfigError
from rl_stage import rollouts


class Numbers:
    """A tokenizer to which the prompt "n" is the token n, and a long prompt a hundred of them."""

    def __init__(self, *_):
        pass

    def prompt(self, messages):
        content = messages[0]["content"]
        return SimpleNamespace(ids=[5] * 100 if content == "long" else [int(content)])


@pytest.fixture
def stage(tmp_path, monkeypatch, cpu_settings, scripted_engine):
    """Run the stage on these prompts; gives what it wrote."""
    monkeypatch.setattr("evaluation.generation.prompts.Prompter", Numbers)

    def run(prompts, wanted=None, seed=0):
        rows = [
            {"prompt": [{"role": "user", "content": text}], "reward_model": {"style": "rule", "ground_truth": text}}
            for text in prompts
        ]
        data, output = tmp_path / "data", tmp_path / "made"
        for folder in (data, output):
            folder.mkdir(exist_ok=True)
        pq.write_table(pyarrow.Table.from_pylist(rows), data / "rl_train.parquet")
        monkeypatch.setattr("evaluation.generation.engine.engine_for", lambda *_: scripted_engine(lambda n: n, cut=4))
        settings = cpu_settings(reward={"name": "boxed", "correct": 2.0, "wrong": -1.0}, samples=4)
        settings = SimpleNamespace(
            **{name: getattr(settings, name) for name in ("rl", "model", "platform")},
            readiness=SimpleNamespace(prompts=wanted, seed=seed),
        )
        inputs = {"data": data, "model": tmp_path / "model"}
        rollouts.run(settings, inputs, output, tmp_path / "scratch", lambda done, total: None)
        found = pq.read_table(output / "rollouts.parquet").to_pylist()
        return found, json.loads((output / "metrics.json").read_text())

    return run


def test_every_prompt_is_answered_and_scored_as_often_as_grpo_would(stage):
    found, counts = stage(["0", "long", "2", "4"])
    assert counts == {"prompts": 4, "too_long": 1, "samples": 4, "rewards_failed": 0}
    right = {prompt: [row["correct"] for row in found if row["prompt"] == prompt] for prompt in (0, 2, 3)}
    assert right == {0: [False] * 4, 2: [True, True, False, False], 3: [True] * 4}
    assert {row["score"] for row in found if row["correct"]} == {2.0}
    assert {row["score"] for row in found if not row["correct"]} == {-1.0}
    assert [row["cut"] for row in found] == [False, False, False, True] * 3


def test_the_same_prompts_are_drawn_for_every_model(stage):
    chosen = rollouts.drawn_places(100, 8, 0)
    assert chosen == rollouts.drawn_places(100, 8, 0) == sorted(set(chosen)) and len(chosen) == 8
    assert chosen != rollouts.drawn_places(100, 8, 1)
    assert rollouts.drawn_places(3, 8, 0) == rollouts.drawn_places(3, None, 0) == [0, 1, 2]
    found, counts = stage(["0", "1", "2", "3"], wanted=2)
    assert counts["prompts"] == 2 and len({row["prompt"] for row in found}) == 2


def test_prompts_of_which_none_fits_are_refused(stage):
    with pytest.raises(ConfigError, match=r"rl\.max_prompt_length=\d+: none of 1 prompts fits"):
        stage(["long"])
