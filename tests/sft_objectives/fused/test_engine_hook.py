"""The output head that returns losses: without verl on small models, and in verl's engine in every arrangement."""

from __future__ import annotations

import pytest
import torch

from common.tiny_models import random_model
from sft_objectives import BatchConstants, Reference, load, token_losses
from sft_objectives.fused import chunk_size
from sft_objectives.fused.engine_hook import FusedHead, choose, obstacle
from sft_objectives.fused.head_rows import HeadRows

LENGTHS = torch.tensor([7, 4])
VOCABULARY = 61


def llama(tied: bool = True, **changes) -> torch.nn.Module:
    model = random_model("Llama", VOCABULARY, hidden=16, key_value_heads=1, tie_word_embeddings=tied, **changes)
    return model.train()


def granite(scale: float) -> torch.nn.Module:
    return random_model("Granite", VOCABULARY, hidden=16, layers=1, key_value_heads=1, logits_scaling=scale)


def padded_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids (2, 7), which are tokens (2, 7), labels (11,), rows (n,) that are supervised."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (2, 7), generator=generator)
    tokens = torch.arange(7) < LENGTHS.unsqueeze(1)
    return ids, tokens, torch.randint(0, VOCABULARY, (11,), generator=generator), torch.tensor([2, 3, 5, 8, 9])


def head_values(objective, labels, rows, normalizer=1.0, reference=None):
    """The callable that `returning_values` wants."""

    def values(hidden, weight, bias, places):
        head = HeadRows(
            objective,
            hidden,
            weight,
            labels[rows],
            rows=places[rows],
            reference=reference or {},
            columns={},
            constants=BatchConstants(),
            chunk_size=2,
            head_bias=bias,
        )
        found = head.values(normalizer)
        return {name: value.new_zeros(len(places)).index_copy(0, rows, value) for name, value in found.items()}

    return values


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", ["sft", "dft", "label_smoothing", "gem"])
def test_gradients_through_the_head_equal_those_through_logits(tied, checkpointing, name):
    model, objective = llama(tied), load(name)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids, tokens, labels, rows = padded_batch()
    mask = torch.zeros(11).index_fill(0, rows, 1)
    losses = token_losses(objective, model(ids).logits[tokens], labels, mask=mask)
    expected = torch.autograd.grad(losses.sum() / 3, list(model.parameters()))
    head = FusedHead(model)
    with head.returning_values(head_values(objective, labels, rows, 3.0), LENGTHS) as read:
        found = read(model(ids).logits[tokens])
    assert found.keys() >= {"loss", "cross_entropy", "entropy"}
    torch.testing.assert_close(found["loss"].squeeze(0), losses)
    gradients = torch.autograd.grad(found["loss"].sum() / 3, list(model.parameters()))
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    assert model(ids).logits.shape == (2, 7, VOCABULARY)


def test_packed_rows_need_no_lengths():
    model, objective = llama(), load("sft")
    ids, tokens, labels, rows = padded_batch()
    losses = token_losses(objective, model(ids[tokens][None]).logits[0], labels)
    everything = torch.arange(11)
    with FusedHead(model).returning_values(head_values(objective, labels, everything), None) as read:
        found = read(model(ids[tokens][None]).logits.squeeze(0))
    torch.testing.assert_close(found["loss"].squeeze(0), losses)
    assert len(rows) < 11


def test_nothing_supervised_gives_zero_gradients():
    model = llama()
    ids, tokens, labels, _ = padded_batch()
    none = torch.zeros(0, dtype=torch.long)
    with FusedHead(model).returning_values(head_values(load("talr"), labels, none), LENGTHS) as read:
        found = read(model(ids).logits[tokens])
    found["loss"].sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and (gradient == 0).all() for gradient in gradients)


