"""The model card of an exported checkpoint: what it is, what was measured and published, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.artifact import read_metrics
from launch.citations import citations
from launch.graph.plan import Branch, Plan, Stage
from launch.published.cells import Printed, matching, paper_of
from launch.report.cells import Cell
from launch.report.published import mean
from launch.store import Record, Store
from launch.text import seconds_text

SHOWN = ("pass@", "greedy", "balanced", "self_bleu")  # of a benchmark's metrics, by how they begin
PHASES = {"base": "base", "sft": "SFT", "rl": "RL"}  # as the papers' tables call them


@dataclass(frozen=True)
class Licence:
    """Identifier as the hub knows it; with `other` a name and where its text is."""

    identifier: str | None = None
    name: str | None = None
    link: str | None = None

    def fields(self) -> dict[str, str]:
        """The card's licence fields."""
        given = {"license": self.identifier, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in given.items() if value is not None}


def card(plan: Plan, store: Store, branch: Branch, model: Mapping[str, Any], stage: Stage, licence: Licence) -> str:
    """The card in Markdown. model: as `launch.branches.describe` has it; stage: the one that made it."""
    record = store.find(stage)
    assert record is not None
    lineage = _lineage(plan, stage)
    directories = [store.root / address for address in model["measured"].values() if address is not None]
    metrics = read_metrics(directories) if directories else None
    title = f"{plan.recipe}, {branch.name}: {model['name']}"
    parts = [
        _head(branch, lineage, metrics, licence, title),
        f"# {title}\n",
        _origin(plan, branch, record, lineage, licence),
        _use(branch),
        _measured(metrics),
        _published(plan, branch, model["phase"], metrics),
        _ancestors(plan, store, lineage),
        _versions(record),
        "## Citation\n\n```bibtex\n" + _cited(plan, branch, lineage) + "\n```\n",
    ]
    return "\n".join(part for part in parts if part)


# --- what it is


def _head(branch: Branch, lineage: list[Stage], metrics: Mapping[str, Any] | None, licence: Licence, title: str) -> str:
    """The fields that the hub reads; JSON values are YAML."""
    base = branch.recipe.model.path
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["sft-then-rl"]}
    head |= licence.fields()
    if base is not None and not Path(base).expanduser().exists():
        head |= {"base_model": base, "base_model_relation": "finetune"}
    if data := _data_sets(lineage):
        head["datasets"] = data
    if metrics is not None and (results := _results(metrics)):
        head["model-index"] = [{"name": title, "results": results}]
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""])


def _data_sets(lineage: list[Stage]) -> list[str]:
    """Data sets of the hub that were prepared for it."""
    found = {
        given.path.partition(":")[0]: None
        for stage in lineage
        if stage.kind == "prepare"
        for given in stage.inputs.values()
        if given.path is not None and _on_hub(given.path)
    }
    return list(found)


def _on_hub(path: str) -> bool:
    return path.count("/") == 1 and not Path(path).expanduser().exists() and "://" not in path


def _results(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": name, "name": name},
            "metrics": [
                {"type": metric, "name": f"{metric} (95% interval {one['low']:.4f} to {one['high']:.4f})",
                 "value": round(one["value"], 6)}
                for metric, one in scores.items()
            ],
        }
        for name, scores in _scores(metrics).items()
    ]  # fmt: skip


def _origin(plan: Plan, branch: Branch, record: Record, lineage: list[Stage], licence: Licence) -> str:
    recipe = branch.recipe
    base = recipe.model.path
    where = "trained from nothing (model.pretrain)"
    if base is not None:
        where = base if _on_hub(base) else f"a local directory, {Path(base).name}"
    overrides = " ".join(branch.overrides) or "none"
    seeds = ", ".join(f"{name}={value}" for name, value in record.seeds.items()) or "none"
    given = [f"Base model: {where}.", f"Recipe `{plan.recipe}` with overrides `{overrides}`; seeds: {seeds}."]
    kinds = {stage.kind for stage in lineage}
    if recipe.sft.adopt is not None:
        given.insert(1, f"In the place of SFT stands the model of {recipe.sft.adopt}, which was trained elsewhere.")
    if "sft" in kinds:
        given.insert(1, f"SFT objective: {_objective(branch)}; data: {_sources(recipe, 'sft')}.")
    if "rl" in kinds:
        given.insert(-1, f"RL: {recipe.rl.algorithm}, {recipe.rl.steps} steps; prompts: {_sources(recipe, 'rl')}.")
    if not licence.fields():
        given.append("Licence: not stated; that of the base model and of the data applies.")
    return "\n".join(f"- {line}" for line in given) + "\n"


def _objective(branch: Branch) -> str:
    settings = dict(branch.recipe.objective)
    own = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "name")
    return f"`{settings['name']}`" + (f" ({own})" if own else "")


