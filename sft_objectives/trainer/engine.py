"""verl's FSDP2 engine, plus what an objective needs of a global batch.

It counts the batch's supervised tokens, makes the first pass of batch-coupled objectives, computes references on the
fly, adds the penalty on the parameters, and keeps the old policy or moving average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine.utils import prepare_micro_batches

from common.errors import ConfigError

from ..contract import BatchConstants, Objective
from ..fused.engine_hook import choose
from .live_references import LiveReferences, padded_lengths
from .low_rank import untrained_experts
from .metrics import SUM
from .rows import next_token_rows
from .side_weights import L2ToInit, Shadow, Weights
from .token_loss import MicroBatchLoss, Pass, TokenLoss

if TYPE_CHECKING:
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    class Engine(FSDPEngine):
        """verl's engine of a language model; the decorator that registers it hides its type."""

        def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]: ...

        def prepare_model_outputs(
            self, output: Any, output_args: Any, micro_batch: TensorDict, logits_processor_func: Any
        ) -> dict[str, Tensor]: ...
else:
    Engine = FSDPEngineWithLMHead


@dataclass(frozen=True)
class Setup:
    """What the engine keeps beside the student.

    live_models: source -> directory of a frozen model that gives whole distributions.
    l2_to_init: weight of the penalty weight * |theta - theta_0|^2.
    fused: whether the output head computes losses in place of logits: auto, on, off.
    router_aux_loss: weight of the auxiliary loss of a mixture-of-experts model's router, which evens its experts' load.
    """

    live_models: Mapping[str, str] = field(default_factory=dict)
    l2_to_init: float = 0.0
    fused: str = "auto"
    router_aux_loss: float = 0.0


