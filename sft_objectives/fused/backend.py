"""Which class makes the passes over the vocabulary: PyTorch's, or Triton's kernels on a GPU."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from .chunk_student import ChunkStudent

BACKENDS = ("auto", "torch", "triton")


def student_of(backend: str, hidden: Tensor) -> type[ChunkStudent]:
    """The class that makes the passes over the vocabulary. Raises ValueError for a backend that cannot run here."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}; allowed: {', '.join(BACKENDS)}")
    installed = importlib.util.find_spec("triton") is not None
    device = hidden.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    narrow = hidden.dtype != torch.float64
    if backend == "triton" and not (installed and device and narrow):
        wrong = "triton is not installed" if not installed else f"hidden is {hidden.dtype} on {hidden.device}"
        raise ValueError(f"backend=triton: {wrong}; allowed: float32 and bfloat16 on a GPU; set backend=torch")
    if backend == "torch" or (backend == "auto" and not (installed and narrow and hidden.device.type == "cuda")):
        return ChunkStudent
    from .kernels import TritonStudent

    return TritonStudent
