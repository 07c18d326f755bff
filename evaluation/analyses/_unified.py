"""TARGET-SFT's table 5 made from the code: the label trust and the residual that the gradients of an objective have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.analyses._induced import REFERENCES, Induced, induced

Distribution = Callable[[np.ndarray], np.ndarray]  # of the student's (n, V) probabilities
EXPONENT, LAMBDA, TEMPERATURE, THRESHOLD = 0.5, 0.2, 0.7, 0.1
ONES = np.linspace(0.05, 0.95, 19)


def _tempered(p: np.ndarray) -> np.ndarray:
    raised = p ** (1 / TEMPERATURE)
    return raised / raised.sum(-1, keepdims=True)


def _guided(p: np.ndarray) -> np.ndarray:
    shaped = p ** (1 - EXPONENT) * _reference("teacher")(p) ** EXPONENT
    return shaped / shaped.sum(-1, keepdims=True)


def _reference(source: str) -> Distribution:
    return lambda p: np.tile(np.array(REFERENCES[source]), (len(p), 1))


def _own(p: np.ndarray) -> np.ndarray:
    return p


@dataclass(frozen=True)
class Row:
    """A row of the table. objective, settings: ours. trust: the paper's gamma at (n, V) probabilities, and `formula` in
    words; residual: its distribution, and its name. away: a distribution that is repelled (GEM); then `trust` is the
    weight of the label. schematic: the paper gives no formula.
    """

    title: str
    category: str
    objective: str
    formula: str
    trust: Callable[[np.ndarray], np.ndarray] | None
    residual_name: str
    residual: Distribution
    settings: Mapping[str, Any] = field(default_factory=dict)
    away: bool = False


def _label(p: np.ndarray) -> np.ndarray:
    return p[:, 0]


def _constant(value: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda p: np.full(len(p), value)


def _entropy_share(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p)).sum(-1) / np.log(p.shape[1])


TRUST, RESIDUAL = "label trust", "residual distribution"
ROWS = (
    Row("Standard SFT", "one-hot imitation", "sft", "1", _constant(1.0), "none", _own),
    Row("DFT", TRUST, "dft", "p", _label, "student", _own),
    Row(
        "Beyond-log", TRUST, "beyond_log", "p^a", lambda p: _label(p) ** EXPONENT, "student", _own,
        {"exponent": EXPONENT},
    ),
    Row(
        "ProFiT", TRUST, "profit", "1[p > tau]", lambda p: (_label(p) > THRESHOLD).astype(float), "student", _own,
        {"threshold": THRESHOLD},
    ),
    Row("EAFT", TRUST, "eaft", "H_topk / ln k", _entropy_share, "student", _own, {"top_k": 6}),
    Row(
        "iw-SFT", TRUST, "iw_sft", "q / pi_ref of the trajectory", lambda p: _label(p) / REFERENCES["base"][0],
        "student", _own,
    ),
    Row("CFT", TRUST, "critical_token", "1[critical]", _constant(1.0), "student", _own),
    Row(
        "Label smoothing", RESIDUAL, "label_smoothing", "1 - lambda", _constant(1 - LAMBDA), "uniform",
        lambda p: np.full(p.shape, 1 / p.shape[1]), {"weight": LAMBDA},
    ),
    Row(
        "SFT + KL", RESIDUAL, "sft_kl", "1 / (1 + lambda)", _constant(1 / (1 + LAMBDA)), "base", _reference("base"),
        {"weight": LAMBDA},
    ),
    Row(
        "ASFT", RESIDUAL, "asft", "p / (p + lambda)", lambda p: _label(p) / (_label(p) + LAMBDA), "base",
        _reference("base"), {"weight": LAMBDA},
    ),
    Row("Proximal SFT", RESIDUAL, "psft", "depends on the clipping", None, "student", _own),
    Row(
        "GEM", RESIDUAL, "gem", "1, and 1 away", _constant(1.0), "student^(1/beta), away", _tempered,
        {"temperature": TEMPERATURE}, away=True,
    ),
    Row(
        "Knowledge distillation", RESIDUAL, "kd", "0", _constant(0.0), "teacher", _reference("teacher"), {"weight": 1.0}
    ),
    Row(
        "Distillation (hybrid)", RESIDUAL, "kd", "1 - lambda", _constant(1 - LAMBDA), "teacher", _reference("teacher"),
        {"weight": LAMBDA},
    ),
    Row(
        "TARGET-SFT", "label trust + residual", "target_sft", "p", _label, "student^(1-eta) teacher^eta", _guided,
        {"exponent": EXPONENT},
    ),
)  # fmt: skip
DATA_LEVEL = ("RFT", "STaR", "GRAPE", "Self-distillation")  # change the data, no loss


@dataclass(frozen=True)
class Measured:
    """gamma: (n,) measured from gradients. error: of the paper's gamma; None where it gives none. left: of the gradient
    that label and residual do not explain, relative to it."""

    row: Row
    gamma: np.ndarray
    error: float | None
    left: float


def measured(row: Row) -> Measured:
    """Solves dL/dz = a (p - e_y) + b (p - R) for a and b at each p_y, with the paper's R; gamma = a / (a + b).

    Where R is the student itself its term has no gradient and gamma = a. A repelled R has the gradient b (R - p), of
    which a stands for the label and b for the repulsion; gamma is a and the error is of both.
    """
    found = induced(row.objective, row.settings, ONES)
    a, b, left = _solved(found, row.residual(found.p))
    itself = row.residual is _own
    gamma = a if itself or row.away else a / (a + b)
    error = None
    if row.trust is not None:
        wanted = row.trust(found.p)
        error = float(np.abs(gamma - wanted).max())
        if row.away:
            error = max(error, float(np.abs(-b - wanted).max()))
    return Measured(row, gamma, error, left)


def _solved(found: Induced, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    one_hot = np.zeros_like(found.p)
    one_hot[:, 0] = 1
    a, b, left = [], [], 0.0
    for p, hot, other, gradient in zip(found.p, one_hot, residual, found.gradient, strict=True):
        terms = np.stack([p - hot, p - other], axis=1)
        solution = np.linalg.lstsq(terms, gradient, rcond=1e-10)[0]
        a.append(solution[0])
        b.append(solution[1])
        left = max(left, float(np.abs(terms @ solution - gradient).max()))
    return np.array(a), np.array(b), left
