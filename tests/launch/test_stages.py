"""The kinds of stage: their order, their contract, and kinds of one's own."""

from __future__ import annotations

import importlib
import inspect
import sys

import pytest

from common.errors import ConfigError
from launch import stages
from launch.execution.jobs import StageProgress
from launch.execution.sharing import Engines, engine_of
from launch.graph.builder import make_plan
from launch.recipe.compose import RecipeError
from launch.stages.contract import StageKind

OWN = """
from launch.recipe.platform import Placement
from launch.recipe.section import Section, setting
from launch.stages.contract import Made, Settings, StageKind, Step


class Lengths(Section):
    bins: int = setting(10, "bins of the histogram", gt=0)


class LengthsSettings(Settings):
    lengths: Lengths = setting(Lengths(), "its section")


class LengthsStage(StageKind):
    name = "lengths"
    function = "own_lengths:run"
    section = Lengths
    describes = "lengths of the demonstrations"
    after = ("prepare",)

    def steps(self, branch):
        recipe = branch.recipe
        settings = LengthsSettings(lengths=recipe.lengths, model=recipe.model, platform=recipe.platform)
        yield Step("lengths", "sft", settings, {"bins": recipe.lengths.bins}, {"data": Made("prepare:sft")})

    def placement(self, recipe):
        return Placement(gpus_per_node=0)


LENGTHS = LengthsStage()


def run(settings, inputs, output, scratch, report):
    (output / "bins.txt").write_text(str(settings.lengths.bins))
"""


def test_kinds_stand_in_the_order_of_the_walk():
    names = stages.names()
    assert set(names) == {
        "prepare", "pretrain", "rewrite", "cache", "filter", "sft", "average", "rl", "generate", "measure", "analyse",
        "rollouts", "readiness", "adopt",
    }  # fmt: skip
    for kind in map(stages.load, names):
        assert all(names.index(before) < names.index(kind.name) for before in kind.after)


def test_every_kind_names_a_function_that_there_is():
    for kind in map(stages.load, stages.names()):
        assert isinstance(kind, StageKind) and kind.version >= 1
        module, _, function = kind.function.partition(":")
        run = getattr(importlib.import_module(module), function)
        assert list(inspect.signature(run).parameters) == ["settings", "inputs", "output", "scratch", "report"]


def test_an_unknown_stage_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown stage 'pretrian'; did you mean pretrain\? allowed: adopt, "):
        stages.load("pretrian")
    with pytest.raises(ConfigError, match=r"stage 'no\.such\.stage': ModuleNotFoundError"):
        stages.load("no.such.stage")
    with pytest.raises(ConfigError, match=r"stage 'json:dumps' is a function; name an instance of StageKind"):
        stages.load("json:dumps")


