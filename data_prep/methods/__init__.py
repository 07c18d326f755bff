"""Data-level methods: ways to answer the training questions anew, one file each; one's own by dotted path.

Imports neither torch nor transformers.
"""

from common.registry import Registry
from data_prep.methods.contract import Method, Question, Response

_registry: Registry[Method] = Registry("data_prep.methods", Method, "data-level method", apart=("contract",))

__all__ = ["Method", "Question", "Response", "load", "names"]


def names() -> list[str]:
    """The methods of this package."""
    return _registry.names()


def load(name: str) -> Method:
    """The method called `name`, or one's own: `package.module` or `package.module:attribute`.

    Raises ConfigError for an unknown name or a path that leads to no method.
    """
    return _registry.load(name)
