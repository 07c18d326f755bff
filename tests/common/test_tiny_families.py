"""The small models of the papers' families: what their templates train on, and that the models load."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from common.templates import template_file, template_names
from common.tiny_families import FAMILIES, build, tokenizer_of
from data_prep.chats import render

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is four."},
]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_and_the_end_of_its_turn_are_trained_on(name):
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    (row,) = render(tokenizer, CHAT, template_arguments={"enable_thinking": False} if "qwen3" in name else {})
    trained = tokenizer.decode([one for one, kept in zip(row.ids, row.supervised, strict=True) if kept])
    assert trained.strip().startswith("It is four.") and trained.strip().endswith(family.end)
    whole = tokenizer.decode(row.ids)
    assert "Be brief." in whole and "What is 2 + 2?" in whole


def test_a_template_goes_by_its_name_or_its_path(tmp_path):
    assert template_file("llama3").name == "llama3.jinja"
    own = tmp_path / "mine.jinja"
    own.write_text("x")
    assert template_file(str(own)) == own
    with pytest.raises(ConfigError, match=r"model\.chat_template=lama3: allowed: .*llama3.*, or a Jinja file"):
        template_file("lama3")
    assert {family.template for family in FAMILIES.values()} <= set(template_names())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_model_of_each_family_answers(name, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    build(name, 0, tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("2 + 2")["input_ids"]])
    assert torch.isfinite(model(ids).logits).all()
    assert len(tokenizer) <= model.config.vocab_size
