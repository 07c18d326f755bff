"""Repair after a kill, and which steps are published."""

import zipfile

import pytest

from rl_stage.checkpoints import Exports, repair_checkpoints
from rl_stage.curve import Curve


def checkpoint(directory, step, complete=True):
    path = directory / f"global_step_{step}"
    (path / "actor" / "huggingface").mkdir(parents=True)
    if complete:
        with zipfile.ZipFile(path / "data.pt", "w") as archive:
            archive.writestr("state", "x")
    return path


def test_resume_starts_from_the_last_complete_checkpoint(tmp_path):
    for step, complete in ((2, True), (4, True), (6, False)):
        checkpoint(tmp_path, step, complete)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("")  # the kill came between open and write
    assert repair_checkpoints(tmp_path, keep=1) == 4
    assert (tmp_path / "latest_checkpointed_iteration.txt").read_text() == "4"
    assert [path.name for path in tmp_path.glob("global_step_*")] == ["global_step_4"]


def test_without_a_complete_checkpoint_training_starts_over(tmp_path):
    checkpoint(tmp_path, 1, complete=False)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    assert repair_checkpoints(tmp_path, keep=1) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def curve(tmp_path):
    return Curve(tmp_path / "curve.jsonl")


def exports_of(tmp_path, curve, settings):
    return Exports(tmp_path, settings, curve)


def test_the_best_step_is_the_earliest_of_the_best_validations(tmp_path, curve, cpu_settings):
    exports = exports_of(tmp_path, curve, cpu_settings(steps=6, publish_steps=[3]))
    assert exports.wanted() == {3, 6}
    for step, rate in ((0, 0.9), (2, 0.5), (4, 0.7), (6, 0.7)):
        curve.add(step, {"validation_pass_rate": rate})
    assert (exports.best_step(), exports.wanted()) == (4, {3, 4, 6})
    assert exports.is_best(4, 0.7)
    assert not exports.is_best(6, 0.7)


def test_exports_follow_the_best_and_outlive_rotation(tmp_path, curve, cpu_settings):
    exports = exports_of(tmp_path, curve, cpu_settings(steps=6))
    for step, rate in ((2, 0.5), (4, 0.7), (6, 0.6)):
        path = checkpoint(tmp_path / "checkpoints", step)
        (path / "actor" / "huggingface" / "model.safetensors").write_text(str(step))
        curve.add(step, {"validation_pass_rate": rate})
        exports.keep(step)
    assert sorted(path.name for path in exports.directory.iterdir()) == ["step_4", "step_6"]
    assert (exports.path(4) / "model.safetensors").read_text() == "4"


def test_a_step_that_turns_out_best_after_its_checkpoint_is_kept(tmp_path, curve, cpu_settings):
    exports = exports_of(tmp_path, curve, cpu_settings(steps=6))
    checkpoint(tmp_path / "checkpoints", 4)
    exports.keep(4)
    assert not exports.path(4).exists()
    curve.add(4, {"validation_pass_rate": 0.7})
    exports.keep(4)
    assert exports.path(4).exists()
