"""The output head of a model, made to return its hidden states."""

from __future__ import annotations

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM

from common.output_head import OutputHead, obstacle

SHAPE = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
IDS = torch.arange(12).view(2, 6)


def test_the_head_gives_its_hidden_states_and_is_restored():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS)).eval()
    assert obstacle(model) is None
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    head = OutputHead(model)
    hidden = head.hidden(lambda: model(input_ids=IDS).logits)
    weight, bias = head.whole()
    assert bias is None
    assert weight is not model.lm_head.weight
    torch.testing.assert_close(hidden @ weight.T, logits)
    with head.replaced(lambda states: states[..., :3]):
        assert model(input_ids=IDS).logits.shape == (2, 6, 3)
    head.remove()
    assert torch.equal(model(input_ids=IDS).logits, logits)


def test_a_model_that_changes_its_logits_is_found_out():
    model = GraniteForCausalLM(GraniteConfig(**SHAPE, **HEADS, logits_scaling=8.0)).eval()
    assert obstacle(model) == "the model changes its logits after the head (logits_scaling=8.0)"
    with pytest.raises(ValueError, match="changes its logits after the head"):
        OutputHead(model).hidden(lambda: model(input_ids=IDS).logits)
