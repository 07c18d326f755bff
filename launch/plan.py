"""The stages of a recipe as a graph: what each one computes from what, and its fingerprint."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sft_objectives
from data_prep.microworld import BENCHMARKS, SKILLS
from launch.compose import Assignment, Composed, RecipeError, branches
from launch.fingerprint import PathHasher, fingerprint
from launch.schema import Pretrain, Recipe, Section, identity

# Bump a version when a stage's code computes something else from the same settings.
STAGES: dict[str, tuple[str, int]] = {
    "prepare": ("data_prep.prepare:run", 2),
    "pretrain": ("data_prep.pretrain:run", 1),
    "cache": ("data_prep.cache:run", 1),
    "filter": ("rl_stage.filter:run", 1),
    "sft": ("sft_objectives.trainer.stage:run", 1),
    "average": ("sft_objectives.average:run", 1),
    "rl": ("rl_stage.rl:run", 1),
    "evaluate": ("evaluation.evaluate:run", 2),
}

_SUPPORT = frozenset({"support_ids", "support_logprobs", "label_logprob"})
# What a reference cache holds, by producer; "logits" (the whole vocabulary) only comes from a live model.
SAMPLE_TOP_K = 10  # ids per position of a cache's sample of chats
CACHE_FIELDS = {
    "forward": _SUPPORT | {"label_mass", "logsumexp", "entropy", "n1", "n2", "ceil_n1", "ceil_n2"},
    "vllm": _SUPPORT | {"n1", "n2", "ceil_n1", "ceil_n2"},
}


@dataclass(frozen=True)
class Input:
    """What a stage reads: another stage's artifact, or something from outside the store.

    `select` is "" for the artifact's directory, or `checkpoint:final`, `checkpoint:best`, `checkpoint:<step>` for a
    Hugging Face directory inside it.
    """

    stage: str | None = None
    path: str | None = None
    select: str = ""


@dataclass(frozen=True)
class Stage:
    """One unit of work. `settings` go to `function`; `identity`, `version` and the inputs make the fingerprint."""

    kind: str
    label: str
    function: str
    settings: dict[str, Any]
    identity: dict[str, Any]
    version: int
    inputs: dict[str, Input]
    fingerprint: str
    placement: dict[str, Any]
    branches: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """Place of the artifact under the store's root."""
        return f"{self.kind}/{self.label}-{self.fingerprint[:16]}"


