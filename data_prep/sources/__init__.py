"""Data sets: one file each, found by its name; one's own by dotted path. Imports neither torch nor transformers."""

from common.registry import Registry
from data_prep.sources.contract import Row, RowError, Source

_registry: Registry[Source] = Registry("data_prep.sources", Source, "data source", apart=("contract", "feeds"))

__all__ = ["Row", "RowError", "Source", "load", "names"]


def names() -> list[str]:
    """The sources of this package."""
    return _registry.names()


def load(name: str) -> Source:
    """The source called `name`, or one's own: `package.module` or `package.module:attribute`.

    Raises ConfigError for an unknown name or a path that leads to no source.
    """
    return _registry.load(name)
