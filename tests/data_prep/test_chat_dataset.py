"""Tokens, masks and the alignment of cached rows to them."""

from __future__ import annotations

import copy
import shutil

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM
from verl.utils.dataset.dataset_utils import SFTTensorCollator

import sft_objectives
from data_prep.chat_dataset import ChatDataset, dataset_config
from data_prep.reference.codec import decode
from data_prep.reference.layout import TOKEN_FIELDS
from data_prep.reference.reader import ReferenceCache
from sft_objectives import Reference

ALL_FIELDS = ["support_ids", "support_logprobs", "mean_loss", *TOKEN_FIELDS]
CUTS = [("error", 128), ("truncate_left", 30), ("truncate_right", 30)]


@pytest.fixture(scope="module")
def model(world):
    return AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32)


def references(cache, fields=None, top_k=None) -> dict:
    return {"base": {"path": str(cache.directory), "fields": fields or ALL_FIELDS, "top_k": top_k}}


def divergence(model, row, shift: int) -> float:
    """LP-SFT's KL term on the model that made the cache, with the cached rows moved by `shift` positions."""
    top_k = len(row["reference_base_packed"]) // len(row["input_ids"])
    ids, logprobs = decode(row["reference_base_packed"], top_k)
    fields = {"support_ids": ids, "support_logprobs": logprobs, "ceil_n1": row["reference_base_ceil_n1"]}
    reference = Reference(**{name: value.roll(shift, 0) for name, value in fields.items()})
    labels, mask = row["input_ids"].roll(-1), row["loss_mask"].roll(-1)
    if shift:  # rows of unsupervised positions hold nothing
        mask = mask * mask.roll(shift)
    with torch.no_grad():
        logits = model(input_ids=row["input_ids"].unsqueeze(0)).logits[0]
        losses = [
            sft_objectives.token_losses(sft_objectives.load(name), logits, labels, mask=mask, reference=reference)
            for name in ("lp_sft", "sft")
        ]
    return float((losses[0] - losses[1]).sum() / mask.sum())


@pytest.mark.parametrize(("on_long_row", "max_length"), CUTS)
@pytest.mark.parametrize("chat", ["single turn", "multi-turn"])
def test_rows_are_aligned_to_the_tokens(world, model, tmp_path, on_long_row, max_length, chat):
    changes = {"on_long_row": on_long_row, "max_length": max_length}
    cache = world.produce(tmp_path, **changes)
    row = world.dataset(references(cache), **changes)[world.multi_turn if chat == "multi-turn" else 0]
    assert len(row["input_ids"]) <= max_length
    assert abs(divergence(model, row, 0)) < 1e-5
    assert divergence(model, row, 1) > 1e-2
    assert divergence(model, row, -1) > 1e-2


@pytest.fixture(scope="module")
def cache(world, tmp_path_factory):
    return world.produce(tmp_path_factory.mktemp("cache"))


def test_every_tensor_is_flat_and_has_its_dtype(world, cache):
    row = world.dataset(references(cache, top_k=5))[0]
    length = len(row["input_ids"])
    packed = row.pop("reference_base_packed")
    assert packed.shape == (5 * length,)
    assert packed.dtype == torch.int32
    assert {name: (tuple(value.shape), value.dtype) for name, value in row.items()} == {
        **dict.fromkeys(("input_ids", "position_ids", "loss_mask"), ((length,), torch.int64)),
        **{f"reference_base_{name}": ((length,), torch.float32) for name in ["mean_loss", *TOKEN_FIELDS]},
        **{f"reference_base_{name}": ((length,), torch.int32) for name in ("ceil_n1", "ceil_n2")},
    }
    empty = row["loss_mask"].roll(-1) == 0
    assert not packed.view(-1, 5)[empty].any()
    assert not row["reference_base_entropy"][empty].any()
    assert row["reference_base_entropy"][~empty].all()


