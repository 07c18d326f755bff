"""A forward pass of a model that is larger than a device: its weights lie sharded over the ranks of a replica.

Every rank builds the model with verl's forward-only FSDP2 engine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.attention import prepare
from common.errors import ConfigError
from common.output_head import OutputHead, obstacle
from data_prep.reference.producers.contract import Heartbeat
from data_prep.reference.producers.forward import SCALED, ForwardProducer
from data_prep.reference.tokens import length_batches


class ShardedProducer(ForwardProducer):
    """A forward pass of one model over all ranks of torch.distributed, each with batches of its own.

    FSDP2 gathers one layer at a time, and only while all ranks are in the same layer: they make equally many calls, and
    a rank that has no batch left runs a single token. The output head is gathered once and kept, (V, D). `rows` yields
    this rank's batches. Raises ConfigError as `ForwardProducer` does.
    """

    def _load(self, directory: Path, dtype: str, model: Any) -> None:
        self.model = forward_engine(directory, dtype, model).module.eval()
        reason = obstacle(self.model)
        if reason is not None:
            raise ConfigError(f"{directory}: {reason}; not supported")
        self.output = OutputHead(self.model)
        try:
            computed = self.hidden(self._token()).dtype
        except ValueError:
            raise ConfigError(f"{directory}: {SCALED}") from None
        weight, bias = (None if part is None else part.to(self.device, computed) for part in self.output.whole())
        assert weight is not None
        self.head = functools.partial(torch.nn.functional.linear, weight=weight, bias=bias)
        self.vocab_size = len(weight)

    def _token(self) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.int64, device=self.device)

    def _logits(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits

    def hidden(self, ids: Tensor) -> Tensor:
        return self.output.hidden(lambda: self._logits(ids))

    @torch.no_grad()  # FSDP2 cannot gather inference tensors
    def rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], top_k: int, heartbeat: Heartbeat
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        batches = list(length_batches([len(ids) for ids in chats], self.tokens_per_batch))
        for first in range(0, len(batches), dist.get_world_size()):
            own = first + dist.get_rank()
            if own >= len(batches):
                self.hidden(self._token())
                continue
            batch = batches[own]
            yield batch, self.batch_rows(chats, positions, batch, top_k)
            heartbeat(sum(len(positions[index]) for index in batch))


def forward_engine(directory: Path, dtype: str, model: Any) -> Any:
    """verl's engine with the model of `directory` sharded over all ranks, to compute in `dtype` and never to train.

    Between forward passes a rank holds its share of the weights alone; on a GPU verl keeps that in the host's memory.
    While the model is read, rank 0 (with tied embeddings every rank) holds all of it in the host's memory.
    """
    from verl.trainer.config import CheckpointConfig
    from verl.utils.device import get_device_name
    from verl.workers.config import FSDPEngineConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    prepare(model.attention)
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=HFModelConfig(
            path=str(directory),
            load_tokenizer=False,
            trust_remote_code=model.trust_remote_code,
            external_lib="verl_cpu.engine" if get_device_name() == "cpu" else None,
            override_config={"attn_implementation": model.attention},
            enable_gradient_checkpointing=False,
            use_remove_padding=False,
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            forward_only=True,
            reshard_after_forward=True,
            # verl casts buffers to this type too, and rotary frequencies must stay float32; weights are gathered in the
            # type below
            model_dtype="fp32",
            mixed_precision={
                "param_dtype": {"float32": "fp32", "bfloat16": "bf16"}[dtype],
                "reduce_dtype": "fp32",
                "buffer_dtype": "fp32",
            },
            use_torch_compile=False,
        ),
        optimizer_config=None,
        checkpoint_config=CheckpointConfig(),
    )
    engine.initialize()
    return engine
