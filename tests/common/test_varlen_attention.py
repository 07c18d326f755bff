"""Packed attention by PyTorch's interface: equal to sdpa on padded chats, forward and backward, and no leak."""

from __future__ import annotations

import inspect

import pytest
import torch

from common import attention, varlen_attention
from common.errors import ConfigError
from common.tiny_models import random_model
from common.varlen_attention import layout_of, reference_varlen_attn, varlen_attention_forward

FAMILIES = [
    ("Qwen2", {"heads": 4, "key_value_heads": 2}),
    ("Qwen3", {"heads": 4, "key_value_heads": 1, "head_dim": 16}),
    ("Llama", {"heads": 4, "key_value_heads": 4}),
    ("Mistral", {"heads": 4, "key_value_heads": 2, "sliding_window": 3}),
]
LENGTHS = (7, 1, 12, 4)


def model_of(family, attention, **fields):
    model = random_model(family, 61, hidden=64, layers=2, max_position_embeddings=64, **fields).double()
    model.set_attn_implementation(attention)
    return model.train()


def chats(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 61, (length,), generator=generator) for length in LENGTHS]


def packed(model, rows):
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    return model(input_ids=torch.cat(rows)[None], position_ids=positions, use_cache=False).logits[0]


def padded(model, rows, side="right"):
    """Logits of the real tokens, in the order of `packed`."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, place], mask[number, place] = row, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits[mask.bool()]


def gradients(model, logits):
    weights = torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)
    model.zero_grad()
    (logits.log_softmax(-1) * weights).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("family", "fields"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_packed_and_padded_chats_equal_sdpa_forward_and_backward(family, fields):
    exact = model_of(family, "sdpa", **fields)
    expected = padded(exact, chats())
    wanted = gradients(exact, expected)
    model = model_of(family, "varlen", **fields)
    for found in (packed(model, chats()), padded(model, chats()), padded(model, chats(), "left")):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        mine = gradients(model, found)
        assert mine.keys() == wanted.keys()
        for name, gradient in mine.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-8, atol=1e-8)


def test_float32_agrees_to_1e_5():
    exact, model = (model_of("Qwen2", name, heads=4, key_value_heads=2).float() for name in ("sdpa", "varlen"))
    torch.testing.assert_close(packed(model, chats()), padded(exact, chats()), rtol=1e-5, atol=1e-5)


def test_a_chat_sees_nothing_of_its_neighbours():
    model, rows = model_of("Qwen2", "varlen", heads=4), chats()
    before = packed(model, rows)
    rows[0] = (rows[0] + 1) % 61
    rows[3] = (rows[3] + 1) % 61
    after = packed(model, rows)
    inside = slice(LENGTHS[0], sum(LENGTHS[:3]))
    assert torch.equal(before[inside], after[inside])
    assert not torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])
    embedded = model.get_input_embeddings()(torch.cat(rows))[None].detach().requires_grad_()
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    logits = model(inputs_embeds=embedded, position_ids=positions, use_cache=False).logits
    logits[0, inside].square().sum().backward()
    reached = embedded.grad[0].abs().sum(-1) > 0
    assert reached[inside].all() and reached.sum() == inside.stop - inside.start


def test_gradient_checkpointing_and_a_second_batch_find_their_own_chats():
    model = model_of("Qwen2", "varlen", heads=4)
    plain = gradients(model, packed(model, chats()))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    first = packed(model, chats())
    other = packed(model, chats(1)[::-1])
    for name, gradient in gradients(model, first).items():
        torch.testing.assert_close(gradient, plain[name])
    torch.testing.assert_close(other, padded(model, chats(1)[::-1]), rtol=1e-9, atol=1e-9)


def test_the_layout_of_packed_and_padded_rows():
    positions = torch.tensor([[0, 1, 2, 0, 0, 1]])
    found = layout_of(positions, None)
    assert found.cumulative.tolist() == [0, 3, 4, 6] and found.longest == 3 and found.kept is None
    assert found.cumulative.dtype == torch.int32
    rows = torch.tensor([[0, 1, 2], [0, 1, 2]])
    assert layout_of(rows, None).cumulative.tolist() == [0, 3, 6]
    mask = torch.tensor([[False, True, True], [True, True, False]])
    found = layout_of(rows, mask)
    assert found.cumulative.tolist() == [0, 2, 4] and found.kept.tolist() == [1, 2, 3, 4]
    assert layout_of(torch.tensor([[5, 6, 7]]), None).cumulative.tolist() == [0, 3]


def test_positions_changed_in_place_are_looked_at_again():
    model = model_of("Qwen2", "varlen", heads=4)
    ids, positions = torch.arange(6)[None], torch.arange(6)[None]
    whole = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    positions[0, 3:] -= 3
    split = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(split[0, :3], whole[0, :3])
    assert not torch.allclose(split[0, 3:], whole[0, 3:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_ids": None}, "gives its attention no"),
        ({"key": torch.zeros(1, 2, 9, 8)}, "not for generation"),
        ({"is_causal": False}, "not causal"),
        ({"dropout": 0.1}, r"drops 0\.1"),
        ({"softcap": 30.0}, "caps its attention"),
        ({"s_aux": torch.zeros(2)}, "attention sinks"),
        ({"value": torch.zeros(1, 2, 5, 16)}, "differ in width"),
        ({name: torch.zeros(1, 2, 5, 12) for name in ("query", "key", "value")}, "heads of width 12"),
        ({"attention_mask": torch.zeros(1, 1, 5, 5)}, "mask of its own"),
    ],
)
def test_what_the_kernel_does_not_compute_is_refused_in_one_line(changes, message):
    given = {name: torch.zeros(1, 2, 5, 8) for name in ("query", "key", "value")}
    given |= {"attention_mask": None, "position_ids": torch.arange(5)[None]} | changes
    with pytest.raises(ConfigError, match=rf"model\.attention=varlen: .*{message}.*; set model\.attention=") as error:
        varlen_attention_forward(torch.nn.Module(), **given)
    assert "\n" not in str(error.value)


def test_autocast_decides_what_float32_states_are_computed_in(monkeypatch):
    seen = []

    def kernel(query, key, value, *rest, **options):
        seen.append(query.dtype)
        return reference_varlen_attn(query, key, value, *rest, **options)

    monkeypatch.setattr(varlen_attention, "_kernel", lambda device: kernel)
    states = {name: torch.randn(1, 2, 5, 8) for name in ("query", "key", "value")}
    given = {**states, "attention_mask": None, "position_ids": torch.arange(5)[None]}
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = varlen_attention_forward(torch.nn.Module(), **given)
    varlen_attention_forward(torch.nn.Module(), **given)
    assert seen == [torch.bfloat16, torch.float32] and found.dtype == torch.float32


def test_the_reference_takes_what_pytorchs_function_takes():
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="this PyTorch has no varlen_attn")
    theirs = inspect.signature(varlen.varlen_attn).parameters
    mine = inspect.signature(reference_varlen_attn).parameters
    assert list(theirs)[:7] == list(mine)[:7]
    assert {"scale", "window_size"} <= theirs.keys()
    with pytest.raises(ValueError, match="max_q=2"):
        states = torch.zeros(3, 1, 8)
        reference_varlen_attn(states, states, states, torch.tensor([0, 3]), torch.tensor([0, 3]), 2, 2)


def test_the_name_is_the_recipes():
    from transformers import AttentionInterface, AttentionMaskInterface

    assert varlen_attention.NAME == attention.VARLEN
    attention.prepare("varlen")
    assert "varlen" in AttentionInterface() and "varlen" in AttentionMaskInterface()


def test_a_kernel_that_is_missing_is_an_error(monkeypatch):
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"flash_attn is not installed; .* or model\.attention=varlen"):
        attention.prepare("flash_attention_2")
    with pytest.raises(ConfigError, match=r"no torch\.nn\.attention\.varlen; install PyTorch 2\.11, or .*sdpa"):
        attention.prepare("varlen")
    attention.prepare("sdpa")
