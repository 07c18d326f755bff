"""Frozen models in one process and in several: what they compute, and what memory each rank needs for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.ports import free_port

HERE = Path(__file__).parent


def save(directory: Path, tokenizer, model) -> Path:
    torch.manual_seed(0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small student; frozen models of about 220 MB, tied, untied, and of experts, whose files split their weights."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from data_prep.micro_world.tokenizer import build_tokenizer

    root, tokenizer = tmp_path_factory.mktemp("frozen"), build_tokenizer(["\\boxed{"], max_length=256)
    torch.manual_seed(0)
    common = {"vocab_size": len(tokenizer), "num_attention_heads": 4, "num_key_value_heads": 2}
    small = LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, **common)
    large = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, **common, "vocab_size": 4096}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16}
    moe = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, **common, **experts}
    return {
        "small": save(root / "small", tokenizer, LlamaForCausalLM(small)),
        "tied": save(root / "tied", tokenizer, LlamaForCausalLM(LlamaConfig(**large, tie_word_embeddings=True))),
        "untied": save(root / "untied", tokenizer, LlamaForCausalLM(LlamaConfig(**large))),
        "experts": save(root / "experts", tokenizer, Qwen3MoeForCausalLM(Qwen3MoeConfig(**moe))),
    }


def load(models, name: str, ranks: int, out: Path) -> list[dict]:
    """What each of `ranks` processes reports of its part of a frozen model."""
    out.mkdir(parents=True, exist_ok=True)
    job = {"student": str(models["small"]), "small": str(models["small"]), "model": str(models[name])}
    (out / "job.json").write_text(json.dumps({**job, "dtype": "float32", "out": str(out)}))
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    own = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "frozen_ranks.py"), str(out / "job.json")],
            env={**os.environ, **own, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
        )
        for rank in range(ranks)
    ]
    try:
        assert [process.wait(timeout=400) for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [json.loads((out / f"{ranks}_{rank}.json").read_text()) for rank in range(ranks)]


def whole(models, name: str) -> tuple[int, list[float]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models[name], dtype=torch.float32, attn_implementation="sdpa")
    with torch.no_grad():
        logits = model(torch.arange(12)[None]).logits[0, -1].tolist()
    return sum(parameter.nbytes for parameter in model.parameters()), logits


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rank_needs_memory_for_its_shards_alone(models, tmp_path):
    """Eight ranks do not need eight models: what one needs at its peak falls as ranks are added, and so the sum of all
    does not grow with them beyond what reading a tensor takes."""
    size, logits = whole(models, "untied")
    peaks = {}
    for ranks in (1, 2, 4):
        found = load(models, "untied", ranks, tmp_path / str(ranks))
        for report in found:
            assert report["logits"] == pytest.approx(logits, abs=1e-4)
            assert report["held"] <= size / ranks * 1.01
        peaks[ranks] = [report["peak"] / size for report in found]
    (tmp_path / "peaks.json").write_text(json.dumps(peaks))
    # a rank holds its shard, and the pages of the file that it has read are counted as its own
    assert max(peaks[2]) < 1.35 and max(peaks[4]) < 0.85
    assert max(peaks[4]) < 0.75 * max(peaks[2])


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["tied", "experts"])
def test_tied_heads_and_experts_are_loaded_too(name, models, tmp_path):
    _, logits = whole(models, name)
    for report in load(models, name, 2, tmp_path):
        assert report["logits"] == pytest.approx(logits, abs=1e-4)
        assert report["tied"] == (name == "tied")
