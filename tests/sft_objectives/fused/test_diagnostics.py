"""What a loss, its diagnostics and the entropy have in common is computed once."""

from __future__ import annotations

import pytest
import torch

from sft_objectives import Reference, Step, fused_loss, load
from sft_objectives.fused import chunk_student
from sft_objectives.fused.chunk_student import ChunkStudent
from sft_objectives.student import DenseStudent

ROWS, WIDTH, VOCAB = 24, 8, 60


@pytest.fixture
def counts(monkeypatch) -> dict[str, int]:
    """How often a whole vocabulary was gone through, by kind of pass."""
    found: dict[str, int] = dict.fromkeys(("reference", "largest", "entropy", "dense entropy", "dense largest"), 0)

    def counting(owner, name, what):
        original = getattr(owner, name)

        def counted(*arguments, **given):
            found[what] += 1
            return original(*arguments, **given)

        monkeypatch.setattr(owner, name, counted)

    counting(Reference, "full_logits", "reference")
    counting(chunk_student, "largest", "largest")
    counting(ChunkStudent, "_entropy_of_tiles", "entropy")
    counting(DenseStudent, "statistic", "dense entropy")
    counting(torch.Tensor, "topk", "dense largest")
    return found


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    head = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
    return hidden.requires_grad_(), head.requires_grad_(), torch.randint(0, VOCAB, (ROWS,), generator=generator)


def trained(name: str, **settings):
    """The statistics of one fused call in three chunks, with the gradients of its inputs."""
    hidden, head, labels = inputs()
    reference = Reference(live=(hidden.detach() + 0.1, head.detach(), None))
    found = fused_loss(
        load(name, **settings), hidden, head, labels, mask=None, reference=reference, normalizer=ROWS, chunk_size=8,
        return_statistics=True,
    )  # fmt: skip
    assert isinstance(found, tuple)
    value, statistics = found
    return statistics, torch.autograd.grad(value, [hidden, head])


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("sft", {}, {}),
        ("asft", {}, {"reference": 3}),
        ("sft_kl", {}, {"reference": 3}),
        ("eaft", {"top_k": 5}, {"largest": 3}),
        ("sed_sft", {"threshold": 0.9}, {"largest": 3}),
        ("idft", {}, {"entropy": 3}),
    ],
)
def test_a_chunk_with_diagnostics_and_entropy_makes_one_pass_of_each_kind(counts, name, settings, wanted):
    trained(name, **settings)
    made = {what: count for what, count in counts.items() if count and not what.startswith("dense")}
    assert made == wanted


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("asft", {}, {"reference": 1, "dense entropy": 1}),
        ("eaft", {"top_k": 5}, {"dense largest": 1, "dense entropy": 1}),
        ("sed_sft", {"threshold": 0.9}, {"dense largest": 1, "dense entropy": 1}),
        ("idft", {}, {"dense entropy": 1}),
    ],
)
def test_on_whole_logits_too(counts, name, settings, wanted):
    hidden, head, labels = inputs()
    student = DenseStudent(hidden @ head.t(), labels)
    step = Step(student, {"base": Reference(live=(hidden.detach() + 0.1, head.detach(), None))}, logged={})
    load(name, **settings).loss(step).sum().backward()
    _ = student.entropy
    assert {what: count for what, count in counts.items() if count} == wanted


@pytest.mark.parametrize("name", ["sft", "idft", "kd_decomposed", "asft"])
def test_the_entropy_of_the_gradient_s_pass_is_that_of_one_of_its_own(name):
    settings = {"estimator": "topk"} if name == "kd_decomposed" else {}
    hidden, head, _ = inputs()
    log_p = (hidden @ head.t()).detach().log_softmax(-1)
    statistics, gradients = trained(name, **settings)
    torch.testing.assert_close(statistics["entropy"], -(log_p.exp() * log_p).sum(-1), rtol=0, atol=1e-12)
    hidden, head, labels = inputs()
    reference = Reference(live=(hidden.detach() + 0.1, head.detach(), None))
    bare = fused_loss(
        load(name, **settings), hidden, head, labels, mask=None, reference=reference, normalizer=ROWS, chunk_size=8
    )
    assert isinstance(bare, torch.Tensor)
    for one, other in zip(torch.autograd.grad(bare, [hidden, head]), gradients, strict=True):
        assert torch.equal(one, other)


def test_the_entropy_is_there_where_no_loss_depends_on_the_student():
    statistics, gradients = trained("q_target", residual="self", residual_weight=0.0, rule="profit")
    assert (statistics["entropy"] > 0).all() and len(gradients) == 2