@dataclass(frozen=True)
class Branch:
    """One line of the results: a resolved recipe and the fingerprints of its stages by role."""

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    stages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The stages of all branches, each once, inputs before users."""

    recipe: str
    branches: list[Branch]
    stages: dict[str, Stage]

    @property
    def root(self) -> str:
        """The artifact store (`run.root`)."""
        return self.branches[0].recipe.run.root


def _dump(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-") or "stage"


def _branch_name(axes: Sequence[Assignment], objective: str) -> str:
    parts = [
        str(a.value) if a.key == "objective" else f"{a.key.rsplit('.', 1)[-1]}={str(a).split('=', 1)[1]}" for a in axes
    ]
    return " ".join(parts) or objective


class Planner:
    """Builds the graph of one recipe; `external` gives the identity of a path outside the store."""

    def __init__(self, external: Callable[[str], str]):
        self._external = external
        self._identities: dict[tuple[str, str | None], str] = {}
        self._objectives: dict[str, Any] = {}
        self.stages: dict[str, Stage] = {}
        self._users: dict[str, dict[str, None]] = {}

    def branch(self, composed: Composed) -> Branch:
        """Adds the stages of one branch. Raises RecipeError on a missing path, objective or need."""
        recipe = composed.recipe
        objective = self._objective(recipe)
        name = _branch_name(composed.axes, recipe.objective["name"])
        graph = _Graph(self, name, recipe)
        graph.build(objective)
        return Branch(name, tuple(map(str, composed.axes)), recipe, graph.roles)

    def _objective(self, recipe: Recipe) -> Any:
        settings = dict(recipe.objective)
        key = repr(sorted(settings.items(), key=lambda item: item[0]))
        if key not in self._objectives:
            if "name" not in settings:
                raise RecipeError(
                    f"recipe {recipe.name}: objective.name is missing; allowed: {', '.join(sft_objectives.names())}"
                )
            try:
                self._objectives[key] = sft_objectives.load(settings.pop("name"), **settings)
            except (ValueError, TypeError) as error:
                raise RecipeError(f"recipe {recipe.name}: objective: {error}") from None
        return self._objectives[key]

    def outside(self, path: str, revision: str | None, field_name: str) -> str:
        """Identity of a local path (its bytes) or of a hub name (name and revision)."""
        known = self._identities.get((path, revision))
        if known is None:
            if Path(path).expanduser().exists():
                known = self._external(str(Path(path).expanduser()))
            elif _is_hub_name(path):
                known = f"hub:{path}@{revision}"
            else:
                raise RecipeError(
                    f"{field_name}={path}: no such file or directory; give an existing path or a Hugging Face name"
                )
            self._identities[path, revision] = known
        return known

    def add(
        self,
        branch: str,
        kind: str,
        label: str,
        settings: dict,
        bearing: dict,
        inputs: dict[str, Input],
        marks: dict[str, str],
        placement: dict,
    ) -> str:
        """Adds a stage unless an equal one is there; returns its fingerprint. `marks` identify outside inputs."""
        function, version = STAGES[kind]
        sources = {
            name: [source.stage or marks[name], source.select if source.stage else ""]
            for name, source in sorted(inputs.items())
        }
        mark = fingerprint({"kind": kind, "version": version, "identity": bearing, "inputs": sources})
        if mark not in self.stages:
            self.stages[mark] = Stage(
                kind, _label(label), function, settings, bearing, version, inputs, mark, placement
            )
        self._users.setdefault(mark, {})[branch] = None
        return mark

    def finish(self) -> dict[str, Stage]:
        return {
            mark: dataclasses.replace(stage, branches=tuple(self._users[mark])) for mark, stage in self.stages.items()
        }


def _is_hub_name(path: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", path) is not None and not path.endswith(
        (".jsonl", ".parquet", ".json")
    )


class _Graph:
    """The stages of one branch, in the order data walks through them."""

    def __init__(self, planner: Planner, branch: str, recipe: Recipe):
        self.planner, self.name, self.recipe = planner, branch, recipe
        self.roles: dict[str, str] = {}
        self.numerics = {
            "model": {
                k: v for k, v in identity(recipe.model).items() if k in ("attention", "dtype", "trust_remote_code")
            }
        }
        self.numerics["platform"] = identity(recipe.platform)

    def build(self, objective: Any) -> None:
        recipe = self.recipe
        self.prepare()
        base = self.model("base", recipe.model)
        sources = set(objective.needs.references)
        if recipe.sft.metrics.kl_from_base:
            sources.add("base")
        inputs: dict[str, tuple[Input, str | None]] = {"model": base}
        if objective.needs.dataset:
            sources.add("base")
            self.check_sample(objective.needs.dataset.top_k)
        for role in ("base", "teacher", "checkpoint"):
            if role in sources:
                model = base if role == "base" else self.model(role, getattr(recipe.model, role))
                needs = objective.needs.references.get(role)
                needed = frozenset[str]() if needs is None else needs.fields
                if "logits" in needed:
                    inputs[role] = model
                if "logits" not in needed or (
                    role == "base" and (objective.needs.dataset or recipe.sft.metrics.kl_from_base)
                ):
                    cached = frozenset[str]() if "logits" in needed else needed
                    self.check_cache(role, cached, 0 if needs is None else needs.top_k)
                    inputs[f"{role}_cache"] = self.cache(role, model)
        if recipe.sft.regularizer.name == "l2_to_init":
            inputs["base"] = base
        label = recipe.objective["name"]
        tuned = self.sft(label, objective, inputs)
        self.evaluate("base", "base", base, None)
        if recipe.average.weight is not None:
            tuned = self.average(label, base, tuned)
        self.evaluate("sft", label, (Input(stage=tuned, select="checkpoint:final"), None), base)
        if recipe.rl.enabled:
            prompts = self.filter(base) if recipe.rl.filter.enabled else self.roles["prepare"]
            for start in self.starts():
                self.rl(label, start, tuned, prompts, base)

    def starts(self) -> list[str]:
        """The SFT checkpoints that RL starts from (`rl.from`)."""
        start, published = self.recipe.rl.start, list(map(str, self.recipe.sft.publish_steps))
        if isinstance(start, str):
            return [*published, "final"] if start == "all" else [start]
        missing = [step for step in map(str, start) if step not in published]
        if missing:
            raise RecipeError(f"rl.from={start}: step {missing[0]} is not published; add it to sft.publish_steps")
        return list(map(str, start))

    def stage(
        self,
        role: str,
        kind: str,
        label: str,
        settings: dict,
        bearing: dict,
        inputs: dict[str, tuple[Input, str | None]],
    ) -> str:
        links = {name: source for name, (source, _) in inputs.items()}
        marks = {name: mark for name, (_, mark) in inputs.items() if mark is not None}
        placement = placement_of(self.recipe, kind)
        self.roles[role] = self.planner.add(self.name, kind, label, settings, bearing, links, marks, placement)
        return self.roles[role]

    def outside(self, path: str, field_name: str, revision: str | None = None) -> tuple[Input, str]:
        return Input(path=path), self.planner.outside(path, revision, field_name)

    def prepare(self) -> None:
        recipe = self.recipe
        inputs: dict[str, tuple[Input, str | None]] = {}
        bearing = {key: value for key, value in identity(recipe.data).items() if key != "files"}
        if recipe.data.source == "files":
            del bearing["microworld"]
            files = recipe.data.files
            for name in ("sft_train", "rl_train") if recipe.rl.enabled else ("sft_train",):
                if getattr(files, name) is None:
                    raise RecipeError(f"recipe {recipe.name}: data.files.{name} is missing; name a file (docs/data.md)")
            for name in ("sft_train", "sft_val", "rl_train", "rl_val"):
                if getattr(files, name) is not None:
                    inputs[name] = self.outside(getattr(files, name), f"data.files.{name}")
            for name, path in files.benchmarks.items():
                inputs[f"benchmark_{name}"] = self.outside(path, f"data.files.benchmarks.{name}")
        if recipe.model.path is not None:
            inputs["model"] = self.outside(recipe.model.path, "model.path", recipe.model.revision)
        if recipe.model.chat_template is not None:
            inputs["chat_template"] = self.outside(recipe.model.chat_template, "model.chat_template")
        settings = {"data": _dump(recipe.data), "model": _dump(recipe.model), "platform": _dump(recipe.platform)}
        # every other stage reads this one's artifact, so `eos` is in all their fingerprints
        bearing = {"data": bearing, "eos": recipe.model.eos}
        self.stage("prepare", "prepare", recipe.data.source, settings, bearing, inputs)

    def data(self, role: str = "prepare") -> tuple[Input, None]:
        return Input(stage=self.roles[role]), None

    def model(self, role: str, model: Any) -> tuple[Input, str | None]:
        """The base or the teacher: read from a path, or trained from nothing."""
        if model.pretrain is not None:
            return Input(stage=self.pretrain(role, model.pretrain), select="checkpoint:final"), None
        if model.path is None:
            raise RecipeError(
                f"recipe {self.recipe.name}: the objective asks for a {role}; "
                f"set model.{role}.path or model.{role}.pretrain"
            )
        source = "model" if role == "base" else f"model.{role}"
        return self.outside(model.path, f"{source}.path", model.revision)

    def pretrain(self, role: str, pretrain: Pretrain) -> str:
        recipe = self.recipe
        unknown = sorted(set(pretrain.skills) - set(SKILLS))
        if unknown:
            raise RecipeError(
                f"recipe {recipe.name}: {role} model: pretrain.skills: unknown {', '.join(unknown)}; allowed: "
                f"{', '.join(SKILLS)}"
            )
        settings = {"pretrain": _dump(pretrain), "model": _dump(recipe.model), "platform": _dump(recipe.platform)}
        bearing = {"pretrain": identity(pretrain), "threads": recipe.platform.threads}
        return self.stage(role, "pretrain", role, settings, bearing, {"data": self.data()})

    def check_cache(self, role: str, needed: frozenset[str], top_k: int) -> None:
        """Refuses an objective that the cache could not serve."""
        recipe = self.recipe
        absent = sorted(needed - CACHE_FIELDS[recipe.cache.producer])
        if absent:
            raise RecipeError(
                f"recipe {recipe.name}: objective {recipe.objective['name']} needs {', '.join(absent)} of the {role}, "
                f"which cache.producer={recipe.cache.producer} cannot give; set cache.producer=forward"
            )
        if top_k > recipe.cache.top_k:
            raise RecipeError(
                f"recipe {recipe.name}: objective {recipe.objective['name']} reads the {role}'s {top_k} most probable "
                f"ids, cache.top_k={recipe.cache.top_k} keeps fewer; set cache.top_k={top_k} or more"
            )

    def check_sample(self, top_k: int) -> None:
        """Refuses an objective whose constants of the training set the cache's sample of chats could not serve."""
        recipe, stored = self.recipe, min(self.recipe.cache.top_k, SAMPLE_TOP_K)
        if not top_k:
            return
        if not recipe.cache.sample_sequences:
            raise RecipeError(
                f"recipe {recipe.name}: objective {recipe.objective['name']} takes its threshold from a sample of "
                "chats; set cache.sample_sequences above 0, or objective.threshold"
            )
        if top_k > stored:
            raise RecipeError(
                f"recipe {recipe.name}: objective {recipe.objective['name']} takes its threshold from the "
                f"{top_k} most probable ids, the cache's sample keeps {stored}; lower objective.top_k or "
                "objective.threshold_top_k, or set objective.threshold"
            )

    def cache(self, role: str, model: tuple[Input, str | None]) -> tuple[Input, None]:
        recipe = self.recipe
        settings = {name: _dump(getattr(recipe, name)) for name in ("cache", "data", "model", "platform")} | {
            "role": role
        }
        bearing = {"cache": identity(recipe.cache), **self.numerics}
        return Input(
            stage=self.stage(f"{role}_cache", "cache", role, settings, bearing, {"model": model, "data": self.data()})
        ), None

    def sft(self, label: str, objective: Any, inputs: dict[str, tuple[Input, str | None]]) -> str:
        recipe = self.recipe
        nodes = placement_of(recipe, "sft")["nodes"]
        if recipe.sft.processes % nodes:
            raise RecipeError(
                f"recipe {recipe.name}: sft.processes={recipe.sft.processes} does not divide over {nodes} nodes; "
                f"make it a multiple of {nodes}"
            )
        platform = recipe.platform
        devices = platform.nodes * platform.gpus_per_node
        if platform.name == "gpu" and recipe.sft.processes > devices:  # whatever platform.placement.sft says
            raise RecipeError(
                f"recipe {recipe.name}: sft.processes={recipe.sft.processes} exceeds platform.nodes * "
                f"platform.gpus_per_node={devices}"
            )
        sections = {name: _dump(getattr(recipe, name)) for name in ("sft", "data", "model", "platform")}
        settings = {**sections, "objective": recipe.objective, "seed": recipe.seed}
        bearing = {
            "objective": {"name": recipe.objective["name"], **dataclasses.asdict(objective)},
            "sft": identity(recipe.sft),
            "seed": recipe.seed,
            **self.numerics,
        }
        return self.stage("sft", "sft", label, settings, bearing, {**inputs, "data": self.data()})

    def average(self, label: str, base: tuple[Input, str | None], tuned: str) -> str:
        recipe = self.recipe
        settings = {"average": _dump(recipe.average), "platform": _dump(recipe.platform)}
        inputs = {"base": base, "sft": (Input(stage=tuned, select="checkpoint:final"), None)}
        return self.stage("average", "average", label, settings, {"average": identity(recipe.average)}, inputs)

    def filter(self, base: tuple[Input, str | None]) -> str:
        recipe = self.recipe
        chosen = recipe.rl.filter.model
        model = base if chosen is None else self.outside(chosen, "rl.filter.model")
        settings = {name: _dump(getattr(recipe, name)) for name in ("rl", "data", "model", "platform")} | {
            "seed": recipe.seed
        }
        sampled = ("filter", "reward", "max_prompt_length", "max_response_length", "top_p")
        bearing = {"rl": {key: value for key, value in identity(recipe.rl).items() if key in sampled}, **self.numerics}
        return self.stage("filter", "filter", "prompts", settings, bearing, {"model": model, "data": self.data()})

    def rl(self, label: str, start: str, tuned: str, prompts: str, base: tuple[Input, str | None]) -> None:
        recipe = self.recipe
        settings = {name: _dump(getattr(recipe, name)) for name in ("rl", "data", "model", "platform")} | {
            "seed": recipe.seed
        }
        bearing = {
            key: value for key, value in identity(recipe.rl).items() if key not in ("enabled", "start", "filter")
        }
        inputs: dict[str, tuple[Input, str | None]] = {
            "model": (Input(stage=tuned, select=f"checkpoint:{start}"), None),
            "data": (Input(stage=prompts), None),
        }
        name = label if start == "final" else f"{label}-{start}"
        role = f"rl@{start}"
        mark = self.stage(role, "rl", name, settings, {"rl": bearing, "seed": recipe.seed, **self.numerics}, inputs)
        if start != "final":
            self.evaluate(f"sft@{start}", name, inputs["model"], base)
        self.evaluate(role, f"{name}.rl", (Input(stage=mark, select="checkpoint:final"), None), base)

    def evaluate(
        self, role: str, label: str, model: tuple[Input, str | None], base: tuple[Input, str | None] | None
    ) -> None:
        recipe = self.recipe
        if not recipe.eval.enabled:
            return
        for benchmark in recipe.eval.benchmarks:
            given = recipe.data.files.benchmarks
            if recipe.data.source == "microworld" and benchmark.name not in BENCHMARKS:
                raise RecipeError(
                    f"recipe {recipe.name}: eval.benchmarks names {benchmark.name!r}; data.source=microworld has "
                    f"{', '.join(BENCHMARKS)}"
                )
            if recipe.data.source == "files" and benchmark.name not in given:
                raise RecipeError(
                    f"recipe {recipe.name}: eval.benchmarks names {benchmark.name!r}; give its problems as "
                    f"data.files.benchmarks.{benchmark.name}=<file> (docs/evaluation.md); given: "
                    f"{', '.join(sorted(given)) or 'none'}"
                )
        settings = {name: _dump(getattr(recipe, name)) for name in ("eval", "model", "platform")}
        inputs = {"model": model, "data": self.data()} | ({} if base is None else {"base": base})
        # the target only says how the report groups the benchmarks
        bearing = {
            "eval": {k: v for k, v in identity(recipe.eval).items() if k not in ("enabled", "target")},
            **self.numerics,
        }
        self.stage(f"evaluate:{role}", "evaluate", label, settings, bearing, inputs)


