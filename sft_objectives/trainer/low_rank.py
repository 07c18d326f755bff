"""Low-rank updates (LoRA): what they reach, and the penalty on what they change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


def untrained_experts(module: torch.nn.Module) -> list[str]:
    """Names of the weights of experts that no update reaches, layers counted as *; empty without a low-rank update.

    An update of "all-linear" modules reaches experts that are modules, and others where peft knows the architecture.
    """
    from peft.tuners.lora import LoraLayer

    reached = set()
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            reached.add(f"{_plain(name)}.{getattr(layer, 'parameter_name', 'weight')}")
    names = {_plain(name) for name, weight in module.named_parameters() if "lora_" not in name and weight.ndim > 1}
    missed = {name for name in names - reached if ".experts." in name} if reached else set()
    return sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in missed})


def _plain(name: str) -> str:
    """A parameter's or module's name in the model without the update."""
    return name.replace(".base_layer", "").removeprefix("base_model.model.")


class Product:
    """The matrices scale * B_e A_e that a pair of low-rank factors adds to the weights of `experts` experts (1: one).

    a: (experts * r, in), b: (out, r * experts), as peft stacks them.
    """

    def __init__(self, a: torch.nn.Parameter, b: torch.nn.Parameter, scale: float, experts: int = 1) -> None:
        self.a, self.b, self._scale, self._experts = a, b, scale, experts

    @torch.no_grad()
    def penalty(self, weight: float) -> Tensor:
        """Add the gradient of weight * |scale B A|^2 to the factors' gradients; gives |scale B A|^2, float64, ().

        From (r, r) products of the factors: the matrices themselves never exist. Every rank calls this.
        """
        a, b = (whole(factor).double() for factor in (self.a, self.b))
        of_expert = a.view(self._experts, -1, a.shape[-1])
        b_of_expert = b.view(len(b), -1, self._experts).permute(2, 0, 1)
        square = self._scale**2
        of_a, of_b = of_expert @ of_expert.mT, b_of_expert.mT @ b_of_expert
        _add_gradient(self.a, (2 * weight * square) * (of_b @ of_expert).reshape(a.shape))
        _add_gradient(self.b, (2 * weight * square) * (b_of_expert @ of_a).permute(1, 2, 0).reshape(b.shape))
        return square * (of_b * of_a).sum()


def whole(parameter: Tensor) -> Tensor:
    """A parameter without gradient, gathered where it is sharded; every rank calls this."""
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


def _add_gradient(parameter: torch.nn.Parameter, gradient: Tensor) -> None:
    gradient, kept = gradient.to(parameter.dtype), parameter.grad
    assert kept is not None
    if isinstance(kept, DTensor):
        mesh = kept.device_mesh
        same = DTensor.from_local(gradient, mesh, [Replicate()] * mesh.ndim, run_check=False)
        kept._local_tensor.add_(same.redistribute(mesh, kept.placements)._local_tensor)
    else:
        kept.add_(gradient)


def products(module: torch.nn.Module) -> list[Product]:
    """The low-rank products of a module with a low-rank update, in its order."""
    from peft.tuners.lora import LoraLayer

    return [product for layer in module.modules() if isinstance(layer, LoraLayer) for product in _products_of(layer)]


def _products_of(layer: Any) -> Iterator[Product]:
    for name, scale in layer.scaling.items():
        if name in layer.lora_A:
            yield Product(layer.lora_A[name].weight, layer.lora_B[name].weight, scale, getattr(layer, "num_experts", 1))
        elif name in layer.lora_embedding_A:
            yield Product(layer.lora_embedding_A[name], layer.lora_embedding_B[name], scale)
