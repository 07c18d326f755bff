from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import toy

from evaluation.artifact import GENERATIONS, write_metrics
from evaluation.statistics import bootstrap, paired_comparison, pass_at_k
from launch.plan import Branch
from launch.report import COLUMNS, lines, write_report
from launch.store import Store

PROBLEMS, SAMPLES = 12, 4


def estimate(values):
    return vars(bootstrap(values, seed=0, resamples=200, proportion=True))


def evaluate(folder, correct, reproducible=True):
    """An `evaluate` artifact: `correct`: benchmark -> correct samples of each problem; greedy takes the majority."""
    benchmarks = {}
    (folder / "generations").mkdir()
    for name, counts in correct.items():
        ks = {"ungraded": estimate([0.0] * len(counts)), "self_bleu": estimate([50.0 + c for c in counts])}
        ks |= {f"pass@{k}": estimate([pass_at_k(SAMPLES, c, k) for c in counts]) for k in (1, 2, 4)}
        benchmarks[name] = {
            "protocol": {},
            "counts": {"problems": len(counts), "responses": 5 * len(counts), "grading": {}},
            "metrics": ks,
        }
        rows = []
        for problem, count in enumerate(counts):
            for mode, verdicts in (
                ("sampled", [index < count for index in range(SAMPLES)]),
                ("greedy", [count > SAMPLES // 2]),
            ):
                for index, verdict in enumerate(verdicts):
                    row = dict.fromkeys(GENERATIONS.names) | {"id": str(problem), "mode": mode, "sample": index}
                    rows.append(row | {"correct": verdict})
        pq.write_table(pa.Table.from_pylist(rows, GENERATIONS), folder / "generations" / f"{name}.parquet")
    held_out = {
        "counts": {"chats": 9, "chats_too_long": 0, "tokens": 90},
        "metrics": {"entropy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}},
        "entropy_histogram": {
            "edges": [0.0, 1.0],
            "shares": [{"value": value, "low": 0.2, "high": 0.8, "n": 9} for value in (0.25, 0.75)],
        },
    }
    engine = {"vllm": "0", "dtype": "float32", "max_length": 64, "reproducible": reproducible}
    facts = {"engine": engine, "held_out": held_out, "tasks": {}, "base_minimum": None}
    write_metrics(folder, {**facts, "benchmarks": benchmarks})


def publish(store, stage, write, seconds=10.0, peak=2_000_000_000):
    store.acquire(stage, "run")
    attempt = store.begin(stage)
    write(store.temporary(stage, attempt))
    store.publish(stage, attempt, "run", started=0.0, seconds=seconds, peak_memory_bytes=peak)
    store.finish(stage, attempt, {"outcome": "ok", "message": "", "seconds": seconds})
    store.release(stage, "run")


def curve(metric):
    def write(folder):
        rows = [{"step": step, metric: 1.0 / step} for step in range(1, 6)]
        (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


BEFORE = {"target": [1, 2, 0, 1, 2, 3, 1, 0, 2, 1, 1, 2], "sorting": [4] * PROBLEMS, "dates": [2] * PROBLEMS}
AFTER = {"target": [3, 4, 2, 3, 4, 4, 3, 1, 4, 3, 2, 4], "sorting": [3] * PROBLEMS, "dates": [2] * PROBLEMS}


def experiment(root, *, seeds=(0,)):
    """base evaluation, and per seed: SFT, RL and their evaluations. Nothing is published."""
    base = toy.steps("base", "evaluate")
    stages, branches = [base], []
    for seed in seeds:
        sft = toy.steps("dft", seed=seed)
        rl = toy.steps("dft", "rl", seed=seed, inputs={"model": sft})
        sft_eval = toy.steps("dft", "evaluate", inputs={"model": sft})
        rl_eval = toy.steps("dft.rl", "evaluate", inputs={"model": rl})
        stages += [sft, rl, sft_eval, rl_eval]
        roles = {
            "evaluate:base": base,
            "sft": sft,
            "rl@final": rl,
            "evaluate:sft": sft_eval,
            "evaluate:rl@final": rl_eval,
        }
        branches.append((seed, {role: stage.fingerprint for role, stage in roles.items()}))
    plan = toy.plan(root, *stages)
    recipe = plan.branches[0].recipe
    overrides = [("objective=dft", f"seed={seed}") for seed, _ in branches]
    named = [
        Branch(f"dft seed={seed}", given, recipe, roles)
        for given, (seed, roles) in zip(overrides, branches, strict=True)
    ]
    return replace(plan, branches=named)


def fill(plan, reproducible=True):
    store = Store(plan.root)
    for stage in plan.stages.values():
        if stage.kind == "evaluate":
            correct = AFTER if stage.label == "dft.rl" else BEFORE
            publish(store, stage, lambda folder, c=correct: evaluate(folder, c, reproducible))
        else:
            publish(store, stage, curve("loss" if stage.kind == "sft" else "reward"))
    return store


def rows_of(plan, capsys):
    capsys.readouterr()
    assert write_report(plan, as_json=True) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_number_is_the_records_and_cites_it(tmp_path, capsys):
    plan = experiment(tmp_path)
    fill(plan)
    rows = rows_of(plan, capsys)
    assert list(rows) == ["base model", "dft"]
    dft = rows["dft"]
    before, after = ([c / SAMPLES for c in counts["target"]] for counts in (BEFORE, AFTER))
    gain = paired_comparison(before, after, seed=0, resamples=2000)
    assert dft["gain"]["value"] == pytest.approx(sum(after) / 12 - sum(before) / 12)
    assert (dft["gain"]["low"], dft["gain"]["high"]) == (gain.low, gain.high)
    assert dft["sft_pass1"]["value"] == pytest.approx(sum(before) / 12)
    assert dft["sft_passk"]["value"] == pytest.approx(10 / 12)
    assert dft["rl_general"]["value"] == pytest.approx((0.75 + 0.5) / 2)
    assert dft["entropy"]["value"] == 0.5 and dft["time"]["value"] == 20.0 and dft["memory"]["text"] == "2.00 GB"
    assert dft["gain_greedy"]["value"] == pytest.approx(
        (sum(a > 0.5 for a in after) - sum(b > 0.5 for b in before)) / 12
    )
    addresses = {stage.address for stage in plan.stages.values()}
    for name in COLUMNS:
        assert dft[name]["records"] and set(dft[name]["records"]) <= addresses
    assert rows["base model"]["rl_pass1"] == {"text": "", "value": None, "low": None, "high": None, "records": []}


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_no_metric_is_printed_without_an_interval(tmp_path, capsys, seeds):
    plan = experiment(tmp_path, seeds=seeds)
    fill(plan)
    rows = rows_of(plan, capsys)
    for name, cells in rows.items():
        for column in set(COLUMNS) - {"time", "memory"}:
            cell = cells[column]
            assert not cell["text"] or (cell["low"] <= cell["value"] <= cell["high"]), (name, column)
            assert not cell["text"] or cell["text"].endswith(f"({bounds(cell)})"), (name, column)
    # Of the other tables of results too, whatever their columns are.
    text = (tmp_path / "toy" / "report.md").read_text()
    for title, count in (("Scores by benchmark", 3), ("Diversity and drift", 3)):
        table = [line for line in text.split(f"## {title}")[1].split("## ")[0].splitlines() if line.startswith("| ")]
        values = [cell for line in table[2:] for cell in line.split(" | ")[1:] if cell.strip(" |")]
        assert len(values) == 3 * count
        assert all(re.match(r"[\d.]+( ± [\d.]+)? \([\d.]+ to [\d.]+\)", value) for value in values)


def bounds(cell):
    sign = "+" if cell["text"].startswith(("+", "-")) else ""
    return f"{cell['low']:{sign}.3f} to {cell['high']:{sign}.3f}"


def test_over_seeds_the_bounds_are_means_and_cover_the_bootstrap_of_the_means(tmp_path, capsys):
    plan = experiment(tmp_path, seeds=(0, 1))
    store = Store(plan.root)
    one, other = BEFORE, {**BEFORE, "target": [4 - count for count in BEFORE["target"]]}
    evaluated = [stage for stage in plan.stages.values() if stage.kind == "evaluate" and stage.label == "dft"]
    assert len(evaluated) == 2
    for stage, correct in zip(evaluated, (one, other), strict=True):
        publish(store, stage, lambda folder, c=correct: evaluate(folder, c))
    cell = rows_of(plan, capsys)["dft"]["sft_pass1"]
    sides = [[count / SAMPLES for count in correct["target"]] for correct in (one, other)]
    single = [bootstrap(side, seed=0, resamples=200) for side in sides]
    assert cell["low"] == pytest.approx(sum(found.low for found in single) / 2)
    assert cell["high"] == pytest.approx(sum(found.high for found in single) / 2)
    both = bootstrap([sum(pair) / 2 for pair in zip(*sides, strict=True)], seed=0, resamples=200)
    assert cell["low"] <= both.low and both.high <= cell["high"]


class Page(HTMLParser):
    """Ids, links, picture sources and whether anything is loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.sources = set(), set(), []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links |= {found["href"]} if "href" in found else set()
        self.sources += [found["src"]] if "src" in found else []


def test_pages_hold_pictures_and_every_citation_leads_to_its_record(tmp_path):
    plan = experiment(tmp_path)
    fill(plan)
    write_report(plan)
    folder = tmp_path / "toy"
    page = Page()
    page.feed((folder / "report.html").read_text())
    assert page.links and {link.removeprefix("#") for link in page.links} <= page.ids
    assert len(page.sources) == 3 and all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    text = (folder / "report.md").read_text()
    cited, defined = set(re.findall(r"\[\^\d+\](?!:)", text)), set(re.findall(r"^(\[\^\d+\]):", text, re.M))
    assert cited == defined and len(defined) == 5
    for picture in re.findall(r"\]\((\w+\.svg)\)", text):
        assert (folder / picture).read_text().startswith("<svg")


@pytest.mark.parametrize("reproducible", [True, False])
def test_the_pages_say_if_responses_do_not_repeat(tmp_path, reproducible):
    plan = experiment(tmp_path)
    fill(plan, reproducible)
    write_report(plan)
    for page in ("report.html", "report.md"):
        assert ("a second run of the same seed" in (tmp_path / "toy" / page).read_text()) is not reproducible


def test_missing_and_damaged_records_leave_cells_empty(tmp_path, capsys):
    plan = experiment(tmp_path)
    assert rows_of(plan, capsys)["dft"]["sft_pass1"]["text"] == ""
    store = fill(plan)
    evaluated = next(s for s in plan.stages.values() if s.label == "dft.rl")
    metrics = store.directory(evaluated) / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"pass@1"', '"pass@3"', 1))
    dft = rows_of(plan, capsys)["dft"]
    assert dft["sft_pass1"]["text"] and dft["rl_pass1"]["text"] == dft["gain"]["text"] == ""
    assert "metrics.json differs from its sha256" in (tmp_path / "toy" / "report.md").read_text()


def test_seeds_make_one_row_with_gains_paired_over_problems(tmp_path, capsys):
    plan = experiment(tmp_path, seeds=(0, 1, 2))
    store = fill(plan)
    (line,) = [line for line in lines(plan) if line.name == "dft"]
    assert len(line.members) == 3
    dft = rows_of(plan, capsys)["dft"]
    assert "±" in dft["sft_pass1"]["text"] and len(dft["gain"]["records"]) == 6
    before, after = ([c / SAMPLES for c in counts["target"]] for counts in (BEFORE, AFTER))
    assert dft["gain"]["low"] == paired_comparison(before, after, seed=0, resamples=2000).low
    assert store.find(line.members[0]["sft"]) is not None


def test_an_unchanged_report_is_left_alone(tmp_path, capsys):
    plan = experiment(tmp_path)
    fill(plan)
    write_report(plan)
    path = tmp_path / "toy" / "report.html"
    before = path.stat().st_mtime_ns, path.read_bytes()
    capsys.readouterr()
    write_report(plan)
    assert "(unchanged)" in capsys.readouterr().out
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    path.unlink()
    write_report(plan)
    assert path.read_bytes() == before[1]
