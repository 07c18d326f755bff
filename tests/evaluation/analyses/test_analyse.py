"""Analyses over measurements of several branches and seeds, and one of one's own."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from evaluation import analyse, analyses
from evaluation.analyses import Given
from evaluation.artifact import write_metrics

ENGINE = {"vllm": "0", "dtype": "float32", "max_length": 64, "reproducible": True}
OWN = """
from pydantic import BaseModel
from evaluation.analyses import Analysis, Figure, Findings, Table

class Settings(BaseModel):
    scale: float = 1.0

class Sums(Analysis):
    name = "sums"
    needs = ("sft",)
    section = Settings

    def run(self, inputs, settings):
        rows = [[given.line, given.seed, settings.scale * len(given.name)] for given in inputs]
        figure = Figure(lambda canvas: canvas.subplots().plot([1, 2], [3, 4]), "A line.")
        return Findings({"sums": Table("Sums", ["line", "seed", "length"], rows)}, {"line": figure}, "Found.")

sums = Sums()
"""


def interval(value, width=0.1):
    return {"value": value, "low": value - width, "high": value + width, "n": 10}


def measured(directory, kind, name, **fields):
    directory.mkdir(parents=True)
    counts = {
        "benchmark": {"problems": 10, "responses": 10, "grading": {"ok": 10}},
        "held_out": {"chats": 10, "chats_too_long": 0, "tokens": 100},
    }
    facts = {"engine": ENGINE, "base_minimum": None, "kind": kind, "name": name, "protocol": {}}
    write_metrics(directory, {**facts, "counts": counts[kind], **fields})
    return directory


@pytest.fixture
def study(tmp_path):
    """Inputs, and what each is: a base model of two branches, and two seeds of two lines after SFT and RL."""
    inputs, given = {}, []

    def add(path, line, seed, model, name):
        inputs[f"input{len(inputs)}"] = path
        given.append(
            {"input": f"input{len(given)}", "kind": "measure", "line": line, "seed": seed, "model": model, "name": name}
        )

    def one(where, model, reach, certain):
        metrics = {f"pass@{k}": interval(reach + 0.05 * k) for k in (1, 2, 4)} | {"tokens_mean": interval(9.0)}
        path = measured(tmp_path / where / "target", "benchmark", "target", metrics=metrics)
        shares = {
            "edges": [0.0, 0.5, 1.0],
            "shares": [interval(share, 0.01) for share in (certain, 0.1, 0.9 - certain)],
        }
        return path, measured(
            tmp_path / where / "held_out", "held_out", "held_out", metrics={}, entropy_histogram=shares
        )

    base = one("base", "base", 0.1, 0.2)
    for line, reach in (("sft", 0.3), ("dft", 0.4)):
        for seed in ("0", "1"):
            for path, name in zip(base, ("target", "held_out"), strict=True):
                add(path, line, seed, "base", name)
            for model in ("sft", "rl"):
                found = one(f"{line}-{seed}-{model}", model, reach + 0.2 * int(seed), 0.5 + 0.1 * int(seed))
                for path, name in zip(found, ("target", "held_out"), strict=True):
                    add(path, line, seed, model, name)
    return inputs, given


def run(tmp_path, name, inputs, given, settings=None, output="output"):
    output = tmp_path / output
    output.mkdir()
    calls = []
    asked = SimpleNamespace(analysis=name, settings=settings or {}, given=given)
    analyse.run(asked, inputs, output, tmp_path, lambda done, total, **_: calls.append((done, total)))
    return output, calls


def table(output, name):
    found = json.loads((output / "tables" / f"{name}.json").read_text())
    with (output / "tables" / f"{name}.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == found["columns"] and len(rows) == len(found["rows"])
    assert [["" if cell is None else str(cell) for cell in row] for row in found["rows"]] == rows
    return [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]


def test_pass_at_k_averages_over_seeds_and_counts_the_base_once(tmp_path, study):
    output, calls = run(tmp_path, "pass_at_k", *study)
    rows = table(output, "pass_at_k_target")
    assert [(row["line"], row["model"]) for row in rows[::3]] == [
        ("base model", "base"),
        ("sft", "sft"),
        ("sft", "rl"),
        ("dft", "sft"),
        ("dft", "rl"),
    ]
    assert rows[0]["seeds"] == 1 and rows[3]["seeds"] == 2 and [row["k"] for row in rows[:3]] == [1, 2, 4]
    # Means of the values and of the bounds of two seeds that are 0.2 apart.
    assert (rows[3]["pass@k"], rows[3]["low"], rows[3]["high"]) == pytest.approx((0.45, 0.35, 0.55))
    found = json.loads((output / "findings.json").read_text())
    assert found["sentence"] == "pass@4 on target is highest for dft SFT: 0.700 (0.600 to 0.800)."
    assert found["tables"] == ["pass_at_k_target"] and found["figures"].keys() == {"pass_at_k_target"}
    text = (output / "figures" / "pass_at_k_target.svg").read_text()
    assert all(label in text for label in ("base model", "sft SFT", "dft RL", "pass@k, target"))
    assert (output / "figures" / "pass_at_k_target.png").read_bytes().startswith(b"\x89PNG")
    assert calls[-1] == (2, 2)


def test_the_entropy_histogram_shows_the_models_asked_for(tmp_path, study):
    output, _ = run(tmp_path, "entropy_histogram", *study)
    rows = table(output, "entropy_histogram")
    assert [(row["line"], row["from"], row["to"]) for row in rows[:3]] == [
        ("base model", 0.0, 0.5),
        ("base model", 0.5, 1.0),
        ("base model", 1.0, None),
    ]
    assert {row["model"] for row in rows} == {"base", "sft"} and rows[3]["share"] == pytest.approx(0.55)
    assert "below 0.5 nats" in json.loads((output / "findings.json").read_text())["sentence"]
    again, _ = run(tmp_path, "entropy_histogram", *study, {"models": ["rl"]}, "rl")
    assert {row["model"] for row in table(again, "entropy_histogram")} == {"rl"}


@pytest.mark.parametrize("name", ["pass_at_k", "entropy_histogram"])
def test_the_same_findings_are_the_same_bytes(tmp_path, study, name):
    outputs = [run(tmp_path, name, *study, output=output)[0] for output in ("once", "again")]
    found = [
        {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
        for output in outputs
    ]
    assert found[0] == found[1] and len(found[0]) == 5


def test_an_analysis_of_ones_own_reads_what_it_needs(tmp_path, study, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "study.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    inputs, given = study
    inputs["model"] = tmp_path
    given.append({"input": "model", "kind": "sft", "line": "dft", "seed": "1", "model": "sft", "name": "four"})
    output, _ = run(tmp_path, "own.study", inputs, given, {"scale": 2.0})
    assert table(output, "sums") == [{"line": "dft", "seed": "1", "length": 8.0}]
    assert analyses.load("own.study:sums").needs == ("sft",) and "sums" not in analyses.names()
    assert (output / "figures" / "line.svg").exists()
    with pytest.raises(ConfigError, match=r"'own\.study': settings\.scale: .*its settings: scale"):
        run(tmp_path, "own.study", inputs, given, {"scale": "much"}, "refused")
    for name in ("own.study", "own"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "keep", "settings", "message"),
    [
        ("pass_at_n", ("target",), {}, r"unknown analysis 'pass_at_n'; did you mean pass_at_k\?"),
        ("pass_at_k", ("held_out",), {}, "no benchmark among what was measured"),
        ("pass_at_k", ("target",), {"benchmarks": ["other"]}, "no benchmark 'other'"),
        ("pass_at_k", ("target",), {"benchmark": "target"}, r"settings\.benchmark: Extra .*its settings: benchmarks"),
        ("entropy_histogram", ("target",), {}, "no held-out chats measured of base, sft"),
        ("entropy_histogram", (), {}, "nothing to analyse; it reads measure"),
    ],
)
def test_what_cannot_be_analysed_is_named(tmp_path, study, name, keep, settings, message):
    inputs, given = study
    with pytest.raises(ConfigError, match=message) as caught:
        run(tmp_path, name, inputs, [one for one in given if one["name"] in keep], settings)
    assert "\n" not in str(caught.value)


def test_an_input_that_is_not_there_is_named(tmp_path, study):
    inputs, given = study
    with pytest.raises(ConfigError, match="no input 'lost'"):
        run(tmp_path, "pass_at_k", inputs, [{**given[0], "input": "lost"}])


def test_names_and_runs_import_no_plotting_library():
    code = (
        "import sys; from evaluation import analyse, analyses;"
        "assert {'entropy_histogram', 'pass_at_k'} <= set(analyses.names());"
        "heavy = {'torch', 'vllm', 'ray', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert Given.__dataclass_fields__.keys() == {"path", "kind", "line", "seed", "model", "name", "objective"}
