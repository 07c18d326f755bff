"""Losses and gradients against formulas.py: exact in float64, no worse than the naive code in float32 and bfloat16."""

from itertools import pairwise

import formulas
import measure
import pytest
import torch

import sft_objectives
from sft_objectives import Reference

every_case = pytest.mark.parametrize(("name", "settings"), measure.CASES, ids=map(measure.case_id, measure.CASES))


def test_every_objective_has_a_row_and_a_formula():
    assert {name for name, _ in measure.CASES} == set(sft_objectives.names())
    assert set(sft_objectives.names()) <= set(formulas.LOSSES)


@every_case
def test_float64(name, settings, provider, make_batch):
    assert measure.oracle_error(name, settings, provider, make_batch()) < 1e-10


@every_case
def test_one_row_and_a_vocabulary_smaller_than_k(name, settings, provider, make_batch):
    batch = make_batch(vocab_size=7, lengths=(1,), top_k=64, masked=False)
    assert measure.oracle_error(name, settings, provider, batch) < 1e-10
    batch = make_batch(vocab_size=7, lengths=(3, 2), top_k=64, seed=4)
    assert measure.oracle_error(name, settings, provider, batch) < 1e-10


@every_case
def test_ties_in_the_reference(name, settings, provider, make_batch):
    assert measure.oracle_error(name, settings, provider, make_batch(tie=True)) < 1e-10


@every_case
@pytest.mark.parametrize("scale", [100.0, 4000.0])
def test_extreme_logits(name, settings, provider, make_batch, scale):
    batch = make_batch(scale=scale)
    assert scale < 1000 or batch.logits.abs().max() > 1e4
    found = provider(sft_objectives.load(name, **settings), batch, None)
    assert all(tensor.isfinite().all() for tensor in found)
    assert measure.oracle_error(name, settings, provider, batch) < 1e-10


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_no_worse_than_naive(name, settings, provider, make_batch, dtype):
    batch = make_batch(dtype)
    found = provider(sft_objectives.load(name, **settings), batch, None)
    exact, naive = measure.expected(name, settings, batch), measure.expected(name, settings, batch, dtype)
    for ours, true, plain, ulp in zip(found, exact, naive, (2e-7, torch.finfo(dtype).eps), strict=True):
        allowed = (plain.double() - true).abs() + ulp * true.abs() + 2e-6 * (1 + true.abs().max())
        assert ((ours.double() - true).abs() <= allowed).all()
    # against reductions in bfloat16: losses are float32 whatever the logits are
    assert found[0].dtype == torch.float32
    assert measure.row_errors(found[0], exact[0], exact[0].abs()).max() < 1e-4
    flips = int(((found[0] == 0) != (exact[0] == 0)).sum())
    assert flips == 0, "tokens that a threshold decides otherwise than in float64"


@every_case
def test_nothing_supervised_is_exactly_zero(name, settings, provider, make_batch):
    batch = make_batch(masked=True)
    with torch.no_grad():
        batch.logits[3] = torch.nan
    constants = {"threshold": 0.5, "temperature": 1.0, "mean_weight": 1.0}
    found = provider(sft_objectives.load(name, **settings), batch, constants)
    assert all((tensor == 0).all() for tensor in found)


@every_case
def test_the_step_of_a_global_batch(name, settings, make_batch):
    """The scalar of a step, as the integrator computes it, against the formula's."""
    batch = make_batch()
    objective = sft_objectives.load(name, **settings)
    dataset = measure.dataset_constants(objective, batch)
    found = measure.step_gradient(objective, batch, dataset, measure.splits(batch)["2 ranks, 2 micro-batches"])
    logits, positions = batch.positions(torch.float64)
    total = formulas.losses(name, positions, **settings).sum() / formulas.normalizer(name, positions, **settings)
    (gradient,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, gradient.T @ logits.detach(), rtol=1e-10, atol=1e-12)


@every_case
def test_split_over_micro_batches_ranks_and_padding(name, settings):
    assert measure.invariance_error(name, settings) < 1e-6


def test_statistics_stay_away_from_thresholds(make_batch):
    """What the comparisons in float32 rely on: no threshold is within 1e-4 of a statistic of a supervised position."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        batch = make_batch(dtype)
        _, positions = batch.positions(torch.float64)
        supervised = [t for t in positions if t.supervised]
        for t in supervised:
            for source in ("online", "base"):
                d = t.log_d(source).exp()
                assert min(abs(float(d[t.y]) - x) for x in (0.1, 0.2)) > 1e-4
                u = float(d[d <= d[t.y]].sum())
                assert min(abs(u - x) for x in (0.5, 0.9)) > 1e-4
            assert abs(t.n1["base"] - round(t.n1["base"])) > 1e-4
            assert abs(t.n1["base"] % 1 - 0.5) > 1e-4
        for source in ("online", "base"):
            probabilities = sorted(float(t.log_d(source)[t.y].exp()) for t in supervised)
            entropies = sorted(float(formulas.entropy(t.log_d(source))) for t in supervised)
            for ranked in (probabilities, entropies):
                assert min(b - a for a, b in pairwise(ranked)) > 1e-4


def test_cached_words_are_the_most_probable(make_batch):
    """The formulas take the cache's words, whose order is free among ties: check that they are a valid choice."""
    for tie in (False, True):
        _, positions = make_batch(tie=tie).positions(torch.float64)
        for t in positions:
            for source, words in t.ids.items():
                kept, rest = t.log_q[source][words], t.log_q[source].clone()
                rest[words] = -torch.inf
                assert (kept.diff() <= 1e-15).all() and kept.min() >= rest.max() - 1e-15
                assert len(set(words)) == len(words) == 24


def test_the_oracle_sees_a_wrong_formula(make_batch, monkeypatch):
    """An error of one part in 10^9 in one term of one weight is found."""
    monkeypatch.setitem(formulas.LOSSES, "dft", formulas.weighted(lambda t, b: formulas.dft(t, b) * (1 + 1e-9)))
    assert measure.oracle_error("dft", {}, measure.dense, make_batch()) > 1e-10


def test_reference_fields_against_the_formulas(make_batch):
    batch = make_batch(tie=True)
    _, positions = batch.positions(torch.float64)
    base: Reference = batch.references["base"]
    for index, t in enumerate(positions):
        log_q = t.log_q["base"]
        n1, n2 = formulas.effective_support(log_q.exp())
        wanted = {
            "label_logprob": log_q[t.y],
            "entropy": formulas.entropy(log_q),
            "logsumexp": batch.reference_logits["base"][index].exp().sum().log(),
            "n1": n1,
            "n2": n2,
            "label_mass": sum(x for x in log_q.exp().tolist() if x <= log_q.exp()[t.y]),
        }
        for field, value in wanted.items():
            assert abs(float(base.get(field)[index]) - float(value)) < 1e-12, field
