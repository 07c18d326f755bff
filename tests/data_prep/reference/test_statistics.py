"""Statistics of a distribution, beside the objectives' own."""

from __future__ import annotations

import pytest
import torch

from common.distributions import block_topk, effective_support, window_support
from data_prep.reference.statistics import statistics, statistics_of_top
from sft_objectives.reference import Reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [50, 3001, 20_000])
def test_statistics_equal_the_objectives_own(dtype, width):
    """They compute them each in its own way; bfloat16 logits are full of ties."""
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(64, width, generator=generator).mul(3).to(dtype)
    labels = torch.randint(0, width, (64,), generator=generator)
    labels[:8] = logits[:8].argmax(-1)
    expected = Reference.from_logits(logits, labels, top_k=40)
    found = statistics(logits.float(), labels, 40)
    torch.testing.assert_close(found["support_logprobs"], expected.support_logprobs, rtol=0, atol=2e-5)
    assert torch.equal(logits.gather(-1, found["support_ids"]), logits.gather(-1, expected.support_ids))
    for name in ("label_logprob", "label_mass", "logsumexp", "entropy"):
        torch.testing.assert_close(found[name], getattr(expected, name), rtol=2e-5, atol=2e-5, msg=name)
    for name in ("n1", "n2"):
        torch.testing.assert_close(found[name], getattr(expected, name), rtol=1e-12, atol=0, msg=name)
    for name in ("ceil_n1", "ceil_n2"):
        assert torch.equal(found[name], getattr(expected, name))
    assert (found["label_mass"][:8] == 1).all()


@pytest.mark.parametrize(("width", "k"), [(64, 64), (1000, 1), (1003, 10), (49_152, 64), (50_257, 30), (5000, 2500)])
def test_block_topk_is_exact(width, k):
    generator = torch.Generator().manual_seed(k)
    values = torch.randn(32, width, generator=generator)
    values[1] = 0.5  # every value tied
    values[2] = torch.arange(width)  # the largest lie together
    values[3] = -torch.arange(width)
    found, ids = block_topk(values, k)
    assert torch.equal(found, values.topk(k, dim=-1).values)
    assert torch.equal(values.gather(-1, ids), found)
    assert all(len(set(row)) == k for row in ids.tolist())


def test_label_mass_counts_every_tie():
    logits = torch.tensor([[0.0, 1.0, 1.0, 2.0], [2.0, 1.0, 1.0, 0.0]])
    found = statistics(logits.clone(), torch.tensor([1, 0]), 2)["label_mass"]
    exact = logits[0].softmax(-1)[:3].sum()
    torch.testing.assert_close(found, torch.tensor([exact, 1.0]))


def test_the_window_is_cut_to_its_most_probable_ids():
    logits = torch.randn(64, 3001, generator=torch.Generator().manual_seed(5)).mul(3)
    for found, expected in zip(window_support(logits), effective_support(logits.topk(30).values), strict=True):
        assert torch.equal(found, expected)


def test_the_most_probable_ids_alone_tell_the_same():
    logits = torch.randn(32, 500, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(32)
    whole = statistics(logits.clone(), labels, 16)
    logprobs, ids = logits.log_softmax(-1).topk(40)
    label = logits.log_softmax(-1).gather(1, labels.unsqueeze(1))
    found = statistics_of_top(torch.cat([labels.unsqueeze(1), ids], 1), torch.cat([label, logprobs], 1), 16)
    for name, values in found.items():
        torch.testing.assert_close(values, whole[name], rtol=1e-5, atol=1e-5, msg=name)
