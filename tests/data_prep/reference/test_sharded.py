"""The cache stage with a model that lies sharded over several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from common.ports import free_port
from common.registry import ROOT
from common.tiny_models import ends_of, random_model, save
from data_prep.reference.codec import decode
from data_prep.reference.layout import Layout
from data_prep.reference.producers.forward import ForwardProducer
from data_prep.reference.producers.sharded import ShardedProducer
from data_prep.reference.ranks import joined
from data_prep.reference.tokens import Job, Tokens, length_batches, split_shards
from data_prep.reference.workers import fill_shard


def save_qwen2(directory: Path, tokenizer, tied: bool) -> Path:
    model = random_model(
        "Qwen2",
        len(tokenizer),
        heads=4,
        key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        **ends_of(tokenizer),
    )
    return save(directory, model, tokenizer)


def save_granite(directory: Path, tokenizer) -> Path:
    from transformers import GraniteConfig, GraniteForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    GraniteForCausalLM(GraniteConfig(vocab_size=len(tokenizer), logits_scaling=8.0, **shape)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def batch_counts(world, settings) -> list[int]:
    """Batches in each shard."""
    dataset = world.dataset()
    masks = [dataset[index]["loss_mask"] for index in range(len(dataset))]
    jobs = split_shards(np.array([int(mask.sum()) for mask in masks]), settings.cache.tokens_per_shard)
    budget = settings.cache.tokens_per_batch
    return [len(list(length_batches([len(masks[chat]) for chat in job.chats], budget))) for job in jobs]


@pytest.fixture
def ray_environment(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")  # a loaded machine


class Unsharded(ShardedProducer):
    """Deals batches like its parent and holds the whole model; counts forward passes."""

    _load = ForwardProducer._load
    passes = 0

    def hidden(self, ids):
        self.passes += 1
        return ForwardProducer.hidden(self, ids)


@pytest.mark.parametrize("ranks", [2, 3, 4, 5])
@pytest.mark.parametrize("every_position", [False, True])
def test_ranks_take_equally_many_passes_and_fill_the_shard_together(world, monkeypatch, ranks, every_position):
    settings = world.settings(tokens_per_batch=80)
    rng = np.random.default_rng(ranks)
    lengths = rng.integers(2, 40, 60)
    mask = (rng.random(lengths.sum()) < 0.3).astype(np.uint8)
    mask[: lengths[0]] = 0  # a chat without a supervised token
    ids = rng.integers(0, len(world.tokenizer), len(mask), dtype=np.int32)
    tokens = Tokens(ids, mask, np.concatenate([[0], np.cumsum(lengths)]), {})
    tokens.mask[tokens.offsets[:-1]] = 0  # the first token of a chat has no prediction
    whole = ForwardProducer(world.model, settings.cache, settings.model, None)
    job = Job("shard_00000.bin", tuple(range(len(lengths))), every_position=every_position)
    layout = job.layout(Layout("lossless", 16, 32, whole.vocab_size, ("label_mass", "entropy", "ceil_n1")))
    batches = len(list(length_batches(lengths.tolist(), settings.cache.tokens_per_batch)))
    assert batches > 2 * ranks
    parts, passes = [], []
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        producer = Unsharded(world.model, settings.cache, settings.model, None)
        producer.passes = 0
        parts.append(fill_shard(job, tokens, producer, layout))
        passes.append(producer.passes)
    assert passes == [-(-batches // ranks)] * ranks
    expected = fill_shard(job, tokens, whole, layout)
    found = joined(parts)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.e2e
@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_sharded_model_gives_the_same_cache(world, tmp_path, ray_environment, tied):
    inputs = {"model": save_qwen2(tmp_path / "model", world.tokenizer, tied)}
    how = {"inputs": inputs, "encoding": "lossless", "tokens_per_batch": 80}
    counts = batch_counts(world, world.settings(tokens_per_batch=80))
    assert len(counts) > 3
    assert {count % 2 for count in counts} == {0, 1}
    one = world.produce(tmp_path / "one", **how)
    two = world.produce(tmp_path / "two", processes=2, **how)
    ids, logprobs = decode(torch.from_numpy(two.column("packed")).flatten(), 16)
    expected_ids, expected = decode(torch.from_numpy(one.column("packed")).flatten(), 16)
    assert torch.equal(ids, expected_ids)
    print(f"tied={tied}: log-probabilities differ by at most {(logprobs - expected).abs().max():.1e}")
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    for name in one.fields - {"support_ids", "support_logprobs"}:
        found, wanted = (np.concatenate([np.atleast_1d(c.read(i)[name]) for i in range(len(c))]) for c in (two, one))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=name)
    assert two.identity == one.identity


RANK = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import verl_cpu.plugin
from torch.distributed.tensor import DTensor
from data_prep.reference.layout import Layout
from data_prep.reference.ranks import Rank
from data_prep.reference.tokens import Job

rank, port, vocabulary = map(int, sys.argv[1:4])
scratch, model = map(Path, sys.argv[4:6])
settings = json.loads(sys.argv[6], object_hook=lambda values: SimpleNamespace(**values))
worker = Rank(vars(settings.platform.env))
layout = Layout("lossless", 4, 32, vocabulary, ())
worker.join(rank, "127.0.0.1", port, (settings, model, scratch, layout, None))
whole = lambda module: sum(p.numel() for p in module.parameters() if not isinstance(p, DTensor))
layers, seen = worker.producer.model.model.layers, []
layers[1].mlp.register_forward_pre_hook(lambda *_: seen.append([whole(layers[0]), whole(layers[1])]))
worker.arrays(Job("shard_00000.bin", (0, 1, 2), every_position=True))
parameters = list(worker.producer.model.parameters())
print(json.dumps({
    "passes": len(seen), "inside": seen[0], "after": whole(worker.producer.model),
    "all": sum(p.numel() for p in parameters), "own": sum(p.to_local().numel() for p in parameters),
    "layer": sum(p.numel() for p in layers[0].parameters()),
}))
"""


