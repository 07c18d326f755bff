"""A text in a figure, each token in a box whose colour says something of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ACROSS = 84  # characters of a line
LINE = 0.2  # inches


def laid_out(tokens: Sequence[str], across: int = ACROSS) -> tuple[list[tuple[int, int, str]], int]:
    """Line, first column and text of every token, and the number of lines; a line break in a token ends its line."""
    placed, line, column = [], 0, 0
    for token in tokens:
        shown = token.replace("\n", "\u23ce").replace("\t", " ") or "\u2423"
        shown = shown if len(shown) <= across else f"{shown[: across - 1]}\u2026"
        if column and column + len(shown) > across:
            line, column = line + 1, 0
        placed.append((line, column, shown))
        column += len(shown)
        if "\n" in token:
            line, column = line + 1, 0
    return placed, line + (column > 0)


def draw(figure: Any, tokens: Sequence[str], colours: Sequence[Any], inks: Sequence[Any], bottom: float = 0.0) -> Any:
    """Draws the tokens, one background and one letter colour each; returns the axis. bottom: inches left free below."""
    from matplotlib.patches import Rectangle

    placed, lines = laid_out(tokens)
    height = lines * LINE + bottom + 0.1
    figure.set_size_inches(7.6, height)
    axis = figure.add_axes((0.01, bottom / height, 0.98, 1 - bottom / height))
    axis.set(xlim=(0, ACROSS), ylim=(lines, 0))
    axis.set_axis_off()
    for (line, column, shown), colour, ink in zip(placed, colours, inks, strict=True):
        axis.add_patch(Rectangle((column, line + 0.06), len(shown), 0.88, color=colour, linewidth=0))
        for place, letter in enumerate(shown):
            look = {"family": "monospace", "fontsize": 7, "ha": "center", "va": "center", "color": ink}
            axis.text(column + place + 0.5, line + 0.52, letter.replace("$", r"\$"), **look)
    return axis