def _sources(recipe: Any, part: str) -> str:
    return ", ".join([dict(one)["source"] for one in getattr(recipe.data, part)] or [recipe.data.source])


def _use(branch: Branch) -> str:
    length = branch.recipe.eval.max_length
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")
chat = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "..."}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**chat, max_new_tokens=256)[0, chat["input_ids"].shape[1] :]))
```

`vllm serve . --max-model-len {length}` serves it. A turn ends where `generation_config.json` says.
"""


# --- what is known of it


def _scores(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Benchmark, task or held-out chats -> the metrics that a card shows."""
    found = {
        name: {metric: value for metric, value in one["metrics"].items() if metric.startswith(SHOWN)}
        for name, one in metrics["benchmarks"].items()
    }
    found |= {name: dict(one["metrics"]) for name, one in metrics["tasks"].items()}
    if metrics["held_out"] is not None:
        found["held-out chats (per token, nats)"] = dict(metrics["held_out"]["metrics"])
    return {name: scores for name, scores in found.items() if scores}


def _measured(metrics: Mapping[str, Any] | None) -> str:
    """Every score with its 95% interval over problems or chats."""
    found = {} if metrics is None else _scores(metrics)
    rows = [
        f"| {name} | {metric} | {one['value']:.4f} | {one['low']:.4f} to {one['high']:.4f} | {one['n']} |"
        for name, scores in found.items()
        for metric, one in scores.items()
    ]
    if not rows:
        return "## Measured\n\nNothing was measured of this model.\n"
    head = ["| benchmark | metric | value | 95% interval | problems or chats |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(["## Measured", "", *head, *rows, ""])


def _published(plan: Plan, branch: Branch, phase: str, metrics: Mapping[str, Any] | None) -> str:
    """What the paper of the recipe prints for this line, beside ours."""
    paper = paper_of(plan.recipe)
    if paper is None or phase not in PHASES:
        return ""
    rows = []
    for printed in matching(paper, branch.recipe.published, branch.overrides, PHASES[phase]):
        ours = mean([_cell(metrics, *score) for score in printed.scores])
        shown = "not measured" if ours.value is None else _percent(ours, printed)
        rows.append(f"| {printed.table} | {printed.benchmark} {printed.metric} | {printed.value} | {shown} |")
    if not rows:
        return ""
    head = ["| table | score | published | measured here (95% interval) |", "| --- | --- | --- | --- |"]
    return "\n".join(["## Published", "", *head, *rows, ""])


def _cell(metrics: Mapping[str, Any] | None, name: str, metric: str) -> Cell:
    for group in ("benchmarks", "tasks") if metrics is not None else ():
        one = (metrics or {})[group].get(name, {}).get("metrics", {}).get(metric)
        if one is not None:
            return Cell("", one["value"], one["low"], one["high"])
    return Cell()


def _percent(ours: Cell, printed: Printed) -> str:
    scale = 1.0 if any(metric == "self_bleu" for _, metric in printed.scores) else 100.0
    value, low, high = (scale * (one or 0.0) for one in (ours.value, ours.low, ours.high))
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


# --- where it comes from


def _lineage(plan: Plan, stage: Stage) -> list[Stage]:
    """The stage and all that it was made from, inputs first."""
    wanted = {stage.fingerprint}
    for mark, one in reversed(plan.stages.items()):
        if mark in wanted:
            wanted |= {given.stage for given in one.inputs.values() if given.stage is not None}
    return [one for mark, one in plan.stages.items() if mark in wanted]


def _ancestors(plan: Plan, store: Store, lineage: list[Stage]) -> str:
    rows = []
    for one in lineage:
        record = store.find(one)
        took = "" if record is None else seconds_text(record.seconds)
        read = [plan.stages[given.stage].fingerprint[:16] for given in one.inputs.values() if given.stage is not None]
        read += [_outside(given) for given in one.inputs.values() if given.path is not None]
        rows.append(f"| {one.kind} {one.label} | `{one.fingerprint}` | {', '.join(read)} | {took} |")
    head = ["| stage | fingerprint | made from | took |", "| --- | --- | --- | --- |"]
    return "\n".join(["## Lineage", "", *head, *rows, ""])


def _outside(given: Any) -> str:
    """A hub name with its commit, or a file's name with what identifies it: where it lay is nobody's business."""
    if _on_hub(given.path):
        return f"{given.path}@{given.revision}" if given.revision else given.path
    return f"{Path(given.path).name} ({given.digest[:16] or 'not identified'})"


def _versions(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record.packages.items())
    return f"## Made with\n\n{versions}.\n"


def _cited(plan: Plan, branch: Branch, lineage: list[Stage]) -> str:
    kinds = {stage.kind for stage in lineage}
    objective = str(branch.recipe.objective.get("name", "")) if "sft" in kinds else ""
    return citations(plan.recipe, objective, branch.recipe.rl.algorithm if "rl" in kinds else None)
