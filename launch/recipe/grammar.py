"""Hydra's grammar of overrides, with numbers that remember how they were written."""

from __future__ import annotations

from typing import Any

from hydra.core.override_parser.overrides_parser import create_functions
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString
from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer  # type: ignore[attr-defined]
from hydra.grammar.gen.OverrideParser import OverrideParser

from launch.recipe.fields import written
from launch.recipe.library import RecipeError

_FUNCTIONS = create_functions()
FUNCTIONS = frozenset(_FUNCTIONS.functions)


class _Visitor(HydraOverrideVisitor):
    """Reads a parsed override."""

    def visitPrimitive(self, ctx: Any) -> Any:
        value = super().visitPrimitive(ctx)
        return (
            value if value is None or isinstance(value, str | QuotedString) else written(value, ctx.getText().strip())
        )

    def visitDictKey(self, ctx: Any) -> Any:
        value = super().visitDictKey(ctx)
        return value if isinstance(value, str) else ctx.getText().strip()


def _override(text: str) -> Override:
    """The parsed override. Raises HydraException for what the grammar does not know."""
    listener = HydraErrorListener()
    lexer = OverrideLexer(InputStream(text))
    parser = OverrideParser(CommonTokenStream(lexer))
    for reader in (lexer, parser):
        reader.removeErrorListeners()
        reader.addErrorListener(listener)
    found: Any = _Visitor(_FUNCTIONS).visit(parser.override())
    found.input_line = text
    return found


def values(key: str, raw: str, choices: list[str] | None) -> list[Any]:
    """The values that the text after `key=` stands for: one, or those of a sweep.

    Args:
        choices: the files of the config group `key`; None for a field.

    Raises:
        HydraException: the grammar does not know the text.
        RecipeError: a sweep that has no values to list.
    """
    override = _override(f"key={raw}")
    if not override.is_sweep_override():
        return [_python(override.value())]
    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        raise RecipeError(f"override {key}={raw}: an interval has no values to try; list them, e.g. {key}=1e-5,3e-5")
    if isinstance(sweep, Glob):
        found = sweep.filter(choices) if choices is not None else []
        if not found:
            raise RecipeError(f"override {key}={raw}: no choice of a config group fits; list the values")
        return found
    found = [_python(value) for value in override.sweep_iterator()]
    if not found:
        raise RecipeError(f"override {key}={raw}: the range is empty; give it values")
    return found


def _python(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list | tuple):
        return [_python(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _python(item) for key, item in value.items()}
    return value
