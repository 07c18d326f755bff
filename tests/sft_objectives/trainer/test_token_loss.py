"""What the trainer's loss callable does with one micro-batch, without a trainer."""

from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict

from data_prep.reference.codec import encode
from sft_objectives import BatchConstants, Reference, Step, load
from sft_objectives.student import DenseStudent
from sft_objectives.trainer.engine import refuse_dropout
from sft_objectives.trainer.metrics import token_means
from sft_objectives.trainer.token_loss import TokenLoss, topk_kl


def micro_batch(logits: torch.Tensor, base: Reference, masks: list[list[int]], ids: list[list[int]]) -> TensorDict:
    """Packed chats with the words that a cache of the base delivers."""
    words = encode(base.get("support_ids"), base.get("support_logprobs"), encoding="lossless", id_bits=18)
    lengths = [len(row) for row in ids]

    def jagged(rows) -> torch.Tensor:
        return torch.nested.nested_tensor(list(rows), layout=torch.jagged)

    return TensorDict(
        {
            "input_ids": jagged(map(torch.tensor, ids)),
            "loss_mask": jagged(map(torch.tensor, masks)),
            "sequence": torch.arange(len(ids)),
            "reference_base_packed": jagged(part.flatten() for part in words.split(lengths)),
        },
        [len(ids)],
    )


IDS, MASKS = [[1, 2, 3, 9], [4, 5, 9]], [[0, 1, 1, 1], [0, 1, 1]]
LABELS = torch.tensor([2, 3, 9, 4, 5, 9, 1])


@pytest.fixture
def base():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(7, 30, generator=generator)
    return logits, Reference.from_logits(logits + torch.randn(7, 30, generator=generator), LABELS, top_k=12)


def test_the_divergence_from_the_base_is_measured_beside_a_live_base(base):
    """asft reads the live base, kl_from_base the cached words of the same base."""
    logits, reference = base
    loss = TokenLoss(load("asft"), {}, {"base": (12, 18)}, kl_from_base=True)
    here = loss.training(BatchConstants(), 1.0).micro_batch({"base": Reference(logits=reference.logits)})
    values = here.token_values(logits, micro_batch(logits, reference, MASKS, IDS))
    wanted = load("sft_kl", estimator="topk").divergence(Step(DenseStudent(logits, LABELS), {"base": reference}))
    supervised = torch.tensor([True, True, True, False, True, True, False])
    torch.testing.assert_close(values["kl_from_base"][0], wanted * supervised, rtol=1e-4, atol=1e-5)
    full = values["diagnostic_kl_from_base"][0]
    assert (full[supervised] > values["kl_from_base"][0][supervised]).all(), "a bucket is a lower bound"


def test_a_live_reference_computes_the_fields_that_are_asked_for(base, monkeypatch):
    asked = []
    filled = Reference.filled
    monkeypatch.setattr(
        Reference, "filled", lambda self, *a, fields, **b: asked.append(fields) or filled(self, *a, fields=fields, **b)
    )
    logits, reference = base
    loss = TokenLoss(load("kd_decomposed", source="base"), {}, {"base": (12, 18)}, kl_from_base=False)
    here = loss.training(BatchConstants(), 1.0).micro_batch({"base": Reference(logits=reference.logits)})
    here.token_values(logits, micro_batch(logits, reference, MASKS, IDS))
    assert asked == [frozenset({"label_logprob", "logits"})]


def test_divergence_of_equal_models_is_zero(base):
    _, reference = base
    student = DenseStudent(reference.get("logits"), LABELS)
    torch.testing.assert_close(topk_kl(student, reference), torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-5)


def test_means_of_no_token_are_zero():
    empty = {"tokens": 0.0, "loss": 0.0, "entropy": 0.0, "diagnostic_weight": 0.0, "weight_squared": 0.0}
    found = token_means(empty)
    assert found.keys() == token_means({**empty, "tokens": 2.0}).keys() and not any(found.values())


@pytest.mark.parametrize("name", ["attention_dropout", "resid_pdrop"])
def test_a_first_pass_is_refused_with_dropout(name):
    config = SimpleNamespace(to_dict=lambda: {name: 0.1, "hidden_size": 8})
    with pytest.raises(ValueError, match=rf"'talr' makes a first pass.*set model\.override_config\.{name}=0"):
        refuse_dropout(load("talr"), config)
    refuse_dropout(load("talr", source="base"), config)
    refuse_dropout(load("sft"), config)


def test_nothing_of_a_loss_or_a_pass_can_be_changed_from_outside():
    """What varies between batches is in objects that are made for one pass."""
    layouts = {"base": (12, 18)}
    loss = TokenLoss(load("talr"), {"temperature": 1.0}, layouts)
    layouts["teacher"] = (3, 18)
    passes = [loss.training(BatchConstants(), 2.0), loss.collecting(), loss.validating(1.0)]
    for thing in (loss, *passes, *(each.micro_batch() for each in passes)):
        public = [name for name in vars(thing) if not name.startswith("_")]
        assert public
        for name in public:
            assert not isinstance(getattr(thing, name), dict | list | set)
            with pytest.raises(FrozenInstanceError):
                setattr(thing, name, None)
    assert set(loss.layouts) == {"base"}
    with pytest.raises(TypeError):
        loss.layouts["teacher"] = (3, 18)


def test_a_pass_hands_each_micro_batch_its_own_rows(base):
    """Scalars of the first pass come out in the order in which the second takes its constants."""
    logits, reference = base
    loss, data = TokenLoss(load("talr"), {}, {"base": (12, 18)}), micro_batch(logits, reference, MASKS, IDS)
    collecting = loss.collecting()
    for _ in range(2):
        assert (collecting.micro_batch().token_values(logits, data)["loss"] == 0).all()
    scalars = collecting.collected()
    assert scalars["sequence"].tolist() == [0, 0, 0, 1, 1] * 2 and loss.collecting() is not collecting
    training = loss.training(BatchConstants(tokens={"weight": scalars["log_p_label"]}), 1.0)
    parts = [training.next_constants(5).get("weight") for _ in range(2)]
    assert torch.equal(torch.cat(parts), scalars["log_p_label"])
