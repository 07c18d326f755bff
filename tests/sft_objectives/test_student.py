import pytest
import torch

from sft_objectives.student import DenseStudent


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(7, 11, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.randint(0, 11, (7,), generator=generator)


def test_statistics_and_their_gradients(rows):
    logits, labels = rows
    student = DenseStudent(logits, labels, chunk_size=3)
    log_p = logits.log_softmax(-1)
    ids = torch.randint(0, 11, (7, 4), generator=torch.Generator().manual_seed(2))
    outside = log_p.exp().scatter(1, ids, 0).sum(-1).log()
    squares = (logits.detach() - logits.detach().amax(-1, True)) ** 2
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    for found, expected in [
        (student.log_p_label, log_p.gather(1, labels[:, None]).squeeze(1)),
        (student.log_p(ids).sum(-1), log_p.gather(1, ids).sum(-1)),
        (student.expected_log_p(lambda chunk: chunk.logits**2), (squares * log_p).sum(-1)),
        (student.mean_log_p, log_p.mean(-1)),
        (student.log_p_outside(ids), outside),
    ]:  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        gradients = [torch.autograd.grad((upstream * x).sum(), logits, retain_graph=True)[0] for x in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(student.entropy, -(log_p.exp() * log_p).sum(-1).detach())
    torch.testing.assert_close(student.logsumexp, logits.logsumexp(-1).detach())
    values, top = student.top_k(20)
    assert values.shape == (7, 11) and torch.equal(top[:, 0], logits.argmax(-1))
    assert not any(x.requires_grad for x in (student.entropy, student.logsumexp, values))
    assert student.log_p_label is student.log_p_label


def test_callables_see_every_row_once_and_in_order(rows):
    logits, labels = rows
    seen = []
    DenseStudent(logits, labels, chunk_size=3).statistic(lambda chunk: seen.append(chunk.rows) or chunk.logits[:, 0])
    assert seen == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_precision_does_not_depend_on_the_size_of_the_logits():
    z = torch.tensor([[0.0, -3.0, -20.0]])
    near = DenseStudent(z, torch.tensor([1])).log_p_label
    far = DenseStudent(z + 8192, torch.tensor([1])).log_p_label
    torch.testing.assert_close(far, near, rtol=0, atol=0)


def test_mass_outside_is_exact_where_subtraction_is_not():
    z = torch.tensor([[60.0, 0.0, 0.0]])
    found = DenseStudent(z, torch.tensor([0])).log_p_outside(torch.tensor([[0]]))
    torch.testing.assert_close(found, torch.tensor([-60.0]) + torch.tensor(2.0).log(), rtol=1e-6, atol=0)


def test_impossible_words_count_nothing():
    z = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    student = DenseStudent(z, torch.tensor([0]))
    value = student.expected_log_p(lambda chunk: torch.tensor([[0.5, 0.5, 0.0]])) + student.entropy
    assert value.isfinite().all()
    assert torch.autograd.grad(value.sum(), z)[0].isfinite().all()
