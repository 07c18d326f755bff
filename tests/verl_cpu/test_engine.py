"""The training engine of the CPU platform."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import types
import torch
from verl_cpu import engine

seen = []
parent = engine.CPUEngineWithLMHead.__mro__[1]
parent.__init__ = lambda self, *_: seen.append(float(torch.tensor([1e-20]) * 1e-20))
precision = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
model = types.SimpleNamespace(hf_config=types.SimpleNamespace(_attn_implementation="sdpa"))
settings = types.SimpleNamespace(strategy="fsdp2", mixed_precision=precision)
before = float(torch.tensor([1e-20]) * 1e-20)
engine.CPUEngineWithLMHead(model, settings, None, None)
many = torch.full((1_000_000,), 1e-20).square()  # of all threads
print(before > 0, seen, float(many.max()), torch.set_flush_denormal(True))
"""


def test_numbers_too_small_for_their_exponent_are_zero_in_training(cpu_environment):
    ran = subprocess.run([sys.executable, "-c", CODE], env=cpu_environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    expected = {"True [0.0] 0.0 True", "True [1e-40] 1e-40 False"}  # the second where the processor cannot
    assert ran.stdout.strip().splitlines()[-1] in expected
