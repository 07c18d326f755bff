"""The recipes that ship: each composes, validates and plans, and holds nothing that is the default anyway."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.graph.builder import make_plan
from launch.recipe import library
from launch.recipe.compose import RECIPES, recipe_names

GROUPS = sorted(p for group in library.GROUPS if group != "objective" for p in (RECIPES / group).glob("*.yaml"))
OWN = [name for name in recipe_names() if "/" not in name]  # the papers' are tried in test_papers, test_paper_plans
BASE = yaml.safe_load((RECIPES / "base.yaml").read_text())


def own_data(tmp_path):
    files = {}
    for name in ("sft_train", "sft_val", "rl_train", "rl_val", "problems"):
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("{}\n")
    given = [f"data.files.{name}={path}" for name, path in files.items() if name != "problems"]
    return [*given, f"data.files.benchmarks.target={files['problems']}"]


def leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def value_at(tree, path):
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return KeyError
        tree = tree[key]
    return tree


def inherited(path):
    """The values that a file's own `defaults:` give before its own."""
    tree = yaml.safe_load(path.read_text()) or {}
    below = {}
    for entry in tree.get("defaults", []):
        name, group = (entry, path.parent) if isinstance(entry, str) else (next(iter(entry.values())), None)
        if name in ("_self_", "base"):
            continue
        file = (group or RECIPES / next(iter(entry))) / f"{name}.yaml"
        merge(below, inherited(file) if group else {next(iter(entry)): inherited(file)})
    own = {key: value for key, value in tree.items() if key != "defaults"}
    return merge(below, own)


def merge(into, other):
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
    return into


@pytest.mark.parametrize("name", OWN)
def test_every_recipe_plans(name, tmp_path):
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    world = any(entry == {"data": "microworld"} for entry in recipe["defaults"]) or "source" in recipe.get("data", {})
    plan = make_plan(name, [*([] if world else own_data(tmp_path)), f"run.root={tmp_path}"])
    kinds = {stage.kind for stage in plan.stages.values()}
    trained = set() if recipe.get("sft", {}).get("enabled") is False else {"sft", "rl"}
    assert {"prepare", "generate", "measure"} | trained <= kinds


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_holds_only_its_differences_from_what_it_is_built_on(name):
    """A value that equals the default is noise; one that restates another file's value hides where it comes from."""
    path = RECIPES / f"{name}.yaml"
    tree = yaml.safe_load(path.read_text())
    below = merge(yaml.safe_load((RECIPES / "base.yaml").read_text()), {})
    for entry in tree.pop("defaults"):
        if isinstance(entry, dict):
            ((group, choice),) = entry.items()
            merge(below, {group: inherited(RECIPES / group / f"{choice}.yaml")})
    repeated = [".".join(keys) for keys, value in leaves(tree) if value_at(below, keys) == value]
    assert repeated == []


@pytest.mark.parametrize("path", GROUPS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_group_file_holds_known_fields(path):
    """A group's choice may restate a default (it undoes another choice), but every key must exist in base.yaml."""
    section = BASE[path.parent.name]
    free = ("verl", "env", "pretrain", "lora", "placement", "shapes", "template_arguments")
    tree = {key: value for key, value in (yaml.safe_load(path.read_text()) or {}).items() if key != "defaults"}
    unknown = [k for k, _ in leaves(tree) if not set(k) & set(free) and value_at(section, k) is KeyError]
    assert unknown == []


def test_planning_and_help_import_no_heavy_package(tmp_path):
    code = (
        "import sys; from launch.__main__ import main\n"
        f"assert main(['plan', 'microworld', 'run.root={tmp_path}', '--json']) == 0\n"
        "assert not {'torch', 'verl', 'vllm', 'ray', 'pyarrow'} & set(sys.modules), sys.modules.keys()"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
