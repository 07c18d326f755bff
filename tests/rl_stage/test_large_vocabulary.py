"""RL of a small model with a real model's vocabulary: its embedding is larger than any fixed buffer for weights.

A directory named in SMOLLM2 (SmolLM2-135M-Instruct, say) takes the place of the random model.
"""

import json
import os
import pathlib
import subprocess

import pytest

from rl_stage.config import CPU_BUCKET, verl_config, weight_bucket

VOCABULARY = 49_152  # SmolLM2's


def write_model(directory: pathlib.Path, hidden: int = 128) -> pathlib.Path:
    """A random Llama with the vocabulary of SmolLM2, whose embedding takes 24 MiB in float32."""
    from common.tiny_models import byte_tokenizer, ends_of, random_model, save

    tokenizer = byte_tokenizer()
    # verl lets vLLM sample no id that the tokenizer lacks, which in random weights is as likely as any other
    tokenizer.add_tokens([f"<{number}>" for number in range(VOCABULARY - len(tokenizer))])
    model = random_model(
        "Llama", VOCABULARY, hidden=hidden, layers=2, heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        initializer_range=0.1, **ends_of(tokenizer),
    )  # fmt: skip
    return save(directory, model, tokenizer)


def test_the_buffer_for_weights_holds_the_largest_tensor(cpu_settings, inputs, tmp_path):
    def bucket():
        config = verl_config(cpu_settings(), inputs, tmp_path)
        return config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes

    assert bucket() == CPU_BUCKET, "a model that is still to come"
    write_model(inputs["model"])
    assert bucket() == VOCABULARY * 128 * 4 / 2**20 == 24


def test_experts_and_half_precision_count_as_they_are_sent(tmp_path):
    """Each expert in a tensor of its own in the files, all of them in one in the model; float32, whatever the files."""
    import torch
    from safetensors.torch import save_file

    names = [
        f"model.layers.{n}.mlp.experts.{e}.{p}_proj.weight" for n in (0, 1) for e in range(8) for p in ("up", "down")
    ]
    tensors = {name: torch.zeros(512, 1024, dtype=torch.bfloat16) for name in names}
    save_file(tensors | {"model.norm.weight": torch.zeros(8)}, tmp_path / "model.safetensors")
    assert weight_bucket(tmp_path) == 2 * 8 * 512 * 1024 * 4 / 2**20 == 32


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_two_steps_of_rl_of_a_model_with_a_large_vocabulary(tmp_path, write_prompts, stage_command):
    given = os.environ.get("SMOLLM2")
    model = pathlib.Path(given) if given else write_model(tmp_path / "model")
    assert weight_bucket(model) > CPU_BUCKET
    command = stage_command(tmp_path, model, write_prompts(tmp_path / "data"), prompts=4, mini_batch=4, samples=2)
    with (tmp_path / "log.txt").open("w") as log:
        ran = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=2300)
    assert ran.returncode == 0, (tmp_path / "log.txt").read_text()[-4000:]
    rows = [json.loads(line) for line in (tmp_path / "output" / "curve.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["step"] > 0]
    assert [row["step"] for row in steps] == [1, 2]
    # stale or cut weights would show here
    assert all(row["probability_difference_max"] < 1e-3 for row in steps)
    assert (tmp_path / "output" / "checkpoints" / "step_2" / "model.safetensors").stat().st_size > 4 * VOCABULARY
