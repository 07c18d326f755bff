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


def interpreted(program: str, *arguments: str) -> str:
    """What a program prints whose kernels run in Triton's interpreter."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def found():
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    return json.loads(interpreted(PROGRAM, json.dumps(CASES)))


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


PRODUCERS = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
from common.tiny_models import byte_tokenizer, ends_of, random_model, save
from data_prep.reference.codec import decode
from data_prep.reference.layout import TOKEN_FIELDS, Layout
from data_prep.reference.producers import forward
from data_prep.reference.tokens import Job, Tokens
from data_prep.reference.workers import fill_shard

tokenizer, vocabulary = byte_tokenizer(128), 20_003
torch.manual_seed(0)
model = random_model("Qwen2", vocabulary, tie_word_embeddings=True, initializer_range=0.3, **ends_of(tokenizer))
directory = save(Path(sys.argv[1]), model, tokenizer)
rng = np.random.default_rng(0)
lengths = rng.integers(3, 20, 8)
offsets = np.concatenate([[0], np.cumsum(lengths)])
mask = (rng.random(offsets[-1]) < 0.6).astype(np.uint8)
mask[offsets[:-1]] = 0
mask[: lengths[0]] = 0  # a chat without a supervised token
ids = 3 * rng.integers(0, vocabulary // 3, offsets[-1], dtype=np.int32)
tokens, job = Tokens(ids, mask, offsets, {}), Job("shard_00000.bin", tuple(range(8)))
layout = Layout("lossless", 64, 32, vocabulary, tuple(TOKEN_FIELDS))
forward.LOGITS_BYTES["cpu"] = 4 * vocabulary * 7  # several chunks of a batch
allowed = np.arange(vocabulary) % 5 < 4
allowed[ids] = True
found = {}
for dtype in ("float32", "bfloat16"):
    both = []
    for one_pass in (False, True):
        forward.one_pass_over = lambda device: one_pass
        settings = SimpleNamespace(dtype=dtype, tokens_per_batch=60)
        kind = SimpleNamespace(attention="sdpa", trust_remote_code=False)
        both.append(fill_shard(job, tokens, forward.ForwardProducer(directory, settings, kind, allowed), layout))
    logprobs = [decode(torch.from_numpy(arrays.pop("packed")).flatten(), 64) for arrays in both]
    found[dtype] = {name: float(np.abs(array.astype(np.float64) - both[0][name]).max())
                    for name, array in both[1].items()}
    found[dtype]["support_logprobs"] = float((logprobs[0][1] - logprobs[1][1]).abs().max())
    found[dtype]["forbidden"] = int((~torch.from_numpy(allowed)[logprobs[1][0]]).sum())
json.dump(found, sys.stdout)
"""


def test_a_producer_with_the_kernel_fills_the_same_shard(tmp_path):
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    for dtype, differences in json.loads(interpreted(PRODUCERS, str(tmp_path / "model"))).items():
        assert differences.keys() > {"offsets", "label_checksum", "mean_loss", "label_mass", "support_logprobs"}
        assert max(differences.values()) < 2e-5, (dtype, differences)
        for name in ("offsets", "label_checksum", "ceil_n1", "ceil_n2", "forbidden"):
            assert differences[name] == 0, (dtype, name)
