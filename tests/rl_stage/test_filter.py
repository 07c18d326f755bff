"""The difficulty filter with a scripted engine: what is kept, what is counted, what a second start finds again."""

import json
from types import SimpleNamespace
from typing import ClassVar

import pyarrow
import pyarrow.parquet as pq
import pytest

from common.errors import ConfigError
from rl_stage import filter as difficulty

# Right answers among the four samples of each prompt.
RIGHT = [0, 1, 2, 3, 4]


class Numbers:
    """A tokenizer to which the prompt "n" is the token n, and a long prompt a hundred of them."""

    made: ClassVar[list] = []

    def __init__(self, model, chat_template=None, trust_remote_code=False, template_arguments=None):
        self.made.append((chat_template, trust_remote_code))

    def prompt(self, messages):
        content = messages[0]["content"]
        return SimpleNamespace(ids=[5] * 100 if content == "long" else [int(content)])


@pytest.fixture
def stage(tmp_path, monkeypatch, cpu_settings, scripted_engine):
    """Run the stage again with other settings of `rl`; gives its output directory and the engine."""
    rows = [
        {"prompt": [{"role": "user", "content": content}], "reward_model": {"style": "rule", "ground_truth": content}}
        for content in [*map(str, range(len(RIGHT))), "long"]
    ]
    (tmp_path / "data").mkdir()
    for name in ("rl_train", "rl_val"):
        pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet")
    monkeypatch.setattr("evaluation.generation.prompts.Prompter", Numbers)

    def run(name, reward="boxed", model=None, **rl):
        engine = scripted_engine(RIGHT.__getitem__)
        monkeypatch.setattr("evaluation.generation.engine.engine_for", lambda *_: engine)
        output = tmp_path / name
        output.mkdir()
        settings = cpu_settings(model=model, reward={"name": reward}, **rl)
        inputs = {"data": tmp_path / "data", "model": tmp_path / "model"}
        try:
            difficulty.run(settings, inputs, output, tmp_path / "scratch", lambda done, total: None)
        except ConfigError as error:
            return str(error), engine
        return output, engine

    return run


def kept(output) -> list[str]:
    return [row["prompt"][0]["content"] for row in pq.read_table(output / "rl_train.parquet").to_pylist()]


def test_prompts_strictly_between_the_bounds_are_kept_and_the_rest_counted(stage):
    output, engine = stage("default", filter={"enabled": True, "samples": 4})
    assert kept(output) == ["1", "2", "3"]
    assert json.loads((output / "metrics.json").read_text()) == {
        "prompts": 6,
        "kept": 3,
        "too_long": 1,
        "rewards_failed": 0,
        "histogram": {"0/4": 1, "1/4": 1, "2/4": 1, "3/4": 1, "4/4": 1},
    }
    rates = pq.read_table(output / "pass_rates.parquet")["pass_rate"].to_pylist()
    assert rates == [0.0, 0.25, 0.5, 0.75, 1.0, None]
    assert pq.read_table(output / "rl_val.parquet").num_rows == 6
    assert engine.requests == 20

    # The same samples serve other bounds; both bounds are strict.
    narrow, engine = stage("narrow", filter={"enabled": True, "samples": 4, "above": 0.25, "below": 0.75})
    assert (kept(narrow), engine.requests) == (["2"], 0)

    message, _ = stage("empty", filter={"enabled": True, "samples": 4, "above": 0.5, "below": 0.75})
    assert message.startswith("rl.filter: no prompt has a pass rate strictly between 0.5 and 0.75: {")


def test_a_reward_that_cannot_be_loaded_ends_the_stage_before_it_samples(stage):
    message, engine = stage("unknown", reward="nowhere.boxes", filter={"enabled": True, "samples": 4})
    assert message.startswith("rl.reward.name: cannot import 'nowhere.boxes'")
    assert engine.requests == 0


def test_the_recipes_template_is_for_the_recipes_model(stage, recipe_template):
    model = {"chat_template": str(recipe_template), "trust_remote_code": True}
    stage("base", model=model, filter={"enabled": True, "samples": 4})
    stage("another", model=model, filter={"enabled": True, "samples": 4, "model": "some/instruct"})
    assert Numbers.made[-2:] == [(recipe_template, True), (None, True)]


def test_histogram_of_pass_rates():
    assert difficulty.histogram([0.0, 0.25, 1.0, 0.25, None], 4) == {"0/4": 1, "1/4": 2, "4/4": 1}


def test_several_sources_are_counted_and_judged_by_their_own_graders(stage, tmp_path):
    rows = [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": content}],
            "reward_model": {"style": "rule", "ground_truth": content},
            "extra_info": {"index": number, "grader": grader},
        }
        for number, (source, content, grader) in enumerate(
            [("sums", "1", None), ("sums", "0", None), ("words", "3", "exact"), ("words", "2", "choice")]
        )
    ]
    pq.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / "rl_train.parquet")
    output, _ = stage("mixed", filter={"enabled": True, "samples": 4})
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["sources"] == {"sums": {"prompts": 2, "kept": 1}, "words": {"prompts": 2, "kept": 1}}


def test_the_engines_of_the_settings_draw(stage, monkeypatch):
    engines, draw = [], difficulty.answers

    def answers(settings, model, rows, drawing, *rest):
        engines.append(drawing.replicas)
        return draw(settings, model, rows, drawing, *rest)

    monkeypatch.setattr(difficulty, "answers", answers)
    for name, replicas in (("one", {}), ("four", {"replicas": 4})):
        stage(name, filter={"enabled": True, "samples": 4, **replicas})
    assert engines == [1, 4]
