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
from sft_objectives.fused.accuracy import CASES, SHAPES, as_near
from sft_objectives.fused.backend import student_of
from sft_objectives.fused.chunk_student import ChunkStudent

PROGRAM = """
import json, sys
import torch
from sft_objectives.fused.accuracy import relative_errors

json.dump(
    [
        relative_errors(getattr(torch, dtype), name, settings, scale=scale, shape=tuple(shape))
        for dtype, name, settings, scale, shape in json.loads(sys.argv[1])
    ],
    sys.stdout,
)
"""
SMALL, ODD, LARGE = SHAPES


@pytest.fixture(scope="module")
def errors():
    """Relative errors of both backends against float64, by (dtype, name, settings, scale of the logits)."""
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    jobs: list[tuple] = [
        (dtype, name, settings, 1.0, SMALL) for dtype in ("float32", "bfloat16") for name, settings in CASES
    ]
    jobs += [("float32", "idft", {}, 1000.0, SMALL)]
    jobs += [("float32", "sft_kl", {}, 1.0, shape) for shape in (ODD, LARGE)]
    return {
        json.dumps(job): found for job, found in zip(jobs, interpreted("-c", PROGRAM, json.dumps(jobs)), strict=True)
    }


def interpreted(*arguments: str):
    """What a program prints as JSON, where kernels are interpreted."""
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_triton_is_as_near_to_float64_as_pytorch(errors, dtype, name, settings):
    found = errors[json.dumps((dtype, name, settings, 1.0, SMALL))]
    assert as_near(found, getattr(torch, dtype)), found


@pytest.mark.parametrize("shape", [ODD, LARGE])
def test_vocabularies_of_several_blocks(errors, shape):
    assert as_near(errors[json.dumps(("float32", "sft_kl", {}, 1.0, shape))], torch.float32)


def test_an_objective_may_ask_for_everything_and_twice():
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    assert as_near(interpreted(str(Path(__file__).with_name("all_terms.py"))), torch.float32)


def test_an_error_beyond_rounding_is_noticed():
    assert as_near({"torch": [1e-6], "triton": [1.4e-6]}, torch.float32)
    assert not as_near({"torch": [1e-6], "triton": [1e-5]}, torch.float32)


def test_extreme_logits(errors):
    found = errors[json.dumps(("float32", "idft", {}, 1000.0, SMALL))]
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
