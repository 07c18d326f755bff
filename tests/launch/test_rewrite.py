"""Data-level methods in a plan: what reads the rewritten chats, what identifies them, and what is refused."""

from __future__ import annotations

import pytest

from launch.graph.builder import make_plan
from launch.graph.estimate import Estimator
from launch.recipe.compose import RECIPES, RecipeError, branches
from launch.recipe.tiny import _rewrite
from launch.stages import load
from launch.stages.rewrite import Rewrite
from launch.store import Store

FAST = ["rl.enabled=false", "eval.enabled=false"]


def stages_of(*overrides, recipe="microworld"):
    return {
        stage.kind: stage for stage in make_plan(recipe, [*FAST, *overrides]).stages.values() if stage.kind != "prepare"
    }


def test_it_is_off_by_default():
    assert "rewrite" not in stages_of()
    assert set(stages_of("rewrite=none")) == {"pretrain", "sft"}


def test_sft_and_the_cache_read_the_rewritten_chats():
    found = stages_of("rewrite=rft", "objective=lp_sft")
    mark = found["rewrite"].fingerprint
    assert found["rewrite"].label == "rft"
    assert found["sft"].inputs["data"].stage == found["cache"].inputs["data"].stage == mark
    assert (
        found["rewrite"].inputs["model"].stage == found["pretrain"].fingerprint
        and "base" not in found["rewrite"].inputs
    )
    plain = stages_of("objective=lp_sft")
    assert plain["sft"].fingerprint != found["sft"].fingerprint


def test_held_out_chats_stay_the_prepared_ones():
    plan = make_plan("microworld", ["rl.enabled=false", "rewrite=rft"])
    kinds = {
        plan.stages[str(stage.inputs["data"].stage)].kind
        for stage in plan.stages.values()
        if stage.kind == "generate" and "data" in stage.inputs
    }
    assert kinds == {"prepare"}


def test_what_identifies_it():
    mark = stages_of("rewrite=star")["rewrite"].fingerprint
    for same in ("rewrite.replicas=2", "rewrite.gpu_memory=0.5"):
        assert stages_of("rewrite=star", same, "platform.gpus_per_node=2")["rewrite"].fingerprint == mark
    others = (
        "rewrite.samples=1 rewrite.temperature=0.5",
        "rewrite.settings.keep=2",
        "rewrite.grader=exact",
        "data.seed=1",
    )
    marks = {stages_of("rewrite=star", *one.split())["rewrite"].fingerprint for one in others}
    assert len(marks) == 4 and mark not in marks
    # Settings that say the default are the default.
    assert stages_of("rewrite=star", "rewrite.settings.keep=1")["rewrite"].fingerprint == mark


def test_another_model_answers_and_the_base_scores(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    found = stages_of("rewrite=grape", f"rewrite.model={other}")["rewrite"]
    assert found.inputs["model"].path == str(other)
    assert found.inputs["base"].stage is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewrite.method=raft"], r"unknown data-level method 'raft'; did you mean rft\? allowed: grape, "),
        (["rewrite=rft", "rewrite.settings.kep=1"], r"rewrite\.settings\.kep: .* rewrite\.method=rft has keep"),
        (["rewrite=rft", "rewrite.samples=0"], r"rewrite\.samples=0: rewrite\.method=rft needs responses"),
        (["rewrite=rft", "rewrite.temperature=0"], r"rewrite\.samples=8: greedy responses are all equal"),
        (["rewrite=rft", "rewrite.max_length=64"], r"rewrite\.max_tokens=1024 leaves no room"),
        (["rewrite=rft", "rewrite.tensor_parallel=2"], r"rewrite\.tensor_parallel=2: .* set rewrite\.replicas"),
        (["rewrite=rft", "rewrite.grader=code"], r"rewrite\.grader=code: it runs a program against tests"),
        (["rewrite=rft", "rewrite.grader=maths"], r"unknown grader 'maths'"),
        (["rewrite=rft", "objective=critical_token"], r"objective critical_token reads critical of the demonstrations"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(overrides, message):
    with pytest.raises(RecipeError, match=message):
        stages_of(*overrides)


def test_a_method_that_grades_nothing_takes_any_grader():
    assert stages_of("rewrite=grape", "rewrite.grader=code")["rewrite"].identity["graders"] == {}


OWN = """
from data_prep.methods import Method

class Nothing(Method):
    name = "nothing"
    otherwise = "demonstration"

    def choose(self, question, responses, section):
        return []

METHOD = Nothing()
"""


def test_a_method_of_ones_own_is_a_dotted_path_with_its_code_in_the_hash(tmp_path, monkeypatch):
    (tmp_path / "own_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = stages_of("rewrite.method=own_method:METHOD")["rewrite"]
    assert found.label == "nothing" and len(found.identity["method"]["code"]) == 64


@pytest.mark.parametrize(
    ("recipe", "overrides", "samples"),
    [
        ("microworld", ["rewrite=star"], 1),
        ("microworld", ["rewrite=rft"], 2),
        ("talr/f4_rates", ["data=esci_reasoning", "sft.lr=1e-6"], 1),
    ],
)
def test_at_scale_tiny_the_base_answers_a_little(recipe, overrides, samples):
    (branch,) = branches(recipe, overrides)
    (cpu,) = branches("microworld", [])
    small = _rewrite(branch.recipe.rewrite.model_dump())
    assert (small["samples"], small["model"], small["unanswered"]) == (samples, None, "demonstration")
    load("rewrite").check(cpu.recipe.model_copy(update={"rewrite": Rewrite.model_validate(small)}))


def test_every_group_of_rewrite_is_a_method(tmp_path):
    groups = sorted(file.stem for file in (RECIPES / "rewrite").glob("*.yaml"))
    assert groups == ["esci_reasoning", "grape", "none", "rft", "self_distillation", "star"]


def test_the_papers_recipes_use_them(tmp_path):
    root = [f"run.root={tmp_path}"]
    plan = make_plan("target_sft/t5_data_level", root)
    assert {stage.label for stage in plan.stages.values() if stage.kind == "rewrite"} == {
        "rft", "star", "grape", "self_distillation",
    }  # fmt: skip
    plan = make_plan("talr/f4_rates", ["data=esci_reasoning", *root])
    (found,) = [stage for stage in plan.stages.values() if stage.kind == "rewrite"]
    estimate = Estimator(plan, Store(str(tmp_path))).of(found)
    # 49,000 responses of 512 tokens by 72.7e9 parameters, whose bfloat16 weights lie on four devices.
    assert estimate.flops == pytest.approx(2 * 72.7e9 * 49_000 * 512, rel=0.01)
    assert estimate.memory is not None
    assert estimate.memory.parts["weights"] == pytest.approx(2 * 72.7e9 / 4, rel=0.01)
    assert found.placement["nodes"] * found.placement["gpus_per_node"] == 8
    assert sum(stage.kind == "sft" for stage in plan.stages.values()) == 3
