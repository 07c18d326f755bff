"""The plan: stages of all branches, each once, with what each computes from what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.fingerprint import fingerprint
from launch.graph.model import BranchModel


@dataclass(frozen=True)
class Input:
    """What a stage reads: another stage's artifact, or something from outside the store.

    `select` is "" for the artifact's directory, or `checkpoint:final`, `checkpoint:best`, `checkpoint:<step>` for a
    Hugging Face directory inside it. `digest` is the hash that a local path from outside had when planned, by which it
    is checked when read; `revision` the commit of a hub name.
    """

    stage: str | None = None
    path: str | None = None
    select: str = ""
    digest: str = ""
    revision: str | None = None


@dataclass(frozen=True)
class Stage:
    """One unit of work. `settings` go to `function`; `identity`, `version` and the inputs make the fingerprint.

    settings_type: "module:Class" of the settings. models: inputs that are models from outside, each with its revision
    and the token that ends a turn. mendable: whether a damaged artifact can be taken apart. title: what logs and tables
    call it (see `name`).
    """

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
    settings_type: str = ""
    models: dict[str, dict[str, str | None]] = field(default_factory=dict)
    mendable: bool = False
    title: str = ""

    @property
    def name(self) -> str:
        """What logs and tables call it: kind and label, and what tells it from others of its plan that share them."""
        return self.title or f"{self.kind} {self.label}"

    @property
    def address(self) -> str:
        """Place of the artifact under the store's root."""
        return f"{self.kind}/{self.label}-{self.fingerprint[:16]}"


@dataclass(frozen=True)
class Branch:
    """One line of the results: a resolved recipe, the fingerprints of its stages by role, and its models."""

    name: str
    overrides: tuple[str, ...]
    recipe: Any
    stages: dict[str, str] = field(default_factory=dict)
    models: tuple[BranchModel, ...] = ()


def _nothing_joint(kept: Mapping[str, Collection[str]]) -> dict[str, Stage]:
    """No stage reads several branches; a function of the module, so that a plan can be sent to another process."""
    return {}


@dataclass(frozen=True)
class Plan:
    """The stages of all branches, each once, inputs before users.

    own_stages: the user's kinds, by path. joint: roles of the stages that read several branches. rejoin: given the
    roles that each branch keeps, those stages by role. overrides: those that bear on what is computed, as given.
    """

    recipe: str
    branches: list[Branch]
    stages: dict[str, Stage]
    own_stages: tuple[str, ...] = ()
    joint: tuple[str, ...] = ()
    rejoin: Callable[[Mapping[str, Collection[str]]], dict[str, Stage]] = field(
        default=_nothing_joint, compare=False, repr=False
    )
    overrides: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """The artifact store (`run.root`)."""
        return self.branches[0].recipe.run.root


def plan_key(plan: Plan) -> str:
    """What two plans have in common that run the same stages."""
    return fingerprint(sorted(plan.stages))[:16]
