"""A text in a figure, each token in a box whose colour says something of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ACROSS = 104  # characters of a line
WIDTH, LINE = 7.6, 0.2  # inches
ADVANCE = 0.602  # of a character of DejaVu Sans Mono, which matplotlib brings along, over the font size


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
    figure.set_size_inches(WIDTH, height)
    size = 0.98 * WIDTH * 72 / ACROSS / ADVANCE
    axis = figure.add_axes((0.01, bottom / height, 0.98, 1 - bottom / height))
    axis.set(xlim=(0, ACROSS), ylim=(lines, 0))
    axis.set_axis_off()
    for (line, column, shown), colour, ink in zip(placed, colours, inks, strict=True):
        axis.add_patch(Rectangle((column, line + 0.06), len(shown), 0.88, color=colour, linewidth=0))
        look = {"family": "DejaVu Sans Mono", "fontsize": size, "va": "center", "color": ink}
        axis.text(column, line + 0.52, shown.replace("$", r"\$"), **look)
    return axis