def test_only_a_sum_of_the_losses_has_a_gradient():
    model = llama()
    ids, tokens, labels, rows = padded_batch()
    with FusedHead(model).returning_values(head_values(load("sft"), labels, rows), LENGTHS) as read:
        loss = read(model(ids).logits[tokens])["loss"].squeeze(0)
    with pytest.raises(RuntimeError, match="differ between rows"):
        (loss * torch.arange(11)).sum().backward()


@pytest.mark.parametrize("tied", [True, False])
def test_a_live_reference_has_the_model_s_distribution_and_its_own_weights(tied):
    model = llama(tied)
    ids, tokens, *_ = padded_batch()
    expected = model(ids).logits[tokens].detach()
    head = FusedHead(model)
    live = head.live(lambda: model(ids).logits, lambda hidden: hidden[tokens])
    with torch.no_grad():
        head.head.weight.zero_()
    torch.testing.assert_close(live.full_logits(slice(None)), expected)
    assert live.logits is None


def test_what_happens_after_the_head_is_refused():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    assert "final_logit_softcapping=30.0" in str(obstacle(Gemma2ForCausalLM(config)))
    assert "logits_scaling=4.0" in str(obstacle(granite(4.0)))
    assert obstacle(granite(1.0)) is None
    assert obstacle(llama()) is None


def test_an_adapter_on_the_head_is_refused_and_one_on_the_body_is_not():
    from peft import LoraConfig, get_peft_model

    body = get_peft_model(llama(tied=False), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    assert obstacle(body) is None
    on_head = get_peft_model(llama(tied=False), LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
    assert "LoRA" in str(obstacle(on_head))
    saved = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert obstacle(get_peft_model(llama(tied=False), saved)) is not None


def test_a_change_that_no_setting_announces_is_noticed():
    model = granite(4.0)
    ids, tokens, labels, rows = padded_batch()
    head = FusedHead(model)
    with (
        head.returning_values(head_values(load("sft"), labels, rows), LENGTHS) as read,
        pytest.raises(ValueError, match=r"after the head; set sft\.fused=off"),
    ):
        read(model(ids).logits[tokens])
    with pytest.raises(ValueError, match=r"live reference.*set sft\.fused=off"):
        head.live(lambda: model(ids).logits, lambda hidden: hidden[tokens])


def test_the_choice_is_said_in_one_line():
    head, line = choose("auto", llama())
    assert head is not None and line == "sft.fused=auto: the output head computes losses, no whole logits"
    assert choose("off", llama()) == (None, "sft.fused=off: whole logits, asked for")
    head, line = choose("auto", granite(4.0))
    assert head is None and "whole logits" in line and "logits_scaling=4.0" in line
    with pytest.raises(ValueError, match=r"sft\.fused=on: .*logits_scaling=4\.0.*allowed for this model: auto, off"):
        choose("on", granite(4.0))


def test_the_engine_s_chunk_does_not_depend_on_free_memory(monkeypatch):
    monkeypatch.setattr(chunk_size, "_free_bytes", lambda device: pytest.fail("free memory was asked for"))
    sizes = []
    for total in (2**40, 2**33, 2**31):
        monkeypatch.setattr(chunk_size, "_total_bytes", lambda device, total=total: total)
        sizes.append(chunk_size.fixed_chunk_size(load("sft"), torch.empty(152_000, 2560, device="meta")))
    assert sizes == [2048, 512, 128]


def test_references_that_only_a_measure_reads_reach_it():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 8, generator=generator), torch.randn(VOCABULARY, 8, generator=generator)
    labels = torch.tensor([1, 2, 3, 4])
    base = Reference.from_logits(hidden @ weight.t(), labels, top_k=5)
    head = HeadRows(
        load("sft"), hidden, weight, labels, rows=torch.arange(4), reference={"base": base}, columns={},
        constants=BatchConstants(), chunk_size=3, head_bias=None,
    )  # fmt: skip
    found = head.values(1.0, lambda step: {"gap": step.reference("base").get("label_logprob")})
    torch.testing.assert_close(found["gap"], base.get("label_logprob"))
