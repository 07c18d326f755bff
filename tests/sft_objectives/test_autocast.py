"""Statistics and divergences are float32 whatever context they are computed in."""

import pytest
import torch

import sft_objectives
from sft_objectives import Reference, Step, load
from sft_objectives.objectives.divergence import full_divergence
from sft_objectives.student import DenseStudent

CASES = [
    *((name, {}) for name in sft_objectives.names()),
    ("sft_kl", {"estimator": "topk"}),
    ("lp_sft", {"scope": "full"}),
]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_losses_and_gradients_are_those_without_autocast(name, settings, make_batch):
    batch, objective = make_batch(torch.float32), load(name, **settings)
    wanted = batch.losses(objective), batch.gradient(objective)
    with torch.autocast("cpu", torch.bfloat16):
        found = batch.losses(objective), batch.gradient(objective)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("name", ["asft", "sft_kl", "kd_decomposed", "q_target", "lp_sft"])
def test_so_are_objectives_that_are_called_inside_it(name, make_batch):
    """As an integrator may do it, without `token_losses`; references are live, their heads are multiplied there too."""
    batch = make_batch(torch.float32)
    head = torch.eye(50)
    references = {source: Reference(live=(r.logits, head, None)).filled(batch.labels, top_k=20)
                  for source, r in batch.references.items()}  # fmt: skip
    settings = {"q_target": {"residual": "full"}, "lp_sft": {"scope": "full"}}.get(name, {})
    objective = load(name, **settings)
    step = Step(DenseStudent(batch.logits.detach(), batch.labels), references)
    wanted = objective.loss(step)
    with torch.autocast("cpu", torch.bfloat16):
        found = objective.loss(Step(DenseStudent(batch.logits.detach(), batch.labels), references))
    assert torch.equal(found, wanted)


def test_a_divergence_of_close_models_keeps_its_digits(make_batch):
    """A mean KL of 1e-3 is the difference of two numbers near 5, which bfloat16 holds to 0.02."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 2000, generator=generator)
    base = Reference(logits=logits + 0.05 * torch.randn(64, 2000, generator=generator))
    exact = torch.nn.functional.kl_div(
        logits.double().log_softmax(-1), base.logits.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    with torch.autocast("cpu", torch.bfloat16):
        student = DenseStudent(logits, torch.zeros(64, dtype=torch.long))
        found = full_divergence(student, lambda chunk: base.log_probs(chunk.rows, torch.float32))
    assert found.double().mean().item() == pytest.approx(exact.mean().item(), rel=1e-3)


def test_one_label_takes_no_log_softmax_of_the_vocabulary_and_few_logits_at_a_time(monkeypatch):
    from sft_objectives import reference

    hidden, head = torch.randn(40, 8), torch.randn(500, 8)
    labels = torch.randint(0, 500, (40,))
    wanted = (hidden @ head.T).log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    monkeypatch.setattr(reference, "FILL_BYTES", 8 * 500 * 10)  # ten rows
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        found = Reference(live=(hidden, head, None)).filled(labels, top_k=1, fields=frozenset({"label_logprob"}))
    torch.testing.assert_close(found.get("label_logprob"), wanted)
    events = profile.events()
    assert not [event for event in events if "log_softmax" in event.name]
    shapes = [tuple(shape) for event in events for shape in event.input_shapes or [] if len(shape) == 2]
    assert max(shape[0] for shape in shapes if shape[1] == 500) == 10


def test_extreme_logits_keep_the_digits_of_a_label():
    z = torch.tensor([[1e4, 1e4 - 1.0, 0.0]])
    found = Reference(logits=z).filled(torch.tensor([1]), top_k=1, fields=frozenset({"label_logprob"}))
    exact = z.double().log_softmax(-1)[0, 1].item()
    assert found.get("label_logprob").item() == pytest.approx(exact, rel=1e-6)
