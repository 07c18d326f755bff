"""Base models whose template ends a turn with another token than their EOS."""

from __future__ import annotations

import hashlib
import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.models import model_directory
from data_prep.lengths import checked_tokenizer
from data_prep.micro_world.tokenizer import END_OF_TEXT, END_OF_TURN


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    """As Qwen2.5's base models: tokenizer and model agree on <|endoftext|>, the template ends turns with <|im_end|>."""
    directory = world.save_model(tmp_path_factory.mktemp("base") / "model", 0, world.tokenizer)
    index = world.tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    for name, change in {
        "tokenizer_config": {"eos_token": END_OF_TEXT},
        "config": {"eos_token_id": index},
        "generation_config": {"eos_token_id": index, "max_new_tokens": 7},
    }.items():
        path = directory / f"{name}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return directory


def contents(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_such_a_model_is_refused_and_passes_on_purpose(world, base, tmp_path):
    with pytest.raises(ValueError, match=r"so no response would stop; set model\.eos"):
        checked_tokenizer(base)
    before = contents(base)
    view = model_directory(str(base), None, END_OF_TURN, tmp_path / "view")
    index = world.tokenizer.convert_tokens_to_ids(END_OF_TURN)
    assert checked_tokenizer(view).eos_token_id == index
    model = AutoModelForCausalLM.from_pretrained(view)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == index
    assert model.generation_config.max_new_tokens == 7
    assert contents(base) == before
    changed = {name for name, digest in contents(view).items() if digest != before[name]}
    assert changed == {"tokenizer_config.json", "config.json", "generation_config.json"}
    assert contents(model_directory(str(base), None, END_OF_TURN, view)) == contents(view)


def test_without_a_setting_the_model_is_left_alone(base, tmp_path):
    assert model_directory(str(base), None, None, tmp_path / "view") == base
    assert not (tmp_path / "view").exists()
    assert AutoTokenizer.from_pretrained(base).eos_token == END_OF_TEXT


def test_a_token_that_the_model_lacks_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match=r"model\.eos=<\|eot_id\|>: not a token of"):
        model_directory(str(base), None, "<|eot_id|>", tmp_path / "view")
