"""The cache stage on a tiny random model: content, resume, workers, teachers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from common.tiny_models import random_model, save
from data_prep.reference import writer
from data_prep.reference.codec import decode
from data_prep.reference.layout import VLLM_FIELDS, predict_bytes
from data_prep.reference.producers.vllm import VllmProducer
from data_prep.reference.reader import label_checksum
from data_prep.reference.tokens import length_batches, split_shards
from sft_objectives.reference import Reference


def oracle(world, dataset, index: int, top_k: int) -> tuple[Reference, torch.Tensor]:
    """Reference and labels of one chat's supervised tokens, straight from the model's own logits."""
    model = AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32)
    row = dataset[index]
    with torch.no_grad():
        logits = model(input_ids=row["input_ids"].unsqueeze(0)).logits[0]
    keep = row["loss_mask"].nonzero().flatten()
    labels = row["input_ids"][keep]
    return Reference.from_logits(logits[keep - 1], labels, top_k=top_k), labels


@pytest.fixture(scope="module")
def produced(world, tmp_path_factory):
    return world.produce(tmp_path_factory.mktemp("lossless"), encoding="lossless")


@pytest.mark.parametrize("index", [0, 17, 27])
def test_every_field_equals_the_models_own_logits(world, produced, index):
    expected, labels = oracle(world, world.dataset(), index, 16)
    rows = produced.read(index)
    ids, logprobs = decode(torch.from_numpy(rows["packed"].copy()).flatten(), 16)
    assert torch.equal(ids, expected.support_ids)
    torch.testing.assert_close(logprobs, expected.support_logprobs, rtol=0, atol=1e-5)
    for name in ("label_logprob", "label_mass", "logsumexp", "entropy", "n1", "n2"):
        found = torch.from_numpy(rows[name].astype(np.float64))
        torch.testing.assert_close(found, getattr(expected, name).double(), rtol=1e-5, atol=1e-5, msg=name)
    for name in ("ceil_n1", "ceil_n2"):
        assert rows[name].tolist() == getattr(expected, name).tolist()
    assert rows["label_checksum"] == label_checksum(labels.numpy())
    assert rows["mean_loss"] == pytest.approx(-expected.label_logprob.mean().item(), abs=1e-5)


def test_sample_covers_every_position_of_some_chats(world, produced):
    sample = produced.scalars({"support_logprobs"})
    chosen = sorted(np.random.default_rng(0).choice(len(world.chats), 4, replace=False).tolist())
    rows = [world.dataset()[index] for index in chosen]
    assert sample["support_logprobs"].shape == (sum(len(row["input_ids"]) - 1 for row in rows), 10)
    assert torch.equal(sample["mask"], torch.cat([row["loss_mask"][1:] for row in rows]).bool())


def payload(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "timings.jsonl"}


def test_equal_runs_give_equal_bytes(world, tmp_path):
    first = world.produce(tmp_path / "first")
    assert payload(first.directory) == payload(world.produce(tmp_path / "second").directory)


KILLED_RUN = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import json
from data_prep.reference import stage, writer

root, model, data = map(Path, sys.argv[1:4])
settings = json.loads(sys.argv[4], object_hook=lambda values: values and SimpleNamespace(**values))
write = writer.write_shard
def slow(*arguments):
    time.sleep(0.5)
    return write(*arguments)
writer.write_shard = slow
stage.run(settings, {"model": model, "data": data}, root / "output", root / "scratch", lambda *a, **k: None)
"""