def placement_of(recipe: Recipe, kind: str) -> dict[str, Any]:
    """Devices of a stage: `platform.placement.<kind>`, else derived from processes, workers and replicas."""
    platform = recipe.platform
    given = platform.placement.get(kind)
    if given is not None:
        placement = _dump(given)
    else:
        devices = {
            "prepare": 0,
            "average": 0,
            "cache": recipe.cache.workers * recipe.cache.processes,
            "sft": recipe.sft.processes,
            "rl": recipe.rl.processes,
            "evaluate": recipe.eval.replicas,
        }.get(kind, 1)
        nodes = max(1, math.ceil(devices / platform.gpus_per_node))
        placement = {"nodes": nodes, "gpus_per_node": devices / nodes, "cpus": 1.0, "strategy": "PACK"}
    if placement["nodes"] > platform.nodes or placement["gpus_per_node"] > platform.gpus_per_node:
        raise RecipeError(
            f"recipe {recipe.name}: stage {kind} wants {placement['nodes']} x {placement['gpus_per_node']:g} devices, "
            f"the cluster has {platform.nodes} x {platform.gpus_per_node} (platform.nodes, platform.gpus_per_node)"
        )
    return placement


def make_plan(recipe: str, overrides: Sequence[str], memory: Path | None = None) -> Plan:
    """The plan of `recipe` (a name or a path to YAML) under Hydra `overrides`; imports no torch, verl, vllm or Ray.

    `memory` is a JSON file that remembers the hashes of outside files. Raises RecipeError (one line) on anything wrong.
    """
    planner = Planner(PathHasher(memory))
    found = [planner.branch(composed) for composed in branches(recipe, overrides)]
    names = [branch.name for branch in found]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"recipe {recipe}: two branches are called {name!r}; remove the repeated value")
    for section in ("run", "selection"):
        settings = [_dump(getattr(branch.recipe, section)) for branch in found]
        for field_name in settings[0]:
            if any(other[field_name] != settings[0][field_name] for other in settings):
                raise RecipeError(
                    f"recipe {recipe}: {section}.{field_name} differs between branches, which share one driver and one "
                    "store; give it one value"
                )
    return Plan(found[0].recipe.name, found, planner.finish())