@pytest.fixture
def own_stage(tmp_path, monkeypatch):
    (tmp_path / "own_lengths.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "own_lengths.py"
    sys.modules.pop("own_lengths", None)


def test_a_stage_of_ones_own_has_its_section_its_place_and_its_code_in_the_hash(own_stage):
    plan = make_plan("microworld", ["stages=[own_lengths.LENGTHS]", "lengths.bins=7", "eval.enabled=false"])
    (stage,) = [stage for stage in plan.stages.values() if stage.kind == "lengths"]
    assert stage.settings["lengths"] == {"bins": 7} and stage.settings_type == "own_lengths:LengthsSettings"
    prepared = plan.stages[str(stage.inputs["data"].stage)]
    assert (prepared.kind, prepared.label) == ("prepare", "sft")
    with pytest.raises(RecipeError, match=r"lengths\.bins=0: .*greater than 0"):
        make_plan("microworld", ["stages=[own_lengths.LENGTHS]", "lengths.bins=0"])
    with pytest.raises(RecipeError, match=r"lengths: unknown field"):
        make_plan("microworld", ["lengths.bins=7"])
    own_stage.write_text(OWN + "\n# another text\n")
    again = make_plan("microworld", ["stages=[own_lengths.LENGTHS]", "lengths.bins=7", "eval.enabled=false"])
    (other,) = [stage for stage in again.stages.values() if stage.kind == "lengths"]
    assert other.fingerprint != stage.fingerprint and set(again.stages) - {other.fingerprint} == set(plan.stages) - {
        stage.fingerprint
    }


def test_a_new_benchmark_is_its_preparation_its_answers_and_their_measure(tmp_path):
    problems = tmp_path / "own.jsonl"
    problems.write_text('{"prompt": "1+1", "answer": "2"}\n')
    before = make_plan("microworld", [])
    own = [f"data.files.benchmarks.own={problems}"]
    names = ["target", "reverse", "sort", "shift", "own"]
    more = "eval.benchmarks=[" + ",".join(f"{{name: {name}, max_tokens: 64}}" for name in names) + "]"
    less = "eval.benchmarks=[" + ",".join(f"{{name: {name}, max_tokens: 64}}" for name in names[:4]) + "]"
    before, after = make_plan("microworld", [less]), make_plan("microworld", [more, *own])
    new = [stage for mark, stage in after.stages.items() if mark not in before.stages]
    assert {(stage.kind, stage.label.rpartition(".")[2]) for stage in new if stage.kind != "analyse"} == {
        ("prepare", "own"), ("generate", "own"), ("measure", "own"),
    }  # fmt: skip
    assert not {mark for mark in before.stages if before.stages[mark].kind != "analyse"} - set(after.stages)


def test_an_rl_prompt_more_trains_nothing_again_without_rl():
    off = ["rl.enabled=false"]
    one, other = (make_plan("microworld", [*off, f"data.microworld.rl_prompts={n}"]) for n in (1024, 1025))
    assert set(one.stages) == set(other.stages)
    with_rl = [make_plan("microworld", [f"data.microworld.rl_prompts={n}"]) for n in (1024, 1025)]
    changed = {stage.kind for mark, stage in with_rl[1].stages.items() if mark not in with_rl[0].stages}
    assert "sft" not in changed and "rl" in changed


def test_resampling_and_measuring_otherwise_generates_nothing():
    plain = make_plan("microworld", [])
    other = make_plan("microworld", ["eval.resamples=77"])
    changed = {stage.kind for mark, stage in other.stages.items() if mark not in plain.stages}
    assert changed == {"measure", "analyse"}


def test_an_engine_is_worked_out_once_and_again_for_half_the_micro_batch(monkeypatch):
    plan, kind = make_plan("microworld", []), stages.load("rl")
    progress = StageProgress(next(stage for stage in plan.stages.values() if stage.kind == "rl"))
    asked: list[bool] = []

    def counted(kind, stage, halved):
        asked.append(halved)
        return engine_of(kind, stage, halved)

    monkeypatch.setattr("launch.execution.sharing.engine_of", counted)
    engines = Engines({"rl": kind})
    whole = engines.of(progress)
    assert engines.of(progress) == whole == engine_of(kind, progress.stage, False)
    progress.halved = True
    assert engines.of(progress) == engine_of(kind, progress.stage, True) != whole
    assert asked == [False, True]


def test_rl_branches_share_a_child_where_their_weights_and_seeds_alone_differ():
    def rl_of(*overrides: str) -> list[tuple[bool, str]]:
        plan = make_plan("microworld", list(overrides))
        kind = stages.load("rl")
        found = [stage for stage in plan.stages.values() if stage.kind == "rl"]
        assert found
        return [(kind.shares(stage.settings), engine_of(kind, stage, False)) for stage in found]

    alike = rl_of("objective=sft,dft", "seed=0,1", "rl.warm=true")
    assert len(alike) == 4 and set(alike) == {(True, alike[0][1])}
    assert {shared for shared, _ in rl_of("rl.warm=false")} == {False}
    for other in ("rl.mode=colocate_async", "rl.pause_at=2", "rl.verl.trainer.logger=[tensorboard]"):
        assert {shared for shared, _ in rl_of("rl.warm=true", other)} == {False}, other
    assert rl_of("rl.warm=true", "rl.lr=1e-5")[0][1] != alike[0][1]
    plan, kind = make_plan("microworld", ["seed=0,1"]), stages.load("rl")
    found = [stage.settings for stage in plan.stages.values() if stage.kind == "rl"]
    whole = [{**one, "rl": one["rl"] | {"full_determinism": True}} for one in found]  # the seed is in the environment
    assert kind.engine(found[0]) == kind.engine(found[1]) and kind.engine(whole[0]) != kind.engine(whole[1])
