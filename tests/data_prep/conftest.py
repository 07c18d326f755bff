"""A tiny model, its chats and the cache stage around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

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
MULTI_TURN = 24  # index of the first chat with two answers
ROW_LIMIT = 512  # data.max_length of `prepare`
CALLING = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def quiet(done: int, total: int, **metrics: float) -> None:
    assert 0 <= done <= total


def write_chats(directory: Path, chats: list[list[dict[str, str]]]) -> None:
    rows = [{"id": str(index), "messages": messages} for index, messages in enumerate(chats)]
    pd.DataFrame(rows).to_parquet(directory / "sft_train.parquet")


def save_model(directory: Path, seed: int, tokenizer: Any, **changes: Any) -> Path:
    """A random Llama: AutoTokenizer replaces custom tokenizers of Qwen2 directories by Qwen2's own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(**{**shape, **heads, **ids, "initializer_range": 0.3, **changes})
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def stage_settings(**changes: Any) -> SimpleNamespace:
    """Settings of the cache stage; `changes` replace any of its values."""
    cache = {
        "top_k": 16,
        "encoding": "compact",
        "dtype": "float32",
        "producer": "forward",
        "sample_sequences": 4,
        "workers": 1,
        "processes": 1,
        "tensor_parallel": 1,
        "gpu_memory": 0.5,
        "tokens_per_batch": 200,
        "tokens_per_shard": 150,
    }
    data = {"seed": 0, "system_prompt": None, "max_length": 128, "on_long_row": "error"}
    data |= {"turns": "all", "prompt_mismatch": "as_inferred", "supervise_after_end": False}
    model = {"path": None, "revision": None, "attention": "sdpa", "chat_template": None, "trust_remote_code": False}
    model["template_arguments"] = {}
    stage = {"role": "base"}
    for section in (cache, data, model, stage):
        section.update((name, changes.pop(name)) for name in list(changes) if name in section)
    assert not changes
    return SimpleNamespace(
        cache=SimpleNamespace(**cache),
        data=SimpleNamespace(**data),
        model=SimpleNamespace(**model),
        platform=SimpleNamespace(name="cpu", threads=1, env={"TORCHDYNAMO_DISABLE": "1"}),
        **stage,
    )


@dataclass
class World:
    """A model directory, a prepare artifact and what tests do with them."""

    model: Path
    data: Path
    tokenizer: Any

    settings = staticmethod(stage_settings)
    save_model = staticmethod(save_model)
    write_chats = staticmethod(write_chats)
    chats = CHATS
    multi_turn = MULTI_TURN

    def produce(self, directory: Path, *, inputs: dict[str, Path] | None = None, report: Callable = quiet, **changes):
        """Run the stage in `directory`/output with `directory`/scratch; returns the opened cache."""
        from data_prep.reference import stage
        from data_prep.reference.reader import ReferenceCache

        output, scratch = directory / "output", directory / "scratch"
        output.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(exist_ok=True)
        inputs = {"model": self.model, "data": self.data, **(inputs or {})}
        stage.run(stage_settings(**changes), inputs, output, scratch, report)
        return ReferenceCache(output)

    def dataset(self, references: dict[str, Any] | None = None, *, tokenizer: Any = None, **changes: Any):
        """The training set, with rows of caches if `references` is given; `changes` are settings of the stage."""
        from data_prep.chat_dataset import ChatDataset, dataset_config

        file = str(self.data / "sft_train.parquet")
        settings = stage_settings(**changes)
        config = dataset_config(settings.data, settings.model) | {"references": references, "train_files": file}
        return ChatDataset(file, tokenizer or self.tokenizer, config)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    from data_prep.micro_world.tokenizer import build_tokenizer

    root = tmp_path_factory.mktemp("world")
    tokenizer = build_tokenizer(["\\boxed{"], 256)
    (root / "data").mkdir()
    write_chats(root / "data", CHATS)
    tokenizer.save_pretrained(root / "data" / "tokenizer")
    return World(save_model(root / "model", 0, tokenizer), root / "data", tokenizer)


@pytest.fixture(scope="session")
def calling_model(tmp_path_factory) -> Path:
    """A directory with the micro-world's tokenizer under a template that writes tools and calls; it has no weights."""
    from transformers import GenerationConfig, Qwen2Config

    from data_prep.micro_world.tokenizer import world_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = world_tokenizer()
    tokenizer.chat_template = CALLING
    tokenizer.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    Qwen2Config(vocab_size=len(tokenizer), **ids).save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    return folder


@pytest.fixture
def prepare(tmp_path, calling_model):
    """Prepares one part from the bytes of a file; returns its summary and its rows by id."""
    from data_prep.prepare import run
    from data_prep.sources.feeds import Feed

    def prepare(part, content, name="rows.jsonl", grader="math", inputs=None, **options):
        data = {
            "seed": 0,
            "system_prompt": None,
            "max_length": ROW_LIMIT,
            "on_long_row": "error",
            "on_bad_row": "error",
        }
        data |= {"format": "auto", "on_unknown_field": "count", "allow_shared_prompts": True} | options
        file = tmp_path / name
        file.write_bytes(content)
        kind, _, benchmark = part.partition("/")
        key = "problems" if benchmark else f"{kind}_train"
        section = {"benchmarks": {benchmark: str(file)}} if benchmark else {key: str(file)}
        output = tmp_path / (benchmark or kind)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        settings = SimpleNamespace(
            part=kind,
            name=benchmark,
            sources=[Feed(source="files", settings=section)],
            grader=grader,
            data=SimpleNamespace(**data),
            model=SimpleNamespace(pretrain=None, trust_remote_code=False),
        )
        run(settings, {"model": calling_model, key: file, **(inputs or {})}, output, tmp_path, lambda *_, **__: None)
        summary = json.loads((output / "summary.json").read_text())
        found = [row for path in output.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        return summary, {row["id"] if "id" in row else row["extra_info"]["id"]: row for row in found}

    return prepare