@pytest.mark.e2e
def test_killed_run_resumes_and_ends_with_equal_bytes(world, tmp_path):
    (tmp_path / "killed" / "output").mkdir(parents=True)
    scratch = tmp_path / "killed" / "scratch"
    scratch.mkdir()
    settings = json.dumps(world.settings(), default=vars)
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path / "killed"), str(world.model), str(world.data), settings]
    process = subprocess.Popen(command, cwd=Path(writer.__file__).parents[2])
    deadline = time.monotonic() + 200
    while not (scratch / "shard_00001.bin.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (scratch / "sample.bin").exists()
    assert list((tmp_path / "killed" / "output").iterdir()) == []
    kept = (scratch / "shard_00000.bin").stat().st_ino
    os.truncate(scratch / "shard_00001.bin", 10)

    progress = []
    resumed = world.produce(tmp_path / "killed", report=lambda done, total, **metrics: progress.append(done))
    assert progress[0] > 0
    assert (scratch / "shard_00000.bin").stat().st_ino == kept
    assert payload(resumed.directory) == payload(world.produce(tmp_path / "whole").directory)


def test_damaged_cache_is_completed_from_its_whole_shards(world, tmp_path):
    whole = world.produce(tmp_path / "first")
    expected = payload(whole.directory)
    shard = whole.directory / "shard_00002.bin"
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(b"?" + content[1:])
    scratch = tmp_path / "second" / "scratch"
    scratch.mkdir(parents=True)
    assert writer.mend(whole.directory, scratch) == "shard_00002.bin"
    progress = []
    again = world.produce(tmp_path / "second", report=lambda done, total, **metrics: progress.append((done, total)))
    assert payload(again.directory) == expected
    assert progress[0][0] > progress[0][1] / 2


def test_scratch_of_other_data_is_not_used(world, tmp_path):
    world.produce(tmp_path, top_k=16)
    other = world.produce(tmp_path, top_k=17)
    assert other.layout.top_k == 17
    assert other.read(0)["packed"].shape[1] == 17


def test_truncated_chats_keep_only_their_tokens(world, tmp_path):
    for on_long_row in ("truncate_left", "truncate_right"):
        found = world.produce(tmp_path / on_long_row, on_long_row=on_long_row, max_length=30)
        dataset = world.dataset(on_long_row=on_long_row, max_length=30)
        assert [len(found.read(index)["packed"]) for index in range(len(found))] == [
            int(dataset[index]["loss_mask"].sum()) for index in range(len(dataset))
        ]


@pytest.mark.parametrize(("on_long_row", "max_length"), [("error", 128), ("truncate_left", 30), ("truncate_right", 30)])
def test_counts_of_the_prepared_data_predict_tokens_and_bytes(world, tmp_path, on_long_row, max_length):
    from data_prep.lengths import ChatLengths

    settings = world.settings(on_long_row=on_long_row, max_length=max_length, sample_sequences=32)
    found = world.produce(tmp_path, on_long_row=on_long_row, max_length=max_length, sample_sequences=32)
    measured = ChatLengths(world.tokenizer, settings.model, settings.data).chats(world.chats)
    counts = {
        "chats": len(measured),
        "tokens": sum(sum(chat.tokens) for chat in measured),
        "response_tokens": sum(sum(chat.supervised) for chat in measured),
    }
    assert counts["response_tokens"] == found.tokens
    assert counts["chats"] == len(found)
    predicted = predict_bytes({"tokens": {"sft_train": counts}}, vars(settings.cache))
    size = sum(path.stat().st_size for path in found.directory.iterdir() if path.name != "header.json")
    assert predicted - 1600 - 150 * len(found.shards) == pytest.approx(size, rel=0.02)  # its header would be most of it


def test_teacher_with_the_same_tokenizer_is_a_base(world, produced, tmp_path):
    teacher = world.produce(tmp_path, inputs={"student": world.model}, role="teacher", encoding="lossless")
    np.testing.assert_array_equal(teacher.column("packed"), produced.column("packed"))
    assert teacher.identity["role"] == "teacher"


def test_teacher_with_more_ids_never_names_one_the_student_lacks(world, tmp_path):
    from data_prep.micro_world.tokenizer import build_tokenizer

    larger = build_tokenizer(["\\boxed{", "never used"], 256)
    model = world.save_model(tmp_path / "teacher", 3, larger)
    found = world.produce(
        tmp_path, inputs={"model": model, "student": world.model}, role="teacher", top_k=64, encoding="lossless"
    )
    ids, logprobs = decode(torch.from_numpy(found.column("packed")).flatten(), 64)
    assert int(ids.max()) < len(world.tokenizer)
    assert (logprobs.exp().sum(-1) <= 1 + 1e-5).all()


def test_teacher_with_another_vocabulary_is_refused(world, tmp_path):
    from data_prep.micro_world.tokenizer import build_tokenizer

    other = build_tokenizer(["two words", "\\boxed{"], 256)
    model = world.save_model(tmp_path / "teacher", 3, other)
    with pytest.raises(ValueError, match=r"model\.teacher: its vocabulary differs .*boxed"):
        world.produce(tmp_path, inputs={"model": model, "student": world.model}, role="teacher")


def test_settings_that_cannot_work_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match=r"cache\.top_k=5000: the model has \d+ ids"):
        world.produce(tmp_path / "a", top_k=5000)
    with pytest.raises(ValueError, match=r"chat 0: \d+ tokens, data\.max_length=20"):
        world.produce(tmp_path / "b", max_length=20)


