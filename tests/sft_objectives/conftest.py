"""A small packed batch that every objective can be computed on; a tiny model, chats and settings for the trainer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import sft_objectives
from common.tiny_models import ends_of, random_model
from sft_objectives import Objective, Reference


@dataclass
class Batch:
    """Four packed sequences, some positions unsupervised; the references hold every field."""

    logits: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    sequence_lengths: torch.Tensor
    references: dict[str, Reference]
    columns: dict[str, torch.Tensor]

    def losses(self, objective: Objective, **changes) -> torch.Tensor:
        given = {
            "mask": self.mask,
            "sequence_lengths": self.sequence_lengths,
            "reference": self.references,
            "columns": self.columns,
        }
        return sft_objectives.token_losses(objective, self.logits, self.labels, **{**given, **changes})

    def gradient(self, objective: Objective, **changes) -> torch.Tensor:
        return torch.autograd.grad(self.losses(objective, **changes).sum(), self.logits)[0]


def build(dtype=torch.float64, vocab_size=50, scale=2.0, lengths=(9, 4, 14, 7), top_k=20, seed=0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)

    def normal() -> torch.Tensor:
        return torch.randn(n, vocab_size, generator=generator, dtype=torch.float64)

    logits = normal() * scale
    likely = logits.topk(min(5, vocab_size)).indices.gather(1, torch.randint(0, 5, (n, 1), generator=generator))
    labels = torch.where(
        torch.rand(n, generator=generator) < 0.7,
        likely.squeeze(-1),
        torch.randint(0, vocab_size, (n,), generator=generator),
    )
    references = {
        source: Reference.from_logits((logits + 0.5 * normal()).to(dtype), labels, top_k=top_k)
        for source in ("base", "teacher", "checkpoint", "ema", "old")
    }
    mask = torch.rand(n, generator=generator) < 0.8
    columns = {"critical": (torch.rand(n, generator=generator) < 0.5).float()}
    return Batch(logits.to(dtype).requires_grad_(), labels, mask, torch.tensor(lengths), references, columns)


@pytest.fixture
def make_batch():
    """The function that builds a `Batch` of a given dtype, vocabulary, scale of logits, and sequence lengths."""
    return build


@pytest.fixture
def batch() -> Batch:
    return build()


# a tiny model, chats and settings, for the tests of the trainer


def chat_turns(rng: random.Random) -> list[dict[str, str]]:
    """A question and its answer, of random length."""
    a, b = rng.randrange(10 ** rng.randrange(1, 5)), rng.randrange(100)
    return [{"role": "user", "content": f"{a}+{b}"}, {"role": "assistant", "content": f"so \\boxed{{{a + b}}}"}]


def write_model(directory: Path, *, tied: bool = True, seed: int = 0, steps: int = 30) -> Path:
    """A small fp32 Llama character model with ChatML template, as a Hugging Face directory.

    It has learned a little of sums, so that the probabilities of labels range from small to large.
    """
    from data_prep.micro_world.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(["\\boxed{"], max_length=256)
    fields = {"max_position_embeddings": 256, "tie_word_embeddings": tied, **ends_of(tokenizer)}
    model = random_model("Llama", len(tokenizer), key_value_heads=1, seed=seed, **fields)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rng = random.Random(seed)
    for _ in range(steps):
        chats = [chat_turns(rng) for _ in range(16)]
        encoded = tokenizer.apply_chat_template(chats, return_tensors="pt", return_dict=True, padding=True)
        labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
        model(**encoded, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_chats(directory: Path, *, train: int = 24, val: int = 7) -> Path:
    """Chats of unequal length, as a `prepare` artifact."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(0)
    directory.mkdir(parents=True, exist_ok=True)
    for name, count in (("sft_train", train), ("sft_val", val)):
        rows = []
        for index in range(count):
            turns = chat_turns(rng)
            if index % 5 == 0:
                turns += [{"role": "user", "content": "again"}, turns[-1]]
            rows.append({"id": f"{name}-{index}", "messages": turns})
        pq.write_table(pa.Table.from_pylist(rows), directory / f"{name}.parquet")
    return directory


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> dict[str, Path]:
    """Inputs of the SFT stage: `model` (tied embeddings), `untied` and `other` models, and `data`."""
    root = tmp_path_factory.mktemp("world")
    return {
        "model": write_model(root / "tied"),
        "untied": write_model(root / "untied", tied=False, seed=1),
        "other": write_model(root / "other", seed=2),
        "data": write_chats(root / "data"),
    }


def sft_settings(**changes):
    """Settings of the SFT stage, a recipe of the schema's defaults; a key `sft__lr` changes sft.lr."""
    from launch.recipe.recipe import Recipe

    settings = Recipe.model_validate({"model": {"path": "unused"}}).model_dump(mode="json")
    settings["platform"].update(name="cpu", threads=1, env={"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"})
    settings["data"]["max_length"] = 96
    settings["sft"].update(lr=1e-2, steps=6, batch_size=8, tokens_per_micro_batch=200, save_every=100)
    for key, value in changes.items():
        *path, last = key.split("__")
        section = settings
        for name in path:
            section = section[name]
        if last not in section:
            raise KeyError(key)
        section[last] = value
    return Recipe.model_validate(settings)


@pytest.fixture(scope="session")
def settings_of():
    """Factory of the SFT stage's settings, see `sft_settings`."""
    return sft_settings
