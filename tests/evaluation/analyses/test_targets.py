"""Induced targets equal p - dL/dz of the oracle's formulas for every objective; table 5 is the paper's."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sft_objectives
from common.errors import ConfigError
from evaluation.analyses._induced import induced, scene
from evaluation.analyses._unified import ROWS, measured
from evaluation.analyses.targets import corners

from .planted import data, run, table

ORACLE = Path(__file__).parents[2] / "oracle"
OWN = """
from dataclasses import dataclass
from sft_objectives.contract import Objective

@dataclass(frozen=True, kw_only=True)
class Cubed(Objective):
    name = "cubed"

    def loss(self, step):
        log_p = step.student.log_p_label
        return -log_p.detach().exp() ** 3 * log_p
"""
P = np.linspace(0.03, 0.97, 33)


@pytest.fixture
def formulas(monkeypatch):
    monkeypatch.syspath_prepend(ORACLE)
    sys.modules.pop("formulas", None)
    import formulas

    yield formulas
    sys.modules.pop("formulas", None)


@pytest.mark.parametrize("name", sft_objectives.names())
def test_targets_are_those_of_the_oracle(name, formulas):
    logits, references = scene(P)
    leaf = torch.from_numpy(logits).requires_grad_()
    n, size = logits.shape
    likeliest = {source: torch.from_numpy(z).argsort(descending=True, stable=True) for source, z in references.items()}
    positions = formulas.positions(
        leaf, torch.zeros(n, dtype=torch.int64), torch.ones(n), torch.ones(n, dtype=torch.int64),
        {source: torch.from_numpy(z) for source, z in references.items()}, likeliest, torch.ones(n),
    )  # fmt: skip
    losses = formulas.losses(name, positions)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    found = induced(name, {}, P)
    wanted = np.exp(logits) - gradient.numpy()
    assert found.target.shape == (n, size) and np.allclose(found.target.sum(-1), 1)
    assert np.abs(found.target - wanted).max() < 1e-9
    assert np.abs(found.loss - losses.detach().numpy()).max() < 1e-9


def test_the_papers_two_examples():
    one_hot = induced("sft", {}, P).target
    assert np.allclose(one_hot[:, 0], 1) and np.allclose(one_hot[:, 1:], 0)
    found = induced("dft", {}, P)  # eq. 16
    assert np.allclose(found.target[:, 0], 2 * P - P**2)
    assert np.allclose(found.target[:, 1:], (1 - P)[:, None] * found.p[:, 1:])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_table_5_is_what_the_paper_prints(row):
    found = measured(row)
    if row.trust is None:
        assert row.title == "Proximal SFT" and found.error is None
        return
    assert found.error < 1e-9 and found.left < 1e-9
    other = {"gem": {"temperature": 0.5}, "profit": {"threshold": 0.3}, "eaft": {"top_k": 3}}.get(row.objective)
    if other:  # another setting is another target
        changed = measured(type(row)(**{**vars(row), "settings": other}))
        assert max(changed.error, changed.left) > 1e-3


def test_a_drawn_line_misses_no_value_by_more_than_can_be_seen():
    x = np.linspace(0, 1, 201)
    for y in (x, x**2, np.sqrt(x), np.where(x < 0.3, 0.0, 1.0), np.full(201, 0.5), np.sin(9 * x)):
        kept = corners(x, y, 0.001)
        assert kept[0] == 0 and kept[-1] == 200 and np.all(np.diff(kept) > 0)
        assert np.abs(np.interp(x, x[kept], y[kept]) - y).max() <= 0.001
    assert len(corners(x, 2 * x, 0.001)) == 2 and len(corners(x, np.where(x < 0.3, 0.0, 1.0), 0.001)) == 4


def test_all_objectives_are_one_gallery(tmp_path):
    output = run(tmp_path, "targets", [], {"points": 17})
    assert [row["objective"] for row in table(output, "targets")] == sft_objectives.names()
    rows = {row["variant"]: row for row in table(output, "table_5")}
    assert len(rows) == 15 and rows["TARGET-SFT"]["as the paper says"] is True
    assert rows["ASFT"]["gamma measured at p = 0.25"] == pytest.approx(0.25 / 0.45)
    behind = data(output, "targets")
    assert len(behind["q"]) == 17 * 6 * len(sft_objectives.names())


def test_an_objective_of_ones_own_with_settings(tmp_path, monkeypatch):
    (tmp_path / "cubed.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    asked = ["cubed:Cubed", {"name": "beyond_log", "exponent": 3.0}]
    output = run(tmp_path, "targets", [], {"objectives": asked})
    first, second = table(output, "targets")
    assert (first.pop("objective"), second.pop("objective")) == ("Cubed", "beyond_log exponent=3.0")
    assert first == pytest.approx(second)
    sys.modules.pop("cubed", None)
    with pytest.raises(ConfigError, match=r"objectives\.0: no name"):
        run(tmp_path, "targets", [], {"objectives": [{"exponent": 1}]}, "refused")
