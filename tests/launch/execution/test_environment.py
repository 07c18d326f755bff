from __future__ import annotations

from pathlib import Path

from common.processes import ATTEMPT_VARIABLE
from launch.execution.environment import environment


def test_environment_hides_the_drivers_ray_and_carries_the_platforms(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "1.2.3.4:1")
    monkeypatch.setenv("RAY_JOB_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    settings = {"platform": {"name": "cpu", "threads": 3, "env": {"A": "b", "TOKENIZERS_PARALLELISM": "true"}}}
    env = environment("tag.1", settings, None, "/tmp/x", Path("/runs/sft/a.logs/trackers-sft-a-1"))
    assert "RAY_ADDRESS" not in env and "RAY_JOB_ID" not in env and "CUDA_VISIBLE_DEVICES" not in env
    assert (env["A"], env["TOKENIZERS_PARALLELISM"], env["OMP_NUM_THREADS"]) == ("b", "true", "3")
    assert (env["VERL_PLATFORM"], env[ATTEMPT_VARIABLE]) == ("cpu", "tag.1")
    settings["platform"]["name"] = "gpu"
    env = environment("tag.1", settings, "10.0.0.1:6379", "/tmp/x", Path("/t"))
    assert (env["RAY_ADDRESS"], env["CUDA_VISIBLE_DEVICES"]) == ("10.0.0.1:6379", "1") and "VERL_PLATFORM" not in env
