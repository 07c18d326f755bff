"""The output head of a Hugging Face model, made to return something else than logits.

A model calls its head as a module, so FSDP2's hooks gather the head's weight before and scatter its gradient after, for
tied and untied heads alike. `OutputHead` replaces the head's `forward`, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

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
    """Why logits of this Hugging Face model are not simply its head's output; None if they are."""
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


class OutputHead:
    """The output head of a Hugging Face model, whose `forward` can be told to return something else than logits.

    head: the module. returned: what the last replacement returned, detached; empty outside `replaced`.
    """

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
    def replaced(self, replacement: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While open, the head returns `replacement` of the hidden states (..., D) that it is given."""
        self._replacement = replacement
        try:
            yield
        finally:
            self._replacement, self.returned = None, torch.empty(0)

    @torch.no_grad()
    def hidden(self, forward: Callable[[], Tensor]) -> Tensor:
        """The hidden states that the model gives to its head, in the dtype of the head's weight; no logits.

        forward: runs the model and gives what it returns as logits. Raises ValueError if the model changed that.
        """
        with self.replaced(lambda hidden: hidden.to(self.head.weight.dtype)):
            hidden = forward()
            if hidden.shape != self.returned.shape or not torch.equal(hidden, self.returned.to(hidden.dtype)):
                raise ValueError("the model changes its logits after the head")
        return hidden

    @torch.no_grad()
    def whole(self) -> tuple[Tensor, Tensor | None]:
        """Copies of the head's weight (V, D) and bias (V,), gathered where they are sharded; every rank calls this."""
        weight, bias = self.head.weight, self.head.bias
        return _whole(weight), None if bias is None else _whole(bias)


def _whole(parameter: Tensor) -> Tensor:
    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach().clone()
