"""The check of a GPU, with scripts in place of its items: limits, resuming, missing parts, what it shows."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.gpu_check.__main__ import main
from launch.gpu_check.context import Context, NotRun, read_rows
from launch.gpu_check.listing import ITEMS, Item
from launch.gpu_check.runner import Check

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def context(tmp_path):
    return Context(3, "cuda", False, tmp_path, time.monotonic() + 60)


def raising(error):
    def part():
        raise error

    return part


def test_a_part_is_written_with_what_was_asked_of_it(context):
    asked = {"ratio": {"at_most": 1.1}, "memory": {"at_most": 0.5}, "speed": {"at_least": 2.0}}
    context.measure("head", lambda: {"ratio": 1.05, "memory": 0.6, "speed": None, "other": 1}, **asked)
    (row,) = read_rows(context.rows)
    assert row["item"] == 3 and row["figures"]["other"] == 1
    assert [one["met"] for one in row["asked"]] == [True, False, None]


def test_a_part_that_fails_or_cannot_run_leaves_the_others_alone(context):
    context.measure("broken", raising(RuntimeError("no\nkernel")))
    context.measure("absent", raising(NotRun("liger is not installed")))
    context.measure("unpacked", raising(ModuleNotFoundError("No module named 'verl.x'", name="verl.x")))
    context.measure("ours", raising(ModuleNotFoundError("No module named 'launch.x'", name="launch.x")))
    context.measure("fine", lambda: {"x": 1.0})
    broken, absent, unpacked, ours, fine = read_rows(context.rows)
    assert (unpacked["not_run"], unpacked["later"], absent["later"]) == ("verl is not installed", True, False)
    assert "failed" in ours
    assert broken["failed"] == "RuntimeError: no kernel" and absent["not_run"] == "liger is not installed"
    assert fine["figures"] == {"x": 1.0} and context.failed == ["broken", "ours"]


def test_a_part_that_is_done_is_not_measured_again(context):
    context.done = {"head"}
    context.measure("head", raising(AssertionError("measured again")))
    assert not context.rows.exists()


def test_nothing_is_asked_of_a_rehearsals_speeds(context):
    context.tiny = True
    context.measure("head", lambda: {"ratio": 9.0}, ratio={"at_most": 1.1})
    assert read_rows(context.rows)[0]["asked"] == []


def test_the_last_row_of_a_part_counts_and_a_cut_line_does_not(tmp_path):
    file = tmp_path / "item_1.jsonl"
    rows = [{"part": "a", "failed": "x"}, {"part": "b", "figures": {}}, {"part": "a", "figures": {"v": 1}}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"part": "c", "fig')
    assert read_rows(file) == [rows[2], rows[1]] and read_rows(tmp_path / "none.jsonl") == []


def test_a_ceiling_is_read_from_item_1(context):
    with pytest.raises(NotRun, match="item 1 has not measured product"):
        context.ceiling("product")
    (context.out / "item_1.jsonl").write_text(json.dumps({"part": "p", "figures": {"product": 700.0}}) + "\n")
    assert context.ceiling("product") == 700.0


class Scripted(Check):
    """Runs a script in place of each item."""

    scripts: dict[int, str]

    def command(self, item, limit):
        return [sys.executable, "-c", self.scripts[item.number], str(self.out / f"item_{item.number}.jsonl")]


def run(out, scripts, minutes=1.0, items=ITEMS):
    check = Scripted(out, "cpu", tiny=True, minutes=minutes, chosen=sorted(scripts))
    check.scripts = scripts
    return check.run()


def writing(then="", **row):
    return f"import json, sys; open(sys.argv[1], 'a').write(json.dumps({row!r}) + chr(10)); {then}"


@pytest.fixture
def light(monkeypatch):
    """Items that need nothing."""
    items = tuple(Item(item.number, item.module, item.title, item.share) for item in ITEMS)
    monkeypatch.setattr("launch.gpu_check.runner.ITEMS", items)


def states(out):
    return {item["item"]: item for item in json.loads((out / "gpu_check.json").read_text())["items"]}


def test_items_run_one_after_the_other_and_are_told(tmp_path, light, capsys):
    scripts = {
        1: writing(part="copy", figures={"gb": 3000.0}, asked=[]),
        2: writing("sys.exit(1)", part="compiled", failed="RuntimeError: far"),
        3: "import sys; print('no memory left'); sys.exit(7)",
    }
    assert run(tmp_path, scripts) == 1
    shown = capsys.readouterr().out
    assert "copy                           gb 3000" in shown and "FAILED: RuntimeError: far" in shown
    found = states(tmp_path)
    assert [found[number]["status"] for number in (1, 2, 3, 4)] == ["done", "failed", "crashed", "not run"]
    assert found[3]["why"] == "exit code 7: no memory left" and found[4]["why"] == "not asked for"
    assert found[1]["parts"][0]["figures"] == {"gb": 3000.0}


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path, light, capsys):
    assert run(tmp_path, {1: writing(part="a", figures={}, asked=[]), 2: "raise SystemExit(3)"}) == 1
    (tmp_path / "item_2.jsonl").write_text(json.dumps({"part": "b", "failed": "first"}) + "\n")
    again = {1: "raise SystemExit('run twice')", 2: writing(part="b", figures={"x": 2}, asked=[])}
    assert run(tmp_path, again) == 0
    shown = capsys.readouterr().out.split("done by an earlier run")[1]
    assert "x 2" in shown and "FAILED" not in shown
    assert [states(tmp_path)[number]["status"] for number in (1, 2)] == ["done", "done"]


def test_what_a_later_run_may_measure_leaves_the_item_open(tmp_path, light):
    assert run(tmp_path, {1: writing(part="a", not_run="verl is not installed", later=True)}) == 0
    assert states(tmp_path)[1]["status"] == "incomplete"
    assert run(tmp_path, {1: writing(part="a", figures={"x": 1}, asked=[])}) == 0
    assert states(tmp_path)[1]["status"] == "done"


def test_an_item_is_ended_at_its_limit_with_what_it_started(tmp_path, light, monkeypatch):
    monkeypatch.setattr("launch.gpu_check.runner.LEAST", 0.1)
    monkeypatch.setattr(Scripted, "command", lambda *_: ["sh", "-c", "sleep 600 & echo $!; wait"])
    assert run(tmp_path, {1: ""}, minutes=5 / 60) == 1
    assert states(tmp_path)[1]["status"] == "stopped"
    pid = (tmp_path / "item_1.log").read_text().strip()
    assert pid.isdecimal()
    until = time.monotonic() + 60  # a busy machine delivers a signal late
    with contextlib.suppress(OSError):  # it is gone
        while "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < until
            time.sleep(0.1)


def test_without_time_nothing_is_started(tmp_path, light):
    assert run(tmp_path, {1: "raise SystemExit(9)"}, minutes=0.01) == 0
    assert states(tmp_path)[1]["why"] == "no time left"


def test_a_figure_that_is_missed_is_counted(tmp_path, light, capsys):
    asked = [{"figure": "x", "value": 2.0, "at_most": 1.0, "met": False}]
    assert run(tmp_path, {1: writing(part="a", figures={"x": 2.0}, asked=asked)}) == 1
    assert "x 2 (at most 1: MISSED)" in capsys.readouterr().out


def test_a_missing_package_is_named_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    items = (Item(1, "device", "first", 1.0, ("json", "no_such_package")), Item(2, "kernels", "second", 1.0))
    monkeypatch.setattr("launch.gpu_check.runner.ITEMS", items)
    assert run(tmp_path, {1: "", 2: writing(part="a", figures={}, asked=[])}) == 0
    assert "not run: no_such_package not installed" in capsys.readouterr().out
    assert states(tmp_path)


def test_a_directory_of_another_check_is_refused(tmp_path):
    Check(tmp_path, "cpu", tiny=True, minutes=1, chosen=[1])
    with pytest.raises(ValueError, match="name another directory"):
        Check(tmp_path, "cuda", tiny=False, minutes=1, chosen=[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "--device cpu: only with --tiny"),
        (["--device", "cpu", "--tiny", "--items", "1,8"], "--items 1,8: allowed: 1,2,3,4,5,6,7"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path / "check")])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_first_three_items_need_torch_and_these_files_alone():
    """On a bare machine; the kernels' module needs triton too, and is imported where it runs."""
    code = (
        "import sys\n"
        "absent = ('verl', 'ray', 'vllm', 'transformers', 'hydra', 'pydantic', 'pyarrow', 'tensordict', 'omegaconf')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        "import launch.gpu_check.__main__, launch.gpu_check.item\n"
        "from launch.gpu_check.items import device, heads, kernels\n"
        "import sft_objectives.fused.accuracy\n"
        "from launch.gpu_check.listing import ITEMS\n"
        "assert all(set(item.needs) <= {'torch', 'triton', 'numpy'} for item in ITEMS[:3])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=240)


def test_items_are_in_order_and_their_shares_are_ten_minutes():
    assert [item.number for item in ITEMS] == list(range(1, 8))
    assert sum(item.share for item in ITEMS) == pytest.approx(10.0)
    for item in ITEMS:
        assert (ROOT / "launch" / "gpu_check" / "items" / f"{item.module}.py").is_file()
