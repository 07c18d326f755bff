"""Every command of docs/everyday.md is read and planned, on an empty store."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch.commands.line import COMMANDS, call
from launch.graph.builder import make_plan

PAGE = Path(__file__).parents[2] / "docs" / "everyday.md"
LINES = re.findall(r"`python -m launch ([^`]+)`", PAGE.read_text(encoding="utf-8"))
MADE_FIRST = "not made yet; run the recipe first"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_the_page_has_the_everyday_workflows():
    used = {line.split(" ")[0] for line in LINES}
    assert {"plan", "run", "show", "report", "evaluate", "adopt", "export", "rm"} <= used
    assert used <= {command.name for command in COMMANDS}
    text = " ".join(LINES)
    for wanted in ("sft.from=", "adopt.mine=", "data.allow_shared_prompts=true", "--keep-reported", "selection.rungs="):
        assert wanted in text


@pytest.mark.parametrize("line", LINES)
def test_it_plans(line, model, tmp_path, capsys):
    words = [word.replace("MODEL", str(model)).replace("DIR", str(tmp_path / "out")) for word in shlex.split(line)]
    name, *rest = words
    root = f"run.root={tmp_path / 'runs'}"
    if name == "adopt":  # its model has to be one; tests/launch/test_adoption.py runs it
        plan = make_plan(rest[1], [root, f"adopt.{rest[rest.index('--as') + 1]}={rest[0]}"])
        assert plan.branches[-1].name == "mine"
        return
    words = ["plan", *rest] if name == "run" else words
    code = call([*words, root, *(["--dry-run"] if name == "evaluate" else [])])
    printed = capsys.readouterr()
    if name == "export":
        assert code == 2 and MADE_FIRST in printed.err
        return
    assert code == 0, printed.err
    assert printed.out.strip()
