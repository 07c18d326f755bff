"""What public code gets wrong: each check passes on this code and fails on a copy with the mistake."""

from types import SimpleNamespace

import measure
import numpy as np
import pytest
import torch
from tensordict import TensorDict

import sft_objectives
from sft_objectives import load, token_losses
from sft_objectives.trainer import frozen, rows
from sft_objectives.trainer.metrics import token_means
from sft_objectives.trainer.rows import next_token_rows
from sft_objectives.trainer.token_loss import TokenLoss


def micro_batch(ids: list[list[int]], masks: list[list[int]]) -> TensorDict:
    """Packed chats as verl's engine hands them over."""
    jagged = [
        torch.nested.nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged) for rows in (ids, masks)
    ]
    sequence = torch.arange(len(ids))
    return TensorDict({"input_ids": jagged[0], "loss_mask": jagged[1], "sequence": sequence}, [len(ids)])


# two prompts of 3 tokens; 9 ends a response and is supervised
CHATS = micro_batch([[1, 2, 3, 5, 6, 9], [1, 2, 3, 7, 9]], [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]])


# 1. token weights dropped under sequence parallelism


def gradient_of_shares(loss: TokenLoss, logits: torch.Tensor, shares: int, monkeypatch) -> torch.Tensor:
    """d (sum of losses) / d logits, added over `shares` sequence-parallel ranks of equal size."""
    width = -(-len(logits) // shares)
    leaf = torch.nn.functional.pad(logits, (0, 0, 0, width * shares - len(logits))).requires_grad_()
    for rank in range(shares):

        def share(values, dim, rank=rank):
            return torch.nn.functional.pad(values, (0, width * shares - len(values))).split(width)[rank]

        monkeypatch.setattr(rows, "slice_input_tensor", share)
        here = loss.training(sft_objectives.BatchConstants(), 1.0, shared=shares > 1).micro_batch()
        here.token_values(leaf.split(width)[rank], CHATS)["loss"].sum().backward()
    assert leaf.grad is not None
    return leaf.grad[: len(logits)]


@pytest.mark.parametrize("name", ["dft", "eaft", "idft", "gem", "beyond_log", "label_smoothing"])
def test_1_weights_survive_sequence_parallelism(name, monkeypatch):
    logits = 2 * torch.randn(11, 10, generator=torch.Generator().manual_seed(0))
    objective = load(name, top_k=5) if name == "eaft" else load(name)

    def error(parallel):
        whole = gradient_of_shares(TokenLoss(objective, {}, {}, False), logits, 1, monkeypatch)
        return (gradient_of_shares(TokenLoss(parallel, {}, {}, False), logits, 2, monkeypatch) - whole).abs().max()

    assert error(objective) < 1e-6
    assert error(load("sft")) > 1e-3, "the mistake: plain cross-entropy where the sequence is split"


def test_1_what_sequence_parallelism_cannot_do_is_refused():
    engine = SimpleNamespace(use_ulysses_sp=True)
    with pytest.raises(ValueError, match=r"sequence_parallel > 1 does not support a live reference; set"):
        frozen.frozen_model("anywhere", engine)


# 2. normalising by the tokens of a micro-batch


def accumulated(batch, parts, per_micro_batch: bool) -> torch.Tensor:
    gradient = torch.zeros_like(batch.logits)
    for part in parts:
        losses = token_losses(load("dft"), batch.logits, batch.labels, mask=batch.mask)[part]
        count = batch.mask[part].sum() * len(parts) if per_micro_batch else batch.mask.sum()
        gradient += torch.autograd.grad(losses.sum() / count, batch.logits)[0]
    return gradient


def test_2_gradients_do_not_depend_on_gradient_accumulation(make_batch):
    batch = make_batch()
    (whole,), halves = measure.splits(batch)["whole"][0], measure.splits(batch)["2 micro-batches"][0]
    assert batch.mask[halves[0]].sum() != batch.mask[halves[1]].sum()

    def error(per_micro_batch):
        found = [accumulated(batch, parts, per_micro_batch) for parts in ([whole], halves)]
        return (found[0] - found[1]).abs().max()

    assert error(False) < 1e-15
    assert error(True) > 1e-3


def test_2_the_engine_divides_by_the_global_count():
    """Two unequal micro-batches of one step: their losses add up to the mean over all tokens."""
    first, second = micro_batch([[1, 2, 3, 9]], [[0, 0, 0, 1]]), micro_batch([[1, 4, 5, 6, 9]], [[0, 1, 1, 1, 1]])
    loss, total = TokenLoss(load("sft"), {}, {}, False), torch.tensor(0.0)
    for chunk, value in ((first, 3.0), (second, 1.0)):
        mask = next_token_rows(chunk)[1]
        values = {"loss": torch.nested.nested_tensor([value * mask], layout=torch.jagged)}
        chunk["dp_size"] = torch.tensor([1])
        total = total + loss.training(sft_objectives.BatchConstants(), 5.0).micro_batch().reduced(values, chunk)[0]
    assert torch.allclose(total, torch.tensor((3.0 + 4.0) / 5))
    assert not torch.allclose(total, torch.tensor((3.0 + 1.0) / 2)), "the mistake: the mean of two means"


# 3. and 4. shifted masks


def trained_tokens(labels, mask, chats) -> list[list[int]]:
    """The labels that are trained, chat by chat."""
    parts = zip(*(x.split(chats["input_ids"].offsets().diff().tolist()) for x in (labels, mask)), strict=True)
    return [row[kept > 0].tolist() for row, kept in parts]


def test_3_the_end_is_trained_and_the_last_prompt_token_is_not():
    labels, mask, _ = next_token_rows(CHATS)
    responses = [[5, 6, 9], [7, 9]]
    assert trained_tokens(labels, mask, CHATS) == responses
    shifted_twice = mask.roll(-1)
    assert trained_tokens(labels, shifted_twice, CHATS) == [[3, 5, 6], [3, 7]] != responses


def test_4_a_mask_does_not_leak_over_the_border_of_packed_chats():
    chats = micro_batch([[1, 2, 9], [4, 5, 9]], [[0, 1, 1], [1, 1, 1]])  # the second supervises its token 0
    labels, mask, sequence = next_token_rows(chats)
    assert trained_tokens(labels, mask, chats) == [[2, 9], [5, 9]]
    assert sequence.tolist() == [0, 0, 0, 1, 1, 1]
    rolled = chats["loss_mask"].values().roll(-1)
    assert trained_tokens(labels, rolled, chats)[0] == [2, 9, 4], "the mistake: chat 0 is trained on chat 1's token"


# 5. SED's threshold of another k


def test_5_the_threshold_of_sed_belongs_to_its_own_k(make_batch):
    """The share of positions below the threshold is r when base and student agree; it is not with k = 10 for k = 2."""
    batch = make_batch(lengths=(60, 60, 5, 60, 60))
    base = batch.references["base"]
    scalars = {"support_logprobs": base.support_logprobs, "mask": batch.mask}
    mass = base.support_logprobs[:, :2].exp().sum(-1)

    def share(**settings):
        threshold = load("sed_sft", fraction=0.3, **settings).dataset_constants(scalars)["threshold"]
        return float((mass < threshold).double().mean())

    assert abs(share() - 0.7) < 0.01
    assert share(threshold_top_k=10) > 0.9, "the mistake, kept as the preset sed_sft_repo"
    assert load("sed_sft").top_k == 2 and load("sed_sft").threshold_top_k is None


# 6. weights in bfloat16, clamped logarithms


def test_6_weights_are_not_rounded_to_bfloat16(make_batch):
    batch = make_batch(torch.bfloat16)
    found, exact = measure.dense(load("dft"), batch)[0], measure.expected("dft", {}, batch)[0]
    logits = batch.logits.detach()
    log_p = logits.float().log_softmax(-1).gather(1, batch.labels[:, None]).squeeze(1)
    rounded = -logits.softmax(-1).gather(1, batch.labels[:, None]).squeeze(1).float() * log_p * batch.mask

    def error(losses):
        return float(((losses.double() - exact).abs() / exact.abs().clamp(min=1e-3)).max())

    assert error(found) < 1e-5
    assert error(rounded) > 1e-3


def test_6_an_improbable_label_keeps_its_gradient():
    logits = torch.zeros(1, 5, dtype=torch.float64)
    logits[0, 0] = 60.0  # p_y = 9e-27
    leaf, label = logits.requires_grad_(), torch.tensor([3])
    for name in ("sft", "label_smoothing", "sed_sft", "lp_sft"):
        reference = sft_objectives.Reference.from_logits(torch.zeros(1, 5, dtype=torch.float64), label, top_k=5)
        losses = token_losses(load(name), leaf, label, reference=reference)
        assert abs(float(torch.autograd.grad(losses.sum(), leaf)[0][0, 3]) + 1) < 0.2
    clamped = -leaf.softmax(-1).gather(1, label[:, None]).clamp(min=1e-10).log()
    assert torch.autograd.grad(clamped.sum(), leaf)[0].abs().max() == 0, "the mistake"


# 7. metrics under data parallelism


def test_7_metrics_are_sums_that_add_up_over_micro_batches_and_ranks():
    """Token means of unequal parts; the mistake averages the parts' means. Two real ranks: trainer/test_engine.py."""
    parts = [
        {"tokens": 1.0, "loss": 2.0, "entropy": 3.0, "diagnostic_weight": 0.5, "weight_squared": 0.25},
        {"tokens": 4.0, "loss": 1.0, "entropy": 4.0, "diagnostic_weight": 4.0, "weight_squared": 4.0},
    ]
    together = {name: sum(part[name] for part in parts) for name in parts[0]}
    found = token_means(together)
    assert found["entropy"] == 7.0 / 5 and found["tokens"] == 5.0 and found["loss_sum"] == 3.0
    assert found["mean_weight"] == 4.5 / 5 and np.isclose(found["effective_tokens"], 4.5**2 / (5 * 4.25))
    assert found["entropy"] != sum(token_means(part)["entropy"] for part in parts) / 2


def test_7_every_metric_is_a_number_on_every_micro_batch():
    """What crashed loggers: a metric that is a tensor, or absent where nothing is supervised."""
    loss, keys = TokenLoss(load("dft"), {}, {}, False), []
    for chats in (CHATS, micro_batch([[1, 2, 9]], [[0, 0, 0]])):
        here = loss.training(sft_objectives.BatchConstants(), 5.0).micro_batch()
        n = len(chats["input_ids"].values())
        values = here.token_values(torch.randn(n, 10, generator=torch.Generator().manual_seed(0)), chats)
        chats = chats.clone()
        chats["dp_size"] = torch.ones(len(chats["sequence"]))
        nested = {name: torch.nested.nested_tensor([v[0]], layout=torch.jagged) for name, v in values.items()}
        metrics = here.reduced(nested, chats)[1]
        assert all(type(value) is float for value in metrics.values())
        keys.append(sorted(metrics))
    assert keys[0] == keys[1]
