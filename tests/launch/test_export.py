"""A model of a branch as a directory with its card, and on a stand-in for the hub."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toy
import yaml
from hub_stand_in import hub

from common.errors import ConfigError
from launch.branches import describe
from launch.card import Licence, card
from launch.citations import citations
from launch.commands.line import call
from launch.export import export
from launch.graph.model import BranchModel
from launch.graph.plan import Branch, Input
from launch.published.cells import matching
from launch.recipe.compose import branches
from launch.removal import Rule, remove
from launch.store import Store
from launch.store.prune import take_away

NO_LICENCE = Licence()
TOKEN = "hf_of_the_environment"
SCORES = {
    "pass@1": {"value": 0.25, "low": 0.2, "high": 0.31, "n": 128},
    "greedy": {"value": 0.5, "low": 0.41, "high": 0.59, "n": 128},
    "response_tokens": {"value": 12.0, "low": 11.0, "high": 13.0, "n": 128},
}


def write_model(folder):
    (folder / "checkpoints" / "step_2").mkdir(parents=True)
    (folder / "checkpoints" / "step_2" / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "checkpoints" / "step_2" / "config.json").write_text("{}")
    (folder / "checkpoints.json").write_text(json.dumps({"final": 2, "best": 2, "steps": [2]}))


def write_scores(folder, name="target", metric="pass@1"):
    measured = {
        "version": 4,
        "kind": "benchmark",
        "name": name,
        "engine": {"vllm": "0.28.0", "dtype": "float32", "max_length": 64, "reproducible": True},
        "base_minimum": None,
        "protocol": {},
        "counts": {"problems": 128, "responses": 256, "grading": {"ok": 256}},
        "metrics": {**SCORES, metric: SCORES["pass@1"]},
    }
    (folder / "metrics.json").write_text(json.dumps(measured))


def publish(store, stage, write):
    store.acquire(stage, "run")
    write(store.temporary(stage, store.begin(stage)))
    store.publish(stage, 1, "run", started=0.0, seconds=90.0, peak_memory_bytes=1)
    store.release(stage, "run")


@pytest.fixture
def world(tmp_path):
    """Two branches that share what `prepare` read of the hub, each with a model and its scores; all is published."""
    root = tmp_path / "runs"
    data = toy.steps("data", "prepare")
    data = replace(data, inputs={"rows": Input(path="org/rows", revision="abc123")})
    found, stages = [], [data]
    recipe = toy.plan(root).branches[0].recipe
    for name in ("sft", "dft"):
        sft = toy.steps(name, inputs={"data": data})
        scores = toy.steps(f"{name}.target", "measure", inputs={"model": (sft, "checkpoint:final")})
        roles = {"prepare:sft": data.fingerprint, "sft": sft.fingerprint, "measure:sft/target": scores.fingerprint}
        models = (BranchModel("sft", "sft", None, "sft", {"target": scores.fingerprint}),)
        own = recipe.model_copy(update={"objective": {"name": name}})
        found.append(Branch(name, (f"objective={name}",), own, roles, models))
        stages += [replace(sft, branches=(name,)), replace(scores, branches=(name,))]
    plan = replace(toy.plan(root, *stages), branches=found)
    store = Store(root)
    plain = lambda folder: (folder / "rows.txt").write_text("")  # noqa: E731
    for stage in plan.stages.values():
        publish(store, stage, {"sft": write_model, "measure": write_scores}.get(stage.kind, plain))
    return plan, store


def by_label(plan, kind, label):
    return next(stage for stage in plan.stages.values() if (stage.kind, stage.label) == (kind, label))


def test_a_model_is_exported_with_its_card(world, tmp_path):
    plan, _store = world
    target = tmp_path / "out"
    assert export(plan, "dft", None, target, licence=Licence("apache-2.0"), push=None) == 0
    assert (target / "model.safetensors").read_bytes().startswith(b"weights")
    text = (target / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["library_name"], head["datasets"]) == ("apache-2.0", "transformers", ["org/rows"])
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"]["name"] == "target"
    assert {one["type"]: one["value"] for one in result["metrics"]} == {"pass@1": 0.25, "greedy": 0.5}
    assert "| target | pass@1 | 0.2500 | 0.2000 to 0.3100 | 128 |" in text and "response_tokens" not in text
    data, dft = by_label(plan, "prepare", "data"), by_label(plan, "sft", "dft")
    assert f"| prepare data | `{data.fingerprint}` | org/rows@abc123 | 1 min 30 s |" in text
    assert f"| sft dft | `{dft.fingerprint}` | {data.fingerprint[:16]} | 1 min 30 s |" in text
    assert by_label(plan, "sft", "sft").fingerprint not in text
    assert "SFT objective: `dft`" in text and "python 3." in text and "@misc{verl," in text
    assert str(tmp_path) not in text, "paths of this machine stay here"


def test_what_cannot_be_exported_is_refused_in_one_line(world, tmp_path):
    plan, _ = world
    export(plan, "dft", None, tmp_path / "out", licence=NO_LICENCE, push=None)
    with pytest.raises(ConfigError, match="is there already"):
        export(plan, "dft", None, tmp_path / "out", licence=NO_LICENCE, push=None)
    with pytest.raises(ConfigError, match="there are sft, dft; name one"):
        export(plan, None, None, tmp_path / "other", licence=NO_LICENCE, push=None)
    with pytest.raises(ConfigError, match="--model rl: branch dft has none; allowed: sft"):
        export(plan, "dft", "rl", tmp_path / "other", licence=NO_LICENCE, push=None)
    assert remove(plan, Rule(checkpoints=True), delete=True) == 0
    with pytest.raises(ConfigError, match="deleted by rm; run the recipe first"):
        export(plan, "dft", None, tmp_path / "other", licence=NO_LICENCE, push=None)


def test_a_card_without_scores_or_licence_says_so(world):
    plan, store = world
    take_away(store, by_label(plan, "measure", "dft.target"))
    branch = plan.branches[1]
    (model,) = describe(plan, store, branch)["models"]
    text = card(plan, store, branch, model, by_label(plan, "sft", "dft"), NO_LICENCE)
    assert "Nothing was measured of this model." in text and "Licence: not stated" in text
    assert "license" not in text.split("---")[1] and "model-index" not in text


def test_a_licence_of_ones_own_has_a_name_and_a_link(world, capsys):
    plan, store = world
    branch = plan.branches[1]
    (model,) = describe(plan, store, branch)["models"]
    own = Licence("other", "own terms", "LICENSE")
    text = card(plan, store, branch, model, by_label(plan, "sft", "dft"), own)
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["license_name"], head["license_link"]) == ("other", "own terms", "LICENSE")
    for wrong in (["--licence", "other"], ["--licence-name", "x"], ["--licence", "mit", "--licence-link", "LICENSE"]):
        assert call(["export", "microworld", "--to", "out", *wrong]) == 2
        assert "--licence-name" in capsys.readouterr().err


def test_the_papers_numbers_stand_beside_ours(world):
    """Table 15 of LP-SFT, whose row of the branch is found by the recipe's own `published` section."""
    plan, store = world
    recipe = "lp_sft/t2_magicoder"
    composed = next(one for one in branches(recipe, []) if one.recipe.objective["name"] == "lp_sft")
    overrides = tuple(str(axis) for axis in composed.axes)
    cells = matching("lp_sft", composed.recipe.published, overrides, "SFT")
    measured = next(cell for cell in cells if len(cell.scores) == 1)
    name, metric = measured.scores[0]
    own = toy.steps("own", "measure", inputs={"model": (by_label(plan, "sft", "dft"), "checkpoint:final")})
    publish(store, own, lambda folder: write_scores(folder, name, metric))
    old = plan.branches[1]
    settings = composed.recipe.model_copy(update={"run": old.recipe.run})
    models = (replace(old.models[0], measures={name: own.fingerprint}),)
    branch = replace(old, recipe=settings, overrides=overrides, models=models)
    plan = replace(plan, recipe=recipe, branches=[branch], stages={**plan.stages, own.fingerprint: own})
    (model,) = describe(plan, store, branch)["models"]
    text = card(plan, store, branch, model, by_label(plan, "sft", "dft"), NO_LICENCE)
    rows = [line for line in text.partition("## Published")[2].splitlines() if line.startswith("| T15 ")]
    ours = f"| T15 | {measured.benchmark} {measured.metric} | {measured.value} | 25.00 (20.00 to 31.00) |"
    assert len(rows) == len(cells) and ours in rows
    assert all(line.endswith("| not measured |") for line in rows if line != ours)
    assert "@misc{lp_sft," in text and "base_model: " in text


