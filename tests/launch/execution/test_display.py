from __future__ import annotations

from types import SimpleNamespace

import pytest
import toy
from rich.console import Console

from common.files import read_json, write_json
from launch.execution.display import Display, print_budget
from launch.store import Store


def shown(stage, state="waiting"):
    """What a driver knows of a stage."""
    numbers = {"attempt": 0, "seconds": 0.0, "waited": 0.0, "peak_memory_bytes": 0}
    return SimpleNamespace(stage=stage, state=state, message="", **numbers)


@pytest.fixture
def plan(tmp_path):
    with toy.every_state(tmp_path) as plan:
        yield plan


def test_display_says_what_changes_in_plain_lines(plan, capsys):
    store = Store(plan.root)
    progress = {fingerprint: shown(stage) for fingerprint, stage in plan.stages.items()}
    running = next(p for p in progress.values() if p.stage.label == "running")
    with Display(store) as display:
        display.update(progress)
        assert capsys.readouterr().out == ""
        running.state, running.attempt = "running", 1
        display.update(progress)
        display.update(progress)
        assert capsys.readouterr().out.count("sft running started, log ") == 1
        display._said[running.stage.fingerprint] -= 60
        display._updated = 0.0
        display.update(progress)
        assert "sft running 25/100 loss=1.5" in capsys.readouterr().out
        running.state, running.seconds, running.peak_memory_bytes = "done", 12.0, 2_500_000_000
        display.update(progress)
        made = store.directory(running.stage)
        assert f"sft running done 12.0 s, peak 2.50 GB, {made}\n" in capsys.readouterr().out


def test_of_a_model_the_line_says_where_its_last_checkpoint_is(plan, capsys):
    store = Store(plan.root)
    done = next(stage for stage in plan.stages.values() if stage.label == "done")
    directory = store.directory(done)
    write_json(directory / "checkpoints.json", {"final": 16, "best": 8, "steps": [8, 16]})
    with Display(store) as display:
        display.update({done.fingerprint: shown(done, "done")})
    assert capsys.readouterr().out.rstrip().endswith(f", {directory}/checkpoints/step_16")


def test_without_a_terminal_a_line_comes_when_something_changed(plan, capsys):
    store = Store(plan.root)
    progress = {fingerprint: shown(stage) for fingerprint, stage in plan.stages.items()}
    running = next(p for p in progress.values() if p.stage.label == "running")
    file = store.logs(running.stage) / "progress.json"
    values = read_json(file)

    def later(display):
        display._said[running.stage.fingerprint] -= 60
        display._updated = 0.0
        display.update(progress)
        return capsys.readouterr().out

    with Display(store) as display:
        running.state, running.attempt = "running", 1
        display.update(progress)
        capsys.readouterr()
        write_json(file, {**values, "done": 0, "total": 1, "metrics": {}})
        assert later(display) == ""  # its start has been said
        write_json(file, values)
        assert "sft running 25/100 loss=1.5" in later(display)
        assert later(display) == later(display) == ""
        write_json(file, {**values, "metrics": {"target/pass@1": 0.43, "low": 0.39, "high": 0.47}})
        assert "sft running 25/100 target/pass@1 0.43 (0.39 to 0.47)" in later(display)
        for odd in ("", "[]", "3"):
            file.write_text(odd)
            assert later(display) == ""


def test_display_draws_bars_on_a_terminal(plan, monkeypatch):
    monkeypatch.setattr(
        "launch.execution.display.Console", lambda: Console(force_terminal=True, width=100, record=True)
    )
    progress = {fingerprint: shown(stage) for fingerprint, stage in plan.stages.items()}
    running = next(p for p in progress.values() if p.stage.label == "running")
    with Display(Store(plan.root)) as display:
        running.state = "running"
        display.update(progress)
        display._updated = 0.0
        display.update(progress)
    assert "25/100" in display._console.export_text()


def test_budget_lists_what_ran(plan, capsys):
    progress = [shown(stage, "cached") for stage in plan.stages.values()]
    progress[0].state, progress[0].seconds, progress[0].peak_memory_bytes = "done", 65.0, 3_000_000_000
    print_budget(progress, 70.0)
    text = capsys.readouterr().out
    assert "sft done" in text and "1 min 05 s" in text and "3.00 GB" in text and "elapsed: 1 min 10 s" in text
    assert "sft running" not in text
