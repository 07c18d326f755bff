"""The Triton kernel against the PyTorch passes, in Triton's interpreter: in a process of its own, no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from common.registry import ROOT

PROGRAM = """
import json, sys
import torch
from data_prep.reference.kernels import statistics_in_one_pass
from data_prep.reference.statistics import statistics

def case(dtype, width, top_k):
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(12, width, generator=generator).mul(3).to(dtype)
    labels = torch.randint(0, width, (12,), generator=generator)
    labels[:3] = logits[:3].argmax(-1)
    logits[3] = 0.5  # all tied
    logits[4] = torch.linspace(-40, 40, width)
    logits[5] = torch.linspace(40, -40, width)
    logits[6] = torch.randn(width, generator=generator) * 300
    logits[7].masked_fill_(torch.rand(width, generator=generator) < 0.6, -1e30)
    logits[7, labels[7]] = 0.0
    logits[8, -1] = 50.0  # in the last block, or in the rest that fills none
    logits[9, : width // 2] = logits[9].amax()
    labels[10] = logits[10].argmin()
    logits[11] = -1e4
    logits[11, labels[11]] = 1e4
    before = logits.clone()
    found = statistics_in_one_pass(logits, labels, top_k)
    exact = statistics(logits.double(), labels, top_k)
    plain = statistics(logits.float().clone(), labels, top_k)
    ids = found["support_ids"]
    return {
        "unchanged": torch.equal(logits, before),
        "top": torch.equal(logits.gather(1, ids), logits.topk(top_k).values),
        "distinct": all(len(set(row)) == top_k for row in ids.tolist()),
        "types": {n: [str(v.dtype), list(v.shape)] == [str(plain[n].dtype), list(plain[n].shape)]
                  for n, v in found.items()},
        "errors": {
            name: [float(((mine - exact[name]).abs() / exact[name].abs().clamp(min=1)).max())
                   for mine in (found[name].double(), plain[name].double())]
            for name in ("support_logprobs", "label_logprob", "label_mass", "logsumexp", "entropy", "n1", "n2")
        },
        "ceil": all(torch.equal(found[name], plain[name]) for name in ("ceil_n1", "ceil_n2")),
        "of_the_largest": found["label_mass"][:3].tolist(),
    }

def strided(width):
    logits = torch.randn(5, 2 * width, generator=torch.Generator().manual_seed(3))[:, :width]
    labels = torch.arange(5)
    part, whole = (statistics_in_one_pass(z, labels, 5) for z in (logits, logits.contiguous()))
    return all(torch.equal(part[name], whole[name]) for name in part)

cases = [case(getattr(torch, dtype), width, top_k) for dtype, width, top_k in json.loads(sys.argv[1])]
none = statistics_in_one_pass(torch.zeros(0, 300), torch.zeros(0, dtype=torch.int64), 4)
json.dump({"cases": cases, "strided": strided(9001), "none": [list(v.shape) for v in none.values()]}, sys.stdout)
"""
WIDTHS = [(50, 16), (3001, 10), (4096, 4), (20_003, 64), (33_000, 64)]
CASES = [(dtype, *width) for dtype in ("float32", "bfloat16") for width in WIDTHS]


@pytest.fixture(scope="module")
def found():
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_pass_gives_what_the_passes_of_pytorch_give(found, case):
    own = found["cases"][CASES.index(case)]
    assert own["unchanged"] and own["top"] and own["distinct"] and own["ceil"], own
    assert all(own["types"].values()), own["types"]
    assert own["of_the_largest"] == [1, 1, 1]
    for name, (kernel, pytorch) in own["errors"].items():
        assert kernel <= 1.5 * pytorch + 5e-7, (name, kernel, pytorch)


def test_rows_may_lie_apart_or_be_none(found):
    assert found["strided"]
    assert {shape[0] for shape in found["none"]} == {0}
