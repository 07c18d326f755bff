"""What the stage does around verl's trainer, which is scripted here: where it pauses and goes on."""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace

import pytest

from common.errors import Paused
from common.pauses import pauses
from rl_stage import stage
from rl_stage.curve import Curve


@pytest.fixture
def world(tmp_path, monkeypatch, cpu_settings, inputs):
    """run(resumed, rows, **rl) calls the stage with a checkpoint of step `resumed` and a curve; returns its trainer's
    configuration, or None where nothing was left to train. `train` says what the scripted trainer does."""
    config = SimpleNamespace(trainer=SimpleNamespace(val_before_train=None))
    scratch, output = tmp_path / "scratch", tmp_path / "output"
    scratch.mkdir()
    output.mkdir()
    world = SimpleNamespace(scratch=scratch, output=output, config=config, trained=0, train=lambda curve: None)
    for name in ("prepare_environment", "load_reward", "check_rows", "require"):
        monkeypatch.setattr(stage, name, lambda *_, **__: None)
    monkeypatch.setattr(stage, "verl_config", lambda *_: config)
    session = SimpleNamespace(open=lambda *_: None, prepare=lambda _: None)
    monkeypatch.setattr(stage, "kept_session", lambda: contextlib.nullcontext(session))
    monkeypatch.setattr(stage, "time_limit", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(stage.handoff, "check_model", lambda *_: None)
    monkeypatch.setattr(stage.handoff, "check_prompts", lambda *_: inputs["data"])

    def train(config, settings, curve, *_):
        world.trained += 1
        world.train(curve)

    monkeypatch.setitem(sys.modules, "rl_stage.trainer", SimpleNamespace(train=train))

    def run(resumed, **rl):
        monkeypatch.setattr(stage, "repair_checkpoints", lambda *_: resumed)
        settings = cpu_settings(steps=8, validate_every=2, **rl)
        stage.run(settings, inputs, output, scratch, lambda *_, **__: None)

    world.run = run
    return world


def curve_to(last, validated=True):
    """A trainer that adds rows up to a step."""

    def train(curve: Curve) -> None:
        for step in range(last + 1):
            curve.add(step, {"reward": step / 10})
            if validated and step % 2 == 0:
                curve.add(step, {"validation_pass_rate": step / 100})

    return train


def test_it_pauses_with_its_scores_and_publishes_nothing(world):
    world.train = curve_to(4)
    with pytest.raises(Paused, match="paused after step 4 of 8"):
        world.run(0, pause_at=4)
    assert pauses(world.scratch) == {4: {"reward": 0.4, "validation_pass_rate": 0.04}}
    assert world.config.trainer.val_before_train is True and not list(world.output.iterdir())


def test_a_second_run_to_the_same_step_trains_nothing(world):
    world.train = curve_to(4)
    for _ in range(2):
        with pytest.raises(Paused):
            world.run(4 if world.trained else 0, pause_at=4)
    assert world.trained == 1


def test_it_goes_on_without_validating_again(world):
    world.train = curve_to(4)
    with pytest.raises(Paused):
        world.run(0, pause_at=4)
    world.train = curve_to(6)
    with pytest.raises(Paused):
        world.run(4, pause_at=6)
    assert world.config.trainer.val_before_train is False and list(pauses(world.scratch)) == [4, 6]


def test_what_a_kill_left_out_at_the_pause_is_measured_then(world):
    curve_to(4, validated=False)(Curve(world.scratch / "curve.jsonl"))
    world.train = curve_to(4)
    with pytest.raises(Paused):
        world.run(4, pause_at=4)
    assert world.config.trainer.val_before_train is True and world.trained == 1
    assert pauses(world.scratch)[4]["validation_pass_rate"] == 0.04


def test_a_pause_at_a_step_without_validation_needs_none(world):
    world.train = curve_to(3)
    with pytest.raises(Paused):
        world.run(0, pause_at=3)
    assert pauses(world.scratch) == {3: {"reward": 0.3}}
