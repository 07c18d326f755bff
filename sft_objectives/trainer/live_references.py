"""References that are computed while training runs: frozen models, and the student with its shadow weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.utils.device import get_device_id, get_device_name
from verl.utils.fsdp_utils import apply_fsdp2

from common.errors import ConfigError

from ..fused.engine_hook import FusedHead, choose
from ..reference import Reference
from .rows import packed
from .side_weights import Shadow


def frozen_model(path: str, engine: Any) -> torch.nn.Module:
    """The model of a directory, sharded like the student of verl's `engine`.

    Raises ConfigError under sequence parallelism and for another vocabulary than the student's.
    """
    from transformers import AutoModelForCausalLM

    if engine.use_ulysses_sp:
        raise ConfigError("sft.sequence_parallel > 1 does not support a live reference; set sft.sequence_parallel=1")
    student = engine.model_config
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=engine._autocast_dtype,
        attn_implementation=student.hf_config._attn_implementation,
        trust_remote_code=student.trust_remote_code,
    )
    if model.config.vocab_size != student.hf_config.vocab_size:
        raise ConfigError(
            f"{path}: vocabulary of {model.config.vocab_size}, the student has {student.hf_config.vocab_size}; a live "
            "reference must share the student's vocabulary"
        )
    frozen = cast(torch.nn.Module, model.eval().requires_grad_(False)).to(get_device_id())
    if dist.get_world_size() > 1:
        apply_fsdp2(frozen, {"mesh": engine.device_mesh, "reshard_after_forward": True}, engine.engine_config)
    return frozen


class LiveReferences:
    """Whole distributions by source, for the micro-batches of verl's `engine`.

    models: source -> directory of a frozen model. head: the student's fused head; None: references hold whole logits.
    shadow: weights that are a source too.
    """

    def __init__(self, engine: Any, models: Mapping[str, str], head: FusedHead | None, shadow: Shadow | None) -> None:
        self._engine, self._head, self._shadow = engine, head, shadow
        frozen = {source: frozen_model(path, engine) for source, path in models.items()}
        self._frozen = {
            source: (model, None if head is None else choose("auto", model)[0]) for source, model in frozen.items()
        }

    def of(self, micro_batch: TensorDict) -> dict[str, Reference]:
        """Those of a micro-batch, one row a token."""
        live = {source: self._reference(model, head, micro_batch) for source, (model, head) in self._frozen.items()}
        if self._shadow is not None:
            with self._shadow.exchanged():
                live[self._shadow.state.source] = self._reference(self._engine.module, self._head, micro_batch)
        return live

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

        return Reference(logits=tokens(forward())) if head is None else head.live(forward, tokens)

    def _autocast(self):
        dtype = self._engine._autocast_dtype
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device_type=get_device_name(), dtype=dtype)


def padded_lengths(micro_batch: TensorDict, engine: Any) -> Tensor | None:
    """(B,) of the chats if the model sees them padded on the right, None if packed."""
    return None if engine.use_remove_padding else packed(micro_batch["input_ids"])[1].diff()
