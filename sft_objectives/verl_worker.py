"""The objectives' door into verl's SFT trainer: loss callable, engine, worker, checkpoints and trainer.

verl's engine calls `TokenLoss` twice for a micro-batch: with the student's logits it returns tensors of one value a
token, with those tensors (gathered over sequence-parallel ranks by verl) the scalar that is differentiated. Around it
`ObjectiveEngine` does what belongs to a global batch: counting its supervised tokens, the first pass of batch-coupled
objectives, references that are computed on the fly, the penalty on the parameters, the old policy and moving average.
`ObjectiveTrainer` is verl's SPMD trainer with exact validation, Hugging Face exports and checkpoints that survive a
kill.

What a data set must give beside verl's `input_ids`, `position_ids`, `loss_mask` (`data_prep.chat_dataset` does). All
tensors are flat, because verl's collator joins two-dimensional ones on the wrong axis; row t of T belongs to the logits
of position t, that is to the label `input_ids[t + 1]`. `loss_mask` is verl's: 1 at the supervised token itself.

    reference_<source>_packed   (T * top_k,) packed ids and log-probabilities (`data_prep.reference.codec.decode`)
    reference_<source>_<field>  (T,) any other field of `sft_objectives.Reference`
    column_<name>               (T,) a data column that an objective asks for
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.checkpoint import CheckpointHandler
from verl.utils.checkpoint.checkpoint_handler import extract_step
from verl.utils.device import get_device_id, get_device_name
from verl.utils.fsdp_utils import apply_fsdp2, get_fsdp_full_state_dict
from verl.utils.ulysses import slice_input_tensor
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.engine_workers import TrainingWorker

from .contract import BatchConstants, Objective
from .fused import HeadRows, fixed_chunk_size
from .fused_engine import FusedHead, Read, choose
from .reference import Reference
from .registry import load
from .student import DenseStudent, Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    class Engine(FSDPEngine):
        """verl's engine of a language model; the decorator that registers it hides its type."""

        def prepare_model_inputs(self, micro_batch: TensorDict) -> tuple[dict[str, Any], dict[str, Any]]: ...
else:
    Engine = FSDPEngineWithLMHead

SUM = "sum/"  # prefix of metrics that are added over micro-batches and ranks
STATE_SOURCES = {"old_policy": "old", "ema": "ema"}
COMPLETE = "complete.json"


