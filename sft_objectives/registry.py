"""Names of objectives and how they are found. Imports no torch."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import pkgutil
import subprocess
import sys
from functools import cache
from typing import Any

from common.errors import ConfigError

from . import objectives
from .contract import Objective
from .needs import Needs

_ALIASES = {"distill": "kd"}
_REFUSED = 64  # exit status of a check whose settings are wrong


def names() -> list[str]:
    """The objectives of this package in alphabetical order. `distill` is another name of `kd`.

    An objective is a file of `sft_objectives.objectives` with a class whose `name` is the file's.
    """
    return sorted(module.name for module in pkgutil.iter_modules(objectives.__path__) if _class(module.name))


@cache
def _class(name: str) -> type[Objective] | None:
    path = f"{objectives.__name__}.{name}"
    if not name.isidentifier() or importlib.util.find_spec(path) is None:
        return None
    for found in vars(importlib.import_module(path)).values():
        if isinstance(found, type) and issubclass(found, Objective) and vars(found).get("name") == name:
            return found
    return None


def load(name: str, **settings: Any) -> Objective:
    """The objective `name` with validated settings.

    `name` is one of `names()`, or the path of your own, "package.module:Class" or "package.module.Class"; a path is
    imported in a subprocess first. Raises ConfigError (one line) for an unknown name, an unknown setting or a value
    that is not allowed.
    """
    if ":" in name or "." in name:
        check_external(name, settings)
        return _construct(_external_class(name), name, settings)
    cls = _class(_ALIASES.get(name, name))
    if cls is None:
        known = ", ".join([*names(), *_ALIASES])
        raise ConfigError(
            f"unknown objective {name!r}; allowed: {known}, or the path of your own as package.module:Class"
        )
    return _construct(cls, name, settings)


def _construct(cls: type[Objective], name: str, settings: dict[str, Any]) -> Objective:
    known = [item.name for item in dataclasses.fields(cls)]
    for key in settings:
        if key not in known:
            allowed = ", ".join(known) if known else "none"
            raise ConfigError(f"objective {name!r}: no setting {key!r}; allowed: {allowed}; remove objective.{key}")
    return cls(**settings)


def _external_class(path: str) -> type[Objective]:
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    cls = getattr(importlib.import_module(module), attribute)
    if not (isinstance(cls, type) and issubclass(cls, Objective) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{attribute} is not a dataclass derived from sft_objectives.Objective")
    return cls


def check_external(path: str, settings: dict[str, Any]) -> None:
    """Construct the objective at `path` in a subprocess, so that its module cannot disturb this one.

    Raises ConfigError (one line) if it cannot be imported, is not an objective, or refuses its settings.
    """
    code = f"import sys; from {__name__} import _check; _check(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", code, path, json.dumps(settings)],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    if child.returncode == 0:
        return
    reason = child.stderr.strip().splitlines()[-1] if child.stderr.strip() else f"exit status {child.returncode}"
    if child.returncode == _REFUSED:
        raise ConfigError(reason)
    raise ConfigError(
        f"objective {path!r}: {reason}; allowed: package.module:Class of a frozen dataclass derived from "
        "sft_objectives.Objective; check the path, PYTHONPATH and its settings"
    )


def _check(path: str, settings: str) -> None:
    try:
        objective = _construct(_external_class(path), path, json.loads(settings))
        needs = objective.needs
    except ConfigError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(_REFUSED)
    if not isinstance(needs, Needs):
        raise TypeError("needs is not a sft_objectives.Needs")
    if type(objective).loss is Objective.loss:
        raise TypeError("loss is not defined")
