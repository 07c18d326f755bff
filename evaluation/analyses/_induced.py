"""The target that a loss drives the student to, Q = p - dL/dz, as a function of the label's probability.

One position for each value of p_y, each a sequence of its own, all of them together the global batch: what an objective
computes over a batch (a median, a quantile) it computes over these. The vocabulary is small and every reference is the
same at all positions, so that p_y alone varies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SOURCES = ("base", "teacher", "checkpoint", "ema", "old")
STUDENT_TAIL = (0.5, 0.25, 0.125, 0.0625, 0.0625)  # of what the label leaves, by id
# Probabilities of the ids under each reference, the label's first. The teacher likes another id than the student.
REFERENCES = {
    "base": (0.35, 0.3, 0.15, 0.1, 0.06, 0.04),
    "teacher": (0.4, 0.1, 0.35, 0.07, 0.05, 0.03),
    "checkpoint": (0.5, 0.25, 0.1, 0.08, 0.04, 0.03),
    "ema": (0.45, 0.25, 0.14, 0.08, 0.05, 0.03),
    "old": (0.42, 0.28, 0.14, 0.08, 0.05, 0.03),
}


@dataclass(frozen=True)
class Induced:
    """What an objective does at each p_y. p, target, gradient: (n, V) float64; loss: (n,). The label is id 0."""

    p: np.ndarray
    target: np.ndarray
    gradient: np.ndarray
    loss: np.ndarray


def scene(p_label: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits (n, V) float64 of the student, and by source those of the references."""
    p = np.asarray(p_label, dtype=np.float64)[:, None]
    student = np.concatenate([p, (1 - p) * np.array(STUDENT_TAIL)], axis=1)
    return np.log(student), {
        source: np.log(np.tile(np.array(found), (len(p), 1))) for source, found in REFERENCES.items()
    }


def induced(name: str, settings: Mapping[str, Any], p_label: np.ndarray) -> Induced:
    """Of the objective `name`, an own one's path included. Raises ConfigError for unknown names and settings."""
    import torch

    import sft_objectives

    of_student, of_references = scene(p_label)
    logits = torch.from_numpy(of_student).requires_grad_()
    labels = torch.zeros(len(logits), dtype=torch.int64)
    size = logits.shape[1]
    references = {
        source: sft_objectives.Reference.from_logits(torch.from_numpy(found), labels, top_k=size)
        for source, found in of_references.items()
    }
    objective = sft_objectives.load(name, **settings)
    losses = sft_objectives.token_losses(
        objective,
        logits,
        labels,
        sequence_lengths=torch.ones(len(logits), dtype=torch.int64),
        reference=references,
        columns={column: torch.ones(len(logits)) for column in objective.needs.columns},
    )
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    p = np.exp(of_student)
    found = gradient.numpy()
    return Induced(p, p - found, found, losses.detach().numpy())
