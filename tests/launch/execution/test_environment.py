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


def test_two_runs_never_write_into_one_directory_of_a_tracker(monkeypatch):
    monkeypatch.delenv("TENSORBOARD_DIR", raising=False)
    settings = {"platform": {"name": "cpu", "threads": 1, "env": {"WANDB_DIR": "/shared/wandb"}}}
    one, two = (
        environment("t", settings, None, "/tmp/x", Path(f"/runs/sft/{name}.logs/trackers-sft-{name}"))
        for name in ("a-1", "a-2")
    )
    assert one["TENSORBOARD_DIR"] == "/runs/sft/a-1.logs/trackers-sft-a-1"
    assert (one["WANDB_DIR"], two["WANDB_DIR"]) == ("/shared/wandb/trackers-sft-a-1", "/shared/wandb/trackers-sft-a-2")
