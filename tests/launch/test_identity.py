"""What makes an artifact another one: models by role, hub commits, a user's code, files from outside."""

from __future__ import annotations

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import ConfigError
from common.user_code import code_digest
from evaluation.benchmarks import Published, user
from launch.fingerprint import PathHasher, verify_outside
from launch.graph import hub
from launch.graph.builder import make_plan
from launch.recipe.compose import RecipeError

RECIPE = """
defaults: [base, {objective: sft}, {platform: cpu}, _self_]
model: {path: %s}
data: {files: {sft_train: %s, rl_train: %s, benchmarks: {target: %s}}}
eval: {benchmarks: [{name: target}]}
"""
COMMITS = {None: "a" * 40, "main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md", "trainer_state.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def recipe(tmp_path, model, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    path = tmp_path / "own.yaml"
    path.write_text(RECIPE % (model, rows, rows, rows))
    monkeypatch.setattr("launch.graph.outside.commit_of", lambda name, revision, *_: COMMITS.get(revision, revision))
    return str(path)


def marks(recipe, *overrides):
    plan = make_plan(recipe, overrides)
    return {(stage.kind, stage.label): stage.fingerprint for stage in plan.stages.values()}


def changed(recipe, one, other):
    before, after = marks(recipe, *one), marks(recipe, *other)
    return {kind for kind, label in before.keys() & after.keys() if before[kind, label] != after[kind, label]}


def test_of_a_models_directory_only_the_model_counts(recipe, model):
    before = marks(recipe)
    (model / "README.md").write_text("another text")
    (model / "trainer_state.json").write_text("[]")
    assert marks(recipe) == before
    (model / "tokenizer.json").write_text("[]")
    assert marks(recipe) != before
    with pytest.raises(ConfigError, match="holds no model"):
        PathHasher().model(model.parent / "nothing")


def test_revisions_belong_to_roles_even_where_paths_are_equal(recipe):
    overrides = ["objective=target_sft", "model.path=org/name", "model.teacher.path=org/name", "rl.enabled=false"]
    plan = make_plan(recipe, [*overrides, "model.revision=v2"])
    models = {
        (stage.kind, stage.label, name): source["revision"]
        for stage in plan.stages.values()
        for name, source in stage.models.items()
    }
    assert models["sft", "target_sft", "model"] == "b" * 40
    teachers = {revision for (_, label, name), revision in models.items() if label == "teacher" and name == "model"}
    assert teachers == {"a" * 40} or models["sft", "target_sft", "teacher"] == "a" * 40


def test_a_hub_name_stands_for_its_commit(recipe):
    hub_model = "model.path=org/name"
    one = marks(recipe, hub_model)
    assert (
        one == marks(recipe, hub_model, "model.revision=main") == marks(recipe, hub_model, f"model.revision={'a' * 40}")
    )
    assert one != marks(recipe, hub_model, "model.revision=v2")
    plan = make_plan(recipe, [hub_model])
    tuned = next(stage for stage in plan.stages.values() if stage.kind == "sft")
    assert tuned.inputs["model"].revision == tuned.models["model"]["revision"] == "a" * 40
    with pytest.raises(RecipeError, match=rf"run\.pinned=true .*set model\.revision to one \(now {'a' * 40}\)"):
        make_plan(recipe, [hub_model, "run.pinned=true"])
    make_plan(recipe, [hub_model, "run.pinned=true", f"model.revision={'a' * 40}"])
    make_plan(recipe, ["run.pinned=true"])
    with pytest.raises(RecipeError, match=r"rl\.filter\.model=a/b: .*set rl\.filter\.revision"):
        make_plan(recipe, ["run.pinned=true", "rl.filter.enabled=true", "rl.filter.model=a/b"])


def test_offline_the_commit_is_the_cached_one(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub.commit_of.cache_clear()
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c" * 40)
    (folder / "snapshots" / ("d" * 40)).mkdir(parents=True)
    assert hub.commit_of("org/name", None, True, "model.path") == "c" * 40
    assert hub.commit_of("org/name", "d" * 8, True, "model.path") == "d" * 40
    assert hub.commit_of("org/name", "e" * 40, True, "model.path") == "e" * 40
    assert hub.commit_of("org/other", None, True, "model.path") is None
    hub.commit_of.cache_clear()
    for env, offline in (({"HF_HUB_OFFLINE": "1"}, True), ({"HF_HUB_OFFLINE": "0"}, False)):
        assert hub.is_offline(env) is offline


def test_online_the_hub_is_asked_and_a_silent_one_leaves_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    class Info:
        sha = "f" * 40

    def answer(self, name, *, revision, timeout):
        if name == "org/silent":
            raise OSError("no route")
        return Info

    monkeypatch.setattr(HfApi, "model_info", answer)
    hub.commit_of.cache_clear()
    assert hub.commit_of("org/name", "main", False, "model.path") == "f" * 40
    assert hub.commit_of("org/silent", "main", False, "model.path") is None
    hub.commit_of.cache_clear()


def test_a_dtype_counts_only_where_it_is_used(recipe):
    gpu = ["platform.name=gpu", "objective=lp_sft", "rl.filter.enabled=true"]
    kinds = changed(recipe, gpu, [*gpu, "model.dtype=bfloat16"])
    assert {"sft", "rl", "filter"} <= kinds and not kinds & {"prepare", "cache"}
    assert (
        marks(recipe, *gpu)["generate", "base.target"]
        == marks(recipe, *gpu, "model.dtype=bfloat16")["generate", "base.target"]
    )
    attention = [*gpu, "cache.producer=vllm", "objective.top_k=5"]
    assert "cache" not in changed(recipe, attention, [*attention, "model.attention=eager"])
    assert "cache" in changed(recipe, gpu, [*gpu, "model.attention=eager"])


def test_the_filter_has_its_seed_and_the_chat_template(recipe, tmp_path):
    on = ["rl.filter.enabled=true"]
    assert "filter" in changed(recipe, on, [*on, "seed=1"])
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    with_template = [*on, f"model.chat_template={template}"]
    before = marks(recipe, *with_template)
    template.write_text("{{ messages }} ")
    after = marks(recipe, *with_template)
    assert before["filter", "prompts"] != after["filter", "prompts"]
    assert before["sft", "sft"] != after["sft", "sft"]


REWARD = "def score(response, answer):\n    return response == answer\n"
OBJECTIVE = """
from dataclasses import dataclass
from typing import ClassVar
from sft_objectives import Needs, Objective

@dataclass(frozen=True, kw_only=True)
class Plain(Objective):
    name: ClassVar[str] = "plain"
    needs = Needs()

    def loss(self, step):
        return -step.student.log_p_label
"""
BENCHMARK = """
from evaluation.benchmarks import Published, user

OWN = Published(name="own", file="%s", revision="1", columns={"n": int},
                problem=lambda row: (user(str(row["n"])), "1"), grader="own_grader_x.GRADER")
"""
GRADER = """
from evaluation.graders import Grade, Grader

def judge(response, answer, argument):
    return Grade(response == answer, "ok")

GRADER = Grader("own", judge)
"""


def test_code_that_a_user_brings_is_part_of_what_it_makes(recipe, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"n": 1}\n')
    files = {
        "own_reward_x": REWARD,
        "own_objective_x": OBJECTIVE,
        "own_benchmark_x": BENCHMARK % problems,
        "own_grader_x": GRADER,
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "mine.yaml").write_text("task: mine\n")
    own = [
        "rl.reward.name=own_reward_x.score",
        "rl.filter.enabled=true",
        "objective.name=own_objective_x:Plain",
        "eval.benchmarks=[{name: target},{name: own_benchmark_x.OWN}]",
        "eval.tasks=[{name: mine}]",
        f"eval.task_files={tasks}",
    ]

    def after_editing(path):
        before = marks(recipe, *own)
        path.write_text(path.read_text() + "\n# another text\n")
        after = marks(recipe, *own)
        return {(kind, label) for kind, label in before if before[kind, label] != after[kind, label]}

    found = after_editing(tmp_path / "own_reward_x.py")
    assert {kind for kind, _ in found} >= {"filter", "rl"} and not {kind for kind, _ in found} & {"sft", "prepare"}
    found = after_editing(tmp_path / "own_objective_x.py")
    assert {kind for kind, _ in found} >= {"sft", "rl"} and "prepare" not in {kind for kind, _ in found}
    found = {(kind, label) for kind, label in after_editing(tmp_path / "own_grader_x.py") if kind != "analyse"}
    assert found and {kind for kind, _ in found} == {"measure"} and all(label.endswith(".own") for _, label in found)
    found = {(kind, label) for kind, label in after_editing(tasks / "mine.yaml") if kind != "analyse"}
    assert found and all(label.endswith(".mine") for _, label in found)


def test_modules_that_a_users_code_imports_are_part_of_it(tmp_path, monkeypatch):
    """Its own ones, however deep and wherever they are imported; neither ours nor what is installed."""
    elsewhere = tmp_path / "elsewhere"
    files = {
        "grade_y.py": "import json\nimport torch\nimport common.files\nfrom own_y import rules\n\ndef score(): ...\n",
        "own_y/__init__.py": "",
        "own_y/rules.py": "from . import words\n\ndef late():\n    from .deep.numbers import ONE\n    import far_y\n",
        "own_y/words.py": "import grade_y\n",
        "own_y/deep/numbers.py": "ONE = 1\n",
        "own_y/unused.py": "",
        "elsewhere/far_y.py": "try:\n    import not_there_y\nexcept ImportError:\n    pass\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(elsewhere))
    for path in ("grade_y.score", "grade_y:score", "grade_y:score:argument"):
        assert code_digest(path) == code_digest("grade_y.score") is not None
    for name in files:
        before = code_digest("grade_y:score")
        (tmp_path / name).write_text((tmp_path / name).read_text() + "# another text\n")
        assert (code_digest("grade_y:score") != before) == (name != "own_y/unused.py"), name
    assert "grade_y" not in sys.modules and "own_y" not in sys.modules  # nothing of it has been run
    assert code_digest("math") is None and code_digest("evaluation.graders.math:MATH") is None
    assert code_digest("no_such_module_y.score") is None


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_grader_that_rows_name_is_part_of_the_scores(recipe, tmp_path, monkeypatch, suffix):
    monkeypatch.syspath_prepend(str(tmp_path))
    grader = tmp_path / f"row_grader_{suffix}.py"
    grader.write_text(GRADER)
    rows = [{"prompt": "1?", "answer": "1", "grader": name} for name in ("numeric:0.1", f"{grader.stem}.GRADER:3")]
    problems = tmp_path / f"problems.{suffix}"
    if suffix == "jsonl":
        problems.write_text("".join(json.dumps(row) + "\n" for row in rows) + "not JSON, but a grader\n[]\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), problems)
    own = [f"data.files.benchmarks.target={problems}"]
    before = marks(recipe, *own)
    grader.write_text(GRADER + "\n# another text\n")
    after = marks(recipe, *own)
    changed = {mark for mark in before if before[mark] != after[mark] and mark[0] != "analyse"}
    assert changed and {kind for kind, _ in changed} == {"measure"}


def test_a_benchmark_of_ones_own_may_choose_a_grader_for_each_row(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text('{"n": 1, "by": "mine.A"}\n{"n": 2, "by": "mine.B:2"}\n')
    whole = {"revision": "1", "columns": {"n": int}, "problem": lambda row: (user(str(row["n"])), "1")}
    own = Published(name="own", file=str(file), grader=lambda row: row["by"], **whole)
    assert own.graders() == {"mine.A", "mine.B:2"}
    assert Published(name="own", file="none.jsonl", grader="mine.A", **whole).graders() == {"mine.A"}
    assert Published(name="own", file="none.jsonl", grader=lambda row: row["by"], **whole).graders() == set()
    file.write_text('{"n": "one"}\n')
    assert own.graders() == set()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rl.reward.name=no_such_module.score"], r"rl\.reward\.name=no_such_module\.score: there is no module no_"),
        (["rl.reward.name=json.scorer"], r"rl\.reward\.name=json\.scorer: json defines no scorer; it has .*dumps"),
        (["rl.reward.name=broken_x.score"], r"broken_x\.py line 1: "),
        (["rl.reward.settings={x: 1}"], r"rl\.reward\.settings: x does not fit math"),
        (["eval.target=gsm8k"], r"eval\.target=gsm8k: is not evaluated; allowed: target"),
        (["data.files.benchmarks.more=README.md"], r"benchmarks\.more: given but not evaluated; add \{name: more\}"),
        (["data.files.sft_train=org/name"], r"sft_train=org/name: no such file; .*\{source: hub, path: org/name"),
        (["data.files.benchmarks.target=org/name"], r"target=org/name: no such file; a data set of the hub"),
        (["data.files.sft_train=no.jsonl"], r"sft_train=no\.jsonl: no such file or directory; give an existing path"),
        (["model.chat_template=no.jinja"], r"model\.chat_template=no\.jinja: no such file"),
        (["sft.steps=0"], r"sft\.steps=0: "),
    ],
)  # fmt: skip
def test_mistakes_are_found_when_planned(recipe, overrides, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_x.py").write_text("def score(:\n")
    with pytest.raises(RecipeError, match=message) as error:
        make_plan(recipe, overrides)
    assert "\n" not in str(error.value)


def test_what_is_not_run_is_not_asked_for(recipe):
    make_plan(recipe, ["rl.enabled=false", "rl.reward.name=no_such_module.score"])
    make_plan(recipe, ["eval.enabled=false", "data.files.benchmarks.more=README.md", "eval.target=gsm8k"])


def test_a_file_from_outside_is_checked_again_when_it_is_read(recipe, tmp_path, model):
    plan = make_plan(recipe, [])
    stage = next(stage for stage in plan.stages.values() if (stage.kind, stage.label) == ("prepare", "sft"))
    outside = {name: given for name, given in stage.inputs.items() if given.path}
    assert set(outside) == {"sft_train", "model"} and all(given.digest for given in outside.values())
    paths = {name: given.path for name, given in outside.items()}
    digests = {name: given.digest for name, given in outside.items()}
    memory = tmp_path / "hashes.json"
    verify_outside(paths, digests, stage.models, memory)
    (model / "README.md").write_text("more")
    verify_outside(paths, digests, stage.models, memory)
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match=r"input sft_train: .*rows\.jsonl has changed since this run was planned"):
        verify_outside(paths, digests, stage.models, memory)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"is gone since this run was planned"):
        verify_outside(paths, digests, stage.models, memory)


def test_a_store_that_cannot_be_written_to_is_planned_in(recipe, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr("launch.fingerprint.write_json", refuse)
    assert make_plan(recipe, [f"run.root={tmp_path / 'runs'}"]).stages
    (tmp_path / "hashes.json").write_text(json.dumps(["not", "a", "mapping"]))
    assert PathHasher(tmp_path / "hashes.json")(tmp_path / "rows.jsonl")
