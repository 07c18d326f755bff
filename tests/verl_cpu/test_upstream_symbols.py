"""Every symbol in upstream_symbols.txt exists in both version sets; sources are parsed, nothing is imported."""

import ast
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

GPU_VLLM = "0.24.0"  # what verl[vllm]==0.9.1 resolves to; verl and Ray are the same in both sets
SYMBOLS = [
    line
    for line in Path(__file__).with_name("upstream_symbols.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@functools.cache
def _source(root: Path, module: str) -> ast.Module:
    path = root.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text())


def _bound_names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that the statements of ``body`` bind, through if/try/with blocks too, to the statement that does."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0]: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        else:
            for block in ("body", "orelse", "finalbody"):
                names |= _bound_names(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                names |= _bound_names(handler.body)
    return names


def _members(definition: ast.ClassDef) -> set[str]:
    attributes = {
        target.attr
        for node in ast.walk(definition)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    }
    return attributes | _bound_names(definition.body).keys()


def _exists(root: Path, symbol: str) -> bool:
    module, _, name = symbol.partition(":")
    top, _, member = name.partition(".")
    try:
        node = _bound_names(_source(root, module).body).get(top)
    except FileNotFoundError:
        return False
    return node is not None and (not member or (isinstance(node, ast.ClassDef) and member in _members(node)))


def _site_packages(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parents[1]


@pytest.fixture(scope="session")
def gpu_vllm_sources() -> Path:
    """The Python files of the GPU wheel of vLLM, downloaded once (280 MB) into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sft-then-rl" / f"vllm-{GPU_VLLM}"
    if not cache.is_dir():
        with (
            tempfile.TemporaryDirectory() as download,
            tempfile.TemporaryDirectory(dir=_made(cache.parent)) as unpacked,
        ):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            target = ["--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--dest", download]
            subprocess.run([*pip, *target, f"vllm=={GPU_VLLM}"], check=True, timeout=900)
            (wheel,) = Path(download).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked, [name for name in archive.namelist() if name.endswith(".py")])
            Path(unpacked).rename(cache)
            Path(unpacked).mkdir()  # what the context manager deletes
    return cache


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_symbol_exists_in_the_cpu_set(symbol):
    assert _exists(_site_packages(symbol.partition(".")[0]), symbol)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("symbol", [symbol for symbol in SYMBOLS if symbol.startswith("vllm.")])
def test_symbol_exists_in_the_gpu_set(symbol, gpu_vllm_sources):
    assert _exists(gpu_vllm_sources, symbol)


@pytest.mark.parametrize(
    "symbol", ["verl.no.such.module:x", "verl.utils.device:no_such_name", "verl:DataProto.no_such"]
)
def test_missing_symbol_is_noticed(symbol):
    assert not _exists(_site_packages("verl"), symbol)
