from __future__ import annotations

import json
import re

from measured import curve, experiment, measure, of, publish, publish_measure

from launch.graph.select import select
from launch.recipe.run import Selection
from launch.report.write import write_report
from launch.store import Store

BETTER = {"target": [3, 4, 2, 3, 4, 4, 3, 1, 4, 3, 2, 4]}
WORSE = {"target": [1, 2, 0, 1, 2, 3, 1, 0, 2, 1, 1, 2]}


def test_the_report_shows_the_choice_its_budget_and_paired_differences_over_problems_and_seeds(tmp_path):
    plan = experiment(
        tmp_path,
        objectives=("sft", "dft"),
        lrs=(0.0001, 0.0003),
        seeds=(1, 2),
        rl=False,
        names=("target", "held_out"),
        selection=Selection(fields=["sft.lr"]),
    )
    store = Store(tmp_path)
    for stage in plan.stages.values():
        if stage.kind == "sft":
            loss = {0.0001: 1.0, 0.0003: 0.5}[stage.settings["toy"]["lr"]] + 0.001 * stage.settings["toy"]["seed"]

            def write(folder, loss=loss):
                (folder / "metrics.json").write_text(f'{{"val_loss": {loss}}}')
                curve("loss")(folder)

            publish(store, stage, write)
    for stage in select(plan, store).plan.stages.values():
        if stage.kind == "measure":
            publish_measure(store, stage, BETTER if stage.label.startswith("dft") else WORSE)
    write_report(plan)
    text = (tmp_path / "toy" / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| objective=")]
    assert len(rows) == 4 and sum("| yes |" in row for row in rows) == 2
    assert "Equal budget: every group tried 2 settings, 4 SFT runs; chosen by val_loss." in text
    shift = (sum(BETTER["target"]) - sum(WORSE["target"])) / 12 / 4
    (contrast,) = [line for line in text.splitlines() if "2 seeds" in line]
    assert contrast.startswith("| dft lr=0.0003 |") and contrast.count(f"{shift:+.3f} (") == 2
    # Beside the p-value, the smallest difference that twelve problems would have shown.
    assert re.search(r"\| 0\.0\d\d[^|]* \| 0\.\d{3}[^|]* \|$", contrast) and "| p (Holm) | detectable |" in text
    assert "## Against sft lr=0.0003" in text
    assert "lr=0.0001 |" not in text.split("## Selection")[0]
    assert "all, shared stages once" in text
    page = (tmp_path / "toy" / "report.html").read_text()
    assert "Against sft lr=0.0003" in page and "Equal budget" in page


def test_a_score_with_answers_that_were_not_graded_or_cut_short_says_so(tmp_path):
    plan = experiment(tmp_path, names=("target", "dates"), rl=False)
    store = Store(plan.root)
    short = of(plan, "dft")["target"]
    bound = 0.0

    def write(folder):
        nonlocal bound
        measure(folder, "target", BETTER["target"])
        metrics = json.loads((folder / "metrics.json").read_text())
        bound = metrics["metrics"]["pass@1"]["value"] + 0.01
        metrics["metrics"]["at_most_pass@1"] = metrics["metrics"]["pass@1"] | {"value": bound}
        metrics["counts"]["clamped"] = 3
        (folder / "metrics.json").write_text(json.dumps(metrics))

    for stage in plan.stages.values():
        if stage is short:
            publish(store, stage, write)
        elif stage.kind == "measure":
            publish_measure(store, stage, {**WORSE, "dates": WORSE["target"]})
        else:
            publish(store, stage, curve("loss"))
    write_report(plan)
    text = (tmp_path / "toy" / "report.md").read_text()
    shown = f"; {bound:.3f} if all that was not graded is right"
    main, scores = text.split("## Scores by benchmark")[:2]
    scores = scores.split("## ")[0]
    assert main.count(shown) == 1 and scores.count(f"{shown}; the context cut max_tokens of 3 problems") == 1
    assert text.count("if all that was not graded") == 2
