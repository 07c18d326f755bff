"""Ids and log-probabilities in one integer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.reference.codec import decode, encode, id_bits


@given(
    st.lists(st.floats(-64, 0, width=32), min_size=1, max_size=20),
    st.sampled_from([18, 19, 20]),
    st.integers(0, 2**18 - 1),
)
def test_compact_entries_return_the_id_and_nearly_the_logprob(logprobs, id_bits, token):
    exact = torch.tensor(logprobs)
    ids = torch.full_like(exact, token, dtype=torch.int64)
    found_ids, found = decode(encode(ids, exact, encoding="compact", id_bits=id_bits), len(exact), id_bits)
    assert torch.equal(found_ids[0], ids)
    step = 1 / (2 ** (32 - id_bits) - 1)  # of sqrt(-logprob / 64)
    allowed = 64 * (step * (-exact / 64).sqrt() + step**2) + 1e-5
    assert ((found[0] - exact).abs() <= allowed).all()


def test_compact_entries_clip_impossible_tokens_and_keep_large_ids():
    ids = torch.tensor([0, 2**18 - 1, 2**18 - 1])
    found_ids, found = decode(encode(ids, torch.tensor([-math.inf, -100.0, 0.0]), encoding="compact", id_bits=18), 3)
    assert torch.equal(found_ids[0], ids)
    assert found[0].tolist() == [-64.0, -64.0, 0.0]


def test_lossless_entries_are_exact():
    logprobs = torch.tensor([-0.0, -1e-30, -12.345678, -1e4, -math.inf])
    ids = torch.tensor([0, 1, 2**31 - 1, 5, 7])
    found_ids, found = decode(encode(ids, logprobs, encoding="lossless", id_bits=32), 5)
    assert torch.equal(found_ids[0], ids)
    assert torch.equal(found[0], logprobs)


def test_zero_rows_decode_to_zero():
    for dtype in (torch.int32, torch.int64):
        ids, logprobs = decode(torch.zeros(6, dtype=dtype), 3)
        assert ids.shape == (2, 3)
        assert not ids.any()
        assert not logprobs.any()


def test_id_bits_follow_the_vocabulary():
    assert [id_bits(size) for size in (100, 2**18, 2**18 + 1, 2**20)] == [18, 18, 19, 20]
    with pytest.raises(ValueError, match="set cache"):
        id_bits(2**20 + 1)
