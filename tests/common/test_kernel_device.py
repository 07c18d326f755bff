"""Triton launches on the current GPU, whatever its arguments are."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import torch

from common.kernel_device import on_device_of

ROOT = Path(__file__).parents[2]


def test_kernels_are_launched_on_the_tensor_s_device(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or contextlib.nullcontext())
    with on_device_of(SimpleNamespace(device=torch.device("cuda", 1))):
        pass
    assert entered == [torch.device("cuda", 1)]
    with on_device_of(torch.empty(1)):
        pass
    assert len(entered) == 1


def test_every_launch_is_within():
    launches = {}
    for package in ("common", "data_prep", "evaluation", "rl_stage", "sft_objectives"):
        for path in (ROOT / package).rglob("*.py"):
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                if "_kernel[" in line:
                    launches[f"{path.relative_to(ROOT)}:{number + 1}"] = "on_device_of(" in lines[number - 1]
    assert launches and all(launches.values()), launches