def next_token_rows(micro_batch: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
    """labels (N,) int64, mask (N,) float32 and sequence (N,) int64 of a packed micro-batch, aligned with its logits.

    Position t predicts token t + 1 of its own chat: the last position of a chat has mask 0, whatever the next chat of
    the batch supervises. `sequence` is the row's `sequence` in the global batch.
    """
    ids, offsets = _packed(micro_batch["input_ids"])
    mask = _packed(micro_batch["loss_mask"])[0].roll(-1).float()
    mask[offsets[1:] - 1] = 0.0
    return ids.roll(-1), mask, torch.repeat_interleave(micro_batch["sequence"], offsets.diff())


def _packed(jagged: Any) -> tuple[Tensor, Tensor]:
    """The (N,) values of a jagged tensor of B rows and their (B + 1,) offsets."""
    return jagged.values(), jagged.offsets()


class TokenLoss:
    """The callable that verl's engine evaluates, for one objective.

    Args:
        objective: what is trained.
        dataset_constants: of the objective, from the reference cache.
        layouts: source -> (top_k, id_bits) of the cached words that the data set delivers.
        kl_from_base: also measure KL(base || student), from the cached words of base plus one bucket for the rest.

    The engine sets, for each global batch, `constants`, `normalizer` (what the sum over tokens is divided by) and
    `mode`: train, collect (the first pass of a batch-coupled objective) or validate (cross-entropy).
    """

    def __init__(
        self,
        objective: Objective,
        dataset_constants: Mapping[str, float],
        layouts: Mapping[str, tuple[int, int]],
        kl_from_base: bool,
    ) -> None:
        self.objective = objective
        self.dataset_constants = dict(dataset_constants)
        self.layouts = dict(layouts)
        self.kl_from_base = kl_from_base
        self.mode = "train"
        self.constants = BatchConstants()
        self.normalizer = 1.0
        self.sequence_parallel = False
        self.live: dict[str, Reference] = {}
        self.read_head: Read | None = None
        self.collected: list[dict[str, Tensor]] = []
        self._next_row = 0

    def __call__(
        self,
        *,
        data: TensorDict,
        model_output: Mapping[str, Tensor] | None = None,
        student_logits: Tensor | None = None,
        dp_group: Any = None,
    ) -> dict[str, Tensor] | tuple[Tensor, dict[str, float]]:
        """verl's two calls, see the module's docstring; `student_logits` is (1, N, V)."""
        if student_logits is not None:
            return self.token_values(student_logits.squeeze(0), data)
        assert model_output is not None
        return self.reduced(model_output, data)

    def start(self, mode: str, constants: BatchConstants, normalizer: float) -> None:
        """Begin a pass over the micro-batches of one global batch."""
        self.mode, self.constants, self.normalizer = mode, constants, normalizer
        self.collected, self._next_row = [], 0

    def token_values(self, logits: Tensor, data: TensorDict) -> dict[str, Tensor]:
        """Tensors (1, N) by name, zero where nothing is supervised; `loss` is differentiable in logits (N, V).

        Under sequence parallelism N is this rank's share of the packed micro-batch, padded at its end.
        """
        if self.read_head is not None:
            return self.read_head(logits)
        labels, mask, sequence = (self._share(rows) for rows in next_token_rows(data))
        rows = mask.nonzero().squeeze(-1)
        student = DenseStudent(logits[rows], labels[rows])
        if self.mode == "validate":
            values = {"loss": -student.log_p_label, "entropy": student.entropy}
        else:
            references = self._references(data, labels, rows)
            columns = self._columns(data, rows)
            if self.mode == "collect":
                self._collect(self.objective.token_scalars(student, references, columns), sequence[rows])
                values = {"loss": torch.zeros_like(student.log_p_label)}
            else:
                values = self._objective_values(student, references, columns)
        spread = {name: logits.new_zeros(len(mask), dtype=torch.float32) for name in values}
        return {name: spread[name].index_copy(0, rows, value.float()).unsqueeze(0) for name, value in values.items()}

    def collect_without_student(self, data: TensorDict) -> None:
        """The first pass over one micro-batch where the objective's token scalars need no forward pass."""
        labels, mask, sequence = (self._share(rows) for rows in next_token_rows(data))
        rows = mask.nonzero().squeeze(-1)
        references, columns = self._references(data, labels, rows), self._columns(data, rows)
        self._collect(self.objective.token_scalars(None, references, columns), sequence[rows])

    def head_values(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, places: Tensor, data: TensorDict
    ) -> dict[str, Tensor]:
        """As `token_values`, (N,) each, from hidden (M, D) and the output head; token t is row places[t] of hidden."""
        labels, mask, sequence = (self._share(rows) for rows in next_token_rows(data))
        rows = mask.nonzero().squeeze(-1)
        validates = self.mode == "validate"
        objective = load("sft") if validates else self.objective
        head = HeadRows(
            objective,
            hidden,
            weight,
            labels[rows],
            rows=places[rows],
            reference={} if validates else self._references(data, labels, rows, fill=False),
            columns={} if validates else self._columns(data, rows),
            constants=self._next_constants(len(rows)) if self.mode == "train" else BatchConstants(),
            chunk_size=fixed_chunk_size(objective, weight),
            head_bias=bias,
        )
        if self.mode == "collect":
            self._collect(head.token_scalars(), sequence[rows])
            values = {"loss": torch.zeros(len(rows), device=hidden.device)}
        elif validates:
            values = head.values(self.normalizer)
            values = {name: values[name] for name in ("loss", "entropy")}
        else:
            ranks = cast(int, data["dp_size"])
            values = head.values(self.normalizer / ranks, self._kl_from_base if self.kl_from_base else None)
        spread = {name: hidden.new_zeros(len(mask), dtype=torch.float32) for name in values}
        return {name: spread[name].index_copy(0, rows, value.float()) for name, value in values.items()}

    def _next_constants(self, count: int) -> BatchConstants:
        constants = self.constants.rows(slice(self._next_row, self._next_row + count))
        self._next_row += count
        return constants

    def _kl_from_base(self, student: Student, references: Mapping[str, Reference]) -> dict[str, Tensor]:
        return {"kl_from_base": topk_kl(student, references["base"])}

    def _collect(self, scalars: dict[str, Tensor], sequence: Tensor) -> None:
        scalars["mask"] = torch.ones(len(sequence), device=sequence.device)
        if self.objective.needs.sequences:
            scalars["sequence"] = sequence
        self.collected.append({name: value.detach() for name, value in scalars.items()})

    def _objective_values(self, student: DenseStudent, references, columns) -> dict[str, Tensor]:
        constants = self._next_constants(len(student.labels))
        values = {
            "loss": self.objective.loss(student, references, columns, constants),
            "cross_entropy": -student.log_p_label.detach(),
            "entropy": student.entropy,
        }
        with torch.no_grad():
            diagnostics = self.objective.diagnostics(student, references, columns, constants)
            values |= {f"diagnostic_{name}": value.detach() for name, value in diagnostics.items()}
            if self.kl_from_base:
                values |= self._kl_from_base(student, references)
        return values

    def _references(self, data: TensorDict, labels: Tensor, rows: Tensor, *, fill: bool = True) -> dict[str, Reference]:
        """References of some rows, by source. fill: compute now what is needed of a live one, else its user does."""
        needs = self.objective.needs
        references = {}
        for source in {*needs.references, *self.layouts}:
            prefix, fields = f"reference_{source}_", {}
            for key in map(str, data.keys()):
                if key == f"{prefix}packed":
                    from data_prep.reference.codec import decode

                    top_k, id_bits = self.layouts[source]
                    words = self._share(_packed(data[key])[0].view(-1, top_k))[rows]
                    fields["support_ids"], fields["support_logprobs"] = decode(words.flatten(), top_k, id_bits)
                elif key.startswith(prefix):
                    fields[key.removeprefix(prefix)] = self._share(_packed(data[key])[0])[rows]
            reference = Reference(**fields)
            if source in self.live:
                live = self.live[source].rows(rows)
                reference = dataclasses.replace(reference, logits=live.logits, live=live.live)
                wanted = needs.references.get(source, frozenset())
                if fill and not wanted <= reference.fields:
                    reference = reference.filled(labels[rows], top_k=needs.support.get(source, 1), fields=wanted)
            references[source] = reference
        return references

    def _columns(self, data: TensorDict, rows: Tensor) -> dict[str, Tensor]:
        return {name: self._share(_packed(data[f"column_{name}"])[0])[rows] for name in self.objective.needs.columns}

    def _share(self, rows: Tensor) -> Tensor:
        return slice_input_tensor(rows, dim=0) if self.sequence_parallel else rows

    def reduced(self, model_output: Mapping[str, Tensor], data: TensorDict) -> tuple[Tensor, dict[str, float]]:
        """The scalar to differentiate, and sums for the logger.

        FSDP averages gradients over data-parallel ranks, hence the factor: their mean is then the global sum divided by
        the normalizer.
        """
        losses = model_output["loss"].values()
        loss = losses.sum() / self.normalizer * data["dp_size"]
        sums = {name: value.detach().values().double().sum() for name, value in model_output.items()}
        sums["tokens"] = next_token_rows(data)[1].double().sum()
        if "diagnostic_weight" in model_output:
            sums["weight_squared"] = model_output["diagnostic_weight"].detach().values().double().square().sum()
        values = torch.stack(list(sums.values())).tolist()
        return loss, {SUM + name: value for name, value in zip(sums, values, strict=True)}


@torch.no_grad()
def topk_kl(student: Student, reference: Reference) -> Tensor:
    """(n,) KL(q || p) over the words of `reference` and one bucket for the rest, a lower bound of the full KL."""
    ids, log_q = reference.support(None)
    log_p = student.log_p(ids).double()
    q = log_q.double().exp()
    inside = (q * (log_q.double() - log_p)).masked_fill(q == 0, 0).sum(-1)
    tail_q = (1 - q.sum(-1)).clamp(min=0)
    tail_p = (1 - log_p.exp().sum(-1)).clamp(min=torch.finfo(torch.float32).tiny)
    return inside + torch.special.xlogy(tail_q, tail_q) - tail_q * tail_p.log()


class ObjectiveEngine(Engine):
    """verl's FSDP2 engine, plus what an objective needs of a global batch. `token_loss` is set by the worker.

    live_models: source -> directory of a frozen model that gives whole logits.
    l2_to_init: weight of the penalty weight * |theta - theta_0|^2, added to the gradient once an optimizer step.
    fused: whether the output head computes losses in place of logits: auto, on, off.
    """

    token_loss: TokenLoss
    live_models: Mapping[str, str] = {}
    l2_to_init: float = 0.0
    fused: str = "auto"

    def initialize(self) -> None:
        super().initialize()
        self.head, line = choose(self.fused, self.module)
        if dist.get_rank() == 0:
            print(line, flush=True)
        self.prepare_objective()

    def prepare_objective(self) -> None:
        """Make what `token_loss.objective` keeps beside the student. Raises ValueError for active dropout."""
        needs = self.token_loss.objective.needs
        self.token_loss.sequence_parallel = self.use_ulysses_sp
        self._refuse_dropout(needs)
        self._updates = 0
        self._penalty = 0.0
        self._initial = self._copy_of_weights() if self.l2_to_init else []
        self._shadow = self._copy_of_weights() if needs.state != "none" else []
        self._frozen = {source: self._frozen_model(path) for source, path in self.live_models.items()}

    def _refuse_dropout(self, needs) -> None:
        if not needs.batch_student:
            return
        config = self.model_config.hf_config.to_dict()
        active = [
            k for k, v in config.items() if ("dropout" in k or k.endswith("pdrop")) and isinstance(v, float) and v > 0
        ]
        if active:
            raise ValueError(
                f"objective {self.token_loss.objective.name!r} makes a first pass over the batch, which dropout would "
                f"change; set model.override_config.{active[0]}=0 in sft.verl"
            )

    # the global batch

    def forward_backward_batch(self, data: TensorDict, loss_function: Callable, forward_only: bool = False):
        objective, loss = self.token_loss.objective, self.token_loss
        rows = data.batch_size[0]
        data["sequence"] = torch.arange(rows, device=data["input_ids"].device) + self.get_data_parallel_rank() * rows
        tu.assign_non_tensor(data, distillation_use_topk=True, distillation_only=True)
        tokens = next_token_rows(data)[1].sum(dtype=torch.float64).to(get_device_id())
        dist.all_reduce(tokens, group=self.get_data_parallel_group())
        tokens = tokens.item()
        if forward_only:
            loss.start("validate", BatchConstants(), max(tokens, 1.0))
            return super().forward_backward_batch(data, loss, forward_only=True)
        if tokens == 0:
            raise ValueError("a batch has no supervised token: data.max_length cuts every response of it")
        constants = self._batch_constants(data) if objective.needs.batch else BatchConstants()
        normalizer = tokens if constants.normalizer is None else constants.normalizer
        loss.start("train", constants.merged(loss.dataset_constants), normalizer)
        return super().forward_backward_batch(data, loss, forward_only=False)

    def _batch_constants(self, data: TensorDict) -> BatchConstants:
        loss = self.token_loss
        loss.start("collect", BatchConstants(), 1.0)
        if loss.objective.needs.batch_student:
            super().forward_backward_batch(data, loss, forward_only=True)
        else:
            tu.assign_non_tensor(data, sp_size=self.ulysses_sequence_parallel_size)
            micro_batches, _ = prepare_micro_batches(data, dp_group=self.get_data_parallel_group())
            for micro_batch in micro_batches:
                micro_batch = micro_batch.to(get_device_id())
                loss.live = self._live(micro_batch)
                loss.collect_without_student(micro_batch)
            loss.live = {}
        scalars = {name: torch.cat([part[name] for part in loss.collected]) for name in loss.collected[0]}
        return loss.objective.batch_constants(scalars, _gathered)

    def forward_step(self, micro_batch: TensorDict, loss_function, forward_only: bool):
        loss = self.token_loss
        micro_batch = micro_batch.to(get_device_id())
        if loss.mode != "validate":
            loss.live = self._live(micro_batch)
        try:
            if self.head is None:
                return super().forward_step(micro_batch, loss_function, forward_only)

            def values(hidden: Tensor, weight: Tensor, bias: Tensor | None, places: Tensor) -> dict[str, Tensor]:
                return loss.head_values(hidden, weight, bias, places, micro_batch)

            with self.head.returning_values(values, self._padded_lengths(micro_batch)) as loss.read_head:
                return super().forward_step(micro_batch, loss_function, forward_only)
        finally:
            loss.live, loss.read_head = {}, None

    # references computed on the fly

    def _live(self, micro_batch: TensorDict) -> dict[str, Reference]:
        live = {source: self._reference(model, head, micro_batch) for source, (model, head) in self._frozen.items()}
        if self._shadow:
            with self._other_weights(self._shadow):
                source = STATE_SOURCES[self.token_loss.objective.needs.state]
                live[source] = self._reference(self.module, self.head, micro_batch)
        return live

    @torch.no_grad()
    def _reference(self, model: torch.nn.Module, head: FusedHead | None, micro_batch: TensorDict) -> Reference:
        inputs, _ = self.prepare_model_inputs(micro_batch)
        lengths = self._padded_lengths(micro_batch)

        def forward() -> Tensor:
            with self._autocast():
                return model(**inputs, use_cache=False).logits

        def tokens(output: Tensor) -> Tensor:
            if lengths is None:
                return output.squeeze(0)
            return output[torch.arange(output.shape[1], device=output.device) < lengths.unsqueeze(1)]

        return Reference(logits=tokens(forward())) if head is None else head.live(forward, tokens)

    def _padded_lengths(self, micro_batch: TensorDict) -> Tensor | None:
        """(B,) of the chats if the model sees them padded on the right, None if packed."""
        return None if self.use_remove_padding else _packed(micro_batch["input_ids"])[1].diff()

    def _autocast(self):
        if self._autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device_type=get_device_name(), dtype=self._autocast_dtype)

    def _frozen_model(self, path: str) -> tuple[torch.nn.Module, FusedHead | None]:
        from transformers import AutoModelForCausalLM

        if self.use_ulysses_sp:
            raise ValueError("sft.sequence_parallel > 1 does not support a live reference; set sft.sequence_parallel=1")
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=self._autocast_dtype,
            attn_implementation=self.model_config.hf_config._attn_implementation,
            trust_remote_code=self.model_config.trust_remote_code,
        )
        if model.config.vocab_size != self.model_config.hf_config.vocab_size:
            raise ValueError(
                f"{path}: vocabulary of {model.config.vocab_size}, the student has "
                f"{self.model_config.hf_config.vocab_size}; a live reference must share the student's vocabulary"
            )
        frozen = cast(torch.nn.Module, model.eval().requires_grad_(False)).to(get_device_id())
        if dist.get_world_size() > 1:
            apply_fsdp2(frozen, {"mesh": self.device_mesh, "reshard_after_forward": True}, self.engine_config)
        return frozen, None if self.head is None else choose("auto", frozen)[0]

    # weights beside the student's

    def _weights(self) -> list[Tensor]:
        """Local shards of the trained parameters, in the optimizer's order; they share the parameters' storage."""
        return [p._local_tensor if isinstance(p, DTensor) else p.data for p in self._parameters()]

    def _parameters(self) -> list[Tensor]:
        assert self.optimizer is not None
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def _copy_of_weights(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self._weights()]

    @contextmanager
    def _other_weights(self, other: list[Tensor]) -> Iterator[None]:
        """Exchange the student's weights with `other`, and back at the end."""
        self._exchange(other)
        try:
            yield
        finally:
            self._exchange(other)

    @torch.no_grad()
    def _exchange(self, other: list[Tensor]) -> None:
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # else the next forward uses weights that were gathered before the exchange
        for weight, replacement in zip(self._weights(), other, strict=True):
            kept = weight.clone()
            weight.copy_(replacement)
            replacement.copy_(kept)

    @torch.no_grad()
    def optimizer_step(self) -> float:
        if self._initial:
            self._add_penalty_gradient()
        norm = super().optimizer_step()
        self._updates += 1
        needs = self.token_loss.objective.needs
        if needs.momentum is not None:
            for average, weight in zip(self._shadow, self._weights(), strict=True):
                average.lerp_(weight.to(average.device), 1.0 - needs.momentum)
        elif needs.inner_updates and self._updates % needs.inner_updates == 0:
            self._shadow = self._copy_of_weights()
        return norm

    def _add_penalty_gradient(self) -> None:
        total = torch.zeros((), dtype=torch.float64, device=get_device_id())
        for parameter, weight, initial in zip(self._parameters(), self._weights(), self._initial, strict=True):
            difference = weight - initial.to(weight.device)
            total += difference.double().square().sum()
            gradient = parameter.grad
            assert gradient is not None
            local = gradient._local_tensor if isinstance(gradient, DTensor) else gradient
            local.add_(difference, alpha=2.0 * self.l2_to_init)
        shards = self.device_mesh["fsdp"].get_group() if self.device_mesh.ndim > 1 else None
        dist.all_reduce(total, group=shards)
        self._penalty = self.l2_to_init * total.item()

    def train_batch(self, data: TensorDict, loss_function: Callable):
        output = super().train_batch(data, loss_function)
        if self._initial:
            output["metrics"]["penalty"] = self._penalty
        return output

    def save_checkpoint(self, local_path: str, *args, **kwargs) -> None:
        super().save_checkpoint(local_path, *args, **kwargs)
        if self._shadow:
            tensors = {str(index): tensor.cpu().contiguous() for index, tensor in enumerate(self._shadow)}
            save_file(tensors, self._shadow_path(local_path), metadata={"updates": str(self._updates)})

    def load_checkpoint(self, local_path: str, *args, **kwargs) -> None:
        super().load_checkpoint(local_path, *args, **kwargs)
        self._updates = extract_step(str(local_path)) or 0
        if self._shadow:
            tensors = load_file(self._shadow_path(local_path))
            for index, tensor in enumerate(self._shadow):
                tensor.copy_(tensors[str(index)])

    def _shadow_path(self, local_path: str) -> Path:
        state = STATE_SOURCES[self.token_loss.objective.needs.state]
        return Path(local_path) / f"{state}_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.safetensors"


