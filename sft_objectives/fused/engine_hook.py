"""The fused path inside verl's engine: the output head returns losses of tokens in place of logits.

A model calls its head as a module, so FSDP2's hooks gather the head's weight before and scatter its gradient after, for
tied and untied heads alike. Only the head's `forward` is replaced: the model's own forward, verl's
forward step, the gathering over sequence-parallel ranks and the reduction of metrics stay as they are. They see a
tensor whose last dimension holds a few values of a token where it held the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.errors import ConfigError
from common.output_head import OutputHead, obstacle

from ..reference import Reference

Read = Callable[[Tensor], dict[str, Tensor]]
HeadValues = Callable[[Tensor, Tensor, Tensor | None, Tensor], dict[str, Tensor]]


def choose(fused: str, module: torch.nn.Module) -> tuple[FusedHead | None, str]:
    """The fused head of a model or None for whole logits, by the setting `sft.fused`; and a line that says which.

    Raises ConfigError for `on` where the model does not allow it.
    """
    reason = "asked for" if fused == "off" else obstacle(module)
    if fused == "on" and reason is not None:
        raise ConfigError(f"sft.fused=on: {reason}; allowed for this model: auto, off")
    if reason is not None:
        return None, f"sft.fused={fused}: whole logits, {reason}"
    return FusedHead(module), f"sft.fused={fused}: the output head computes losses, no whole logits"


class FusedHead(OutputHead):
    """The output head of a Hugging Face model, which can return losses of tokens, or say what its model's are."""

    @contextmanager
    def returning_values(self, values: HeadValues, lengths: Tensor | None) -> Iterator[Read]:
        """While open, the head returns (..., C) float32 values of tokens; gives the function that reads them.

        That function takes what the model returned, (N, C) of the tokens alone, and gives (1, N) tensors by name. It
        raises ConfigError if the model changed what its head had returned.

        values: called with hidden (M, D), the head's weight and bias, and places (N,) int64 of the tokens among the M
        rows; gives (N,) tensors by name. lengths: (B,) of the chats, where hidden (B, L, D) is padded on the right;
        None: packed, all rows are tokens.
        """
        names: list[str] = []

        def read(output: Tensor) -> dict[str, Tensor]:
            self._check_unchanged(output, lengths)
            return {name: output[:, place].unsqueeze(0) for place, name in enumerate(names)}

        def replacement(hidden: Tensor) -> Tensor:
            flat = hidden.flatten(0, -2).to(self.head.weight.dtype)
            places = torch.arange(len(flat), device=flat.device)
            if lengths is not None:
                places = places[(torch.arange(hidden.shape[1], device=flat.device) < lengths.unsqueeze(1)).flatten()]
            found = values(flat, self.head.weight, self.head.bias, places)
            names.extend(found)
            columns = torch.stack([value.float() for value in found.values()], -1)
            spread = columns.new_zeros(len(flat), len(names)).index_copy(0, places, columns)
            return spread.unflatten(0, hidden.shape[:-1])

        with self.replaced(replacement):
            yield read

    def _check_unchanged(self, output: Tensor, lengths: Tensor | None) -> None:
        returned = self.returned.flatten(0, -2)
        if lengths is not None:
            kept = torch.arange(self.returned.shape[1], device=lengths.device) < lengths.unsqueeze(1)
            returned = returned[kept.flatten()]
        if returned.shape != output.shape or not torch.equal(
            returned.nan_to_num(), output.detach().nan_to_num().to(returned.dtype)
        ):
            raise ConfigError("sft.fused: the model changes its logits after the head; set sft.fused=off")

    @torch.no_grad()
    def live(self, forward: Callable[[], Tensor], select: Callable[[Tensor], Tensor]) -> Reference:
        """The model as a live reference: its hidden states and its own copy of the head's weight, no logits.

        Both are of the dtype that the model computes in; a sharded head is gathered in that dtype too, so that no copy
        in the optimizer's float32 exists. forward: runs the model and gives what it returns as logits; select: gives
        the (N, D) of the tokens.
        """
        try:
            hidden = select(self.hidden(forward))
        except ValueError as error:
            raise ConfigError(f"sft.fused: a live reference: {error}; set sft.fused=off") from None
        bias = None if self.head.bias is None else _copy(self.head.bias, hidden.dtype)
        return Reference(live=(hidden, _copy(self.head.weight, hidden.dtype), bias))


def _copy(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in `dtype`, gathered where the parameter is sharded; every rank calls this."""
    copied = parameter.detach().to(dtype, copy=True)
    return copied.full_tensor() if isinstance(copied, DTensor) else copied
