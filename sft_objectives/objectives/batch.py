"""Reductions over a global batch or a data set of sequences, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sequence_means(values: Tensor, sequence: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of (M,) values over each sequence: (S,) sorted ids and (S,) float64 means. sequence: (M,) int64 ids."""
    ids, place, count = sequence.unique(return_inverse=True, return_counts=True)
    total = values.new_zeros(len(ids)).double().index_add(0, place, values.double())
    return ids, total / count


def of_sequence(ids: Tensor, values: Tensor, sequence: Tensor) -> Tensor:
    """The (M,) value of each row's sequence; 0 for a sequence that is not among (S,) sorted ids."""
    if not len(ids):
        return values.new_zeros(len(sequence))
    import torch

    place = torch.searchsorted(ids, sequence).clamp(max=len(ids) - 1)
    return values[place].where(ids[place] == sequence, values.new_zeros(()))


def temperature_of(losses: Tensor, median: str = "lower") -> float:
    """Median of (S,) mean losses of sequences, kept above 0; 1 if there are none.

    median: of an even count, `lower` is the lower of the two middle ones, `mean` their mean.
    """
    if not len(losses):
        return 1.0
    middle = float(losses.median())
    if median == "mean":
        middle = (middle - float((-losses).median())) / 2
    return min(max(middle, 1e-6), 1e30)  # a label that the source rules out has an infinite loss
