"""Builds the plan: asks every kind of stage for its steps in each branch, and joins equal ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import sft_objectives
from common.errors import ConfigError
from common.settings import describe
from common.user_code import code_digest
from launch import stages
from launch.fingerprint import MEMORY, PathHasher, fingerprint
from launch.graph.model import BranchModel
from launch.graph.names import branch_parts, titles
from launch.graph.outside import OutsideIdentities
from launch.graph.plan import Branch, Input, Plan, Stage
from launch.graph.siblings import START, Siblings
from launch.recipe.compose import Composed, RecipeError, branches
from launch.recipe.section import is_runtime_path
from launch.stages.contract import Given, Made, Outside, Published, Sibling, StageKind, Step
from launch.stages.references import model_of
from launch.stages.sizes import placed


def make_plan(recipe: str, overrides: Sequence[str], memory: Path | None = None) -> Plan:
    """The plan of `recipe` (a name or a path to YAML) under Hydra `overrides`; imports no torch, verl, vllm or Ray.

    `memory` is a JSON file that remembers the hashes of outside files; None: the one of the store. Raises RecipeError
    (one line) on anything wrong.
    """
    composed = list(branches(recipe, overrides))
    parts = _named(recipe, composed)
    _check_branches(recipe, composed)
    own = tuple(composed[0].recipe.stages)
    name = composed[0].recipe.name
    if memory is None and "://" not in composed[0].recipe.run.root:
        memory = Path(composed[0].recipe.run.root) / MEMORY
    try:
        siblings = Siblings(overrides, lambda left: _by_name(recipe, list(branches(recipe, left))))
        builder = _Builder(stages.in_order(own), PathHasher(memory), parts, siblings)
        collected = [builder.branch(title, one) for title, one in zip(parts, composed, strict=True)]
        joint = builder.joint(collected)
    except RecipeError:
        raise
    except ConfigError as error:
        raise RecipeError(f"recipe {name}: {error}") from None

    def rejoin(kept: Mapping[str, Collection[str]]) -> dict[str, Stage]:
        return builder.joint([branch.keeping(kept[branch.name]) for branch in collected])

    found = [branch.finished() for branch in collected]
    return Plan(name, found, builder.finish(), own, tuple(joint), rejoin, _overrides(composed, overrides))


def _overrides(composed: Sequence[Composed], given: Sequence[str]) -> tuple[str, ...]:
    """The overrides that make another plan: all but those of fields that only say how it is run."""
    schema = type(composed[0].recipe)
    keys = {text: text.lstrip("+").partition("=")[0] for text in given}
    return tuple(sorted(text for text, key in keys.items() if not is_runtime_path(schema, key.split("."))))


def _named(recipe: str, composed: Sequence[Composed]) -> dict[str, tuple[str, ...]]:
    """Name -> words of every branch, in order. Raises RecipeError where two have one name."""
    found: dict[str, tuple[str, ...]] = {}
    for one, words in zip(composed, branch_parts([one.axes for one in composed]), strict=True):
        name = " ".join(words) or str(one.recipe.objective.get("name", ""))
        if name in found:
            raise RecipeError(f"recipe {recipe}: two branches are called {name!r}; remove the repeated value")
        found[name] = words
    return found


def _by_name(recipe: str, composed: Sequence[Composed]) -> dict[str, Composed]:
    return dict(zip(_named(recipe, composed), composed, strict=True))


def _check_branches(recipe: str, composed: Sequence[Composed]) -> None:
    for section in ("run", "selection", "stages", "analyses"):
        settings = [getattr(one.recipe, section) for one in composed]
        values = [s if isinstance(s, list) else s.model_dump(mode="json") for s in settings]
        for field_name in values[0] if isinstance(values[0], dict) else ("",):
            given = [value[field_name] if field_name else value for value in values]
            if any(other != given[0] for other in given):
                whole = f"{section}.{field_name}".rstrip(".")
                raise RecipeError(
                    f"recipe {recipe}: {whole} differs between branches, which share one driver and one store; give it "
                    "one value"
                )


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-") or "stage"


@dataclass
class _Branch:
    """A branch while its steps are collected; see `launch.stages.contract.Branch`."""

    name: str
    overrides: tuple[str, ...]
    recipe: Any
    objective: Any
    steps: dict[str, Step] = field(default_factory=dict)
    kinds: dict[str, StageKind] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    recipes: dict[str, Any] = field(default_factory=dict)  # of roles that another branch's recipe makes

    @property
    def models(self) -> list[Published]:
        base = Published("base", "base", model_of(self.recipe, "base"), "base")
        return [base, *(model for step in self.steps.values() for model in step.publishes)]

    def in_order(self) -> Iterator[str]:
        """Roles, inputs before their users. Raises ConfigError for an input that no step makes."""
        graph: dict[str, list[str]] = {}
        for role, step in self.steps.items():
            graph[role] = [given.role for given in step.inputs.values() if isinstance(given, Made)]
            for given in graph[role]:
                if given not in self.steps:
                    raise ConfigError(f"stage {role} reads {given}, which nothing makes in this recipe")
        position = {role: place for place, role in enumerate(self.steps)}
        sorter = TopologicalSorter(graph)
        sorter.prepare()
        while sorter.is_active():
            for role in sorted(sorter.get_ready(), key=position.__getitem__):
                yield role
                sorter.done(role)

    def takes(self, start: _Branch, given: Sibling) -> Made:
        """Adds the steps that make the model with which SFT of `start` ends; returns that model.

        Raises ConfigError where there is none.
        """
        ended = [one.source for one in start.models if one.phase == "sft" and one.measured and "@" not in one.name]
        if not ended or not isinstance(ended[-1], Made):
            raise ConfigError(f"{given.field}={given.branch}: that branch trains no SFT; name another one")
        order, wanted = list(start.in_order()), {ended[-1].role}
        for role in reversed(order):
            if role in wanted:
                wanted |= {one.role for one in start.steps[role].inputs.values() if isinstance(one, Made)}
        for role in (role for role in order if role in wanted):
            step, own = start.steps[role], START + role
            inputs = {
                key: dataclasses.replace(one, role=START + one.role) if isinstance(one, Made) else one
                for key, one in step.inputs.items()
            }
            moved = dataclasses.replace(step, role=own, inputs=inputs, publishes=(), measures=None, asks=None)
            self.steps[own], self.kinds[own] = moved, start.kinds[role]
            self.recipes[own] = start.recipes.get(role, start.recipe)
        return dataclasses.replace(ended[-1], role=START + ended[-1].role)

    def forget_repeated(self) -> None:
        """Drops the steps of what it starts from that it has itself."""
        own = {mark for role, mark in self.fingerprints.items() if not role.startswith(START)}
        for role in [role for role, mark in self.fingerprints.items() if role.startswith(START) and mark in own]:
            del self.steps[role], self.kinds[role], self.fingerprints[role]

    def keeping(self, roles: Collection[str]) -> _Branch:
        """A branch without the steps that are not in `roles`."""
        kept = {role: step for role, step in self.steps.items() if role in roles}
        return dataclasses.replace(self, steps=kept, fingerprints=dict(self.fingerprints))

    def finished(self) -> Branch:
        """The branch of the plan."""
        measures: dict[str, dict[str, str]] = {}
        for role, step in self.steps.items():
            if step.measures is not None:
                measures.setdefault(step.measures.model, {})[step.measures.name] = self.fingerprints[role]
        models = tuple(
            BranchModel(
                model.name,
                model.phase,
                model.start,
                model.source.role if isinstance(model.source, Made) else None,
                measures.get(model.name, {}),
                model.step,
            )
            for model in self.models
        )
        return Branch(self.name, self.overrides, self.recipe, dict(self.fingerprints), models)


class _Builder:
    def __init__(
        self,
        kinds: Sequence[StageKind],
        hash_path: PathHasher,
        parts: Mapping[str, tuple[str, ...]],
        siblings: Siblings,
    ) -> None:
        self._kinds = kinds
        self._siblings = siblings
        self._parts = parts
        self._outside = OutsideIdentities(hash_path)
        self._objectives: dict[str, Any] = {}
        self._stages: dict[str, Stage] = {}
        self._users: dict[str, dict[str, None]] = {}

    def branch(self, name: str, composed: Composed) -> _Branch:
        branch = self._collected(name, composed, ())
        for role in branch.in_order():
            step, recipe = branch.steps[role], branch.recipes.get(role, composed.recipe)
            inputs: dict[str, Input] = {}
            identities: dict[str, list[str]] = {}
            for key, given in sorted(step.inputs.items()):
                if isinstance(given, Made):
                    inputs[key] = Input(stage=branch.fingerprints[given.role], select=given.select)
                    if given.identifies:
                        identities[key] = [branch.fingerprints[given.role], given.select]
                elif isinstance(given, Outside):
                    known = self._outside(given, recipe.platform.env, pinned=recipe.run.pinned)
                    inputs[key] = Input(path=known.path, digest=known.digest, revision=known.revision)
                    identities[key] = [known.identity, given.eos or ""]
            kind = branch.kinds[role]
            branch.fingerprints[role] = self._add([name], kind, step, recipe, inputs, identities)
        branch.forget_repeated()
        return branch

    def _collected(self, name: str, composed: Composed, waiting: tuple[Sibling, ...]) -> _Branch:
        """A branch with its steps and those of the branches it starts from; waiting: those that start from it."""
        recipe = composed.recipe
        branch = _Branch(name, tuple(map(str, composed.axes)), recipe, self._objective(recipe))
        for kind in self._kinds:
            for step in kind.steps(branch):
                branch.steps[step.role], branch.kinds[step.role] = step, kind
        for role, step in list(branch.steps.items()):
            inputs = dict(step.inputs)
            for key, given in step.inputs.items():
                if isinstance(given, Sibling):
                    if given in waiting:
                        raise ConfigError(
                            f"{given.field}={given.branch}: that branch starts from itself; give {given.field} as an "
                            "override, or in a row of the sweep"
                        )
                    start = self._collected(given.branch, self._siblings(given), (*waiting, given))
                    inputs[key] = branch.takes(start, given)
            branch.steps[role] = dataclasses.replace(step, inputs=inputs)
        return branch

    def joint(self, collected: Sequence[_Branch]) -> dict[str, Stage]:
        """Adds the steps that read several branches; returns their stages by role."""
        by_name = {branch.name: branch for branch in collected}
        found: dict[str, Stage] = {}
        for kind in self._kinds:
            for step, sources in kind.joint_steps(by_name):
                inputs = {key: Input(stage=self._made(by_name, given)) for key, given in sources.items()}
                identities = {key: [str(given.stage), ""] for key, given in inputs.items()}
                mark = self._add(list(by_name), kind, step, collected[0].recipe, inputs, identities)
                found[step.role] = self._stages[mark]
                for branch in collected:
                    branch.fingerprints[step.role] = mark
        return found

    def _made(self, branches: Mapping[str, _Branch], given: Given) -> str:
        return branches[given.branch].fingerprints[given.role]

    def _objective(self, recipe: Any) -> Any:
        settings = dict(recipe.objective)
        key = repr(sorted(settings.items(), key=lambda item: item[0]))
        if key not in self._objectives:
            if "name" not in settings:
                raise ConfigError(f"objective.name is missing; allowed: {', '.join(sft_objectives.names())}")
            try:
                self._objectives[key] = sft_objectives.load(settings.pop("name"), **settings)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"objective: {error}") from None
        return self._objectives[key]

    def _add(
        self,
        users: Sequence[str],
        kind: StageKind,
        step: Step,
        recipe: Any,
        inputs: dict[str, Input],
        identities: Mapping[str, list[str]],
    ) -> str:
        """Adds a stage unless an equal one is there; returns its fingerprint."""
        whole = {"kind": kind.name, "version": kind.version, "identity": dict(step.identity), "inputs": identities}
        codes = (code_digest(f"{type(kind).__module__}:{kind.name}"), code_digest(kind.function))
        if any(code is not None for code in codes):
            whole["code"] = codes
        mark = fingerprint(whole)
        if mark not in self._stages:
            description = describe(step.settings)
            outside = {key: given for key, given in step.inputs.items() if isinstance(given, Outside) and given.model}
            self._stages[mark] = Stage(
                kind.name,
                _label(step.label),
                kind.function,
                description["values"],
                dict(step.identity),
                kind.version,
                inputs,
                mark,
                placement_of(recipe, kind),
                settings_type=description["type"],
                models={key: {"revision": inputs[key].revision, "eos": given.eos} for key, given in outside.items()},
                mendable=kind.mendable,
            )
        self._users.setdefault(mark, {}).update(dict.fromkeys(users))
        return mark

    def finish(self) -> dict[str, Stage]:
        named = {mark: (stage.kind, stage.label) for mark, stage in self._stages.items()}
        called = titles(named, self._users, self._parts)
        return {
            mark: dataclasses.replace(stage, branches=tuple(self._users[mark]), title=called[mark])
            for mark, stage in self._stages.items()
        }


def placement_of(recipe: Any, kind: StageKind) -> dict[str, Any]:
    """Devices of a stage: what its kind derives from the recipe, changed by the fields that `platform.placement` names.

    Raises ConfigError where the cluster has fewer, or the stage needs more.
    """
    platform = recipe.platform
    given = placed(kind.placement(recipe), platform.placement.get(kind.name), kind.name, platform.name)
    if given.nodes > platform.nodes or given.gpus_per_node > platform.gpus_per_node:
        raise ConfigError(
            f"stage {kind.name} wants {given.nodes} x {given.gpus_per_node:g} devices, the cluster has "
            f"{platform.nodes} x {platform.gpus_per_node} (platform.nodes, platform.gpus_per_node)"
        )
    return given.model_dump(mode="json")
