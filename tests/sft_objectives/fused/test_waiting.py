"""On a GPU nothing waits for the device inside a call: no value is read, tile by tile or chunk by chunk."""

import pytest
import torch

import sft_objectives
from sft_objectives import Reference, fused_loss, load
from sft_objectives import reductions as of_package
from sft_objectives.fused import chunk_student, chunks

SYNCHRONISING = ("aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
VARIANTS = [
    *((name, {}) for name in sft_objectives.names()),
    ("sft_kl", {"estimator": "topk"}),
    ("lp_sft", {"scope": "full"}),
    ("gem", {"variant": "logsigmoid"}),
    ("prift_mass", {"variant": "repo"}),
    ("q_target", {"residual": "full"}),
    ("q_target", {"residual": "uniform"}),
    ("profit", {"threshold": 0.5}),
]
every_variant = pytest.mark.parametrize(
    ("name", "settings"), VARIANTS, ids=[f"{name}-{'-'.join(map(str, s.values()))}" for name, s in VARIANTS]
)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    n, width, vocab_size = 48, 8, 300

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, head = normal(n, width).requires_grad_(), normal(vocab_size, width).requires_grad_()
    labels = torch.randint(0, vocab_size, (n,), generator=generator)
    live = (hidden.detach() + 0.3 * normal(n, width), head.detach(), None)
    whole = Reference.from_logits(live[0] @ live[1].T, labels, top_k=20)
    reference = {
        source: Reference(**{**vars(whole), "logits": None, "live": live})
        for source in ("base", "teacher", "checkpoint", "ema", "old")
    }
    given = {
        "mask": torch.ones(n),
        "sequence_lengths": torch.tensor([8] * 6),
        "reference": reference,
        "columns": {"critical": torch.ones(n)},
        "normalizer": 7.0,
    }
    return hidden, head, labels, given


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What code that may not wait knows of its values: nothing."""
    for module in (of_package, chunk_student):
        monkeypatch.setattr(module, "surely", lambda flags: False)
    monkeypatch.setattr(chunks, "places_of", lambda flags: None)
    monkeypatch.setattr(chunk_student, "TILE_BYTES", {"cpu": 300 * 8 * 3})  # three rows a tile


def waits(problem, objective, chunk_size) -> dict[str, int]:
    hidden, head, labels, given = problem
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fused_loss(objective, hidden, head, labels, **given, chunk_size=chunk_size, return_statistics=True)
    return {event.key: event.count for event in profile.key_averages() if event.key in SYNCHRONISING}


@every_variant
def test_no_value_is_read_per_chunk_or_tile(name, settings, problem, as_on_a_gpu):
    objective = load(name, **settings)
    assert waits(problem, objective, 4) == waits(problem, objective, 48)


@every_variant
def test_nor_is_one_on_a_cpu_in_a_way_that_the_profiler_sees(name, settings, problem, monkeypatch):
    monkeypatch.setattr(chunk_student, "TILE_BYTES", {"cpu": 300 * 8 * 3})
    objective = load(name, **settings)
    assert waits(problem, objective, 4) == waits(problem, objective, 48)


def test_the_count_sees_one_that_is(problem, monkeypatch):
    monkeypatch.setattr(chunk_student, "surely", lambda flags: bool(flags.all()))
    assert waits(problem, load("sft"), 4) != waits(problem, load("sft"), 48)


@every_variant
def test_what_a_gpu_computes_is_what_a_cpu_does(name, settings, problem, request):
    hidden, head, labels, given = problem
    objective = load(name, **settings)

    def computed():
        value = fused_loss(objective, hidden, head, labels, **given, chunk_size=16)
        return [value, *torch.autograd.grad(value, [hidden, head])]

    wanted = computed()
    request.getfixturevalue("as_on_a_gpu")
    for ours, true in zip(computed(), wanted, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-10, atol=1e-12)
