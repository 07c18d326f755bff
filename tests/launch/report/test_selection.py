"""The section "Selection": what was not spent on the losers, and what the choice cost where all were run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from measured import AFTER, BEFORE, curve, experiment, publish, publish_measure

from launch.graph.select import select
from launch.recipe.run import Selection
from launch.report.cells import Cells
from launch.report.selection import sections
from launch.report.source import Source
from launch.store import Store

BETTER = [4, 4, 3, 4, 4, 4, 4, 2, 4, 4, 3, 4]


@pytest.fixture
def chosen(tmp_path):
    """A plan of three learning rates and two seeds of which SFT's loss chooses the second, and what `finish` runs."""
    plan = experiment(
        tmp_path,
        lrs=(0.1, 0.2, 0.3),
        seeds=(1, 2),
        names=("target",),
        selection=Selection(fields=["sft.lr"]),
    )
    # Devices are what a sweep saves; the toy's stages have none.
    stages = {k: replace(v, placement={**v.placement, "gpus_per_node": 2}) for k, v in plan.stages.items()}
    plan = replace(plan, stages=stages)
    store = Store(tmp_path)
    for stage in (one for one in plan.stages.values() if one.kind == "sft"):
        loss = {0.1: 2.0, 0.2: 1.0, 0.3: 3.0}[stage.settings["toy"]["lr"]]
        publish(store, stage, lambda folder, loss=loss: (folder / "metrics.json").write_text(f'{{"val_loss": {loss}}}'))

    def finish(stages, counts=AFTER["target"]):
        for stage in stages:
            if stage.kind == "rl" and store.find(stage) is None:
                publish(store, stage, curve("reward"), seconds=3600.0)
            elif stage.kind == "measure" and store.find(stage) is None:
                after = ".rl." in stage.label
                publish_measure(store, stage, {"target": counts if after else BEFORE["target"]})

    def said():
        selected = select(plan, store)
        (section,) = sections(selected, plan, Cells(Source(store), plan.branches[0].recipe.eval))
        return section

    return plan, store, finish, said


def of_rate(plan, rate):
    marks = {mark for one in plan.branches if f"lr={rate} " in one.name for mark in one.stages.values()}
    return [stage for mark, stage in plan.stages.items() if mark in marks and stage.kind != "sft"]


def test_what_the_losers_would_have_taken_is_what_the_winners_took(chosen):
    plan, store, finish, said = chosen
    assert "is not known yet: the winners have not run them" in said().text
    finish(select(plan, store).plan.stages.values())
    text = said().text
    # Two losers of two seeds each: RL for an hour on two devices each, and their measures after RL.
    assert "Not spent on the losers: about 8.0" in text and "rl 8.00" in text
    assert text.endswith("what the choice cost is not known, since the losers were not run to the end.")
    rows = said().grids[0].rows
    assert [cells[-1].text for _, cells in rows] == ["", "yes", ""]


@pytest.mark.parametrize(
    ("other", "said_of_it"),
    [
        (BETTER, "all were run; the choice cost +0.146"),
        ([0] * 12, "all were run, and what was chosen, sft.lr=0.2, ends highest."),
    ],
)
def test_where_all_were_run_the_choice_has_its_price(chosen, other, said_of_it):
    plan, store, finish, said = chosen
    finish(select(plan, store).plan.stages.values())
    for rate, counts in ((0.1, other), (0.3, [0] * 12)):
        finish(of_rate(plan, rate), counts)
    text = said().text
    assert "Nothing was saved: the losers were run to the end as well." in text and said_of_it in text
    assert ("against sft.lr=0.1" in text) is (other is BETTER)


def test_without_selection_there_is_no_section(tmp_path):
    plan = experiment(tmp_path)
    assert sections(select(plan, Store(tmp_path)), plan, Cells(Source(Store(tmp_path)), None)) == []
