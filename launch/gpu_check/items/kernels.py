"""Item 2: the Triton kernels against float64, interpreted and compiled for the device; varlen attention."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from typing import Any

import torch

from launch.gpu_check.context import Context, NotRun, NotYet

OLD_NUMPY = "only 0-dimensional arrays can be converted"  # Triton 3.6 with numpy 2.5
DTYPES = ("float32", "bfloat16")
INTERPRETED = """
import json, sys
import torch
from launch.gpu_check.items.kernels import errors_of
json.dump(errors_of("cpu", sys.argv[1] == "tiny"), sys.stdout)
"""


def run(context: Context) -> None:
    if context.device == "cuda":
        context.measure("compiled", lambda: _judged(errors_of("cuda", False)))
        context.measure("varlen attention", varlen_attention)
    else:
        context.measure("compiled", _no_device)
        context.measure("varlen attention", _no_device)
    context.measure("interpreter", lambda: _interpreted(context))


def _no_device() -> dict[str, Any]:
    raise NotRun("needs a device")


def errors_of(device: str, small: bool) -> list[dict[str, Any]]:
    """One row for each case, dtype and shape: relative errors of both backends, and whether Triton's are PyTorch's."""
    from sft_objectives.fused.accuracy import CASES, SHAPES, as_near, relative_errors

    rows = []
    for dtype in DTYPES:
        kind = getattr(torch, dtype)
        for name, settings in CASES:
            for shape in SHAPES[:1] if small or device == "cpu" else SHAPES:
                errors = relative_errors(kind, name, settings, shape=shape, device=device)
                case = " ".join([name, *map(str, settings.values()), dtype, "x".join(map(str, shape))])
                rows.append({"case": case, "near": as_near(errors, kind, device), **errors})
        extreme = relative_errors(torch.float32, "idft", {}, scale=1000.0, device=device)
        rows.append({"case": "idft extreme logits", "near": max(extreme["triton"]) < 1e-3, **extreme})
    return rows


def _judged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Raises RuntimeError that names the cases where Triton is further from float64 than PyTorch."""
    far = [
        f"{row['case']} ({max(row['triton']):.2g}, PyTorch {max(row['torch']):.2g})" for row in rows if not row["near"]
    ]
    if far:
        raise RuntimeError(f"{len(far)} of {len(rows)} cases are further from float64 than PyTorch: {'; '.join(far)}")
    worst = {f"worst_{dtype}": max(max(row["triton"]) for row in rows if dtype in row["case"]) for dtype in DTYPES}
    return {"cases": len(rows), "far": 0, **worst}


def _interpreted(context: Context) -> dict[str, Any]:
    size = "tiny" if context.tiny else "full"
    env = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", INTERPRETED, size]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode and OLD_NUMPY in done.stderr:
        raise NotRun(f"this Triton's interpreter does not know numpy {importlib.metadata.version('numpy')}")
    if done.returncode:
        raise RuntimeError(f"the interpreter's process failed: {done.stderr.strip()[-300:]}")
    return _judged(json.loads(done.stdout))


def varlen_attention() -> dict[str, Any]:
    """PyTorch's kernel beside our reference in float32, forward and backward, plain and with a window.

    Errors are relative to the largest value, in bfloat16. Raises RuntimeError beyond 2%, or if a chat sees another.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise NotRun("this PyTorch has no torch.nn.attention.varlen") from None
    try:
        from common.varlen_attention import reference_varlen_attn
    except ImportError as error:
        raise NotYet(f"{error.name} is not installed") from None
    lengths = (513, 1, 64, 1000, 30)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32)
    generator = torch.Generator("cuda").manual_seed(0)
    states = [torch.randn(sum(lengths), 14, 64, generator=generator, device="cuda").bfloat16() for _ in range(4)]
    figures = {}
    for name, window in (("", (-1, 0)), ("_window", (127, 0))):
        found = []
        for function, dtype in ((varlen_attn, torch.bfloat16), (reference_varlen_attn, torch.float32)):
            query, key, value = (state.to(dtype, copy=True).requires_grad_() for state in states[:3])
            longest = max(lengths)
            result: Any = function(query, key, value, bounds, bounds, longest, longest, window_size=window)
            gradients = torch.autograd.grad(result, (query, key, value), states[3].to(dtype))
            found.append([result.detach(), *gradients])
        errors = [float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True)]
        figures[f"forward_error{name}"], figures[f"backward_error{name}"] = errors[0], max(errors[1:])
    if max(figures.values()) > 0.02:
        raise RuntimeError(f"varlen attention differs from the reference: {figures}")
    figures["leak"] = _leak(varlen_attn, states, bounds, lengths)
    if figures["leak"]:
        raise RuntimeError("varlen attention: a chat's output changed with its neighbour's keys")
    return figures


def _leak(function: Any, states: list[torch.Tensor], bounds: torch.Tensor, lengths: tuple[int, ...]) -> float:
    """Largest change of the other chats' outputs when the first chat's keys and values change."""
    longest, rest = max(lengths), slice(lengths[0], None)
    outputs = []
    for shift in (0.0, 1.0):
        key, value = (state.clone() for state in states[1:3])
        key[: lengths[0]] += shift
        value[: lengths[0]] += shift
        outputs.append(function(states[0], key, value, bounds, bounds, longest, longest, window_size=(-1, 0))[rest])
    return float((outputs[0] - outputs[1]).abs().max())
