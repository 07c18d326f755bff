"""One file for each kind of stage: what it reads, what identifies it, where it runs, what it costs, what it reports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter

from common.errors import ConfigError
from common.registry import Registry
from launch.stages.contract import StageKind

_REGISTRY: Registry[StageKind] = Registry(
    __name__, StageKind, "stage", apart=("contract", "references", "sizes", "starts")
)


def names() -> list[str]:
    """The kinds of stage of this package, in the order data walks through them."""
    return [kind.name for kind in in_order(())]


def load(name: str) -> StageKind:
    """The kind `name`, or the user's own by dotted path. Raises ConfigError for an unknown one."""
    return _REGISTRY.load(name)


def in_order(own: Sequence[str]) -> tuple[StageKind, ...]:
    """The package's kinds and those of the paths in `own`, each after the ones that it builds on (`after`).

    Raises ConfigError where two have one name, or wait for each other.
    """
    return _in_order(tuple(own))


@cache
def _in_order(own: tuple[str, ...]) -> tuple[StageKind, ...]:
    kinds = {name: load(name) for name in _REGISTRY.names()}
    for path in own:
        kind = load(path)
        if kind.name in kinds:
            raise ConfigError(f"stages: {path}: there is a stage {kind.name} already; give it another name")
        kinds[kind.name] = kind
    graph = {name: [before for before in kind.after if before in kinds] for name, kind in kinds.items()}
    try:
        return tuple(kinds[name] for name in TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise ConfigError(f"stages: {' -> '.join(error.args[1])} wait for each other; mend their `after`") from None
