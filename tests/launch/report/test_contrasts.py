from __future__ import annotations

from measured import curve, experiment, publish, publish_measure

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
    assert contrast.startswith("| dft lr=0.0003 |") and f"{shift:+.3f} (" in contrast
    assert "## Against sft lr=0.0003" in text
    assert "lr=0.0001 |" not in text.split("## Scores by benchmark")[0]
    assert "all, shared stages once" in text
    page = (tmp_path / "toy" / "report.html").read_text()
    assert "Against sft lr=0.0003" in page and "Equal budget" in page