def test_model_that_scales_its_logits_is_refused(world, tmp_path):
    model = random_model("Granite", len(world.tokenizer), layers=1, logits_scaling=8.0, initializer_range=0.3)
    save(tmp_path / "granite", model, world.tokenizer)
    with pytest.raises(ValueError, match="scales or caps its logits"):
        world.produce(tmp_path, inputs={"model": tmp_path / "granite"})


def test_batches_respect_the_token_budget():
    lengths = [5, 900, 3, 40, 41, 5, 7]
    batches = list(length_batches(lengths, 100))
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 100


def test_shards_hold_whole_chats_up_to_the_limit():
    jobs = split_shards(np.array([60, 50, 0, 200, 10, 10]), 100)
    assert [job.chats for job in jobs] == [(0,), (1, 2), (3,), (4, 5)]
    assert [job.file for job in jobs] == [f"shard_{index:05d}.bin" for index in range(4)]


@pytest.mark.slow
@pytest.mark.e2e
def test_ray_workers_give_the_same_bytes(world, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "180")  # a loaded machine
    many = world.produce(tmp_path / "many", workers=2)
    assert payload(many.directory) == payload(world.produce(tmp_path / "one").directory)


def test_vllm_cannot_leave_out_ids(world):
    with pytest.raises(ValueError, match="vLLM cannot leave them out"):
        VllmProducer(world.model, world.settings(producer="vllm"), np.ones(5, dtype=bool))


# float32's own rounding: on this model a plain forward pass is up to 8e-5 nats from the same in float64.
VLLM_TOLERANCE = 1e-4


@pytest.mark.e2e
def test_vllm_agrees_with_the_forward_pass(world, tmp_path, monkeypatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM's kernels want wide heads
    inputs = {"model": world.save_model(tmp_path / "model", 0, world.tokenizer, **shape)}
    produced = world.produce(tmp_path / "forward", inputs=inputs, encoding="lossless")
    found = world.produce(tmp_path / "vllm", inputs=inputs, producer="vllm", encoding="lossless")
    assert found.fields == {"support_ids", "support_logprobs", "mean_loss", *VLLM_FIELDS}
    ids, logprobs = decode(torch.from_numpy(found.column("packed")).flatten(), 16)
    expected_ids, expected = decode(torch.from_numpy(produced.column("packed")).flatten(), 16)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=VLLM_TOLERANCE)
    assert (ids == expected_ids).float().mean() > 0.999  # neighbours may be equally probable
    for name in ("label_logprob", "n1", "n2"):
        np.testing.assert_allclose(found.column(name), produced.column(name), rtol=VLLM_TOLERANCE, atol=VLLM_TOLERANCE)
    with pytest.raises(ValueError, match="lacks entropy"):
        found.require({"entropy"})
