"""Prints docs/recipes.md: every recipe of the papers and what it takes on one node of 8 devices of 80 GB.

python -m launch.recipes_page > docs/recipes.md
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from dataclasses import dataclass

from launch.graph.builder import make_plan
from launch.graph.estimate import disk_forecast, estimate_plan
from launch.graph.plan import Plan
from launch.recipe.library import paper_recipes
from launch.store import Store
from launch.text import bytes_text

PAPERS = {"lp_sft": "LP-SFT", "sed_sft": "SED-SFT", "prift": "PriFT", "target_sft": "TARGET-SFT", "talr": "TALR"}
SHOWN = ("cache", "sft", "rl")  # kinds of stages that have a column
HEAD = """\
# The five papers as recipes

<!-- printed by `python -m launch.recipes_page` -->

Every published experiment is one command. A recipe's `sweep` lists the rows of its table; an override of what the sweep
sets selects rows.

```bash
python -m launch plan lp_sft/t2_magicoder                                       # the table: what would run
python -m launch run lp_sft/t2_magicoder objective=lp_sft model=qwen3_4b_base   # one row
python -m launch run lp_sft/t2_magicoder objective=lp_sft model=qwen3_4b_base --scale tiny   # its walk on a CPU
python -m launch published lp_sft/t15                                           # what the paper prints; runs nothing
```

The report sets ours beside the paper's numbers, cell by cell, with the gap and our interval, marks printed values that
no share of the paper's own number of answers can be, and names what the paper leaves open. Every setting has its
place in the paper beside it in the recipe, or `open in the paper`.

`--scale tiny` takes a small random model of the same family with its chat template, a few rows of our own in the
published schemas, and two steps of every phase; the difficulty filter and dynamic sampling are left out, as a random
model solves nothing. Its numbers mean nothing.

Below: what a whole table takes on one node of 8 devices of 80 GB by `plan`'s rough speeds, before anything has run
there. Rows and lengths of the data are the published ones. Stages that tables share are counted in each.
"""


@dataclass(frozen=True)
class Taken:
    """What a plan takes: stages by kind, device-hours, bytes of its reference caches, and bytes of disk."""

    stages: Counter[str]
    hours: float
    cache: float
    disk: float


def taken(plan: Plan, store: Store) -> Taken:
    """What a plan takes in an empty store."""
    estimates = estimate_plan(plan, store)
    caches = [mark for mark, stage in plan.stages.items() if stage.kind == "cache"]
    return Taken(
        Counter(stage.kind for stage in plan.stages.values()),
        sum(estimate.device_hours for estimate in estimates.values()),
        sum(estimates[mark].bytes for mark in caches),
        disk_forecast(estimates, len(plan.branches)),
    )


def line_of(recipe: str, plan: Plan, found: Taken) -> str:
    """A row of the table."""
    tables = ", ".join(plan.branches[0].recipe.published.tables)
    counts = [str(found.stages[kind] or "") for kind in SHOWN]
    sizes = [bytes_text(found.cache) if found.cache else "", bytes_text(found.disk)]
    cells = [f"`{recipe}`", tables, str(len(plan.branches)), *counts, str(sum(found.stages.values()))]
    return "| " + " | ".join([*cells, f"{found.hours:,.0f}", *sizes]) + " |"


def page(plans: dict[str, Plan], store: Store) -> str:
    """The page of plans by recipe."""
    text = [HEAD]
    for paper, title in PAPERS.items():
        text += [f"## {title}", "", "| recipe | of | rows | caches | SFT | RL | stages | device-hours | cache | disk |"]
        text.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        mine = [(name, plan) for name, plan in plans.items() if name.startswith(f"{paper}/")]
        text += [line_of(name, plan, taken(plan, store)) for name, plan in mine]
        text.append("")
    return "\n".join(text)


def plans(root: str) -> dict[str, Plan]:
    """Every recipe of the papers as planned for the empty store `root`."""
    return {name: make_plan(name, [f"run.root={root}"]) for name in paper_recipes()}


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        print(page(plans(folder), Store(folder)), end="")
