import math

import pytest
import torch

from common.distributions import label_mass
from sft_objectives import Reference


def test_every_field_is_filled():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2, 3, 4, -100])
    reference = Reference.from_logits(logits, labels, top_k=64)
    assert reference.fields == set(Reference.__dataclass_fields__) - {"live"}
    assert reference.support_ids.shape == (5, 40)
    log_q = logits.log_softmax(-1)
    torch.testing.assert_close(reference.label_logprob[:4], log_q[torch.arange(4), labels[:4]])
    torch.testing.assert_close(reference.entropy, -(log_q.exp() * log_q).sum(-1))
    window = logits.double().topk(30).values.softmax(-1)
    torch.testing.assert_close(reference.n1, (-(window * window.log()).sum(-1)).exp())
    torch.testing.assert_close(reference.n2, 1 / (window**2).sum(-1))
    assert reference.n1.dtype == torch.float64 and torch.equal(reference.ceil_n1, reference.n1.ceil().long())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_label_mass_is_exactly_one_for_top_ranked_labels(dtype):
    logits = torch.randn(2000, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert (label_mass(logits, logits.argmax(-1)) == 1).all()


def test_label_mass_counts_ties():
    q = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]], dtype=torch.float64)
    expected = [1.0, 0.6, 0.6, 0.2, 0.2]
    strict = [1.0, 0.4, 0.4, 0.1, 0.1]
    for label in range(5):
        y = torch.tensor([label])
        assert math.isclose(float(label_mass(q.log(), y)), expected[label])
        assert math.isclose(float(label_mass(q.log(), y, strict=True)), strict[label])


def test_live_and_logits_agree():
    generator = torch.Generator().manual_seed(0)
    hidden, head, bias = (torch.randn(*shape, generator=generator) for shape in ((6, 8), (30, 8), (30,)))
    labels = torch.arange(6)
    live = Reference(live=(hidden, head, bias))
    known = Reference.from_logits(hidden @ head.T + bias, labels, top_k=4)
    assert live.fields == {"live", "logits"}
    torch.testing.assert_close(live.log_probs(slice(2, 4), torch.float32), known.log_probs(slice(2, 4), torch.float32))
    filled = live.rows(torch.tensor([5, 0])).filled(
        labels[[5, 0]], top_k=4, fields=frozenset({"label_mass", "support_ids"})
    )
    torch.testing.assert_close(filled.label_mass, known.label_mass[[5, 0]])
    assert torch.equal(filled.support_ids, known.support_ids[[5, 0]]) and filled.entropy is None


def test_an_absent_field_is_named():
    with pytest.raises(ValueError, match=r"'entropy'; present: label_mass"):
        Reference(label_mass=torch.ones(1)).get("entropy")
