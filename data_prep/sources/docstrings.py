"""The documentation of an installed package: what its modules, classes and functions say of themselves.

Read from the package's source text, which nothing runs: the same version of the package gives the same rows.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from data_prep.sources.contract import Row, Source

LETTERS_PER_TOKEN = 3.5  # of English with code, about
SHARE_OF_TEXT = 0.9  # that is the response


class Docstrings(BaseModel):
    """Whose documentation, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str = Field("numpy", description="an installed package, by the name that imports it")
    shortest: int = Field(200, description="characters of a docstring that counts", gt=0)
    longest: int = Field(2000, description="characters after which it is cut, at the end of a line", gt=0)
    sft_examples: int = Field(256, description="chats for training, drawn by data.seed", gt=0)
    sft_val_examples: int = Field(128, description="held-out chats, drawn before them", gt=0)


class InstalledDocumentation(Source):
    name = "docstrings"
    section = Docstrings
    reference = "LP-SFT, 4: text on which plateaus are looked for"

    def parts(self, section: Docstrings, inputs: Mapping[str, Path], seed: int) -> dict[str, Iterator[Row]]:
        return {
            "sft_train": self._chats(section, seed, held_out=False),
            "sft_val": self._chats(section, seed, held_out=True),
        }

    def identity(self, section: Docstrings, part: str) -> dict[str, Any]:
        return {**section.model_dump(mode="json"), "installed": _version(section.package)}

    def rough_rows(self, section: Docstrings, part: str) -> float:
        return float(section.sft_examples)

    def rough_tokens(self, section: Docstrings, max_length: int | None = None) -> tuple[float, float, float]:
        tokens = section.longest / 2 / LETTERS_PER_TOKEN
        return section.sft_examples, section.sft_examples * tokens, section.sft_examples * tokens * SHARE_OF_TEXT

    def _chats(self, section: Docstrings, seed: int, *, held_out: bool) -> Iterator[Row]:
        found = sorted(documented(section).items())
        wanted = section.sft_val_examples + section.sft_examples
        if len(found) < wanted:
            raise ConfigError(
                f"data.docstrings.package={section.package}: {len(found)} docstrings of at least {section.shortest} "
                f"characters, {wanted} are asked for; set data.docstrings.sft_examples and sft_val_examples to fewer"
            )
        Random(seed).shuffle(found)
        for name, text in found[: section.sft_val_examples] if held_out else found[section.sft_val_examples : wanted]:
            asked = {"role": "user", "content": f"What does the documentation of {section.package} say of {name}?"}
            chat = {"id": name, "messages": [asked, {"role": "assistant", "content": text}]}
            yield Row(f"docstring {name}", chat)


def documented(section: Docstrings) -> dict[str, str]:
    """Dotted name -> docstring of everything that is documented well enough, tests and private modules left out; of
    equal texts the first by name. Raises ConfigError for a package that is not installed, or has no source text."""
    root = _root(section.package)
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(part in ("tests", "testing", "conftest") or part.startswith("test_") for part in parts):
            continue
        module = ".".join((section.package, *(part for part in parts if part != "__init__")))
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # a template, or a file for another interpreter
        for name, text in (*_of_definitions(tree, module), *_added(tree, section.package)):
            text = _cut(inspect.cleandoc(text), section.longest)
            if len(text) >= section.shortest:
                found.setdefault(name, text)
    first = {text: name for name, text in sorted(found.items(), reverse=True)}
    return {name: text for text, name in first.items()}


def _of_definitions(tree: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Docstrings of a module, and of the classes and functions in it."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(tree, kinds) and (text := ast.get_docstring(tree, clean=False)) is not None:
        yield name, text
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, kinds):
            yield from _of_definitions(node, f"{name}.{getattr(node, 'name', '')}")


def _added(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Docstrings of compiled functions, as numpy writes them: `add_newdoc("numpy._core.umath", "add", "...")`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "add_newdoc":
            continue
        texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        if len(texts) == len(node.args) >= 2:
            yield ".".join(texts[:-1]) if len(texts) > 2 else f"{package}.{texts[0]}", texts[-1]


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest].rpartition("\n")[0].rstrip()


def _root(package: str) -> Path:
    spec = None if "." in package else importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"data.docstrings.package={package}: is no installed package; name another, or install it")
    return Path(next(iter(spec.submodule_search_locations)))


def _version(package: str) -> str:
    """The version of the distribution that has the package."""
    _root(package)
    names = importlib.metadata.packages_distributions().get(package)
    if not names:
        raise ConfigError(f"data.docstrings.package={package}: has no version; install it as a distribution")
    return importlib.metadata.version(names[0])


SOURCE = InstalledDocumentation()
