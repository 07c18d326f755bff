import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep.micro_world.pretrain import learning_rate, plan_batches, run
from data_prep.prepare import run as prepare
from data_prep.sources.feeds import Feed

ROOT = Path(__file__).resolve().parents[3]
SIZES = {"pretrain_examples": 400, "sft_examples": 8, "sft_val_examples": 4, "rl_prompts": 4, "rl_val_prompts": 4}


def data_settings():
    feed = Feed(source="microworld", settings={**SIZES, "target_problems": 4, "skill_problems": 4})
    data = SimpleNamespace(seed=0, system_prompt=None, max_length=128, on_long_row="error", on_bad_row="error")
    data.format, data.on_unknown_field = "auto", "error"
    return SimpleNamespace(part="pretrain", name="", sources=[feed], grader="math", data=data)


def settings(**changes):
    options = {"hidden": 32, "layers": 2, "heads": 2, "tied": False, "steps": 24, "batch_size": 8, "lr": 3e-3}
    options |= {"architecture": "qwen2", "optimizer": "adamw", "weight_decay": 0.1, "skills": [], "seed": 0} | changes
    return SimpleNamespace(pretrain=SimpleNamespace(**options), platform=SimpleNamespace(name="cpu", threads=1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    output = tmp_path_factory.mktemp("data")
    prepare(data_settings(), {}, output, output, lambda *_, **__: None)
    return output


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def train(data, folder, report=lambda *_, **__: None, **changes):
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    run(settings(**changes), {"data": data}, output, scratch, report)
    return output


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("undisturbed"))


def test_artifact_loads_and_its_parts_agree(undisturbed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    steps = json.loads((undisturbed / "checkpoints.json").read_text())
    assert steps == {"final": 24, "best": 24, "steps": [24]}
    directory = undisturbed / "checkpoints" / "step_24"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    generation = json.loads((directory / "generation_config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["vocab_size"] == len(tokenizer)
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id
    assert config["pad_token_id"] == generation["pad_token_id"] == tokenizer.pad_token_id
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template
    ids = tokenizer("Compute 1+2.", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.isfinite().all()


def test_loss_falls(undisturbed):
    curve = [json.loads(line) for line in (undisturbed / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [10, 20, 24]
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.2
    assert json.loads((undisturbed / "metrics.json").read_text())["tokens"] == curve[-1]["tokens"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_at_any_step_the_bytes_are_the_same(data, undisturbed, tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr("data_prep.micro_world.pretrain.CHECKPOINT_EVERY", 7)
    monkeypatch.setattr("data_prep.micro_world.pretrain.LOG_EVERY", 5)
    whole = digests(train(data, tmp_path / "whole", optimizer=optimizer))
    for stop in (5, 10, 20):  # before, between and after checkpoints

        def report(done, total, stop=stop, **_):
            if done == stop:
                raise InterruptedError

        folder = tmp_path / str(stop)
        with pytest.raises(InterruptedError):
            train(data, folder, report, optimizer=optimizer)
        (folder / "output").rmdir()
        assert (folder / "scratch" / "checkpoint.safetensors").exists() == (stop > 7)
        assert digests(train(data, folder, optimizer=optimizer)) == whole
    weights = "checkpoints/step_24/model.safetensors"
    assert (whole[weights] == digests(undisturbed)[weights]) == (optimizer == "adamw")


@pytest.mark.e2e
def test_killed_by_the_kernel_in_another_process(data, tmp_path):
    """SIGKILL while checkpoints are written as fast as they can be, then a second process finishes the work."""
    program = """
import sys
from pathlib import Path
from types import SimpleNamespace
import data_prep.micro_world.pretrain as pretrain
pretrain.CHECKPOINT_EVERY = 1
pretrain.LOG_EVERY = 1
data, output, scratch = map(Path, sys.argv[1:4])
options = SimpleNamespace(architecture="qwen2", hidden=32, layers=1, heads=2, tied=True, steps=60, batch_size=4,
                          optimizer="muon", lr=1e-3, weight_decay=0.1, skills=["arithmetic"], seed=1)
settings = SimpleNamespace(pretrain=options, platform=SimpleNamespace(name="cpu", threads=1))
pretrain.run(settings, {"data": data}, output, scratch, lambda *_, **__: print("step", flush=True))
"""

    def start(name):
        for folder in ("output", "scratch"):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
        paths = [str(data), str(tmp_path / name / "output"), str(tmp_path / name / "scratch")]
        command = [sys.executable, "-c", program, *paths]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    process = start("killed")
    assert process.stdout is not None
    for _ in range(20):
        assert process.stdout.readline() == "step\n"
    time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    for name in ("killed", "whole"):
        process = start(name)
        process.communicate()
        assert process.returncode == 0
    assert digests(tmp_path / "killed" / "output") == digests(tmp_path / "whole" / "output")


def test_teacher_reads_only_its_skills(data, tmp_path):
    output = train(data, tmp_path, skills=["arithmetic"], steps=3)
    assert json.loads((output / "checkpoints.json").read_text())["final"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skills": ["latin"]}, "unknown latin; allowed: arithmetic, reverse"),
        ({"batch_size": 1000}, "only 400 documents"),
        ({"lr": 1e6}, "lower it"),
    ],
)
def test_bad_settings_are_refused(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path, **changes)


def test_data_without_pretraining_text_is_refused(data, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer").symlink_to(data / "tokenizer")
    with pytest.raises(ValueError, match=r"data\.source=microworld"):
        train(bare, tmp_path / "out")


def test_batches_cover_the_data_and_waste_little():
    lengths = np.random.default_rng(0).integers(20, 70, 5000)
    plan = plan_batches(lengths, 200, 32, seed=3)
    assert plan.shape == (200, 32)
    in_first_pass = plan[: 5000 // 32]
    assert len(np.unique(in_first_pass)) == in_first_pass.size
    widths = lengths[plan].max(axis=1)
    assert lengths[plan].sum() / (widths.sum() * 32) > 0.93
    assert (plan == plan_batches(lengths, 200, 32, seed=3)).all()
    assert (plan != plan_batches(lengths, 200, 32, seed=4)).any()


def test_learning_rate_warms_up_and_decays():
    rates = [learning_rate(step, 300, 1.0) for step in range(300)]
    assert rates[0] == pytest.approx(1 / 30)
    assert max(rates) == 1.0 == rates[29]
    assert rates[-1] < 0.03
    assert all(earlier >= later for earlier, later in pairwise(rates[30:]))
