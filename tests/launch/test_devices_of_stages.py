"""Placements that mean what they say, micro-batches that hold the longest chat, loggers that identify nothing."""

from __future__ import annotations

import pytest

from launch import stages
from launch.execution.jobs import halve
from launch.graph.builder import make_plan, placement_of
from launch.recipe.compose import RecipeError
from launch.recipe.platform import GivenPlacement, Placement
from launch.stages.references import without_loggers
from launch.stages.sizes import placed

GPU = ["platform=gpu", "platform.gpus_per_node=8", "model.dtype=bfloat16"]


def placement(kind, *overrides):
    plan = make_plan("microworld", [*GPU, "sft.batch_size=32", *overrides])
    return next(stage.placement for stage in plan.stages.values() if stage.kind == kind)


def test_a_placement_changes_the_fields_that_it_names_and_no_other():
    derived = placement("sft", "sft.processes=4")
    assert (derived["nodes"], derived["gpus_per_node"]) == (1, 4)
    given = placement("sft", "sft.processes=4", "+platform.placement.sft={cpus: 32}")
    assert given == {**derived, "cpus": 32}
    spread = placement("sft", "sft.processes=4", "platform.nodes=2", "+platform.placement.sft={nodes: 2}")
    assert (spread["nodes"], spread["gpus_per_node"]) == (2, 2)


def test_fewer_devices_than_processes_are_refused():
    with pytest.raises(RecipeError, match=r"platform\.placement\.sft: 1 x 1 devices, but its processes take 4; leave"):
        placement("sft", "sft.processes=4", "+platform.placement.sft={gpus_per_node: 1}")
    more = placement("sft", "sft.processes=4", "+platform.placement.sft={gpus_per_node: 8}")
    assert more["gpus_per_node"] == 8


@pytest.mark.parametrize(
    ("given", "devices"), [((), 0.5), (("eval.replicas=2",), 1.0), (("platform.threads=4",), 0.25)]
)
def test_an_engine_takes_one_core_of_a_device_of_the_cpu_platform(given, devices):
    plan = make_plan("microworld", ["readiness.enabled=true", *given])
    found = {stage.kind: stage.placement for stage in plan.stages.values()}
    assert found["generate"]["gpus_per_node"] == devices and found["sft"]["gpus_per_node"] == 1
    assert found["rollouts"]["gpus_per_node"] == (0.25 if devices == 0.25 else 0.5)


def test_the_filter_samples_on_all_devices():
    on = "rl.filter.enabled=true"
    given = placement("filter", on)
    assert (given["nodes"], given["gpus_per_node"]) == (1, 8)
    given = placement("filter", on, "platform.nodes=2", "rl.tensor_parallel=2", "rl.processes=2")
    assert (given["nodes"], given["gpus_per_node"]) == (2, 8)
    assert placement("filter", on, "rl.filter.replicas=3")["gpus_per_node"] == 3


@pytest.mark.parametrize(
    ("overrides", "engines"), [([*GPU, "rl.tensor_parallel=2", "rl.processes=2"], 4), (["platform.gpus_per_node=4"], 1)]
)
def test_the_filter_is_told_its_engines_and_their_number_is_no_part_of_what_it_is(overrides, engines):
    def stage(*more):
        plan = make_plan("microworld", [*overrides, "rl.filter.enabled=true", *more])
        return next(stage for stage in plan.stages.values() if stage.kind == "filter")

    assert stage().settings["rl"]["filter"]["replicas"] == engines
    other = stage("rl.filter.replicas=3")
    assert other.settings["rl"]["filter"]["replicas"] == 3
    assert other.fingerprint == stage().fingerprint


def test_a_fraction_of_a_device_and_logical_devices_may_be_less():
    one = Placement(gpus_per_node=0.5)
    assert placed(one, GivenPlacement(cpus=2), "generate", "gpu").gpus_per_node == 0.5
    assert placed(Placement(gpus_per_node=4), GivenPlacement(gpus_per_node=1), "sft", "cpu").gpus_per_node == 1


def test_tensor_parallel_replicas_of_the_cache_have_their_devices():
    recipe = make_plan("microworld", GPU).branches[0].recipe
    vllm = recipe.model_copy(
        update={"cache": recipe.cache.model_copy(update={"producer": "vllm", "tensor_parallel": 2, "workers": 3})}
    )
    assert placement_of(vllm, stages.load("cache"))["gpus_per_node"] == 6
    forward = recipe.model_copy(update={"cache": recipe.cache.model_copy(update={"tensor_parallel": 2, "workers": 3})})
    assert placement_of(forward, stages.load("cache"))["gpus_per_node"] == 3