@pytest.mark.e2e
def test_a_rank_holds_its_share_and_one_layer(world, tmp_path):
    model = save_qwen2(tmp_path / "model", world.tokenizer, tied=False)
    Tokens.write(world.dataset(), tmp_path, lambda *_, **metrics: None)
    settings = json.dumps(world.settings(processes=2, tokens_per_batch=1), default=vars)
    port = free_port()
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *map(str, (rank, port, len(world.tokenizer), tmp_path, model, settings))],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        reports = [json.loads(rank.communicate(timeout=200)[0].splitlines()[-1]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for found in reports:
        assert found["passes"] == 2  # three chats, each a batch
        assert found["inside"] == [0, found["layer"]]
        assert found["after"] == 0
    assert sum(found["own"] for found in reports) == reports[0]["all"]
    assert max(found["own"] for found in reports) < 0.51 * reports[0]["all"]


def ranks_below() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "ray::Rank" in " ".join(child.cmdline())]


@pytest.mark.e2e
def test_a_lost_rank_ends_the_stage(world, tmp_path, ray_environment):
    killed: list[float] = []

    def kill_one(done, total, **metrics):
        if done and not killed:
            ranks = ranks_below()
            assert len(ranks) == 2
            os.kill(ranks[0].pid, signal.SIGKILL)
            killed.append(time.monotonic())

    with pytest.raises(RuntimeError, match=r"cache\.processes.* failed or was lost") as error:
        world.produce(tmp_path, processes=2, tokens_per_shard=20, report=kill_one)
    seconds = time.monotonic() - killed[0]
    print(f"{seconds:.1f} s after the kill: {error.value}")
    assert seconds < 30
    assert "\n" not in str(error.value)
    assert not ranks_below()
    assert not (tmp_path / "output" / "header.json").exists()


@pytest.mark.slow
@pytest.mark.e2e
def test_a_refusal_of_the_ranks_is_the_stages(world, tmp_path, ray_environment):
    inputs = {"model": save_granite(tmp_path / "granite", world.tokenizer)}
    with pytest.raises(ValueError, match=r"logits after the head \(logits_scaling=8\.0\); not supported$"):
        world.produce(tmp_path, inputs=inputs, processes=2)
