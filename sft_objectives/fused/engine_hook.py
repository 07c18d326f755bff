"""The fused path inside verl's engine: the output head returns losses of tokens in place of logits.

A model calls its head as a module, so FSDP2's hooks gather the head's weight before and scatter its gradient after, for
tied and untied heads alike. `FusedHead` replaces the head's `forward`, nothing else: the model's own forward, verl's
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

from ..reference import Reference

Read = Callable[[Tensor], dict[str, Tensor]]
HeadValues = Callable[[Tensor, Tensor, Tensor | None, Tensor], dict[str, Tensor]]
# settings of model configurations that change the logits after the head, and the values that leave them alone
_AFTER_THE_HEAD = {
    "final_logit_softcapping": (None, 0, 0.0),
    "logits_soft_cap": (None, 0, 0.0),
    "output_logit_soft_cap": (None, 0, 0.0),
    "logits_scaling": (None, 1, 1.0),
    "logit_scale": (None, 1, 1.0),
    "lm_head_multiplier": (None, 1, 1.0),
    "output_multiplier_scale": (None, 1, 1.0),
}


def obstacle(module: torch.nn.Module) -> str | None:
    """Why losses cannot be computed in the head of this Hugging Face model; None if they can."""
    head = module.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    if any("lora" in name for name, _ in head.named_parameters()) or hasattr(head, "modules_to_save"):
        return "the output head has an adapter (LoRA)"
    if not isinstance(head, torch.nn.Linear):
        return f"the output head is a {type(head).__name__}, not a torch.nn.Linear"
    config = module.config.get_text_config().to_dict()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    for name, neutral in _AFTER_THE_HEAD.items():
        if name in config and config[name] not in neutral:
            return f"the model changes its logits after the head ({name}={config[name]})"
    return None


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


class FusedHead:
    """The output head of a Hugging Face model, whose `forward` can be told to return something else than logits."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.head: torch.nn.Linear = module.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        self._original = self.head.forward
        self._replacement: Callable[[Tensor], Tensor] | None = None
        self.head.forward = self._forward  # pyright: ignore[reportAttributeAccessIssue]
        self.returned = torch.empty(0)

    def remove(self) -> None:
        """Restore the head."""
        self.head.forward = self._original

    def _forward(self, hidden: Tensor) -> Tensor:
        if self._replacement is None:
            return self._original(hidden)
        output = self._replacement(hidden)
        self.returned = output.detach()
        return output

    @contextmanager
    def _replaced(self, replacement: Callable[[Tensor], Tensor]) -> Iterator[None]:
        self._replacement = replacement
        try:
            yield
        finally:
            self._replacement, self.returned = None, torch.empty(0)

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

        with self._replaced(replacement):
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
    def hidden(self, forward: Callable[[], Tensor]) -> Tensor:
        """The hidden states that the model gives to its head, in the dtype of the head's weight; no logits.

        forward: runs the model and gives what it returns as logits. Raises ConfigError if the model changed that.
        """
        with self._replaced(lambda hidden: hidden.to(self.head.weight.dtype)):
            hidden = forward()
            if hidden.shape != self.returned.shape or not torch.equal(hidden, self.returned.to(hidden.dtype)):
                raise ConfigError("sft.fused: a live reference changes its logits after the head; set sft.fused=off")
        return hidden

    @torch.no_grad()
    def live(self, forward: Callable[[], Tensor], select: Callable[[Tensor], Tensor]) -> Reference:
        """The model as a live reference: its hidden states and its own copy of the head's weight, no logits.

        forward: runs the model and gives what it returns as logits; select: gives the (N, D) of the tokens.
        """
        hidden = select(self.hidden(forward))
        weight, bias = (None if p is None else _whole(p) for p in (self.head.weight, self.head.bias))
        assert weight is not None
        return Reference(live=(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)))


def _whole(parameter: Tensor) -> Tensor:
    """A copy of a parameter that may be sharded; every rank of its mesh calls this."""
    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach().clone()
