"""Properties of any logits: weights in range, losses finite, Q = p - dL/dz sums to one."""

import measure
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sft_objectives
from sft_objectives import token_losses

BATCHES = st.builds(
    measure.build,
    vocab_size=st.integers(2, 40),
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
    scale=st.floats(0.0, 50.0),
    top_k=st.sampled_from([20, 64]),
    seed=st.integers(0, 10**6),
    tie=st.booleans(),
)
RANGES = {
    "sft": (1, 1),
    "dft": (0, 1),
    "profit": (0, 1),
    "talr": (0.01, 1),
    "eaft": (0, 1),
    "idft": (0, 1),
    "prift_prob": (0, 1),
    "prift_mass": (0, 1),
    "token_selection": (0, 1),
    "critical_token": (0, 1),
    "iw_sft": (0, float("inf")),
    "flow": (0, float("inf")),
}
few = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", sft_objectives.names())
@few
@given(batch=BATCHES)
def test_losses_are_finite_and_the_induced_target_sums_to_one(name, batch):
    losses, gradient = measure.dense(sft_objectives.load(name), batch)
    assert losses.isfinite().all() and gradient.isfinite().all()
    target = batch.logits.detach().softmax(-1) - gradient
    scale = gradient.abs().amax(-1).clamp(min=1)
    assert ((target.sum(-1) - 1).abs() < 1e-12 * scale).all()
    if name in RANGES:
        cross_entropy = measure.dense(sft_objectives.load("sft"), batch)[0]
        low, high = RANGES[name]
        assert (losses >= low * cross_entropy * (1 - 1e-12)).all()
        assert (losses <= high * cross_entropy.clamp(min=1e-300) * (1 + 1e-12)).all() or high == float("inf")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gem", {}),
        ("sft_kl", {"weight": 2.0}),
        ("sft_k3", {"weight": 2.0}),
        ("sed_sft", {"weight": 8.0, "mask": False}),
        ("psft", {}),
        ("lp_sft", {"weight": 2.0}),
    ],
)
def test_the_induced_target_need_not_be_a_distribution(name, settings, make_batch):
    batch = make_batch()
    batch.upstream[:] = 1
    losses = token_losses(
        sft_objectives.load(name, **settings),
        batch.logits,
        batch.labels,
        mask=batch.mask,
        sequence_lengths=batch.lengths,
        reference=batch.references,
    )
    target = batch.logits.detach().softmax(-1) - torch.autograd.grad(losses.sum(), batch.logits)[0]
    assert target.min() < -1e-6 or target.max() > 1 + 1e-6
