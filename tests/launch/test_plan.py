import json

import pytest

from launch.graph.builder import make_plan
from launch.recipe.compose import RecipeError

RECIPE = """
defaults:
  - base
  - objective: sft
  - platform: cpu
  - _self_
model:
  pretrain: {}
data:
  source: microworld
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE)
    return str(path)


def kinds(plan):
    return [stage.kind for stage in plan.stages.values()]


def test_stages_are_shared_between_objectives(recipe):
    plan = make_plan(recipe, ["objective=sft,dft,lp_sft"])
    assert [branch.name for branch in plan.branches] == ["sft", "dft", "lp_sft"]
    assert {kind: kinds(plan).count(kind) for kind in set(kinds(plan))} == {
        "prepare": 3, "pretrain": 1, "cache": 1, "sft": 3, "rl": 3, "generate": 7, "measure": 7, "analyse": 1,
    }  # fmt: skip
    seen = set()
    for mark, stage in plan.stages.items():
        assert {source.stage for source in stage.inputs.values()} <= seen, "inputs come before their users"
        seen.add(mark)
    prepare = next(stage for stage in plan.stages.values() if stage.kind == "prepare" and stage.label == "sft")
    assert prepare.branches == ("sft", "dft", "lp_sft")


def test_a_live_base_and_a_measured_cache_go_together(recipe):
    plan = make_plan(recipe, ["objective=asft", "sft.metrics.kl_from_base=true"])
    tuned = next(stage for stage in plan.stages.values() if stage.kind == "sft")
    assert {"base", "base_cache"} <= set(tuned.inputs)


def test_the_sample_of_a_cache_is_as_wide_as_data_prep_makes_it(recipe):
    from data_prep.reference.layout import SAMPLE_TOP_K

    message = rf"from the {SAMPLE_TOP_K + 1} most probable ids, the cache's sample keeps {SAMPLE_TOP_K}"
    with pytest.raises(RecipeError, match=message):
        make_plan(recipe, ["objective=sed_sft", f"objective.threshold_top_k={SAMPLE_TOP_K + 1}"])


def test_only_objectives_that_ask_depend_on_a_cache(recipe):
    for objective, count in {"sft": 0, "dft": 0, "prift_mass": 1, "lp_sft": 1}.items():
        assert kinds(make_plan(recipe, [f"objective={objective}"])).count("cache") == count
    assert kinds(make_plan(recipe, ["sft.metrics.kl_from_base=true"])).count("cache") == 1


def test_a_teacher_is_made_only_when_asked(recipe):
    teacher = "model.teacher.pretrain.steps=900"
    assert kinds(make_plan(recipe, ["objective=sft", teacher])).count("pretrain") == 1
    assert kinds(make_plan(recipe, ["objective=target_sft", teacher])).count("pretrain") == 2
    with pytest.raises(RecipeError, match=r"asks for a teacher; set model\.teacher\.path or model\.teacher\.pretrain"):
        make_plan(recipe, ["objective=target_sft"])


def test_fingerprints_follow_what_is_computed_not_how(recipe):
    def marks(*overrides):
        return {(s.kind, s.label): s.fingerprint for s in make_plan(recipe, overrides).stages.values()}

    plain = marks()
    assert marks("run.root=/elsewhere", "sft.processes=1", "sft.micro_batch_size=2", "eval.gpu_memory=0.5") == plain
    changed = marks("sft.lr=1e-3")
    assert {key for key in plain if plain[key] != changed[key]} == {
        ("sft", "sft"), ("rl", "sft"), *((kind, f"{model}.held_out") for kind in ("generate", "measure")
        for model in ("sft", "sft.rl")), ("analyse", "entropy_histogram"),
    }  # fmt: skip
    assert marks("seed=1")["pretrain", "base"] == plain["pretrain", "base"]
    assert marks("data.seed=1")["pretrain", "base"] != plain["pretrain", "base"]


def test_reinforcement_starts_from_published_checkpoints(recipe):
    plan = make_plan(recipe, ["sft.publish_steps=[5,10]", "rl.from=all"])
    starts = [stage.inputs["model"].select for stage in plan.stages.values() if stage.kind == "rl"]
    assert starts == ["checkpoint:5", "checkpoint:10", "checkpoint:final"]
    with pytest.raises(RecipeError, match=r"add it to sft\.publish_steps"):
        make_plan(recipe, ["rl.from=[7]"])
    assert "rl" not in kinds(make_plan(recipe, ["rl.enabled=false"]))


def test_reinforcement_starts_from_the_base_once_for_all_objectives(recipe):
    plan = make_plan(recipe, ["objective=sft,dft", "rl.from=[base,final]", "seed=1,2"])
    from_base = [stage for stage in plan.stages.values() if (stage.kind, stage.label) == ("rl", "base")]
    assert kinds(plan).count("rl") == 6 and len(from_base) == 2, "one for each seed"
    assert {plan.stages[stage.inputs["model"].stage].kind for stage in from_base} == {"pretrain"}
    measured = [stage for stage in plan.stages.values() if stage.label.startswith("base.rl.")]
    assert measured and all("trained_on_sft" not in stage.inputs for stage in measured)


@pytest.mark.parametrize("more", [[], ["sft.enabled=false"]])
def test_reinforcement_from_the_base_alone_trains_no_sft(recipe, more):
    plan = make_plan(recipe, ["objective=lp_sft", "rl.from=base", *more])
    assert not {"sft", "cache"} & set(kinds(plan)) and kinds(plan).count("rl") == 1
    assert [model.name for model in plan.branches[0].models] == ["base", "rl@base"]
    with pytest.raises(RecipeError, match=r"sft\.enabled=false: rl\.from=\['base', 'final'\] starts from a fine-tuned"):
        make_plan(recipe, ["rl.from=[base,final]", "sft.enabled=false"])
    with pytest.raises(RecipeError, match=r"rl\.from=base: average\.weight starts from a fine-tuned model"):
        make_plan(recipe, ["rl.from=base", "average.weight=0.5"])
    with pytest.raises(RecipeError, match=r"rl\.from.*allowed: base, final, best, all, steps of SFT"):
        make_plan(recipe, ["rl.from=[bse]"])


def test_reinforcement_from_the_base_needs_no_chats(recipe, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "1+1", "answer": "2"}))
    own = ["data.source=files", f"data.files.rl_train={prompts}", "eval.enabled=false"]
    plan = make_plan(recipe, [*own, "rl.from=base", "sft.enabled=false"])
    assert [stage.label for stage in plan.stages.values() if stage.kind == "prepare"] == ["pretrain", "rl"]


def test_every_published_checkpoint_is_evaluated(recipe):
    steps = ["sft.publish_steps=[5,10]", "sft.steps=10", "eval.benchmarks=[{name: target}]"]
    plan = make_plan(recipe, [*steps, "rl.enabled=false"])
    assert [model.name for model in plan.branches[0].models] == ["base", "sft@5", "sft"]
    assert all(model.measures.keys() == {"held_out", "target"} for model in plan.branches[0].models)
    plan = make_plan(recipe, [*steps, "rl.publish_steps=[20,40]", "rl.steps=40", "rl.from=[base,10,final]"])
    names = [model.name for model in plan.branches[0].models]
    assert names == [
        "base", "sft@5", "sft@10", "sft", "rl@base-20", "rl@base", "rl@10-20", "rl@10", "rl@final-20", "rl@final",
    ]  # fmt: skip
    assert all(model.measures.keys() == {"held_out", "target"} for model in plan.branches[0].models)
    selects = {
        stage.label: stage.inputs["model"].select
        for stage in plan.stages.values()
        if stage.kind == "generate" and stage.label.endswith(".target")
    }
    assert selects["sft-5.target"] == "checkpoint:5" and selects["base.rl-20.target"] == "checkpoint:20"
    with pytest.raises(RecipeError, match=r"rl\.from=\['5'\]|rl\.from=5: average\.weight makes one model"):
        make_plan(recipe, ["sft.publish_steps=[5]", "rl.from=[5]", "average.weight=0.5"])


def test_readiness_is_measured_of_every_model_before_reinforcement(recipe):
    more = ["sft.publish_steps=[5]", "sft.steps=9", "rl.from=[base,final]", "eval.benchmarks=[{name: target}]"]
    plan = make_plan(recipe, ["readiness.enabled=true", *more])
    found = {stage.label: stage for stage in plan.stages.values() if stage.kind == "readiness"}
    assert set(found) == {"base", "sft", "sft-5"} and kinds(plan).count("rollouts") == 3
    assert found["base"].inputs.keys() == {"rollouts", "target", "held_out"}
    assert found["sft-5"].inputs.keys() == {"rollouts", "base_rollouts", "target", "held_out"}
    without = make_plan(recipe, ["readiness.enabled=true", *more, "rl.enabled=false"])
    assert {s.fingerprint for s in without.stages.values() if s.kind == "readiness"} == {
        s.fingerprint for s in found.values()
    }
    again = make_plan(recipe, ["readiness.enabled=true", *more, "rl.lr=1e-5", "rl.steps=7"])
    assert {s.fingerprint for s in found.values()} <= again.stages.keys(), "what RL does later has no say"
    assert "readiness" not in kinds(make_plan(recipe, []))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=nosuch"], r"objective=nosuch: allowed: .*lp_sft"),
        (["objective.name=nosuch"], r"unknown objective 'nosuch'; allowed: asft, beyond_log"),
        (["objective.threshold=0.5"], r"no setting 'threshold'"),
        (["objective=lp_sft", "cache.top_k=5"], r"reads the base's 10 most probable ids.*set cache.top_k=10 or more"),
        (["objective=prift_mass", "cache.producer=vllm"], r"needs label_mass of the base.*set cache.producer=forward"),
        (["cache.processes=0"], r"cache\.processes=0: Input should be greater than 0"),
        (
            ["cache.processes=2", "cache.producer=vllm"],
            r"cache\.processes=2: only .*set cache\.tensor_parallel for vllm",
        ),
        (["objective=lp_sft", "cache.processes=2"], r"stage cache wants 2 x 1 devices"),
        (["objective=sed_sft", "cache.sample_sequences=0"], r"sample of chats; set cache.sample_sequences above"),
        (["objective=sed_sft", "objective.threshold_top_k=11"], r"threshold from the 11 most probable ids.*keeps 10"),
        (["run.root=a,b"], r"run\.root differs between branches, .*give it one value"),
        (["sweep=[{seed: 1},{seed: 2, selection.goal: max}]"], r"selection\.goal differs between branches"),
        (["sft.processes=2"], r"stage sft wants 1 x 2 devices|stage sft wants 2 x 1 devices"),
        (["model.pretrain=null", "model.path=./absent/model"], r"model.path=./absent/model: no such file or directory"),
        (["data.source=files"], r"data.files.sft_train is missing"),
        (
            ["data.source=files", "data.files.sft_train=no.jsonl", "rl.enabled=false"],
            r"data.files.sft_train=no.jsonl: no such file",
        ),
    ],
)
def test_wrong_recipes_are_refused_in_one_line(recipe, overrides, message):
    with pytest.raises(RecipeError, match=message) as error:
        make_plan(recipe, overrides)
    assert "\n" not in str(error.value)


def test_outside_files_are_known_by_their_bytes(recipe, tmp_path):
    chats = tmp_path / "chats.jsonl"
    overrides = ["data.source=files", f"data.files.sft_train={chats}", "rl.enabled=false", "eval.enabled=false"]
    chats.write_text(json.dumps({"messages": []}))
    first = make_plan(recipe, overrides)
    chats.rename(tmp_path / "moved.jsonl")
    moved = make_plan(recipe, [*overrides[:1], f"data.files.sft_train={tmp_path / 'moved.jsonl'}", *overrides[2:]])
    assert list(first.stages) == list(moved.stages)
    chats.write_text(json.dumps({"messages": [1]}))
    assert list(make_plan(recipe, overrides).stages) != list(first.stages)


def test_sft_spreads_evenly_over_nodes_or_is_refused(recipe):
    cluster = ["platform.nodes=2", "platform.gpus_per_node=8", "rl.processes=16", "sft.batch_size=144"]

    def placement(processes):
        plan = make_plan(recipe, [*cluster, f"sft.processes={processes}"])
        return next(stage.placement for stage in plan.stages.values() if stage.kind == "sft")

    assert (placement(8)["nodes"], placement(8)["gpus_per_node"]) == (1, 8)
    assert (placement(16)["nodes"], placement(16)["gpus_per_node"]) == (2, 8)
    with pytest.raises(RecipeError, match=r"sft\.processes=9 does not divide over 2 nodes"):
        placement(9)


def test_sft_takes_no_more_processes_than_devices_whatever_its_placement(recipe):
    cluster = ["platform.name=gpu", "platform.gpus_per_node=1", "sft.processes=2"]
    with pytest.raises(RecipeError, match=r"sft\.processes=2 exceeds platform\.nodes \* platform\.gpus_per_node=1"):
        make_plan(recipe, [*cluster, "platform.placement.sft={nodes: 1, gpus_per_node: 1}"])


def test_rl_fills_whole_nodes_or_is_refused(recipe):
    cluster = ["platform.nodes=2", "platform.gpus_per_node=2"]

    def placement(processes):
        plan = make_plan(recipe, [*cluster, f"rl.processes={processes}"])
        return next(stage.placement for stage in plan.stages.values() if stage.kind == "rl")

    assert [(placement(n)["nodes"], placement(n)["gpus_per_node"]) for n in (1, 2, 4)] == [(1, 1), (1, 2), (2, 2)]
    with pytest.raises(RecipeError, match=r"rl\.processes=3 does not fill whole nodes of platform\.gpus_per_node=2"):
        placement(3)
    make_plan(recipe, [*cluster, "rl.processes=3", "rl.enabled=false"])


def test_a_placement_is_of_a_stage_that_there_is(recipe):
    plan = make_plan(recipe, ["platform.placement.generate={nodes: 1, gpus_per_node: 0.5}"])
    assert {s.placement["gpus_per_node"] for s in plan.stages.values() if s.kind == "generate"} == {0.5}
    with pytest.raises(RecipeError, match=r"platform\.placement=.*there is no stage evalaute; allowed: prepare, "):
        make_plan(recipe, ["platform.placement.evalaute={nodes: 1, gpus_per_node: 0.5}"])


def test_a_sharded_cache_takes_workers_times_processes_devices(recipe):
    def placement(**cache):
        overrides = [f"cache.{name}={value}" for name, value in cache.items()]
        cluster = ["platform.nodes=2", "platform.gpus_per_node=8"]
        plan = make_plan(recipe, ["objective=lp_sft", *cluster, *overrides])
        return next(stage.placement for stage in plan.stages.values() if stage.kind == "cache")

    assert (placement(processes=4)["nodes"], placement(processes=4)["gpus_per_node"]) == (1, 4)
    assert (placement(processes=4, workers=4)["nodes"], placement(processes=4, workers=4)["gpus_per_node"]) == (2, 8)
    with pytest.raises(RecipeError, match=r"stage cache wants 4 x 8 devices, the cluster has 2 x 8"):
        placement(processes=8, workers=4)


def test_what_the_microworld_does_not_have_is_refused_when_planned(recipe):
    with pytest.raises(RecipeError, match=r"eval\.benchmarks names 'math500'; data\.source=microworld has target, rev"):
        make_plan(recipe, ["eval.benchmarks=[{name: target},{name: math500}]"])
    with pytest.raises(RecipeError, match=r"base model: pretrain\.skills: unknown latin; allowed: arithmetic, "):
        make_plan(recipe, ["model.pretrain.skills=[latin]"])


def test_a_benchmark_without_a_file_is_refused_when_planned(recipe, tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": []}))
    overrides = ["data.source=files", f"data.files.sft_train={chats}", "rl.enabled=false"]
    wanted = "eval.benchmarks=[{name: target}]"
    with pytest.raises(RecipeError, match=r"eval\.benchmarks names 'target'; give .*data\.files\.benchmarks\.target="):
        make_plan(recipe, [*overrides, wanted])
    make_plan(recipe, [*overrides, wanted, f"data.files.benchmarks.target={chats}"])
