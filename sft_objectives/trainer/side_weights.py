"""Weights beside the student's: the old policy or moving average of an objective, the initial ones of a penalty."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from verl.utils.checkpoint.checkpoint_handler import extract_step
from verl.utils.device import get_device_id

from ..needs import Ema, OldPolicy
from .low_rank import products


class Weights:
    """The trained parameters of a module, as this rank's shards, in the optimizer's order."""

    def __init__(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, excluded: Set[int] = frozenset()
    ) -> None:
        self.module, self._optimizer, self._excluded = module, optimizer, excluded

    def without(self, parameters: Set[int]) -> Weights:
        """These but for the parameters of these ids."""
        return Weights(self.module, self._optimizer, self._excluded | parameters)

    def parameters(self) -> list[Tensor]:
        """The parameters themselves."""
        found = [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
        return [parameter for parameter in found if id(parameter) not in self._excluded]

    def shards(self) -> list[Tensor]:
        """Local shards; they share the parameters' storage."""
        return [p._local_tensor if isinstance(p, DTensor) else p.data for p in self.parameters()]

    def copy(self) -> list[Tensor]:
        """Copies of the local shards."""
        return [weight.detach().clone() for weight in self.shards()]

    @contextmanager
    def exchanged(self, other: list[Tensor]) -> Iterator[None]:
        """Exchange the parameters with `other` (shards), and back at the end."""
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
        for weight, replacement in zip(self.shards(), other, strict=True):
            kept = weight.clone()
            weight.copy_(replacement)
            replacement.copy_(kept)


class Shadow:
    """Weights that follow the student's: a moving average, or those of some steps ago. It starts as the student."""

    def __init__(self, state: Ema | OldPolicy, weights: Weights) -> None:
        self.state, self._weights = state, weights
        self.tensors = weights.copy()
        self._updates = 0

    def exchanged(self):
        """A context in which the student's parameters are these."""
        return self._weights.exchanged(self.tensors)

    @torch.no_grad()
    def follow(self) -> None:
        """Call after each optimizer step."""
        self._updates += 1
        if isinstance(self.state, Ema):
            for average, weight in zip(self.tensors, self._weights.shards(), strict=True):
                average.lerp_(weight.to(average.device), 1.0 - self.state.momentum)
        elif self._updates % self.state.every == 0:
            self.tensors = self._weights.copy()

    def save(self, directory: str) -> None:
        """Write this rank's shards into a checkpoint."""
        tensors = {str(index): tensor.cpu().contiguous() for index, tensor in enumerate(self.tensors)}
        save_file(tensors, self._path(directory), metadata={"updates": str(self._updates)})

    def load(self, directory: str) -> None:
        """Read this rank's shards from a checkpoint; its name gives the step."""
        self._updates = extract_step(str(directory)) or 0
        tensors = load_file(self._path(directory))
        for index, tensor in enumerate(self.tensors):
            tensor.copy_(tensors[str(index)])

    def _path(self, directory: str) -> Path:
        rank = f"world_size_{dist.get_world_size()}_rank_{dist.get_rank()}"
        return Path(directory) / f"{self.state.source}_{rank}.safetensors"


class L2ToInit:
    """The penalty weight * |theta - theta_0|^2, added to the gradient once an optimizer step.

    theta are the model's weights: of a low-rank update, whose product is 0 at first, the penalty is on the product.
    """

    def __init__(self, weight: float, weights: Weights, device_mesh: Any) -> None:
        self._weight, self._mesh = weight, device_mesh
        self._products = products(weights.module)
        factors = {id(factor) for product in self._products for factor in (product.a, product.b)}
        self._weights = weights.without(factors)
        self._initial = self._weights.copy()
        self.value = 0.0
        """The penalty at the last step."""

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the penalty's gradient to the parameters' and keep its value."""
        total = torch.zeros((), dtype=torch.float64, device=get_device_id())
        whole = total.clone()  # of the products, which every rank computes
        for product in self._products:
            whole += product.penalty(self._weight)
        shards = self._weights.shards()
        for parameter, weight, initial in zip(self._weights.parameters(), shards, self._initial, strict=True):
            difference = weight - initial.to(weight.device)
            total += difference.double().square().sum()
            gradient = parameter.grad
            if gradient is None:  # nothing of the batch reaches it, and it stays as it is
                continue
            local = gradient._local_tensor if isinstance(gradient, DTensor) else gradient
            local.add_(difference, alpha=2.0 * self._weight)
        dist.all_reduce(total, group=self._mesh["fsdp"].get_group() if self._mesh.ndim > 1 else None)
        self.value = self._weight * (total + whole).item()
