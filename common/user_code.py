"""The text of the code that a user brings, which is part of what identifies a result; ours bumps versions."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from common.files import text_digest
from common.registry import PACKAGES, ROOT

_INSTALLED = ("site-packages", "dist-packages")


class _Module(NamedTuple):
    """A module of the user's or a package: its text (None: no text, or not the user's) and where its modules lie."""

    name: str
    file: Path | None
    places: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        return self.name if self.places else self.name.rpartition(".")[0]


def code_digest(path: str) -> str | None:
    """sha256 of the text of the user's module that a dotted path leads to, and of the modules of theirs it imports.

    Imported modules count wherever `import` stands and however deep, the `__init__` of their packages included. What
    is installed counts within the package that the path names; not the standard library, compiled modules, names that
    are only known when the code runs, or files that it reads. None for a name, for our own modules and for a path that
    leads to nothing.
    """
    module = path.partition(":")[0]
    if "." not in path and ":" not in path:
        return None
    found = _modules(module) or _modules(module.rpartition(".")[0])
    if not found or found[-1].file is None:
        return None
    texts = _texts(found)
    return next(iter(texts.values())) if len(texts) == 1 else text_digest(repr(sorted(texts.items())))


def _texts(start: list[_Module]) -> dict[str, str]:
    """Name -> sha256 of every module of the user's that those of `start` import, themselves included."""
    top = start[0].name
    texts: dict[str, str] = {}
    waiting = list(start)
    while waiting:
        module = waiting.pop()
        file = module.file
        if module.name in texts or file is None or (_is_installed(file) and module.name.partition(".")[0] != top):
            continue
        status = file.stat()
        texts[module.name], imported = _read(file, module.package, status.st_size, status.st_mtime_ns)
        for name in imported:
            waiting += _modules(name)
    return texts


def _modules(name: str) -> list[_Module]:
    """The packages that a module lies in, from the outermost on, and itself, without running any; [] if it is none."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first) if first not in sys.stdlib_module_names else None
    except (ImportError, ValueError):  # one that is running, or was made by hand
        spec = None
    if spec is None:
        return []
    file = Path(spec.origin) if spec.origin is not None else None
    found = [_Module(first, _of_the_user(file), tuple(spec.submodule_search_locations or ()))]
    for part in rest:
        above = found[-1]
        below = _below(f"{above.name}.{part}", [Path(place, part) for place in above.places])
        if below is None:
            return []
        found.append(below)
    return found


def _below(name: str, paths: list[Path]) -> _Module | None:
    """The module at the first of `paths` that holds one; without its suffix: a package, a file or a plain folder."""
    for path in paths:
        if (file := path / "__init__.py").is_file():
            return _Module(name, _of_the_user(file), (str(path),))
        if (file := path.with_name(f"{path.name}.py")).is_file():
            return _Module(name, _of_the_user(file))
    folders = tuple(str(path) for path in paths if path.is_dir())
    return _Module(name, None, folders) if folders else None


def _of_the_user(file: Path | None) -> Path | None:
    """The file, if it holds text and is none of ours."""
    if file is None or file.suffix != ".py":
        return None
    file = file.resolve()
    return None if any(file.is_relative_to(ROOT / package) for package in PACKAGES) else file


def _is_installed(file: Path) -> bool:
    return any(part in _INSTALLED for part in file.parts)


@lru_cache(maxsize=4096)
def _read(file: Path, package: str, size: int, modified: int) -> tuple[str, tuple[str, ...]]:
    """sha256 of a module's text and the modules that it may import; size and modified (ns) tell its versions apart."""
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(text)
    except SyntaxError:  # said by whoever imports it
        return text_digest(text), ()
    return text_digest(text), tuple(dict.fromkeys(_imported(tree, package)))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Names of what a module imports; `from a import b` gives `a` and `a.b`, of which the second may be no module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            if source:
                yield source
            yield from (f"{source}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*")
