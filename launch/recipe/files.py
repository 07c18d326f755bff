"""Reading recipes and the files of config groups: YAML as Hydra reads it, but every key once and text as it is written.

YAML 1.1 takes `5e10235` for infinity, `off` for false and `010` for eight. What a plain word or number is, the field
that it is given for decides.
"""

from __future__ import annotations

import copy
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.version import setbase
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from launch.recipe import fields
from launch.recipe.library import RECIPES, RecipeError
from launch.recipe.recipe import Recipe

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
SCHEME = "recipe"


def read(path: Path, package: tuple[str, ...] = ()) -> dict[str, Any]:
    """The mapping in a YAML file whose keys stand below `package` in a recipe.

    Raises RecipeError (one line) for a file that cannot be read, that is no YAML, or that gives a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 ({error.reason} at byte {error.start})"
        raise RecipeError(f"recipe file {path}: {reason}; save it as UTF-8 text") from None
    return copy.deepcopy(_parsed(text, path, package))


@lru_cache(maxsize=256)
def _parsed(text: str, path: Path, package: tuple[str, ...]) -> dict[str, Any]:
    """The mapping in the text of a file. A sweep reads the same files for each of its choices of groups."""
    loader = get_yaml_loader()(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError(f"recipe file {path}: holds no mapping; write fields as `key: value`")
        _as_written(loader, root, package, str(path))
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe file {path}: {_one_line(error, text)}") from None
    finally:
        loader.dispose()


def _one_line(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join(str(getattr(error, "problem", None) or error).split())
    if mark is None:
        return problem
    lines = text.splitlines()
    if mark.line < len(lines) and "\t" in lines[mark.line]:
        problem += "; YAML takes no tab for indentation, write spaces"
    return f"line {mark.line + 1}: {problem}"


def _as_written(loader: Any, node: yaml.Node, path: tuple[str | int, ...], file: str) -> None:
    """Turns plain scalars into text where the schema wants it, and every key; refuses a key that is there twice."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == _MERGE:
                for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    _as_written(loader, one, path, file)
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"recipe file {file}: line {key.start_mark.line + 1}: a key is a plain word")
            key.tag, line = _TEXT, key.start_mark.line + 1
            if key.value in seen:
                raise RecipeError(
                    f"recipe file {file}: line {line}: {key.value} is given on line {seen[key.value]} already; "
                    "give each key once"
                )
            seen[key.value] = line
            _as_written(loader, value, fields.below(Recipe, path, key.value), file)
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            _as_written(loader, value, fields.below(Recipe, path, place), file)
    elif isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in _NUMBERS:
        value = loader.construct_object(node)
        loader.constructed_objects.pop(node, None)
        if fields.reads_as_text(Recipe, path, value, node.value):
            node.tag = _TEXT


class RecipeSource(FileConfigSource):
    """Hydra's source of configuration files below a folder, read by `read`."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """The file `config_path` (a path below the folder, without its suffix) and its header."""
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.is_file():
            raise ConfigLoadError(f"Config not found : {file}")
        header = ConfigSource._get_header_dict(file.read_bytes()[:512].decode(errors="replace"))
        config = OmegaConf.create(read(file, _package(config_path, header.get("package"))))
        return ConfigResult(self.provider, f"{SCHEME}://{self.path}", config, header)


def _package(config_path: str, given: str | None) -> tuple[str, ...]:
    """Where the keys of a file stand in a recipe: below its group's name, or as its first line `# @package` says."""
    group = config_path.rpartition("/")[0]
    where = group.replace("/", ".") if given in (None, "_group_") else given
    return () if where in ("", "_global_") else tuple(where.split("."))


SourcesRegistry.instance().register(RecipeSource)


def composed(folder: Path, name: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """What Hydra composes from a folder's file `name`, our recipes and the chosen groups; interpolations as written."""
    path = create_config_search_path(f"{SCHEME}://{folder}")
    if folder != RECIPES:
        path.prepend("recipes", f"{SCHEME}://{RECIPES}", anchor="schema")
    GlobalHydra.instance().clear()
    setbase("1.3")
    Hydra.create_main_hydra2("launch", path)
    try:
        with warnings.catch_warnings():
            # since Hydra 1.1 a file's own values come last where it does not say
            warnings.filterwarnings("ignore", r"In '.*': Defaults list is missing `_self_`")
            config = hydra.compose(name, list(choices))
        return OmegaConf.to_container(config, resolve=False)  # type: ignore[return-value]
    finally:
        GlobalHydra.instance().clear()