class ObjectiveEngine(Engine):
    """verl's engine for one objective; `configure` it before verl initialises it."""

    def configure(self, token_loss: TokenLoss, setup: Setup) -> None:
        """Say what is trained, and with what beside it."""
        self.token_loss, self.setup = token_loss, setup

    def initialize(self) -> None:
        super().initialize()
        self.head, line = choose(self.setup.fused, self.module)
        if dist.get_rank() == 0:
            print(line, flush=True)
            if experts := untrained_experts(self.module):
                print(
                    f"sft.lora: no update reaches the experts' {', '.join(experts)}; name them in "
                    "sft.lora.target_parameters to train them",
                    flush=True,
                )
        self.prepare_objective()

    def prepare_objective(self) -> None:
        """Make what the objective keeps beside the student. Raises ConfigError for active dropout."""
        objective = self.token_loss.objective
        refuse_dropout(objective, self.model_config.hf_config)
        assert self.optimizer is not None
        self.weights = Weights(self.module, self.optimizer)
        l2, state = self.setup.l2_to_init, objective.needs.state
        self.penalty = L2ToInit(l2, self.weights, self.device_mesh) if l2 else None
        self.shadow = Shadow(state, self.weights) if state else None
        self.live = LiveReferences(self, self.setup.live_models, self.head, self.shadow)

    def forward_backward_batch(self, data: TensorDict, loss_function: Callable, forward_only: bool = False):
        loss, shared = self.token_loss, self.use_ulysses_sp
        rows = data.batch_size[0]
        data["sequence"] = torch.arange(rows, device=data["input_ids"].device) + self.get_data_parallel_rank() * rows
        tu.assign_non_tensor(data, distillation_use_topk=True, distillation_only=True)
        tokens = next_token_rows(data)[1].sum(dtype=torch.float64).to(get_device_id())
        dist.all_reduce(tokens, group=self.get_data_parallel_group())
        tokens = tokens.item()
        self._tokens = max(tokens, 1.0)
        if forward_only:
            validating: Any = loss.validating(max(tokens, 1.0), shared=shared)
            return super().forward_backward_batch(data, validating, forward_only=True)
        if tokens == 0:
            raise ConfigError("a batch has no supervised token: data.max_length cuts every response of it")
        constants = self._batch_constants(data) if loss.objective.needs.batch else BatchConstants()
        normalizer = tokens if constants.normalizer is None else constants.normalizer
        training: Any = loss.training(constants, normalizer, shared=shared)
        return super().forward_backward_batch(data, training, forward_only=False)

    def _batch_constants(self, data: TensorDict) -> BatchConstants:
        objective = self.token_loss.objective
        collecting: Any = self.token_loss.collecting(shared=self.use_ulysses_sp)
        if objective.needs.student_first:
            super().forward_backward_batch(data, collecting, forward_only=True)
        else:
            tu.assign_non_tensor(data, sp_size=self.ulysses_sequence_parallel_size)
            micro_batches, _ = prepare_micro_batches(data, dp_group=self.get_data_parallel_group())
            for micro_batch in micro_batches:
                micro_batch = micro_batch.to(get_device_id())
                collecting.micro_batch(self.live.of(micro_batch)).collect_without_student(micro_batch)
        return objective.batch_constants(collecting.collected(), _gathered)

    def forward_step(self, micro_batch: TensorDict, loss_function: Pass, forward_only: bool):
        micro_batch = micro_batch.to(get_device_id())
        live = {} if loss_function.mode == "validate" else self.live.of(micro_batch)
        if self.head is None:
            return self._forward(micro_batch, loss_function.micro_batch(live), loss_function, forward_only)
        loss = loss_function.micro_batch(live)

        def values(hidden: Tensor, weight: Tensor, bias: Tensor | None, places: Tensor) -> dict[str, Tensor]:
            return loss.head_values(hidden, weight, bias, places, micro_batch)

        with self.head.returning_values(values, padded_lengths(micro_batch, self)) as read_head:
            return self._forward(micro_batch, loss_function.micro_batch(live, read_head), loss_function, forward_only)

    def _forward(self, micro_batch: TensorDict, loss: MicroBatchLoss, whole: Pass, forward_only: bool):
        value, meta = super().forward_step(micro_batch, loss, forward_only)  # pyright: ignore[reportArgumentType]
        router_loss, weight = self._router_loss, self.setup.router_aux_loss
        if router_loss is not None and weight and whole.mode == "train":
            # the router's loss is of a micro-batch; of the global batch it is their mean, weighted by their tokens
            tokens = next_token_rows(micro_batch)[1].sum()
            value = value + weight * router_loss * (tokens / self._tokens * self.get_data_parallel_size())
            meta["metrics"][f"{SUM}router_aux_loss"] = (router_loss.detach() * tokens).item()
        return value, meta

    def prepare_model_outputs(self, output, output_args, micro_batch, logits_processor_func):
        self._router_loss: Tensor | None = getattr(output, "aux_loss", None)
        if self.setup.router_aux_loss and self._router_loss is None:
            raise ConfigError(
                f"sft.router_aux_loss={self.setup.router_aux_loss}: the model gives no auxiliary loss of a router; "
                "allowed for it: 0"
            )
        return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)

    @torch.no_grad()
    def optimizer_step(self) -> float:
        if self.penalty is not None:
            self.penalty.add_gradient()
        norm = super().optimizer_step()
        if self.shadow is not None:
            self.shadow.follow()
        return norm

    def train_batch(self, data: TensorDict, loss_function: Callable):
        output = super().train_batch(data, loss_function)
        if self.penalty is not None:
            output["metrics"]["penalty"] = self.penalty.value
        return output

    def save_checkpoint(self, local_path: str, *args, **kwargs) -> None:
        super().save_checkpoint(local_path, *args, **kwargs)
        if self.shadow is not None:
            self.shadow.save(local_path)

    def load_checkpoint(self, local_path: str, *args, **kwargs) -> None:
        super().load_checkpoint(local_path, *args, **kwargs)
        if self.shadow is not None:
            self.shadow.load(local_path)


EngineRegistry.register(model_type="language_model", backend="fsdp2", device=["cpu", "cuda"], vendor=["cpu", "nvidia"])(
    ObjectiveEngine
)


def refuse_dropout(objective: Objective, hf_config: Any) -> None:
    """Raise ConfigError if a first pass over the batch would see other values than the second, for dropout."""
    if not objective.needs.student_first:
        return
    active = [
        name
        for name, value in hf_config.to_dict().items()
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float) and value > 0
    ]
    if active:
        raise ConfigError(
            f"objective {objective.name!r} makes a first pass over the batch, which dropout would change; set "
            f"model.override_config.{active[0]}=0 in sft.verl"
        )


def _gathered(rows: Tensor) -> Tensor:
    """Concatenation over all ranks, in rank order, of (M,) tensors whose length may differ."""
    world = dist.get_world_size()
    if world == 1:
        return rows
    lengths = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(world)]
    dist.all_gather(lengths, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(length.item() for length in lengths))
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows))])
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(length.item())] for part, length in zip(parts, lengths, strict=True)])
