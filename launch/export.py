"""`export`: a checkpoint of a branch as a directory that transformers and vLLM load, with a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import write_text
from evaluation.artifact import read_metrics
from launch.branches import PRUNED, describe, named
from launch.graph.plan import Branch, Plan, Stage
from launch.graph.select import select
from launch.store import Store


def export(
    plan: Plan, name: str | None, model: str | None, target: Path, *, licence: str | None, push: str | None
) -> int:
    """Copies the model `model` (None: the last one) of the branch `name` to `target` with README.md; returns 0.

    push: a repository of the hub that gets the directory. Raises ConfigError for an unknown branch or model, for one
    that is not made, and for a target that is there.
    """
    store = Store(plan.root)
    plan = select(plan, store).plan
    branch = _branch(plan, name)
    models = {one["name"]: one for one in describe(plan, store, branch)["models"]}
    chosen = model or list(models)[-1]
    if chosen not in models:
        raise ConfigError(f"--model {chosen}: branch {branch.name} has none; allowed: {', '.join(models)}")
    found = models[chosen]
    role = next(one.role for one in branch.models if one.name == chosen)
    if role is None:
        raise ConfigError(f"--model {chosen}: is {found['directory']}, which this recipe does not make; export another")
    if found["directory"] in (None, PRUNED):
        raise ConfigError(f"--model {chosen}: {found['directory'] or 'not made yet'}; run the recipe first")
    if target.exists():
        raise ConfigError(f"--to {target}: is there already; name another directory")
    stage = plan.stages[branch.stages[role]]
    source = Path(found["directory"])
    store.verify(store.directory(stage), stage.fingerprint, source.relative_to(store.directory(stage)).as_posix())
    shutil.copytree(source, target)
    write_text(target / "README.md", card(plan, store, branch, found, stage, licence))
    print(f"exported {chosen} of {branch.name}: {target}")
    if push is not None:
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(push, exist_ok=True)
        hub.upload_folder(repo_id=push, folder_path=target, commit_message=f"{chosen} of {plan.recipe} {branch.name}")
        print(f"pushed: {push}")
    return 0


def _branch(plan: Plan, name: str | None) -> Branch:
    found = named(plan, [] if name is None else [name])
    if len(found) > 1:
        raise ConfigError(f"--branch is missing: there are {', '.join(branch.name for branch in found)}; name one")
    return found[0]


def card(plan: Plan, store: Store, branch: Branch, model: dict[str, Any], stage: Stage, licence: str | None) -> str:
    """The model card: licence fields, what was trained on what, measured numbers with intervals, lineage, versions."""
    record = store.find(stage)
    assert record is not None
    base = branch.recipe.model.path
    head = {"library_name": "transformers", "tags": ["sft-then-rl"]}
    head |= {} if licence is None else {"license": licence}
    head |= {} if base is None or Path(base).exists() else {"base_model": base}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {plan.recipe}, {branch.name}: {model['name']}", ""]
    adopted = branch.recipe.sft.adopt
    how = f"Objective: {_words(branch)}" if adopted is None else f"In the place of SFT stands the model of {adopted}"
    lines += [f"Base model: {base or 'trained from nothing (model.pretrain)'}. {how}.", ""]
    overrides = " ".join(branch.overrides) or "none"
    lines += [f"Recipe `{plan.recipe}` with overrides: `{overrides}`; seeds {record.seeds}.", ""]
    data = branch.recipe.data
    used = {part: [dict(one)["source"] for one in getattr(data, part)] or [data.source] for part in ("sft", "rl")}
    lines += [f"Data: SFT from {', '.join(used['sft'])}; RL prompts from {', '.join(used['rl'])}.", ""]
    lines += _scores(store, model)
    lines += ["## Lineage", "", "| stage | fingerprint |", "| --- | --- |"]
    lines += [f"| {one.kind} {one.label} | `{one.fingerprint}` |" for one in _lineage(plan, stage)]
    versions = ", ".join(f"{name} {version}" for name, version in record.packages.items())
    lines += ["", "## Made with", "", f"{versions}.", ""]
    return "\n".join(lines)


def _words(branch: Branch) -> str:
    settings = dict(branch.recipe.objective)
    own = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "name")
    return f"{settings['name']}" + (f" ({own})" if own else "")


def _scores(store: Store, model: dict[str, Any]) -> list[str]:
    """A table of pass@k, greedy and the harness' metrics, with 95% intervals over problems."""
    directories = [store.root / address for address in model["measured"].values() if address is not None]
    if not directories:
        return []
    metrics = read_metrics(directories)
    rows = []
    for name, one in (*metrics["benchmarks"].items(), *metrics["tasks"].items()):
        for metric, found in one["metrics"].items():
            if metric.startswith(("pass@", "greedy", "balanced")) or "," in metric:
                value = f"{found['value']:.4f} | {found['low']:.4f} to {found['high']:.4f}"
                rows.append(f"| {name} | {metric} | {value} | {found['n']} |")
    head = [
        "## Measured",
        "",
        "| benchmark | metric | value | 95% interval | problems |",
        "| --- | --- | --- | --- | --- |",
    ]
    return [*head, *rows, ""] if rows else []


def _lineage(plan: Plan, stage: Stage) -> list[Stage]:
    """The stage and all that it was made from, inputs first."""
    wanted = {stage.fingerprint}
    for mark, one in reversed(plan.stages.items()):
        if mark in wanted:
            wanted |= {given.stage for given in one.inputs.values() if given.stage is not None}
    return [one for mark, one in plan.stages.items() if mark in wanted]
