"""Readiness and what it predicted in a report, over a synthetic store: one figure is planted, one is noise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import toy
from measured import PROBLEMS, SAMPLES, branch_of, measures, publish, publish_measure

from launch.report import predicted, readiness
from launch.report.cells import Cells
from launch.report.lines import lines
from launch.report.source import Source
from launch.report.write import write_report
from launch.store import Store


def interval(value):
    return {"value": float(value), "low": float(value) - 0.1, "high": float(value) + 0.1, "n": 9}


def sweep(root, branches, seeds=(1,)):
    """A store in which RL scores what `learnable` said, and `label_drift` says nothing."""
    rng = np.random.default_rng(3)
    recipe = toy.plan(root).branches[0].recipe
    store, made, stages = Store(root), [], {}
    base = measures(None, "base", ("target",))
    for number in range(branches):
        for seed in seeds:
            sft = toy.steps(f"o{number}", seed=seed)
            rl = toy.steps(f"o{number}", "rl", inputs={"model": sft})
            ready = toy.steps(f"o{number}", "readiness", inputs={"model": sft})
            after = measures(rl, f"o{number}.rl", ("target",))
            models = [
                ("base", "base", None, None, None, base),
                ("sft", "sft", None, "sft", sft, measures(sft, f"o{number}", ("target",))),
                ("rl@final", "rl", "final", "rl@final", rl, after),
            ]
            name = f"objective=o{number}"
            branch, found = branch_of(f"o{number} seed={seed}", (name, f"seed={seed}"), recipe, models)
            made.append(replace(branch, stages={**branch.stages, "readiness:sft": ready.fingerprint}))
            stages |= {stage.fingerprint: stage for stage in (*found, ready)}
            figures = {"learnable": interval(number / 20), "label_drift": interval(rng.random())}
            text = json.dumps({"figures": figures})
            publish(store, ready, lambda folder, text=text: (folder / "metrics.json").write_text(text))
            right = number + 1  # of all samples, spread over the problems
            counts = [min(SAMPLES, max(0, right * 3 - SAMPLES * place)) for place in range(PROBLEMS)]
            publish_measure(store, after["target"], {"target": counts})
    return replace(toy.plan(root), branches=made, stages=stages), store


def sections(plan, store):
    source = Source(store)
    cells = Cells(source, plan.branches[0].recipe.eval)
    return readiness.sections(plan, source), predicted.sections(plan, cells, lines(plan))


def test_a_planted_figure_is_right_and_noise_is_not(tmp_path):
    plan, store = sweep(tmp_path, 9, seeds=(1, 2))
    (before,), (found,) = sections(plan, store)
    assert len(before.grids[0].rows) == 9 and "0.050 ± 0.000" in before.grids[0].rows[1][1][1].text
    (table,) = found.grids
    rows = {name: dict(zip(table.columns, cells, strict=True)) for name, cells in table.rows}
    assert set(rows) == {"share of RL prompts solved sometimes ↑", "drift of label probabilities ↓"}
    right, noise = rows.values() if next(iter(rows)).startswith("share") else reversed(rows.values())
    assert right["Spearman"].value == pytest.approx(1.0) and right["Spearman"].low > 0.5
    assert right["p (Holm)"].value < 0.01 < 0.05 < noise["p (Holm)"].value
    assert noise["Spearman"].low < 0 < noise["Spearman"].high
    assert right["regret"].value == 0 < right["regret at random"].value and right["it chooses"].text == "o8"
    assert found.text.startswith("RL was predicted by share of RL prompts solved sometimes ↑.")
    assert found.figures[0].svg.startswith("<svg") and right["branches"].text == "9"
    assert len(right["Spearman"].records) == 36


def test_of_fewer_than_eight_branches_nothing_is_concluded(tmp_path):
    plan, store = sweep(tmp_path, 7, seeds=(1, 2))
    _, (found,) = sections(plan, store)
    assert found.text == "RL of 7 branches is measured: with fewer than 8 nothing can be concluded."
    assert not found.grids and not found.figures
    assert write_report(plan) == 0
    assert "nothing can be concluded" in (tmp_path / "toy" / "report.md").read_text()


def test_without_readiness_there_is_no_section(tmp_path):
    plan, store = sweep(tmp_path, 2)
    bare = [replace(one, stages={k: v for k, v in one.stages.items() if k != "readiness:sft"}) for one in plan.branches]
    assert sections(replace(plan, branches=bare), store) == ([], [])
