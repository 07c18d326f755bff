"""The Triton kernels against the PyTorch passes, in Triton's interpreter: in a process of its own, no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sft_objectives import fused_loss, load
from sft_objectives.fused.backend import student_of
from sft_objectives.fused.chunk_student import ChunkStudent

CASES = (
    ("sft", {}),
    ("idft", {}),
    ("eaft", {}),
    ("label_smoothing", {}),
    ("gem", {}),
    ("gem", {"variant": "logsigmoid"}),
    ("lp_sft", {}),
    ("target_sft", {}),
    ("sft_kl", {"estimator": "topk"}),
    ("sft_kl", {}),
)
PROGRAM = """
import json, sys
import torch
from sft_objectives import Reference, fused_loss, load

def run(dtype, name, settings, scale):
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    hidden, head = (normal(9, 8) * scale).to(dtype), normal(203, 8).to(dtype)
    labels = torch.randint(0, 203, (9,), generator=generator)
    other = (hidden.float() + 0.3 * normal(9, 8)).to(dtype)
    reference = Reference.from_logits((other @ head.t()).float(), labels, top_k=20)
    reference = Reference(
        **{f: reference.get(f) for f in reference.fields - {"logits"}}, live=(other, head, None)
    )
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1, 1])
    found = {}
    for backend, kind in (("exact", torch.float64), ("torch", dtype), ("triton", dtype)):
        inputs = [x.detach().to(kind).requires_grad_() for x in (hidden, head, torch.linspace(-1, 1, 203).to(dtype))]
        source = Reference(
            **{f: reference.get(f) for f in reference.fields - {"logits", "live"}},
            live=(other.to(kind), head.to(kind), None),
        )
        value, statistics = fused_loss(
            load(name, **settings), inputs[0], inputs[1], labels, head_bias=inputs[2], mask=mask,
            token_scale=torch.linspace(-1, 2, 9), reference=source, normalizer=7, chunk_size=4,
            return_statistics=True, backend="torch" if backend == "exact" else backend,
        )
        gradients = torch.autograd.grad(value, inputs)
        assert all(g.dtype == kind for g in gradients)
        found[backend] = [value.detach(), *gradients, statistics["loss"], statistics["entropy"]]
    def error(backend):
        return [
            float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3))
            for a, b in zip(found[backend], found["exact"], strict=True)
        ]
    return {"torch": error("torch"), "triton": error("triton")}

json.dump(
    [run(getattr(torch, dtype), name, settings, scale) for dtype, name, settings, scale in json.loads(sys.argv[1])],
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def errors():
    """Relative errors of both backends against float64, by (dtype, name, settings, scale of the logits)."""
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    jobs = [(dtype, name, settings, 1.0) for dtype in ("float32", "bfloat16") for name, settings in CASES]
    jobs += [("float32", "idft", {}, 1000.0)]
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(jobs)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {json.dumps(job): found for job, found in zip(jobs, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_triton_is_as_near_to_float64_as_pytorch(errors, dtype, name, settings):
    found = errors[json.dumps((dtype, name, settings, 1.0))]
    rounding = torch.finfo(getattr(torch, dtype)).eps
    for mine, theirs in zip(found["triton"], found["torch"], strict=True):
        assert mine <= 1.5 * theirs + 4 * rounding


def test_extreme_logits(errors):
    found = errors[json.dumps(("float32", "idft", {}, 1000.0))]
    assert max(found["triton"]) < 1e-3


def test_the_backend_is_chosen_and_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    hidden = torch.zeros(2, 4)
    assert student_of("auto", hidden) is student_of("torch", hidden) is ChunkStudent
    given = {"labels": torch.zeros(2, dtype=torch.long), "mask": None, "normalizer": 1}
    with pytest.raises(ValueError, match=r"backend=triton: .*set backend=torch"):
        fused_loss(load("sft"), hidden, torch.zeros(5, 4), backend="triton", **given)
    with pytest.raises(ValueError, match="backend='cuda'; allowed: auto, torch, triton"):
        fused_loss(load("sft"), hidden, torch.zeros(5, 4), backend="cuda", **given)
