"""`analyse`: what it reads of a store, what it says of what is missing, where it writes."""

import json

import pytest

from evaluation.analyses import names
from launch.__main__ import main
from launch.graph.builder import make_plan

SMALL = ["eval.held_out_chats=4", "rl.enabled=false"]


def test_an_analysis_that_reads_nothing_draws_at_once(tmp_path, capsys):
    output = tmp_path / "targets"
    line = ["analyse", "targets", "microworld", f"run.root={tmp_path / 'runs'}", "--output", str(output)]
    settings = ["--set", "objectives=[dft, {name: beyond_log, exponent: 2.0}]", "--set", "points=9"]
    assert main([*line, *settings]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Of 2 objectives") and str(output / "figures" / "targets.png") in said
    rows = json.loads((output / "tables" / "targets.json").read_text())["rows"]
    assert [row[0] for row in rows] == ["dft", "beyond_log exponent=2.0"]
    assert main([*line, "--set", "objectives=[sft]", "--set", "points=9"]) == 0  # what was there is replaced
    rows = json.loads((output / "tables" / "targets.json").read_text())["rows"]
    assert [row[0] for row in rows] == ["sft"] and not list(tmp_path.glob(".targets*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drifts", "microworld"], "unknown analysis 'drifts'; did you mean drift?"),
        (["drift", "microworld", "--set", "chat"], "--set chat: allowed: FIELD=VALUE"),
        (["drift", "microworld", "--set", "chat=-1"], "settings.chat: Input should be greater than or equal to 0"),
        (["drift", "microworld", "--set", "chats=1"], "its settings: chat, width, references, target"),
        (["plateaus", "microworld", "eval.held_out_chats=0"], "makes nothing that it reads (cache, generate)"),
        (["drift", "microworld"], "inputs is in"),
    ],
)
def test_what_cannot_be_analysed_is_one_line(tmp_path, capsys, words, message):
    assert main(["analyse", *words, f"run.root={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.splitlines()[-1].startswith("error: ")


def test_other_files_are_never_replaced(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    line = ["analyse", "targets", "microworld", f"run.root={tmp_path / 'runs'}", "--output", str(tmp_path)]
    assert main([*line, "--set", "objectives=[sft]"]) == 2
    assert "holds something else" in capsys.readouterr().err and (tmp_path / "mine.txt").exists()


def test_the_stages_that_an_analysis_looks_at_are_planned(tmp_path):
    def roles(*overrides):
        plan = make_plan("microworld", [*SMALL, f"run.root={tmp_path}", *overrides])
        return {(stage.kind, stage.label): stage for stage in plan.stages.values()}

    without = roles("sft.publish_steps=[2,4]", "objective=target_sft")
    assert ("generate", "target_sft-2.held_out") in without and ("generate", "teacher.held_out") not in without
    found = roles("sft.publish_steps=[2,4]", "analyses=[drift,alignment]", "objective=target_sft")
    assert ("generate", "target_sft-2.held_out") in found
    assert ("measure", "teacher.held_out") not in found
    assert set(found["generate", "target_sft-4.held_out"].inputs) == {"model", "base", "data"}
    assert set(found["generate", "teacher.held_out"].inputs) == {"model", "data"}
    given = found["analyse", "drift"].settings["given"]
    by_model = {one["model"]: one for one in given if one["kind"] == "generate" and one["name"] == "held_out"}
    assert set(by_model) == {"base", "sft", "sft@2", "sft@4", "teacher"}
    assert by_model["sft@2"]["objective"]["name"] == "target_sft" and by_model["base"]["objective"] == {}
    assert by_model["teacher"]["line"] == ""


def test_every_analysis_can_be_planned_together(tmp_path):
    asked = ",".join(names())
    plan = make_plan("microworld", [f"analyses=[{asked}]", "objective=lp_sft", f"run.root={tmp_path}"])
    assert sorted(stage.label for stage in plan.stages.values() if stage.kind == "analyse") == names()