EngineRegistry.register(model_type="language_model", backend="fsdp2", device=["cpu", "cuda"], vendor=["cpu", "nvidia"])(
    ObjectiveEngine
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


class ObjectiveWorker(TrainingWorker):
    """verl's worker; hands the loss to the engine and reduces its sums over micro-batches and ranks."""

    engine: ObjectiveEngine

    def set_loss_fn(self, loss_fn: TokenLoss) -> None:
        self.loss_fn = loss_fn
        self.engine.token_loss = loss_fn

    def _postprocess_output(self, output, **kwargs):
        metrics = output["metrics"]
        sums = {name: sum(metrics.pop(name)) for name in list(metrics) if name.startswith(SUM)}
        penalty = metrics.pop("penalty", None)
        names = sorted(sums)
        totals = torch.tensor([sums[name] for name in names], dtype=torch.float64, device=self.device_name)
        dist.all_reduce(totals, group=self.engine.get_data_parallel_group())
        final = super()._postprocess_output(output, **kwargs)
        reduced = tu.get(final, "metrics")
        reduced.update(
            token_means({name.removeprefix(SUM): total for name, total in zip(names, totals.tolist(), strict=True)})
        )
        if penalty is not None:
            reduced["penalty"] = penalty
        tu.assign_non_tensor_data(final, "metrics", reduced)
        return final


def token_means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over the supervised tokens of the global batch.

    `mean_weight` and `effective_tokens` = (sum w)^2 / (N sum w^2), the share of tokens that carry the weight, exist for
    weighted objectives.
    """
    tokens = max(sums["tokens"], 1.0)  # where nothing is supervised every sum is 0
    means = {
        name.removeprefix("diagnostic_"): total / tokens
        for name, total in sums.items()
        if name not in ("loss", "tokens", "weight_squared", "diagnostic_weight")
    }
    if "weight_squared" in sums:
        squared = sums["weight_squared"]
        means["mean_weight"] = sums["diagnostic_weight"] / tokens
        means["effective_tokens"] = sums["diagnostic_weight"] ** 2 / (tokens * squared) if squared > 0 else 0.0
    return {**means, "tokens": sums["tokens"], "loss_sum": sums["loss"]}


class Checkpoints(CheckpointHandler):
    """verl's handler, with a record written last: a checkpoint without it, or with other file sizes, does not exist.

    Older checkpoints are removed after the new one is complete. A checkpoint of another number of processes is passed
    over, since verl cannot load it. verl stores an exhausted loader at the end of an epoch, with which the next epoch
    would be skipped; that state is not loaded.
    """

    def __init__(self, *args, steps_per_epoch: int, keep: int, **kwargs) -> None:
        super().__init__(*args, max_ckpt_to_keep=None, **kwargs)
        self.steps_per_epoch, self.keep = steps_per_epoch, keep
        self.directory = Path(self.default_local_dir)

    def save_checkpoint(self, step: int) -> None:
        """Save step `step`; returns on every rank when the checkpoint is complete."""
        path = self.directory / f"global_step_{step}"
        if self.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
        dist.barrier()
        super().save_checkpoint(step)
        if self.rank == 0:
            sizes = {}
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
                sizes[str(file.relative_to(path))] = file.stat().st_size
            write_json(path / COMPLETE, {"processes": dist.get_world_size(), "sizes": sizes})
            for older in self.complete()[self.keep :]:
                shutil.rmtree(older)
        dist.barrier()

    def complete(self) -> list[Path]:
        """Checkpoints that can be loaded, newest first."""
        paths = sorted(
            self.directory.glob("global_step_*"), key=lambda path: extract_step(path.name) or 0, reverse=True
        )
        return [path for path in paths if self._is_complete(path)]

    def _is_complete(self, path: Path) -> bool:
        try:
            record = json.loads((path / COMPLETE).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        files = {name: path / name for name in record["sizes"]}
        return record["processes"] == dist.get_world_size() and all(
            file.is_file() and file.stat().st_size == record["sizes"][name] for name, file in files.items()
        )

    def _find_latest_checkpoint(self) -> str | None:
        found = [str(path) for path in self.complete()[:1]] if self.rank == 0 else []
        choice = [found[0] if found else None]
        dist.broadcast_object_list(choice, src=0)
        return choice[0]

    def _load_dataloader_state(self, checkpoint_path: str) -> None:
        if (extract_step(checkpoint_path) or 0) % self.steps_per_epoch:
            super()._load_dataloader_state(checkpoint_path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys; the file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(value, file, sort_keys=True, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


class ObjectiveTrainer(SFTTrainer):
    """verl's SPMD trainer for one objective. Every rank constructs it and calls `fit`.

    config: what `sft_objectives.sft.verl_config` makes. token_loss, live_models, l2_to_init,
    fused: see the engine.
    directory: of `curve.jsonl` and `exports/step_<n>`; it survives a kill and is never shared between runs.
    progress: called on rank 0 after each step with (step, total, row of the curve).
    Steps of `publish` are exported, and the last one, and the one of the lowest validation loss.
    """

    engine: ObjectiveEngine
    training_client: ObjectiveWorker

    def __init__(
        self,
        config,
        *,
        token_loss: TokenLoss,
        live_models: Mapping[str, str],
        l2_to_init: float,
        fused: str,
        directory: Path,
        publish: list[int],
        export_dtype: torch.dtype,
        progress: Callable[[int, int, dict[str, float]], None],
    ) -> None:
        self.token_loss, self.live_models, self.l2_to_init = token_loss, live_models, l2_to_init
        self.fused = fused
        self.directory, self.publish, self.export_dtype, self.progress = directory, publish, export_dtype, progress
        super().__init__(config)

    def _build_engine(self) -> None:
        self.training_client = ObjectiveWorker(
            config=TrainingWorkerConfig(
                model_type="language_model",
                model_config=self.model_config,
                engine_config=self.engine_config,
                optimizer_config=self.optimizer_config,
                checkpoint_config=self.checkpoint_config,
                profiler_config=self.profiler_config,
            )
        )
        self.engine = self.training_client.engine
        self.engine.live_models, self.engine.l2_to_init = self.live_models, self.l2_to_init
        self.engine.fused = self.fused
        self.training_client.set_loss_fn(self.token_loss)

    def _build_dataset(self) -> None:
        super()._build_dataset()
        for source, aligned in getattr(self.train_dataset, "references", {}).items():
            needed = self.token_loss.objective.needs.support.get(source, 0)
            if aligned.top_k < min(needed, self.model_config.hf_config.vocab_size):
                raise self.token_loss.objective.error(
                    f"needs {needed} ids per position of reference {source!r}; cached: {aligned.top_k}; "
                    f"set cache.top_k={needed} or more"
                )
            self.token_loss.layouts[source] = (aligned.top_k, aligned.cache.layout.id_bits)

    def _build_dataloader(self) -> None:
        super()._build_dataloader()
        self.train_sampler.seed = self.config.trainer.seed
        if len(self.train_dataloader) == 0:
            raise ValueError(
                f"{self.config.data.train_files}: {len(self.train_dataset)} chats are fewer than one batch; "
                f"set sft.batch_size to at most {len(self.train_dataset)}"
            )

    def _build_ckpt_handler(self) -> None:
        trainer = self.config.trainer
        self.ckpt_handler = Checkpoints(
            engine=self.engine,
            train_dataloader=self.train_dataloader,
            default_local_dir=trainer.default_local_dir,
            resume_mode=trainer.resume_mode,
            resume_from_path=trainer.resume_from_path,
            lora_train_meta=self._get_lora_train_meta(),
            steps_per_epoch=self.steps_per_epoch,
            keep=trainer.max_ckpt_to_keep,
        )

    def fit(self) -> dict[str, Any]:
        """Train to the last step, from the newest checkpoint if there is one.

        Returns {"final", "best", "steps", "metrics"}: published steps and the last row of the curve. Unlike verl's, a
        finished run does not train another step when it is started again.
        """
        curve = Curve(self.directory / "curve.jsonl", self.resume_global_step, self.rank == 0)
        step = self.resume_global_step
        for step, batch in self._batches(self.resume_global_step):
            row = {"step": step, **self._train(batch)}
            is_last = step == self.total_training_steps
            if self.val_dataset and (is_last or (self.test_freq > 0 and step % self.test_freq == 0)):
                row.update(self._validate())
            curve.append(row)
            if is_last or step in self.publish or step == curve.best_step():
                self._export(step)
                self._drop_superseded(curve)
            if self.save_freq > 0 and step % self.save_freq == 0 and not is_last:
                self.ckpt_handler.save_checkpoint(step)
            if self.rank == 0:
                self.progress(step, self.total_training_steps, row)
        if not (self._exports() / f"step_{step}").exists():  # it was killed between its last checkpoint and its export
            self._export(step)
        best = curve.best_step() or step
        steps = sorted({best, step, *(s for s in self.publish if s < step)})
        return {"final": step, "best": best, "steps": steps, "metrics": curve.last()}

    def _meta(self, dynamic: bool) -> dict[str, Any]:
        data = self.config.data
        return {
            "use_remove_padding": self.config.model.use_remove_padding,
            "use_dynamic_bsz": dynamic,
            "max_token_len_per_gpu": data.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": data.micro_batch_size_per_gpu,
            "temperature": 1.0,
            "global_batch_size": self.global_batch_size,
            "pad_mode": data.pad_mode,
            "pad_token_id": self.model_config.tokenizer.pad_token_id,
        }

    def _batches(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, collated batch of this rank) after step `start`, over as many epochs as the steps need."""
        step = start
        while step < self.total_training_steps:
            self.train_sampler.set_epoch(step // self.steps_per_epoch)
            for batch in self.train_dataloader:
                step += 1
                yield step, batch
                if step == self.total_training_steps:
                    return

    def _tensordict(self, batch: dict[str, Any], dynamic: bool) -> TensorDict:
        data = tu.get_tensordict(tensor_dict=batch, non_tensor_dict=self._meta(dynamic))
        tu.assign_non_tensor(data, global_token_num=NonTensorData(self._get_batch_seqlens(data)))
        return data

    def _train(self, batch: dict[str, Any]) -> dict[str, float]:
        data = self._tensordict(batch, self.config.data.use_dynamic_bsz)
        tu.assign_non_tensor(data, update_lr_scheduler=True)
        assert self.engine.lr_scheduler is not None
        lr = float(self.engine.lr_scheduler.get_last_lr()[0])
        output = self.training_client.train_batch(data)
        if output is None:  # a sequence-parallel rank whose group reports through another
            return {}
        metrics: dict[str, float] = tu.get(output, "metrics")
        kept = {k: v for k, v in metrics.items() if not k.startswith("perf/") and k not in ("mfu", "lr", "loss_sum")}
        return {**kept, "lr": lr}

    def _validate(self) -> dict[str, float]:
        """Cross-entropy and entropy over every supervised token of the held-out chats."""
        totals = {"loss_sum": 0.0, "entropy": 0.0, "tokens": 0.0}
        for batch in self._validation_batches():
            output = self.training_client.infer_batch(self._tensordict(batch, dynamic=True))
            if output is not None:
                metrics = tu.get(output, "metrics")
                totals["loss_sum"] += metrics["loss_sum"]
                totals["entropy"] += metrics.get("entropy", 0.0) * metrics["tokens"]
                totals["tokens"] += metrics["tokens"]
        tokens = max(totals["tokens"], 1.0)
        return {"val_loss": totals["loss_sum"] / tokens, "val_entropy": totals["entropy"] / tokens}

    def _validation_batches(self) -> Iterator[dict[str, Any]]:
        """This rank's share of the held-out chats; ranks without a chat left get one that supervises nothing."""
        chats: Any = self.val_dataset
        rank, size = self.engine.get_data_parallel_rank(), self.engine.get_data_parallel_size()
        for start in range(0, len(chats), self.global_batch_size):
            end = min(start + self.global_batch_size, len(chats))
            rows = []
            for index in range(start, end, size):
                mine = index + rank < end
                row = dict(chats[index + rank if mine else index])
                if not mine:
                    row["loss_mask"] = torch.zeros_like(row["loss_mask"])
                rows.append(row)
            yield self.collate_fn(rows)

    def _drop_superseded(self, curve: Curve) -> None:
        """Remove the export of an earlier best step."""
        if self.rank == 0:
            for path in self._exports().glob("step_*"):
                step = int(path.name.removeprefix("step_"))
                if step not in (*self.publish, curve.best_step(), curve.last()["step"]):
                    shutil.rmtree(path)

    def _exports(self) -> Path:
        return self.directory / "exports"

    def _export(self, step: int) -> None:
        target = self._exports() / f"step_{step}"
        state = get_fsdp_full_state_dict(self.engine.module, offload_to_cpu=True, rank0_only=True)
        if self.rank == 0:
            temporary = target.with_name(f".{target.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            state = cast("dict[str, Tensor]", state)
            export_huggingface(state, self.model_config, self.train_dataset[0], self.export_dtype, temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
        dist.barrier()


class Curve:
    """The training curve on disk, one JSON row a step; rows after the step that training resumes from are dropped."""

    def __init__(self, path: Path, resume_step: int, is_writer: bool) -> None:
        self.path, self.is_writer = path, is_writer
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [json.loads(line) for line in lines[:resume_step]]
        dist.barrier()
        if is_writer:
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in lines[:resume_step]))
            temporary.rename(path)

    def append(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        if self.is_writer:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def last(self) -> dict[str, float]:
        return self.rows[-1]

    def best_step(self) -> int | None:
        """The step of the lowest validation loss so far, the earliest of equals."""
        validated = [row for row in self.rows if "val_loss" in row]
        return min(validated, key=lambda row: row["val_loss"])["step"] if validated else None


def export_huggingface(
    state: Mapping[str, Tensor], model_config, row: Mapping[str, Tensor], dtype: torch.dtype, directory: Path
) -> None:
    """Write a Hugging Face directory that loads anywhere, and load it.

    state: the trained module's full state dict on the CPU; a low-rank update is merged. model_config: verl's. row: a
    chat of the training set, whose closing special tokens become end-of-sequence tokens of generation. dtype: of the
    written weights and of `config.json`. Raises RuntimeError if what was written does not load or gives non-finite
    logits.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer, trust = model_config.tokenizer, model_config.trust_remote_code
    config = copy.deepcopy(model_config.hf_config)
    if "attn_implementation" in vars(config):
        del config.attn_implementation  # verl's override; in config.json it would choose the kernel of every later user
    with torch.device("meta"):
        model = cast("PreTrainedModel", AutoModelForCausalLM.from_config(config, trust_remote_code=trust))
    if model_config.lora_rank > 0:
        model = _merged_lora(model, state, model_config)
    else:
        missing, unexpected = model.load_state_dict(dict(state), strict=False, assign=True)
        model.tie_weights()
        if unexpected or any(parameter.is_meta for parameter in model.parameters()):
            raise RuntimeError(f"export: weights do not fit the model: missing {missing}, unexpected {unexpected}")
    cast(torch.nn.Module, model).to(dtype)
    model.config.dtype = dtype
    try:
        generation = GenerationConfig.from_pretrained(model_config.local_path)
    except OSError:  # the model came without one
        generation = GenerationConfig()
    generation.eos_token_id = end_tokens(tokenizer, generation.eos_token_id, row)
    generation.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    generation._from_model_config = False
    model.generation_config = generation
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _check_reloads(directory, row, dtype, trust)


def end_tokens(tokenizer, declared: Any, row: Mapping[str, Tensor]) -> list[int]:
    """Ids that end a response: the tokenizer's, the model's, and the special token that closes a supervised turn."""
    supervised = row["input_ids"][row["loss_mask"] > 0].tolist()
    closing = [token for token in supervised[-2:] if token in tokenizer.all_special_ids]
    declared = declared if isinstance(declared, list) else [declared]
    ids = [*closing[-1:], tokenizer.eos_token_id, *declared]
    return list(dict.fromkeys(token for token in ids if token is not None))


def _merged_lora(model: PreTrainedModel, state: Mapping[str, Tensor], model_config) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=model_config.lora_rank,
        lora_alpha=model_config.lora_alpha,
        target_modules=model_config.target_modules,
        exclude_modules=model_config.exclude_modules,
        bias="none",
    )
    wrapped = get_peft_model(model, lora)
    wrapped.load_state_dict(dict(state), strict=False, assign=True)
    model.tie_weights()
    if any(parameter.is_meta for parameter in wrapped.parameters()):
        raise RuntimeError("export: the low-rank state does not fit the architecture")
    return cast("PreTrainedModel", wrapped.merge_and_unload())


@torch.no_grad()
def _check_reloads(directory: Path, row: Mapping[str, Tensor], dtype: torch.dtype, trust_remote_code: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype="auto",
        attn_implementation="sdpa",
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    model, loading = loaded
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    logits = model(row["input_ids"][None, :32]).logits
    problems = [
        *(["dtype is " + str(model.dtype)] if model.dtype != dtype else []),
        *(["no chat template"] if tokenizer.chat_template is None else []),
        *(["non-finite logits"] if not logits.isfinite().all() else []),
        *(f"{kind}: {sorted(loading[kind])}" for kind in ("missing_keys", "unexpected_keys") if loading[kind]),
    ]
    if problems:
        raise RuntimeError(f"{directory}: the exported model does not load: {'; '.join(problems)}")
