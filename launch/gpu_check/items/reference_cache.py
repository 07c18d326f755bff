"""Item 4: the reference cache's producer beside a bare forward pass, and its reader."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from launch.gpu_check.context import Context
from launch.gpu_check.items.models import random_model_directory


def run(context: Context) -> None:
    context.measure("producer", lambda: _producer(context), producer_vs_forward={"at_least": 0.9})
    context.measure("reader", lambda: _reader(context))


def _producer(context: Context) -> dict[str, Any]:
    from data_prep.bench import producer_figures
    from data_prep.reference.producers.forward import ForwardProducer

    dtype = "float32" if context.device == "cpu" else "bfloat16"
    section = SimpleNamespace(dtype=dtype, tokens_per_batch=1024 if context.tiny else 32_768)
    model = SimpleNamespace(attention="sdpa", trust_remote_code=False)
    producer = ForwardProducer(random_model_directory(context), section, model, None)
    tokens, repeats = (1024, 1) if context.tiny else (131_072, 3)
    figures: dict[str, Any] = dict(producer_figures(producer, context.scratch("cache"), tokens, repeats))
    if context.device == "cuda":
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def _reader(context: Context) -> dict[str, Any]:
    """Tokens a second that one thread of a training process reads, from disk pages that are in memory."""
    import tempfile
    from pathlib import Path

    from data_prep import bench

    with tempfile.TemporaryDirectory(dir=context.scratch("cache")) as folder:
        chats = 40 if context.tiny else bench.READER_CHATS
        stored = bench.synthetic_cache(Path(folder), chats)
        rate = bench.reads_per_second(stored.read, chats, 100 if context.tiny else bench.READS)
    return {"reader_tokens_per_s": rate}
