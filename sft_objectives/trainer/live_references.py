"""References that are computed while training runs: frozen models, and the student with its shadow weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils.device import get_device_name

from ..fused.engine_hook import FusedHead, choose
from ..reference import Reference
from .frozen import frozen_model
from .rows import packed
from .side_weights import Shadow


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """While open, the module is in evaluation mode; gradient checkpointing and dropout are off."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class LiveReferences:
    """Whole distributions by source, for the micro-batches of verl's `engine`.

    models: source -> directory of a frozen model. head: the student's fused head; None: references hold whole logits.
    shadow: weights that are a source too. Where a low-rank update is trained, the base is the student without it, and
    no second model is loaded.
    """

    def __init__(self, engine: Any, models: Mapping[str, str], head: FusedHead | None, shadow: Shadow | None) -> None:
        self._engine, self._head, self._shadow = engine, head, shadow
        self._vocab_size = engine.model_config.hf_config.get_text_config().vocab_size
        self._without_update = "base" in models and engine._is_lora
        own = {source: path for source, path in models.items() if not (source == "base" and self._without_update)}
        frozen = {source: frozen_model(path, engine) for source, path in own.items()}
        self._frozen = {
            source: (model, None if head is None else choose("auto", model)[0]) for source, model in frozen.items()
        }

    def of(self, micro_batch: TensorDict) -> dict[str, Reference]:
        """Those of a micro-batch, one row a token."""
        live = {source: self._reference(model, head, micro_batch) for source, (model, head) in self._frozen.items()}
        if self._without_update:
            live["base"] = self._of_student(self._engine.disable_adapter(), micro_batch)
        if self._shadow is not None:
            live[self._shadow.state.source] = self._of_student(self._shadow.exchanged(), micro_batch)
        return live

    def _of_student(self, changed: AbstractContextManager[Any], micro_batch: TensorDict) -> Reference:
        """The student, without dropout, with its weights `changed`."""
        with changed, evaluating(self._engine.module):
            return self._reference(self._engine.module, self._head, micro_batch)

    @torch.no_grad()
    def _reference(self, model: torch.nn.Module, head: FusedHead | None, micro_batch: TensorDict) -> Reference:
        inputs, _ = self._engine.prepare_model_inputs(micro_batch)
        lengths = padded_lengths(micro_batch, self._engine)

        def forward() -> Tensor:
            with self._autocast():
                return model(**inputs, use_cache=False).logits

        def tokens(output: Tensor) -> Tensor:
            if lengths is None:
                return output.squeeze(0)
            return output[torch.arange(output.shape[1], device=output.device) < lengths.unsqueeze(1)]

        found = Reference(logits=tokens(forward())) if head is None else head.live(forward, tokens)
        return found.fitted(self._vocab_size)

    def _autocast(self):
        dtype = self._engine._autocast_dtype
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device_type=get_device_name(), dtype=dtype)


def padded_lengths(micro_batch: TensorDict, engine: Any) -> Tensor | None:
    """(B,) of the chats if the model sees them padded on the right, None if packed."""
    return None if engine.use_remove_padding else packed(micro_batch["input_ids"])[1].diff()