def sft(**changes):
    settings = {"tokens_per_micro_batch": 8192, "micro_batch_size": 16, "dynamic_batch": True, "batch_size": 64}
    return {"sft": {**settings, "processes": 1, "sequence_parallel": 1, **changes}, "data": {"max_length": 5000}}


def halved(kind, settings):
    found = halve(settings, stages.load(kind))
    return None if found is None else found[kind]


def test_a_micro_batch_shrinks_to_what_the_longest_chat_allows_and_no_further():
    assert halved("sft", sft())["tokens_per_micro_batch"] == 5000
    assert halved("sft", sft(tokens_per_micro_batch=16384))["tokens_per_micro_batch"] == 8192
    assert halved("sft", sft(tokens_per_micro_batch=5000)) is None
    rl = {"tokens_per_micro_batch": 4000, "max_prompt_length": 1000, "max_response_length": 2048}
    assert halved("rl", {"rl": rl})["tokens_per_micro_batch"] == 3048
    assert halved("rl", {"rl": {**rl, "tokens_per_micro_batch": 3048}}) is None
    cache = {"cache": {"tokens_per_batch": 8192}, "data": {"max_length": 8192}}
    assert halved("cache", cache) is None
    assert halved("cache", {**cache, "data": {"max_length": 512}})["tokens_per_batch"] == 4096


@pytest.mark.parametrize(("size", "chats", "expected"), [(16, 64, 8), (9, 9, 3), (5, 10, 2), (7, 7, 1), (64, 12, 12)])
def test_a_micro_batch_of_chats_still_divides_the_batch(size, chats, expected):
    found = halved("sft", sft(dynamic_batch=False, micro_batch_size=size, batch_size=chats))
    assert found["micro_batch_size"] == expected and chats % expected == 0


@pytest.mark.parametrize(
    "shown",
    [
        {"trainer": {"logger": ["file"]}},
        {"trainer.logger": ["wandb"], "trainer.project_name": "mine"},
        {"trainer": {"experiment_name": "a", "log_val_generations": 3}},
    ],
)
def test_loggers_never_change_a_fingerprint(shown):
    quiet = make_plan("microworld", [])
    text = str(shown).replace("'", "")
    loud = make_plan("microworld", [f"rl.verl={text}"])
    assert set(loud.stages) == set(quiet.stages)
    assert without_loggers({"verl": {**shown, "x": 1}}) == {"verl": {"x": 1}}


def test_a_logger_of_verls_that_sft_would_not_write_to_is_refused():
    with pytest.raises(RecipeError, match=r"trainer.logger=\['wandb'\] is not supported.*set run.trackers"):
        make_plan("microworld", ["sft.verl={trainer: {logger: [wandb]}}"])
    shown = make_plan("microworld", ["sft.verl={trainer: {experiment_name: a}}"])
    assert set(shown.stages) == set(make_plan("microworld", []).stages)


def test_other_keys_of_verl_still_identify():
    assert set(make_plan("microworld", ["sft.verl={optim: {lr_warmup_steps: 3}}"]).stages) != set(
        make_plan("microworld", []).stages
    )
    assert without_loggers({"verl": {"trainer": {"logger": [], "x": {}}}}) == {"verl": {"trainer": {"x": {}}}}


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        ("microworld", ["platform=gpu"]),
        ("microworld", ["platform=gpu", "model.dtype=bfloat16", "eval.dtype=bfloat16"]),
        ("microworld_medium", []),
    ],
)
def test_the_micro_world_runs_on_one_gpu(recipe, given):
    plan = make_plan(recipe, given)
    placements = {stage.kind: stage.placement for stage in plan.stages.values()}
    assert all(placement["nodes"] == 1 for placement in placements.values())
    for kind in ("pretrain", "sft", "rl", "generate"):
        assert placements[kind]["gpus_per_node"] == 1
    assert all(placement["gpus_per_node"] <= 1 for placement in placements.values())


def test_what_is_pretrained_on_a_gpu_is_another_model():
    def marks(*given):
        plan = make_plan("microworld", given)
        return {stage.fingerprint for stage in plan.stages.values() if stage.kind == "pretrain"}

    assert marks() != marks("platform=gpu", "platform.threads=2")


def test_the_medium_micro_world_has_30_to_100_million_parameters():
    plan = make_plan("microworld_medium", [])
    (pretrain,) = [stage for stage in plan.stages.values() if stage.kind == "pretrain"]
    assert 30e6 < stages.load("pretrain").parameters(pretrain.settings) < 100e6
    assert plan.branches[0].recipe.data.microworld.longer > 0
