"""The rows of a packed micro-batch, aligned with its logits: labels, masks, references and columns.

What a data set must give beside verl's `input_ids`, `position_ids`, `loss_mask` (`data_prep.chat_dataset` does). All
tensors are flat, because verl's collator joins two-dimensional ones on the wrong axis; row t of T belongs to the logits
of position t, that is to the label `input_ids[t + 1]`. `loss_mask` is verl's: 1 at the supervised token itself.

    reference_<source>_packed   (T * top_k,) packed ids and log-probabilities (`data_prep.reference.codec.decode`)
    reference_<source>_<field>  (T,) any other field of `sft_objectives.Reference`
    column_<name>               (T,) a data column that an objective asks for
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils.ulysses import slice_input_tensor

from ..needs import ReferenceNeeds
from ..reference import Reference

PACKED = "packed"  # the data set's name of the packed ids and log-probabilities


def packed(jagged: Any) -> tuple[Tensor, Tensor]:
    """The (N,) values of a jagged tensor of B rows and their (B + 1,) offsets."""
    return jagged.values(), jagged.offsets()


def next_token_rows(micro_batch: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """labels (N,) int64, mask (N,) float32 and sequence (N,) int64 of a packed micro-batch, aligned with its logits.

    Position t predicts token t + 1 of its own chat: the last position of a chat has mask 0, whatever the next chat of
    the batch supervises. `sequence` is the row's `sequence` in the global batch.
    """
    ids, offsets = packed(micro_batch["input_ids"])
    mask = packed(micro_batch["loss_mask"])[0].roll(-1).float()
    mask[offsets[1:] - 1] = 0.0
    return ids.roll(-1), mask, torch.repeat_interleave(micro_batch["sequence"], offsets.diff())


@dataclass(frozen=True, eq=False)
class SupervisedRows:
    """The n supervised rows of a micro-batch of N, or of this sequence-parallel rank's share of it.

    places: (n,) int64 among the N. labels, sequence: (n,) int64. shared: rows are spread over sequence-parallel ranks.
    """

    data: TensorDict
    count: int
    places: Tensor
    labels: Tensor
    sequence: Tensor
    shared: bool

    @staticmethod
    def of(data: TensorDict, *, shared: bool) -> SupervisedRows:
        """Those of a micro-batch; `shared` rows are padded at the end and split over the ranks."""
        labels, mask, sequence = (_share(rows, shared) for rows in next_token_rows(data))
        places = mask.nonzero().squeeze(-1)
        return SupervisedRows(data, len(mask), places, labels[places], sequence[places], shared)

    def columns(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The (n,) data columns of these names."""
        return {name: self._picked(packed(self.data[f"column_{name}"])[0]) for name in names}

    def reference(
        self, source: str, layout: tuple[int, int] | None, live: Reference | None, fill: ReferenceNeeds | None
    ) -> Reference:
        """What the data set brings along of a source, (n,) rows, with the whole distribution of `live` (N rows).

        layout: (top_k, id_bits) of the packed ids. fill: compute now what is absent of these, else its user does.
        """
        prefix, fields = f"reference_{source}_", {}
        for key in map(str, self.data.keys()):
            if key == f"{prefix}{PACKED}":
                from data_prep.reference.codec import decode

                assert layout is not None, f"the layout of the {source} cache is unknown"
                top_k, id_bits = layout
                rows = self._picked(packed(self.data[key])[0].view(-1, top_k))
                fields["support_ids"], fields["support_logprobs"] = decode(rows.flatten(), top_k, id_bits)
            elif key.startswith(prefix):
                fields[key.removeprefix(prefix)] = self._picked(packed(self.data[key])[0])
        reference = Reference(**fields)
        if live is not None:
            live = live.rows(self.places)
            reference = dataclasses.replace(reference, logits=live.logits, live=live.live)
            if fill is not None and not fill.fields <= reference.fields:
                reference = reference.filled(self.labels, top_k=max(fill.top_k, 1), fields=fill.fields)
        return reference

    def spread(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(n,) values as (N,) float32, 0 where nothing is supervised."""
        zeros = {name: value.new_zeros(self.count, dtype=torch.float32) for name, value in values.items()}
        return {name: zeros[name].index_copy(0, self.places, value.float()) for name, value in values.items()}

    def _picked(self, rows: Tensor) -> Tensor:
        return _share(rows, self.shared)[self.places]


def _share(rows: Tensor, shared: bool) -> Tensor:
    return slice_input_tensor(rows, dim=0) if shared else rows
