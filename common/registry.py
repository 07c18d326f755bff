"""Things of which there are many: one file each, found by its name, or a file of the user's by dotted path."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from common.errors import ConfigError

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


class Registry(Generic[T]):
    """The instances of `kind` that the modules of a package define, by their attribute `name`.

    Modules whose name starts with an underscore and the ones in `apart` define none. A file usually holds one instance;
    a file that holds a family holds several.
    """

    def __init__(self, package: str, kind: type[T], word: str, *, apart: tuple[str, ...] = ()) -> None:
        self._package, self._kind, self._word, self._apart = package, kind, word, apart
        self._found: dict[str, T] | None = None
        self._own: dict[str, T] = {}  # of those asked for: rows ask for their format one by one

    def _all(self) -> dict[str, T]:
        if self._found is None:
            package = importlib.import_module(self._package)
            found: dict[str, T] = {}
            for module in pkgutil.iter_modules(package.__path__):
                if not module.name.startswith("_") and module.name not in self._apart:
                    found.update(self._instances(importlib.import_module(f"{self._package}.{module.name}")))
            self._found = dict(sorted(found.items()))
        return self._found

    def _alone(self, name: str) -> T | None:
        """The one that the module of its name holds, without importing the others; None if there is none."""
        if not name.isidentifier() or name.startswith("_") or name in self._apart:
            return None
        module = f"{self._package}.{name}"
        return self._instances(importlib.import_module(module)).get(name) if _is_module(module) else None

    def _instances(self, module: ModuleType) -> dict[str, T]:
        values = [value for value in vars(module).values() if isinstance(value, self._kind)]
        return {value.name: value for value in values}  # type: ignore[attr-defined]

    def names(self) -> list[str]:
        """The names of this package, in alphabetical order."""
        return list(self._all())

    def load(self, name: str) -> T:
        """The one called `name`, or the user's own: `package.module` (with one instance), `package.module:attribute`.

        Raises ConfigError (one line) for an unknown name, or a path that leads to nothing of the kind.
        """
        found = self._own.get(name)
        if found is None:
            found = self._alone(name)
        if found is None:
            found = self._all().get(name)
        if found is not None:
            self._own[name] = found
            return found
        if "." not in name and ":" not in name:
            close = difflib.get_close_matches(name, self._all(), 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"unknown {self._word} {name!r}; {hint}allowed: {', '.join(self._all())}, or the path of your own as "
                "package.module:attribute"
            )
        return self._external(name)

    def _external(self, path: str) -> T:
        module, _, attribute = path.partition(":")
        try:
            if not attribute and not _is_module(module):
                module, _, attribute = module.rpartition(".")
            found = importlib.import_module(module)
            value: Any = getattr(found, attribute) if attribute else self._only(found, path)
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's module raises when it is imported
            raise ConfigError(
                f"{self._word} {path!r}: {type(error).__name__}: {error}; check the path and PYTHONPATH"
            ) from error
        if not isinstance(value, self._kind):
            raise ConfigError(
                f"{self._word} {path!r} is a {type(value).__name__}; name an instance of {self._kind.__name__}"
            )
        return value

    def _only(self, module: ModuleType, path: str) -> T:
        found = self._instances(module)
        if len(found) != 1:
            raise ConfigError(
                f"{self._word} {path!r}: the module holds {len(found)} of them; name one as {path}:attribute"
            )
        return next(iter(found.values()))


def _is_module(path: str) -> bool:
    try:
        return importlib.util.find_spec(path) is not None
    except ModuleNotFoundError:
        return False


PACKAGES = (
    "common", "launch", "recipes", "data_prep", "sft_objectives", "rl_stage", "evaluation", "verl_cpu",
)  # fmt: skip


def check_origin() -> None:
    """Refuses to work when a package of ours was imported from somewhere else (their names exist elsewhere)."""
    import sys

    for name in PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and ROOT not in Path(file).resolve().parents:
            raise ConfigError(f"package {name} was imported from {file}, not from {ROOT}: remove the other one")
