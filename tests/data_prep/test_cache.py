"""The cache stage on a tiny random model: content, resume, teachers, identity."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data_prep import cache, reference_cache
from data_prep.chat_dataset import ChatDataset, dataset_config
from data_prep.reference_cache import ReferenceCache, decode
from data_prep.tokenizer import build_tokenizer
from sft_objectives.reference import Reference

CHATS = [
    [{"role": "user", "content": f"{a}+{b}="}, {"role": "assistant", "content": f"the sum is \\boxed{{{a + b}}}"}]
    for a, b in zip(range(10, 34), range(7, 31), strict=True)
] + [
    [
        {"role": "system", "content": "add"},
        {"role": "user", "content": f"{a}+1="},
        {"role": "assistant", "content": f"{a + 1}"},
        {"role": "user", "content": "and one more?"},
        {"role": "assistant", "content": f"that makes {a + 2}"},
    ]
    for a in range(8)
]


def quiet(done: int, total: int, **metrics: float) -> None:
    assert 0 <= done <= total


def save_model(directory: Path, seed: int, tokenizer, **changes) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **changes,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model directory and a prepare artifact."""
    root = tmp_path_factory.mktemp("world")
    tokenizer = build_tokenizer(["\\boxed{"], 256)
    (root / "data").mkdir()
    rows = [{"id": str(index), "messages": messages} for index, messages in enumerate(CHATS)]
    pd.DataFrame(rows).to_parquet(root / "data" / "sft_train.parquet")
    tokenizer.save_pretrained(root / "data" / "tokenizer")
    return SimpleNamespace(
        model=save_model(root / "model", 0, tokenizer), data=root / "data", tokenizer=tokenizer, root=root
    )


def settings_of(world, **changes) -> SimpleNamespace:
    values = {
        "top_k": 16,
        "encoding": "compact",
        "dtype": "float32",
        "producer": "forward",
        "sample_sequences": 4,
        "workers": 1,
        "tokens_per_batch": 200,
        "tokens_per_shard": 150,
        "role": "base",
        "on_long_row": "error",
        "max_length": 128,
    } | changes
    names = ("top_k", "encoding", "dtype", "producer", "sample_sequences", "workers", "tokens_per_batch", "tokens_per_shard")
    return SimpleNamespace(
        cache=SimpleNamespace(**{name: values[name] for name in names}),
        data=SimpleNamespace(
            seed=0, system_prompt=None, max_length=values["max_length"], on_long_row=values["on_long_row"]
        ),
        model=SimpleNamespace(
            path=None, revision=None, attention="sdpa", chat_template=None, trust_remote_code=False
        ),
        platform=SimpleNamespace(name="cpu", threads=1),
        role=values["role"],
    )


def produce(world, directory: Path, *, model: Path | None = None, report=quiet, **changes) -> ReferenceCache:
    output, scratch = directory / "output", directory / "scratch"
    output.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    inputs = {"model": model or world.model, "data": world.data}
    cache.run(settings_of(world, **changes), inputs, output, scratch, report)
    return ReferenceCache(output)


def oracle(world, dataset: ChatDataset, index: int, top_k: int) -> tuple[Reference, torch.Tensor]:
    """Reference and labels of one chat's supervised tokens, straight from the model's own logits."""
    model = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32)
    row = dataset[index]
    with torch.no_grad():
        logits = model(input_ids=row["input_ids"].unsqueeze(0)).logits[0]
    keep = row["loss_mask"].nonzero().flatten()
    labels = row["input_ids"][keep]
    return Reference.from_logits(logits[keep - 1], labels, top_k=top_k), labels


@pytest.fixture(scope="module")
def produced(world, tmp_path_factory) -> ReferenceCache:
    return produce(world, tmp_path_factory.mktemp("lossless"), encoding="lossless")


@pytest.mark.parametrize("index", [0, 17, 27])
def test_every_field_equals_the_models_own_logits(world, produced, index):
    dataset = ChatDataset(str(world.data / "sft_train.parquet"), world.tokenizer, dataset_config(settings_of(world).data))
    expected, labels = oracle(world, dataset, index, 16)
    rows = produced.read(index)
    ids, logprobs = decode(torch.from_numpy(rows["words"].copy()).flatten(), 16)
    assert torch.equal(ids, expected.support_ids)
    torch.testing.assert_close(logprobs, expected.support_logprobs, rtol=0, atol=1e-5)
    for name in ("label_logprob", "label_mass", "logsumexp", "entropy", "n1", "n2"):
        found = torch.from_numpy(rows[name].astype(np.float64))
        torch.testing.assert_close(found, getattr(expected, name).double(), rtol=1e-5, atol=1e-5, msg=name)
    for name in ("ceil_n1", "ceil_n2"):
        assert rows[name].tolist() == getattr(expected, name).tolist()
    assert rows["label_checksum"] == reference_cache.label_checksum(labels.numpy())
    assert rows["mean_loss"] == pytest.approx(-expected.label_logprob.mean().item(), abs=1e-5)