def test_only_wanted_fields_are_emitted(world, cache):
    row = world.dataset(references(cache, ["label_mass"]))[0]
    assert set(row) == {"input_ids", "position_ids", "loss_mask", "reference_base_label_mass"}


def test_lossless_cache_gives_wide_integers(world, tmp_path):
    lossless = world.produce(tmp_path, encoding="lossless")
    row = world.dataset(references(lossless, ["support_ids"]))[0]
    assert row["reference_base_packed"].dtype == torch.int64
    assert row["reference_base_packed"].shape == (16 * len(row["input_ids"]),)


def test_collates_into_nested_tensors(world, cache):
    dataset = world.dataset(references(cache))
    batch = SFTTensorCollator("no_padding")([dataset[index] for index in (0, 3, 25)])
    packed = batch["reference_base_packed"].values()
    assert len(packed) == 16 * len(batch["input_ids"].values())
    ids, _ = decode(packed, 16)
    first = decode(dataset[0]["reference_base_packed"], 16)[0]
    assert torch.equal(ids[: len(first)], first)


def test_validation_files_get_no_references(world, cache, tmp_path):
    shutil.copy(world.data / "sft_train.parquet", tmp_path / "sft_val.parquet")
    config = dataset_config(world.settings().data)
    config |= {"references": references(cache), "train_files": str(world.data / "sft_train.parquet")}
    row = ChatDataset(str(tmp_path / "sft_val.parquet"), world.tokenizer, config)[0]
    assert set(row) == {"input_ids", "position_ids", "loss_mask"}


def other_template(world):
    tokenizer = copy.deepcopy(world.tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\n", "<|im_end|>")
    return {"tokenizer": tokenizer}


def other_tokenizer(world):
    from data_prep.micro_world.tokenizer import build_tokenizer

    return {"tokenizer": build_tokenizer(["\\boxed{", "sum"], 256)}


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("chat_template", other_template),
        ("tokenizer", other_tokenizer),
        ("max_length", lambda world: {"max_length": 100}),
        ("truncation", lambda world: {"on_long_row": "truncate_left"}),
        ("mask_policy", lambda world: {"turns": "last"}),
        ("chat_template_arguments", lambda world: {"template_arguments": {"enable_thinking": False}}),
    ],
)
def test_a_cache_of_other_tokens_is_refused_by_name(world, cache, field, change):
    with pytest.raises(ValueError, match=rf"made from another {field} \(") as refusal:
        world.dataset(references(cache), **change(world))
    assert "\n" not in str(refusal.value)


def test_changed_row_order_is_refused(world, cache, tmp_path):
    world.write_chats(tmp_path, [world.chats[1], world.chats[0], *world.chats[2:]])
    file = str(tmp_path / "sft_train.parquet")
    config = dataset_config(world.settings().data) | {"references": references(cache), "train_files": file}
    with pytest.raises(ValueError, match="made from another data_rows"):
        ChatDataset(file, world.tokenizer, config)


def test_damaged_cache_is_refused_before_the_first_row(world, tmp_path):
    cache = world.produce(tmp_path)
    shard = cache.directory / "shard_00001.bin"
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:-1] + b"?")
    with pytest.raises(ValueError, match="checksum differs in shard_00001"):
        world.dataset(references(cache))


def test_a_cache_that_was_verified_is_not_read_again(world, tmp_path, monkeypatch):
    cache = world.produce(tmp_path)
    monkeypatch.setattr(ReferenceCache, "verify", lambda self: pytest.fail("read again"))
    given = references(cache)
    given["base"]["verified"] = True
    assert "reference_base_packed" in world.dataset(given)[0]


