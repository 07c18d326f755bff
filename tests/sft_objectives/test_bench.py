"""The benchmark runs to its end on small sizes, and its rows say what they should."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

import sft_objectives
from sft_objectives import bench, bench_workloads

SMALL = ["--tokens", "48", "--width", "16", "--vocab-size", "301", "--repeats", "1", "--device", "cpu"]


def steady(monkeypatch) -> None:
    """Every median counts, however busy the machine."""
    monkeypatch.setattr(bench, "WIDEST_SPREAD", float("inf"))


def output(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["bench", *SMALL, "--dtype", "float32", *arguments])
    bench.main()
    return capsys.readouterr().out


def test_json_has_a_row_for_every_objective_and_variant(monkeypatch, capsys):
    steady(monkeypatch)
    rows = json.loads(output(monkeypatch, capsys, "--json"))
    wanted = [(name, {}) for name in sft_objectives.names()] + list(bench.VARIANTS)
    assert [(row["objective"], row["settings"]) for row in rows] == [(name, dict(s)) for name, s in wanted]
    for row in rows:
        assert row["device"] == "cpu" and row["verl"] is True
        for key in ("verl_plain", "verl_fused", "naive"):
            assert row[f"time_vs_{key}"] > 0 and row[f"memory_vs_{key}"] > 0
        assert row["processor_time_vs_verl_plain"] > 0 and row["processor_time_vs_naive"] > 0
        assert row["seconds"] > 0 and row["seconds_verl_plain"] > 0 and row["time_diagnostics"] > 0
        absent = ("verl_liger", "verl_triton", "liger", "liger_scaled", "cut")
        assert all(row[f"time_vs_{key}"] is None for key in absent)
    passes = {row["objective"]: row["passes"] for row in rows}
    assert passes["talr"] == 2 and passes["sft"] == passes["eaft"] == 1


def test_the_table_has_a_line_for_each(monkeypatch, capsys):
    steady(monkeypatch)
    lines = output(monkeypatch, capsys, "--objectives", "sft,gem", "--no-naive").splitlines()
    assert "vocab_size 301" in lines[0] and "verl plain" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["sft", "gem", "gem"]
    assert all(line.split()[-1] == "-" for line in lines[2:])


def test_without_verl_the_plain_form_is_pytorch_s(monkeypatch, capsys):
    for module in (bench, bench_workloads):
        monkeypatch.setattr(module, "installed", lambda name: None)
    steady(monkeypatch)
    (row,) = json.loads(output(monkeypatch, capsys, "--objectives", "sft", "--json"))
    assert row["verl"] is False and row["time_vs_verl_plain"] > 0 and row["time_vs_verl_fused"] is None


@pytest.fixture
def group():
    """Ends the process group that a training step makes."""
    yield
    torch.distributed.destroy_process_group()


def test_a_whole_step_trains_the_model_with_what_needs_no_other(monkeypatch, capsys, group):
    steady(monkeypatch)
    rows = json.loads(output(monkeypatch, capsys, "--step", "--layers", "2", "--json"))
    measured = [(row["objective"], row["settings"]) for row in rows]
    assert {"sft", "lp_sft", "gem", "eaft"} <= {name for name, _ in measured}
    assert ("asft", {"estimator": "topk"}) in measured and ("asft", {}) not in measured
    assert not {"talr", "flow"} & {name for name, _ in measured}
    for row in rows:
        assert row["step"] is True and row["layers"] == 2 and row["parameters"] > 2 * 301 * 16
        assert row["time_vs_verl_plain"] > 0 and row["memory_vs_verl_plain"] > 0 and row["time_vs_naive"] is None


def test_the_step_s_loss_is_the_objective_s_on_whole_logits(group):
    work = bench_workloads.TrainingStep(48, 16, 301, torch.float32, torch.device("cpu"), 2)
    before = work.model.lm_head.weight.full_tensor().detach().clone()
    plain, fused = work.baselines()["verl_plain"], work.fused(sft_objectives.load("sft"))
    torch.testing.assert_close(fused(), plain())
    work.finish(fused())
    assert not torch.equal(work.model.lm_head.weight.full_tensor(), before)


def test_a_baseline_that_lacks_memory_is_left_out(monkeypatch):
    def too_large():
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    work = bench_workloads.Workload(8, 4, 20, torch.float32, torch.device("cpu"))
    taken = bench._seconds(work, {"plain": work.baselines()["verl_plain"], "huge": too_large}, 2)
    assert list(taken) == ["plain"] and len(taken["plain"]) == 2
    assert bench._ratio(taken["plain"], taken.get("huge")) is None


def test_a_ratio_is_a_median_of_pairs_or_no_figure():
    mine, theirs = [(2.0, 8.0), (9.0, 1.0), (4.0, 6.0)], [(1.0, 2.0), (3.0, 1.0), (1.0, 3.0)]
    elapsed, processor = bench._ratio(mine, theirs), bench._ratio(mine, theirs, clock=1)
    assert elapsed is not None and processor is not None
    # 2, 3, 4: quartiles 2.5 and 3.5
    assert (elapsed.median, elapsed.spread) == (pytest.approx(3.0), pytest.approx(1 / 3))
    assert processor.median == pytest.approx(2)
    assert elapsed.shown is None
    near = bench._ratio([(1.0, 1.0), (1.1, 1.0), (1.2, 1.0)], [(1.0, 1.0)] * 3)
    assert near is not None and near.shown == pytest.approx(1.1)
    assert bench._ratio([(1.0, math.nan)], [(1.0, math.nan)], clock=1) is None  # a GPU has no processor time
    assert bench._cell(None, None) == "-" and bench._cell(None, 0.3) == "unsteady" and bench._cell(1.0, 0.1) == "1.00"


def test_unsteady_figures_are_not_printed(monkeypatch, capsys):
    clock = iter(range(1, 10_000))
    monkeypatch.setattr(bench_workloads.Workload, "seconds", lambda self, step: (float(next(clock)) ** 2, 1.0))
    lines = output(monkeypatch, capsys, "--objectives", "sft", "--no-naive", "--repeats", "4").splitlines()
    assert "unsteady" in lines[2]
    row = json.loads(output(monkeypatch, capsys, "--objectives", "sft", "--no-naive", "--repeats", "4", "--json"))[0]
    assert row["time_vs_verl_plain"] is None or row["spread_vs_verl_plain"] <= 0.2


def test_the_logits_are_spread_as_a_model_s():
    work = bench_workloads.Workload(256, 64, 4000, torch.float32, torch.device("cpu"))
    logits = (work.hidden @ work.head.t()).detach()
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    assert 2 < float(logits.std(-1).median()) < 5
    assert float(entropy.quantile(0.1)) < 0.5 and float(entropy.quantile(0.9)) > 2
    assert float(logits.amax(-1).sub(logits.mean(-1)).max()) < 60  # nothing underflows


def test_numbers_too_small_for_their_exponent_are_zero_while_it_runs(monkeypatch, capsys):
    seen = []
    original = bench_workloads.Workload.seconds

    def seconds(self, step):
        seen.append(float(torch.tensor([1e-20]) * 1e-20))  # 1e-40 is denormal in float32
        return original(self, step)

    monkeypatch.setattr(bench_workloads.Workload, "seconds", seconds)
    row = json.loads(output(monkeypatch, capsys, "--objectives", "sft", "--no-naive", "--json"))[0]
    assert set(seen) == {0.0 if row["flush_denormal"] else pytest.approx(1e-40)}
    assert float(torch.tensor([1e-20]) * 1e-20) > 0
