"""What the benchmark measures: objectives and baselines on an output head, or in a whole training step."""

from __future__ import annotations

import importlib
import inspect
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import BatchConstants, Objective, Reference, fused_loss, token_losses
from .fused.chunk_size import fixed_chunk_size
from .fused.head_rows import HeadRows

SEQUENCE = 256
TOP_K = 64
SPREAD = 3.0
"""Standard deviation of a row of logits, as language models have it; their likely ids stand out of it."""

PULL = 2.6
"""How far, in units of SPREAD squared, the likely id of the surest row stands out."""
Step = Callable[[], Tensor]


class Workload:
    """Hidden states, head and labels, and a reference near the student.

    Each row's logits are normal, but for a few ids that stand out by an amount that differs between rows: some are sure
    of one id, some hesitate between hundreds, as in a language model. Labels are mostly likely ids.
    """

    def __init__(self, tokens: int, width: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32)

        head = normal(vocab_size, width) * SPREAD / width**0.5
        likely = torch.randint(0, vocab_size, (tokens, 3), generator=generator, device=device)
        strength = torch.rand(tokens, 1, generator=generator, device=device).sqrt() * PULL
        shares = torch.tensor([1.0, 0.85, 0.7], device=device)
        self.hidden = normal(tokens, width) + strength * (head[likely] * shares.view(1, 3, 1)).sum(1)
        self.hidden = self.hidden.to(dtype).requires_grad_()
        self.head = head.to(dtype).requires_grad_()
        other = (self.hidden.detach() + 0.1 * normal(tokens, width)).to(dtype)
        live = (other, self.head.detach().clone(), None)
        labels, parts = [], []
        for start in range(0, tokens, SEQUENCE):
            rows = slice(start, start + SEQUENCE)
            logits = (self.hidden[rows] @ self.head.t()).detach()
            rank = torch.randint(0, 5, (len(logits), 1), generator=generator, device=device)
            probable = logits.topk(5, dim=-1).indices.gather(1, rank).squeeze(-1)
            random = torch.randint(0, vocab_size, (len(logits),), generator=generator, device=device)
            coin = torch.rand(len(logits), generator=generator, device=device)
            labels.append(probable.where(coin < 0.8, random))
            parts.append(
                replace(Reference.from_logits(other[rows] @ live[1].t(), labels[-1], top_k=TOP_K), logits=None)
            )
        self.labels = torch.cat(labels)
        fields: dict[str, Any] = {
            name: torch.cat([part.get(name) for part in parts]) for name in sorted(parts[0].fields)
        }
        self.cached = Reference(**fields)
        self.live = replace(self.cached, live=live)
        lengths = [min(SEQUENCE, tokens - start) for start in range(0, tokens, SEQUENCE)]
        self.given = {
            "mask": torch.ones(tokens, device=device),
            "sequence_lengths": torch.tensor(lengths),
            "columns": {"critical": (torch.arange(tokens, device=device) % 2).float()},
        }

    def reference(self, objective: Objective) -> Reference:
        """Live if the objective reads the whole vocabulary of a reference, else cached."""
        return self.live if objective.needs.live else self.cached

    def fused(self, objective: Objective) -> Step:
        return lambda: self._fused(objective)  # pyright: ignore[reportReturnType]

    def trainer(self, objective: Objective) -> Step | None:
        """As the trainer calls it, with diagnostics and entropy; None where `fused` is that already."""
        return lambda: self._fused(objective, return_statistics=True)[0]  # pyright: ignore[reportIndexIssue]

    def _fused(self, objective: Objective, **more: Any) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        return fused_loss(
            objective,
            self.hidden,
            self.head,
            self.labels,
            reference=self.reference(objective),
            normalizer=len(self.labels),
            **self.given,
            **more,
        )

    def naive(self, objective: Objective) -> Step:
        def step() -> Tensor:
            logits = self.hidden @ self.head.t()
            reference = self.reference(objective)
            return token_losses(objective, logits, self.labels, reference=reference, **self.given).mean()

        return step

    def baselines(self) -> dict[str, Step]:
        """The cross-entropies that are installed and run on this device, by name."""
        found: dict[str, Step] = {}
        hidden, head, labels = self.hidden, self.head, self.labels
        found["verl_plain"] = lambda: plain_cross_entropy(hidden @ head.t(), labels)
        fused = installed("verl.utils.experimental.torch_functional")
        if fused:
            function = fused.FusedLinearForPPO(impl_backend="torch")
            found["verl_fused"] = lambda: -function(hidden, head, labels)[0].mean()
        functional = torch.nn.functional
        if hasattr(functional, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
            options = torch.nn.LinearCrossEntropyOptions()
            found["torch_fused"] = lambda: functional.linear_cross_entropy(hidden, head, labels, options=options)
        if hidden.device.type == "cuda":
            if liger := installed("liger_kernel.transformers"):
                loss = liger.LigerFusedLinearCrossEntropyLoss()
                found["liger"] = lambda: loss(head, hidden, labels)
                if "use_token_scaling" in inspect.signature(type(loss).__init__).parameters:
                    scaled = liger.LigerFusedLinearCrossEntropyLoss(use_token_scaling=True)
                    found["liger_scaled"] = lambda: scaled(head, hidden, labels)
                if fused:  # without Liger-Kernel it would be the torch backend again
                    with_liger = fused.FusedLinearForPPO(impl_backend="liger")
                    found["verl_liger"] = lambda: -with_liger(hidden, head, labels)[0].mean()
            if kernel := installed("verl.utils.kernel.linear_cross_entropy"):
                found["verl_triton"] = lambda: -kernel.linear_cross_entropy(hidden, head, labels, 1.0)[0].mean()
            if cut := installed("cut_cross_entropy"):
                found["cut"] = lambda: cut.linear_cross_entropy(hidden, head, labels)
        return found

    def measures(self, objective: Objective) -> bool:
        """Whether the objective can be measured."""
        return True

    def finish(self, loss: Tensor) -> None:
        """What follows the forward."""
        loss.backward()

    def seconds(self, step: Step) -> tuple[float, float]:
        """Of one step to its end: elapsed, and of the processor (NaN for a GPU)."""
        self.clear()
        if self.hidden.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.finish(step())
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000, math.nan
        started, processor = time.perf_counter(), time.process_time()
        self.finish(step())
        return time.perf_counter() - started, time.process_time() - processor

    def peak_bytes(self, step: Step) -> int:
        """Allocated at most beyond what is there before, gradients included."""
        self.clear()
        if self.hidden.device.type == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.finish(step())
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.finish(step())
        assert profile.profiler is not None and profile.profiler.kineto_results is not None
        events: list[Any] = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak

    def clear(self) -> None:
        """Forget the gradients."""
        self.hidden.grad = self.head.grad = None


class TrainingStep(Workload):
    """A model around the head: the same labels and cached reference, hidden states of `layers` transformer layers."""

    def __init__(
        self, tokens: int, width: int, vocab_size: int, dtype: torch.dtype, device: torch.device, layers: int
    ) -> None:
        from torch.distributed.fsdp import fully_shard
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from .fused.engine_hook import FusedHead

        super().__init__(tokens, width, vocab_size, dtype, device)
        torch.manual_seed(0)
        heads = max(width // 128, 1)
        config = Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            tie_word_embeddings=False,
        )
        with device:
            model: Any = Qwen2ForCausalLM(config)
        self.model = model.to(dtype).train()
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not torch.distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        for layer in self.model.model.layers:
            fully_shard(layer)
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.ids = torch.randint(0, vocab_size, (tokens,), device=device).view(-1, min(SEQUENCE, tokens))
        self.hook = FusedHead(self.model)
        self.finish(self.model(self.ids[:1]).logits.float().logsumexp(-1).mean())  # AdamW's state comes with a step

    def baselines(self) -> dict[str, Step]:
        labels = self.labels
        return {"verl_plain": lambda: plain_cross_entropy(self.model(self.ids).logits.flatten(0, 1), labels)}

    def fused(self, objective: Objective) -> Step:
        needs, n = objective.needs, len(self.labels)
        constants, reference = BatchConstants(), dict.fromkeys(needs.references, self.cached)
        columns = {name: self.given["columns"][name] for name in needs.columns}

        def values(hidden: Tensor, weight: Tensor, bias: Tensor | None, places: Tensor) -> dict[str, Tensor]:
            rows = HeadRows(
                objective,
                hidden,
                weight,
                self.labels,
                rows=places,
                reference=reference,
                columns=columns,
                constants=constants,
                chunk_size=fixed_chunk_size(objective, weight),
                head_bias=bias,
            )
            return rows.values(n)

        def step() -> Tensor:
            with self.hook.returning_values(values, None) as read:
                return read(self.model(self.ids).logits.flatten(0, 1))["loss"].sum() / n

        return step

    def trainer(self, objective: Objective) -> Step | None:
        return None

    def measures(self, objective: Objective) -> bool:
        """Whether a step needs nothing but this model and the cached reference."""
        needs = objective.needs
        return not (needs.batch or needs.dataset) and self.reference(objective) is self.cached

    def finish(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean by verl's own function, or by PyTorch's where verl is not installed."""
    verl = installed("verl.utils.torch_functional")
    if verl is None:
        return torch.nn.functional.cross_entropy(logits, labels)
    return -verl.logprobs_from_logits(logits, labels).mean()


def installed(name: str) -> Any:
    """The module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
