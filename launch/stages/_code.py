"""Code that a user brings by dotted path: whether it is there, and what identifies it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.user_code import code_digest
from launch.recipe.data import feeds_of


def own_code(path: str) -> dict[str, str]:
    """{"code": sha256 of the module's text} for a dotted path to code of the user's; {} for names, and for our own."""
    found = code_digest(path)
    return {} if found is None else {"code": found}


def own_graders(named: Iterable[str]) -> dict[str, dict[str, str]]:
    """The code of each grader of the user's own among those that rows name, with or without `:argument`."""
    from evaluation import graders

    paths = {":".join(name.split(":")[:2]) for name in named if name.partition(":")[0] not in graders.names()}
    return {path: own_code(path) for path in sorted(paths)}


def require(path: str, field: str) -> None:
    """Refuses a dotted path that leads to nothing, without running the module that it names.

    Raises ConfigError (one line) for a missing or broken module, or a name that it does not define.
    """
    module, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ConfigError(f"{field}={path}: there is no module {module}; check the path and PYTHONPATH")
    if spec.origin is None or not spec.origin.endswith(".py"):
        return  # compiled: only importing it would tell
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except SyntaxError as error:
        raise ConfigError(f"{field}={path}: {spec.origin} line {error.lineno}: {error.msg}") from None
    names = _names(tree)
    if attribute not in names and not names & {"*", "__getattr__"}:
        public = sorted(name for name in names if not name.startswith("_"))
        raise ConfigError(f"{field}={path}: {module} defines no {attribute}; it has {', '.join(public) or 'nothing'}")


def _names(tree: ast.Module) -> set[str]:
    """The names that a module binds, wherever in it; "*" for an import of everything."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def reward_code(recipe: Any) -> dict[str, Any]:
    """What identifies the user's own code that judges: the reward's, and that of graders which rows name.

    Raises ConfigError for a reward that cannot be loaded.
    """
    from data_prep.sources.feeds import graders
    from rl_stage.rewards import load_reward, names

    reward = recipe.rl.reward
    own = own_graders(graders(feeds_of(recipe.data, "rl"), "rl"))
    found = {"graders": own} if own else {}
    if reward.name in names():
        load_reward(reward.name, reward.settings)
        return found
    require(reward.name, "rl.reward.name")
    return {**own_code(reward.name), **found}
