"""The oracle where probabilities end: labels down to 1e-12, exponents up to 10, ids that a model rules out."""

import measure
import pytest
import torch

import sft_objectives
from sft_objectives import Reference, load, token_losses

BOUND = 1e-10
every_case = pytest.mark.parametrize(("name", "settings"), measure.CASES, ids=map(measure.case_id, measure.CASES))


def with_label_probability(batch: measure.Batch, probabilities) -> measure.Batch:
    """The batch with labels of these probabilities in turn, under the student."""
    with torch.no_grad():
        for t, label in enumerate(batch.labels.tolist()):
            others = batch.logits[t].clone()
            others[label] = -torch.inf
            p = torch.tensor(probabilities[t % len(probabilities)], dtype=torch.float64)
            batch.logits[t, label] = others.logsumexp(-1) + (p / (1 - p)).log()
    return batch


NOWHERE = [3, 7, 16, 25, 34, 43]


def ruled_out(batch: measure.Batch, which: str, *, labels: bool = False) -> measure.Batch:
    """The batch with some ids ruled out by the student, or by all references. labels: some rows have one as label."""
    batch.labels = batch.labels.where(~torch.isin(batch.labels, torch.tensor(NOWHERE)), batch.labels + 1)
    if labels:
        batch.labels[::3] = 7
    for z in [batch.logits] if which == "student" else batch.reference_logits.values():
        z.detach()[:, NOWHERE] = -torch.inf
    batch.references = {s: Reference.from_logits(z, batch.labels, top_k=24) for s, z in batch.reference_logits.items()}
    return batch


def check(name, settings, provider, batch, bound=BOUND):
    losses, gradient = provider(load(name, **settings), batch, None)
    true_losses, true_gradient = measure.expected(name, settings, batch)
    assert gradient.isfinite().all() and not losses.isnan().any()
    infinite = true_losses.isinf()
    assert torch.equal(losses[infinite], true_losses[infinite])
    weight = measure.token_weights(name, settings, batch)
    scale = true_gradient.abs().amax(-1).maximum(true_losses.abs().nan_to_num(posinf=0.0))
    assert measure.row_errors(gradient, true_gradient, scale, weight).max() < bound
    weight = weight if isinstance(weight, float) else weight[~infinite]
    assert (measure.row_errors(losses[~infinite], true_losses[~infinite], scale[~infinite], weight) < bound).all()


@every_case
def test_labels_down_to_1e_12(name, settings, provider, make_batch):
    check(name, settings, provider, with_label_probability(make_batch(), [1e-12, 1e-8, 1e-4, 0.3, 1 - 1e-9]))


@every_case
@pytest.mark.parametrize("which", ["student", "references"])
def test_ids_that_a_model_rules_out(name, settings, which, provider, make_batch):
    check(name, settings, provider, ruled_out(make_batch(), which))


@every_case
def test_a_label_that_the_student_rules_out(name, settings, provider, make_batch):
    """The loss is infinite or not, as the objective has it; nothing is undefined and every gradient is finite."""
    batch = ruled_out(make_batch(), "student", labels=True)
    losses, gradient = provider(load(name, **settings), batch, None)
    assert not losses.isnan().any() and gradient.isfinite().all()


@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.0, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("probability", [0.9, 0.3, 1e-4, 1e-8, 1e-12])
def test_the_gradient_of_beyond_log_keeps_its_digits(exponent, probability, provider, make_batch):
    """Each row relative to its own gradient p^exponent (p - e_y), which ends at 1e-120."""
    batch = with_label_probability(make_batch(), [probability])
    _, gradient = provider(load("beyond_log", exponent=exponent), batch, None)
    p = batch.logits.detach().softmax(-1)
    row = torch.arange(len(p))
    wanted = p[row, batch.labels].pow(exponent).unsqueeze(-1) * p
    wanted[row, batch.labels] -= p[row, batch.labels].pow(exponent)
    wanted *= (batch.mask * batch.upstream).unsqueeze(-1)
    error = (gradient - wanted).abs().amax(-1) / wanted.abs().amax(-1).clamp(min=1e-300)
    assert error[batch.mask].max() < BOUND


@pytest.mark.parametrize("exponent", [1.0, 5.0])
def test_the_gradient_of_beyond_log_does_not_vanish_in_float32(exponent, provider, make_batch):
    batch = with_label_probability(make_batch(torch.float32), [1e-6])
    _, gradient = provider(load("beyond_log", exponent=exponent), batch, None)
    row = torch.arange(len(gradient))
    wanted = 1e-6**exponent * batch.upstream.abs()
    assert torch.allclose(gradient[row, batch.labels].abs().double()[batch.mask], wanted[batch.mask], rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["q_target", "target_sft", "kd", "lp_sft", "sft_kl", "kd_decomposed"])
def test_a_student_that_rules_out_the_whole_support(name, provider, make_batch):
    batch = make_batch()
    for z in batch.reference_logits.values():
        z[:, NOWHERE[:3]] += 100
    ruled_out(batch, "student")
    batch.references = {s: Reference.from_logits(z, batch.labels, top_k=3) for s, z in batch.reference_logits.items()}
    settings = {"top_k": 3} if name == "lp_sft" else {}
    settings |= {"estimator": "topk"} if name in ("sft_kl", "kd_decomposed") else {}
    losses, gradient = provider(load(name, **settings), batch, None)
    assert not losses.isnan().any() and gradient.isfinite().all()


def test_nothing_kept_is_no_loss_and_no_gradient(make_batch):
    """Of a batch whose every label is below the threshold nothing is kept: 0 is divided by 1."""
    batch = make_batch()
    objective = load("beyond_log", threshold=1.0, normalizer="kept")
    gradient = measure.step_gradient(objective, batch, {}, measure.splits(batch)["2 ranks"])
    assert (gradient == 0).all()
    value = sft_objectives.fused_loss(
        objective, batch.logits, torch.eye(50, dtype=torch.float64), batch.labels, mask=batch.mask, normalizer=None
    )
    assert value.item() == 0 and (torch.autograd.grad(value, batch.logits)[0] == 0).all()


def test_a_teacher_id_that_the_student_rules_out_is_not_pulled_to():
    """With half of the exponent on the student, R is 0 there: the others share it."""
    logits = torch.tensor([[1.0, 0.5, -torch.inf, 0.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0])
    teacher = Reference.from_logits(torch.tensor([[0.0, 1.0, 3.0, 2.0]], dtype=torch.float64), labels, top_k=3)
    without = Reference.from_logits(torch.tensor([[0.0, 1.0, -torch.inf, 2.0]], dtype=torch.float64), labels, top_k=2)
    for objective in (load("target_sft"), load("q_target")):
        losses = [token_losses(objective, logits, labels, reference=given) for given in (teacher, without)]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-14)
        gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in losses]
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-13, atol=0)
