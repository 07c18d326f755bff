"""An exported model is loaded by transformers and by vLLM alone, in processes that know nothing of this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from small_world import SMALL

from launch.commands.line import call

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

CHAT = [{"role": "user", "content": "reverse abc"}]
TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
chat = tokenizer.apply_chat_template(json.loads(sys.argv[2]), add_generation_prompt=True, return_tensors="pt",
                                     return_dict=True)
ids = model.generate(**chat, max_new_tokens=12, do_sample=False)[0, chat["input_ids"].shape[1]:].tolist()
print("READ", json.dumps([chat["input_ids"][0].tolist(), ids, model.generation_config.eos_token_id]))
"""
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
engine = LLM(sys.argv[1], dtype="float32", max_model_len=128, enforce_eager=True, max_num_seqs=4)
given = SamplingParams(temperature=0.0, max_tokens=12)
one = engine.chat(json.loads(sys.argv[2]), given)[0]
print("READ", json.dumps([list(one.prompt_token_ids), list(one.outputs[0].token_ids)]))
"""


def read(code, directory, cwd):
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VERL_PLATFORM")}
    env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
    env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory), json.dumps(CHAT)],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.rpartition("READ ")[2].splitlines()[0])


def test_an_exported_model_answers_alike_in_transformers_and_in_vllm(tmp_path):
    chosen = [*SMALL, f"run.root={tmp_path / 'runs'}", "rl.enabled=false", "eval.enabled=false", "analyses=[]"]
    assert call(["run", "microworld", *chosen]) == 0
    target = tmp_path / "exported"
    assert call(["export", "microworld", *chosen, "--to", str(target), "--licence", "apache-2.0"]) == 0
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json"} <= {
        path.name for path in target.iterdir()
    }
    prompt, answer, eos = read(TRANSFORMERS, target, tmp_path)
    assert len(answer) >= 1 and eos is not None
    asked, answered = read(VLLM, target, tmp_path)
    assert asked == prompt, "the same template"
    assert answered == answer, "the same greedy answer, to the end of the turn"