def test_memory_mapped_chats_give_the_same_items(world, cache, tmp_path):
    file = str(world.data / "sft_train.parquet")
    config = dataset_config(world.settings().data) | {"references": references(cache), "train_files": file}
    streamed = ChatDataset(file, world.tokenizer, config)
    copied = ChatDataset(file, world.tokenizer, config | {"mapped": str(tmp_path / "chats")})
    assert copied.identity() == streamed.identity()
    assert copied.identity().items() <= cache.identity.items()
    for index in range(len(streamed)):
        first, second = streamed[index], copied[index]
        assert set(first) == set(second)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_fields_and_top_k_beyond_the_cache_are_refused(world, cache):
    with pytest.raises(ValueError, match="lacks logits"):
        world.dataset(references(cache, ["logits"]))
    with pytest.raises(ValueError, match="top_k 99 asked, 16 stored"):
        world.dataset(references(cache, top_k=99))


def test_truncation_cuts_the_named_side(world):
    whole = world.dataset()[0]["input_ids"]
    assert torch.equal(world.dataset(on_long_row="truncate_left", max_length=12)[0]["input_ids"], whole[-12:])
    assert torch.equal(world.dataset(on_long_row="truncate_right", max_length=12)[0]["input_ids"], whole[:12])
    with pytest.raises(ValueError, match=r"chat 0: \d+ tokens, data\.max_length=12"):
        world.dataset(max_length=12)[0]


def test_mask_marks_answers_and_never_the_first_token(world):
    row = world.dataset()[world.multi_turn]
    answers = world.tokenizer.decode(row["input_ids"][row["loss_mask"].bool()])
    assert answers == "1<|im_end|>that makes 2<|im_end|>"
    cut = world.dataset(on_long_row="truncate_left", max_length=4)[0]
    assert cut["loss_mask"].tolist() == [0, 1, 1, 0]


def test_verls_mask_and_the_last_turn_alone_are_settings(world):
    row = world.dataset(supervise_after_end=True)[world.multi_turn]
    answers = world.tokenizer.decode(row["input_ids"][row["loss_mask"].bool()])
    assert answers == "1<|im_end|>\nthat makes 2<|im_end|>\n"
    last = world.dataset(turns="last")[world.multi_turn]
    assert world.tokenizer.decode(last["input_ids"][last["loss_mask"].bool()]) == "that makes 2<|im_end|>"
    assert torch.equal(last["input_ids"], row["input_ids"])


def test_padded_mode_is_refused(world):
    with pytest.raises(ValueError, match="allowed: no_padding"):
        ChatDataset(str(world.data / "sft_train.parquet"), world.tokenizer, {"pad_mode": "right"})


def spans_file(directory, spans):
    content = "so 3+4=7 and \\boxed{7}"
    messages = [{"role": "user", "content": "3+4="}, {"role": "assistant", "content": content}]
    file = directory / "sft_train.parquet"
    pd.DataFrame([{"id": "0", "messages": messages, "critical_spans": spans}]).to_parquet(file)
    return str(file), content


@pytest.mark.parametrize(("on_long_row", "max_length"), [("error", 128), ("truncate_left", 12), ("truncate_right", 25)])
def test_critical_column_marks_the_labels_inside_the_spans(world, tmp_path, on_long_row, max_length):
    file, content = spans_file(tmp_path, [[7, 8], [20, 21]])
    assert (content[7:8], content[20:21]) == ("7", "7")
    config = dataset_config(world.settings(on_long_row=on_long_row, max_length=max_length).data)
    row = ChatDataset(file, world.tokenizer, config | {"columns": ["critical"], "train_files": file})[0]
    marked = row["column_critical"].nonzero().flatten()
    found = world.tokenizer.decode(row["input_ids"][marked + 1])
    assert row["loss_mask"][marked + 1].all()
    assert found == ("7" if on_long_row == "truncate_right" else "77")


def test_missing_critical_spans_are_refused(world, tmp_path):
    file, _ = spans_file(tmp_path, None)
    config = dataset_config(world.settings().data) | {"columns": ["critical"], "train_files": file}
    with pytest.raises(ValueError, match="critical_spans is missing"):
        ChatDataset(file, world.tokenizer, config)
