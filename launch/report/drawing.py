"""How the report's own pictures are drawn: in the page's colours, which follow its light or dark scheme.

They are drawn in plain colours, so that a file by itself can be read anywhere; `themed` turns these into the page's
variables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from launch.report.parts import Cell, Key

INK, GREY, FAINT, PAPER = "#1b1b1c", "#6b6b6c", "#dcdcdd", "#fefefe"
# Okabe and Ito's, told apart by colour-blind readers; the light ones darkened until they show on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b4588f", "#a87200", "#2a8fc7")
SHAPES = ("o", "s", "D", "^", "v", "P", "X")  # of matplotlib
GLYPHS = "●■◆▲▼✚✖"  # the same in a text
DASHES = ("-", "--", "-.", ":")
VARIABLES = {INK: "--ink", GREY: "--grey", FAINT: "--rule", PAPER: "--paper"} | {
    colour: f"--c{place}" for place, colour in enumerate(COLOURS)
}
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sft-then-rl",  # equal pictures are equal files
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
TIP = "tip:"  # before the text that a drawn thing shows under the pointer, in its id
WIDTH = 7.4  # inches of a picture as wide as the text


def key_of(place: int, variant: int = 0) -> Key:
    """How the `place`-th objective is marked, and the `variant`-th of its lines: no two of 42 objectives alike."""
    colour, turn = place % len(COLOURS), place // len(COLOURS)
    return Key(colour, (colour + 2 * turn) % len(SHAPES), (variant + turn) % len(DASHES))


def drawn(width: float, height: float, draw: Callable[[Any], None]) -> str:
    """The SVG text of what `draw` puts on an empty matplotlib figure of so many inches."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained", facecolor=PAPER)
        draw(canvas)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def themed(svg: str, name: str) -> str:
    """An SVG of `drawn` to stand within a page: the page's colours, ids that start with `name`, texts under the pointer
    and as wide as there is room."""
    svg = re.sub(r'<g id="' + TIP + r'([^"]*)">', r"<g><title>\1</title>", shorter(svg))
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), svg)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, count=1, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)


def _variable(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


def shorter(svg: str) -> str:
    """Coordinates of paths and of marks to a hundredth of a point."""

    def rounded(found: re.Match[str]) -> str:
        return re.sub(r"(\d+\.\d\d)\d+", r"\1", found[0])

    return re.sub(r'\b(?:d|x|y)="[^"]*"', rounded, svg)


def bars(cells: Sequence[Cell]) -> list[list[float]]:
    """Distances to the bounds of intervals as matplotlib's error bars take them; 0 where a cell has none."""
    below = [0.0 if one.low is None else (one.value or 0.0) - one.low for one in cells]
    above = [0.0 if one.high is None else one.high - (one.value or 0.0) for one in cells]
    return [[max(0.0, one) for one in side] for side in (below, above)]
