"""One vLLM engine that reloads another checkpoint answers like an engine started from it."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from common.errors import ConfigError
from verl_cpu import vllm_reload
from verl_cpu.vllm_reload import ReloadWorkerExtension

GENERATE = """
import gc, json, sys
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

def main():
    first, second = sys.argv[1:]
    sampling = SamplingParams(temperature=0, max_tokens=12, logprobs=1, ignore_eos=True)
    prompts = ["1+1=", "What is 7?", "The answer is"]

    def engine(path):
        return LLM(path, dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=4, seed=0,
                   worker_extension_cls="verl_cpu.vllm_reload.ReloadWorkerExtension", num_gpu_blocks_override=16)

    def answers(llm):
        outputs = [request.outputs[0] for request in llm.generate(prompts, sampling, use_tqdm=False)]
        return [[[token, row[token].logprob] for token, row in zip(o.token_ids, o.logprobs)] for o in outputs]

    llm = engine(first)
    result = {"first": answers(llm)}
    for name, path in (("reloaded", second), ("back", first)):
        llm.collective_rpc("reload_weights_from_directory", args=(path,))
        llm.reset_prefix_cache()
        result[name] = answers(llm)
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    result["fresh"] = answers(engine(second))
    print("RESULT " + json.dumps(result))

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", True), ("qwen3", False)])
def test_reloaded_engine_equals_fresh_engine(architecture, tied, tiny_model, cpu_environment, tmp_path):
    first, second = (tiny_model(architecture, tied, seed) for seed in (0, 1))
    program = tmp_path / "generate.py"
    program.write_text(GENERATE)
    finished = subprocess.run(
        [sys.executable, program, first, second],
        env=cpu_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
    )
    assert finished.returncode == 0, finished.stdout[-6000:]
    (line,) = (line for line in finished.stdout.splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    assert result["reloaded"] == result["fresh"]
    assert result["back"] == result["first"]
    assert result["first"] != result["fresh"]


def _checkpoint(directory, **shapes):
    directory.mkdir()
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, directory / "model.safetensors")
    return directory


def test_another_architecture_is_refused_before_anything_is_loaded(tmp_path):
    loaded = _checkpoint(tmp_path / "loaded", weight=(2, 3), bias=(2,))
    other = _checkpoint(tmp_path / "other", weight=(2, 4), bias=(2,))
    worker = ReloadWorkerExtension()
    worker.model_runner = SimpleNamespace(model_config=SimpleNamespace(model=str(loaded)))
    worker.reload_weights = pytest.fail
    with pytest.raises(ConfigError, match=r"other: tensor 'weight' .* differs in name or shape"):
        worker.reload_weights_from_directory(str(other))


def test_the_directory_that_an_engine_was_made_from_need_not_stay(tmp_path, monkeypatch):
    """A stage's scratch space is gone when the next stage takes over its engine."""
    first = _checkpoint(tmp_path / "first", weight=(2, 3))
    other = _checkpoint(tmp_path / "other", weight=(2, 3))
    shapes, reloaded = vllm_reload.tensor_shapes(first), []
    shutil.rmtree(first)
    worker = ReloadWorkerExtension()
    model_config = SimpleNamespace(model=str(first))
    worker.model_runner = SimpleNamespace(model_config=model_config, model=None)
    worker.reload_weights = lambda weights_path: reloaded.append(weights_path)
    monkeypatch.setattr(vllm_reload, "repack_output_layers", lambda model: None)
    worker.reload_weights_from_directory(str(other), shapes)
    assert reloaded == [str(other)]
    with pytest.raises(ConfigError, match=r"no .*safetensors file"):
        worker.reload_weights_from_directory(str(other))
