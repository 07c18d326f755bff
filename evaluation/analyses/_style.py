"""How figures look."""

from __future__ import annotations

from typing import Any

# Okabe and Ito's, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
GREY, BLACK = "#888888", "#000000"  # the base model's and the teacher's
SIZE = (6.4, 3.8)  # inches
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sft-then-rl",  # equal figures are equal files
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def colour(place: int) -> str:
    """Of the `place`-th line that is not the base model."""
    return COLOURS[place % len(COLOURS)]


def band(axis: Any, places: Any, estimates: Any, dash: str = "-", **options: Any) -> None:
    """A line through the values of estimates (mappings with value, low, high) and their intervals as a band."""
    low, value, high = ([estimate[name] for estimate in estimates] for name in ("low", "value", "high"))
    axis.plot(places, value, dash, marker="o", markersize=3, **options)
    axis.fill_between(places, low, high, color=options.get("color"), alpha=0.12, linewidth=0)


def legend(axis: Any) -> None:
    """Beside the axis."""
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def boxes(
    axis: Any,
    quantiles: Any,
    places: Any,
    width: float,
    colour: str,
    label: str,
    *,
    across: bool = False,
    hatched: bool = False,
) -> None:
    """Box plots from quantiles (mappings with whislo, q1, med, q3, whishi) in one colour, named in the legend; `across`
    lays them down."""
    from matplotlib.patches import Patch

    drawn = axis.bxp(
        quantiles,
        positions=places,
        widths=width * 0.85,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": colour, "alpha": 0.45, "edgecolor": colour, "hatch": "////" if hatched else ""},
        medianprops={"color": "black", "linewidth": 1.2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        manage_ticks=False,
        orientation="horizontal" if across else "vertical",
    )
    patch: Patch = drawn["boxes"][0]
    patch.set_label(label)
