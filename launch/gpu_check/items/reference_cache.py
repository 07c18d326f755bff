"""Item 4: the reference cache's producer beside a bare forward pass, its kernel, and its reader."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch

from launch.gpu_check.context import Context
from launch.gpu_check.items.models import SIZES, random_model_directory

KERNELS_SHOWN = 20


def run(context: Context) -> None:
    context.measure("producer", lambda: _producer(context), producer_vs_forward={"at_least": 0.9})
    if context.device == "cuda":
        context.measure("one pass", lambda: _one_pass(context), worst_error={"at_most": 2e-5})
        context.measure("producer by kernel", lambda: _by_kernel(context))
    context.measure("reader", lambda: _reader(context))


def _producer_of(context: Context) -> Any:
    from data_prep.reference.producers.forward import ForwardProducer

    dtype = "float32" if context.device == "cpu" else "bfloat16"
    section = SimpleNamespace(dtype=dtype, tokens_per_batch=1024 if context.tiny else 32_768)
    model = SimpleNamespace(attention="sdpa", trust_remote_code=False)
    return ForwardProducer(random_model_directory(context), section, model, None)


def _producer(context: Context) -> dict[str, Any]:
    from data_prep.bench import producer_figures

    tokens, repeats = (1024, 1) if context.tiny else (262_144, 3)
    producer = _producer_of(context)
    figures: dict[str, Any] = dict(producer_figures(producer, context.scratch("cache"), tokens, repeats))
    if context.device == "cuda":
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def _one_pass(context: Context) -> dict[str, Any]:
    """The compiled kernel against the passes in float64, relative to values above 1, and how fast it reads logits."""
    from data_prep.bench import TOP_K
    from data_prep.reference.kernels import statistics_in_one_pass
    from data_prep.reference.statistics import statistics

    rows, vocabulary = (64, 20_003) if context.tiny else (2048, SIZES["vocabulary"])
    figures: dict[str, Any] = {}
    errors = {}
    for dtype in (torch.bfloat16, torch.float32):
        generator = torch.Generator(context.device).manual_seed(0)
        logits = torch.randn(rows, vocabulary, device=context.device, generator=generator).mul_(3).to(dtype)
        labels = logits[:, :1000].argmax(1)
        found = statistics_in_one_pass(logits, labels, TOP_K)
        exact = statistics(logits[:64].double(), labels[:64], TOP_K)
        name = str(dtype).removeprefix("torch.")
        if not torch.equal(logits[:64].gather(1, found["support_ids"][:64]), logits[:64].topk(TOP_K).values):
            raise AssertionError(f"{name}: these are not the {TOP_K} largest logits")
        for field in ("support_logprobs", "label_logprob", "label_mass", "logsumexp", "entropy", "n1", "n2"):
            error = (found[field][:64].double() - exact[field]).abs() / exact[field].abs().clamp(min=1)
            errors[f"{name} {field}"] = float(error.max())
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(5):
            statistics_in_one_pass(logits, labels, TOP_K)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - started) / 5
        figures[f"{name}_gb_per_s"] = logits.nbytes / seconds / 1e9
        figures[f"{name}_us_per_row"] = seconds / rows * 1e6
    return figures | {"worst_error": max(errors.values()), "errors": errors}


def _by_kernel(context: Context) -> dict[str, Any]:
    """Milliseconds of the device in each kernel, the longest first, while the producer makes rows."""
    from torch.profiler import ProfilerActivity, profile

    from data_prep.bench import make_rows, random_chats

    producer = _producer_of(context)
    jobs, stored = random_chats(producer, 1024 if context.tiny else 65_536)
    make_rows(producer, jobs, stored)
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        make_rows(producer, jobs, stored)
    seconds = time.perf_counter() - started
    times = {event.key[:80]: event.self_device_time_total / 1e3 for event in profiled.key_averages()}
    longest = sorted(times.items(), key=lambda item: -item[1])[:KERNELS_SHOWN]
    return {"wall_ms": 1e3 * seconds, "device_ms": sum(times.values()), "kernels_ms": dict(longest)}


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
