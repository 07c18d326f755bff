from __future__ import annotations

import pytest

from launch.commands.line import call
from launch.graph.builder import make_plan
from launch.graph.tracked import check_trackers, tracked

SMALL = ["sft.steps=2", "rl.steps=2"]


def runs(*overrides: str):
    return {one.run.branch: one for one in tracked(make_plan("microworld", [*SMALL, *overrides]))}


def test_a_branch_is_one_run_with_the_fingerprint_of_its_last_training():
    plan = make_plan("microworld", [*SMALL, "objective=sft,dft"])
    found = {one.run.branch: one for one in tracked(plan)}
    assert set(found) == {branch.name for branch in plan.branches}
    for branch in plan.branches:
        run = found[branch.name].run
        assert run.id == branch.stages["rl@final"][:16]
        assert run.name.endswith(run.id) and run.project == "microworld"
        assert run.config["addresses"]["sft"].endswith(branch.stages["sft"][:16])
    sft_only = runs("rl.enabled=false")
    assert [one.run.id for one in sft_only.values()] == [
        make_plan("microworld", [*SMALL, "rl.enabled=false"]).branches[0].stages["sft"][:16]
    ]


def test_a_run_shows_training_and_every_measured_model():
    one = next(iter(runs("sft.publish_steps=[1]").values()))
    series = {source.series for source in one.sources}
    assert {"sft", "rl@final", "eval/base/target", "eval/sft@1/target", "eval/sft/held_out"} <= series
    assert all(name.startswith(("sft", "rl", "eval/")) for name in series)


def test_branches_that_share_their_training_are_runs_of_their_own():
    found = runs("eval.seed=1,2")
    assert len({one.run.id for one in found.values()}) == len(found) == 2


def test_trackers_change_no_fingerprint_and_no_folder_of_a_report():
    quiet, loud = (make_plan("microworld", given) for given in ([], ["run.trackers=[tensorboard, wandb]"]))
    assert set(quiet.stages) == set(loud.stages) and quiet.overrides == loud.overrides == ()


def test_secrets_stay_out_of_what_trackers_are_told():
    config = next(iter(runs("+platform.env.WANDB_API_KEY=abcsecret").values())).run.config
    assert config["platform"]["env"]["WANDB_API_KEY"] == "***" and "abcsecret" not in str(config)


def test_a_tracker_that_cannot_be_used_is_refused_when_planned(capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find(name, *rest)
    )
    assert call(["plan", "microworld", "run.trackers=[mlflow]"]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: run.trackers=mlflow: package mlflow is not installed; pip install 'mlflow>=2.20', or leave mlflow out\n"
    )
    check_trackers(make_plan("microworld", []))


@pytest.mark.parametrize(("value", "said"), [("[wandbb]", "did you mean wandb"), ("[wandb, wandb]", "name each once")])
def test_a_wrong_name_is_one_line(value, said, capsys):
    assert call(["plan", "microworld", f"run.trackers={value}"]) == 2
    error = capsys.readouterr().err
    assert "run.trackers" in error and said in error and error.count("\n") == 1
