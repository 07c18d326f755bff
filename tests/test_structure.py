"""The shape of the code: sizes, circles and arrows between packages."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "launch", "data_prep", "sft_objectives", "rl_stage", "evaluation", "verl_cpu")
LIMIT = 400
BOTTOM = tuple(f"evaluation.{name}" for name in ("generation", "grading", "graders", "sandbox", "benchmarks"))
# package -> what it may import of the others; a longer name allows that part alone
ALLOWED = {
    "common": (),
    "verl_cpu": ("common",),
    "evaluation": ("common", "verl_cpu"),
    "data_prep": ("common", "verl_cpu", *BOTTOM),
    "sft_objectives": ("common", "verl_cpu", "data_prep.reference", "data_prep.chat_dataset", "data_prep.truncation"),
    "rl_stage": ("common", "verl_cpu", *BOTTOM, "data_prep.chat_dataset"),
    "launch": ("common", "verl_cpu", "data_prep", "sft_objectives", "rl_stage", "evaluation"),
}
# what a part of a package may import beside that
OF_PARTS = {"evaluation.analyses": ("data_prep.reference", "sft_objectives")}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """The modules of this project that a module imports anywhere in it, but for annotations alone."""
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return (found & MODULES.keys()) - {name}


def test_no_module_is_over_400_lines():
    long = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert not {name: lines for name, lines in long.items() if lines > LIMIT}


def test_no_two_files_import_each_other_in_a_circle():
    try:
        tuple(TopologicalSorter({name: imports(name) for name in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_what_the_page_says(package):
    wrong = {
        f"{name} -> {given}"
        for name in MODULES
        if name.split(".")[0] == package
        for given in imports(name)
        if given.split(".")[0] != package
        and not any(given == allowed or given.startswith(allowed + ".") for allowed in allowed_of(name))
    }
    assert not wrong


def allowed_of(name: str) -> tuple[str, ...]:
    extra = [arrows for part, arrows in OF_PARTS.items() if name == part or name.startswith(part + ".")]
    return ALLOWED[name.split(".")[0]] + sum(extra, ())


def test_the_face_of_a_package_is_light():
    heavy = {"torch", "verl", "vllm", "ray", "transformers"}
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            tree = ast.parse(path.read_text())
            top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
            names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
            assert not names & heavy, name


def test_one_module_applies_chat_templates():
    """Everything else asks the renderer, so that all stages read the same tokens."""
    callers = set()
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            if getattr(called, "attr", getattr(called, "id", "")) in ("apply_chat_template", "render_jinja_template"):
                callers.add(name)
    assert callers == {"common.chat_template"}