@pytest.mark.parametrize(
    ("recipe", "objective", "algorithm", "keys"),
    [
        ("microworld", "sft", None, ["verl"]),
        ("microworld", "prift_mass_repo", "grpo", ["prift", "grpo", "verl"]),
        ("lp_sft/t2_magicoder", "lp_sft", None, ["lp_sft", "verl"]),
        ("talr/t1", "sed_sft", "dapo", ["talr", "sed_sft", "dapo", "verl"]),
    ],
)
def test_what_a_model_was_made_by_is_cited_once(recipe, objective, algorithm, keys):
    text = citations(recipe, objective, algorithm)
    assert [line[6:-1] for line in text.splitlines() if line.startswith("@misc{")] == keys


# --- the hub


@pytest.fixture
def online(monkeypatch):
    """The client of the hub, sent to a stand-in, without whatever this machine knows of the real one."""
    import huggingface_hub.constants as constants

    with hub() as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def test_a_model_is_pushed_whole_with_the_token_of_the_environment(world, tmp_path, online):
    plan, _ = world
    target = tmp_path / "out"
    assert export(plan, "sft", "sft", target, licence=NO_LICENCE, push="own/model", private=True) == 0
    local = {path.name: path.read_bytes() for path in target.iterdir()}
    assert online.files == local and set(local) == {"README.md", "config.json", "model.safetensors"}
    assert online.modes == {"README.md": "file", "config.json": "file", "model.safetensors": "lfsFile"}
    assert online.repositories["own/model"]["visibility"] == "private"
    assert [commit["summary"] for commit in online.commits] == ["sft of toy sft"]
    assert {given for _, _, given in online.requests} <= {f"Bearer {TOKEN}", None}
    ours = [given for _, path, given in online.requests if "own/model" in path or path == "/api/repos/create"]
    assert len(ours) >= 4 and set(ours) == {f"Bearer {TOKEN}"}
    # what is there already is no mistake
    assert export(plan, "dft", None, tmp_path / "again", licence=NO_LICENCE, push="own/model") == 0
    assert len(online.commits) == 2


def test_a_token_that_this_machine_keeps_is_not_taken(world, tmp_path, online, monkeypatch):
    import huggingface_hub.constants as constants

    plan, _ = world
    kept = tmp_path / "token"
    kept.write_text("hf_of_the_machine")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(kept))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="--push own/model: HF_TOKEN is not set"):
        export(plan, "sft", "sft", tmp_path / "out", licence=NO_LICENCE, push="own/model")
    assert not online.requests and not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    export(plan, "sft", "sft", tmp_path / "out", licence=NO_LICENCE, push="own/model")
    assert not any(given and "machine" in given for _, _, given in online.requests)


def test_what_the_hub_refuses_is_one_line_without_the_token_and_the_directory_stays(world, tmp_path, online):
    plan, _ = world
    online.refuse = 403
    target = tmp_path / "out"
    with pytest.raises(ConfigError) as caught:
        export(plan, "sft", "sft", target, licence=NO_LICENCE, push="own/model")
    text = str(caught.value)
    assert "You may not write there" in text and f"`hf upload own/model {target}` sends it" in text
    assert "\n" not in text and TOKEN not in text
    assert (target / "model.safetensors").exists() and not online.commits
