"""Real runs of the stage on the CPU: verl's trainer, Ray, vLLM."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
MINUTES = 60
pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(20 * MINUTES)]

# Some responses make it raise, some hang, the others get a score that differs within a group.
FLAKY = """
import time
def flaky(response, answer):
    if response[:1] in "abcdefgh":
        raise RuntimeError("no letters, please")
    if response[:1] in "0123456789":
        time.sleep(600)
    return sum(map(ord, response)) % 7 / 7
def right(response, answer):
    return True
def even(response, answer):
    return sum(map(ord, response)) % 2 == 0
"""


def environment(directory: pathlib.Path) -> dict[str, str]:
    """The environment in which launch starts a stage on the CPU platform."""
    (directory / "own_reward.py").write_text(FLAKY)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    platform = yaml.safe_load((ROOT / "recipes" / "platform" / "cpu.yaml").read_text())
    return (
        kept
        | platform["env"]
        | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}",
            "PYTHONUNBUFFERED": "1",
            "RL_STAGE_TEST": str(directory),
        }
    )


def processes_of(directory: pathlib.Path) -> list[int]:
    """Processes that were started under the `environment` of `directory` or of a directory in it."""
    needle = f"RL_STAGE_TEST={directory}/".encode()
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if any((entry + b"/").startswith(needle) for entry in path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(autouse=True)
def no_process_outlives_a_failed_test(tmp_path) -> Iterator[None]:
    yield
    for pid in processes_of(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


def start(command: list[str], directory: pathlib.Path, name: str) -> subprocess.Popen:
    with (directory / f"{name}.log").open("w") as file:
        return subprocess.Popen(
            command,
            env=environment(directory),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=directory,
            start_new_session=True,
        )


def run(command: list[str], directory: pathlib.Path, name: str, seconds: float) -> tuple[int, str]:
    log = directory / f"{name}.log"
    with log.open("w") as file:
        code = subprocess.run(
            command, env=environment(directory), stdout=file, stderr=subprocess.STDOUT, timeout=seconds, cwd=directory
        ).returncode
    return code, log.read_text()


def test_grpo_survives_a_kill_and_a_broken_reward(tiny_model, write_prompts, stage_command, tmp_path):
    """Two updates with a reward that raises and hangs; kill -9 after the first, then the same command again."""
    data = write_prompts(tmp_path / "data")
    command = stage_command(
        tmp_path,
        tiny_model,
        data,
        reward={"name": "own_reward.flaky", "timeout": 1.0},
        probe={"prompts": 2, "samples": 2},
    )
    log = tmp_path / "killed.log"
    stage = start(command, tmp_path, "killed")
    tracker = tmp_path / "scratch" / "checkpoints" / "latest_checkpointed_iteration.txt"
    timings = tmp_path / "scratch" / "timings.jsonl"  # verl measures a step after it has saved it

    def first_step_is_done() -> bool:
        return tracker.exists() and '"seconds"' in timings.read_text()

    assert wait_until(lambda: first_step_is_done() or stage.poll() is not None, 8 * MINUTES), log.read_text()[-3000:]
    assert stage.poll() is None, log.read_text()[-3000:]
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    # Ray's daemons die with the driver; vLLM's engine notices that its server is gone.
    assert wait_until(lambda: not processes_of(tmp_path), 5 * MINUTES), [
        pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()[:40] for pid in processes_of(tmp_path)
    ]

    code, output = run(command, tmp_path, "resumed", 8 * MINUTES)
    assert code == 0, output[-3000:]
    assert "LLMServerManager: ['127.0.0.1:" in output  # nothing of a private Ray listens on the network
    assert not processes_of(tmp_path)

    published = tmp_path / "output"
    measured = [json.loads(line) for line in (published / "timings.jsonl").read_text().splitlines()]
    assert [row["step"] for row in measured if "start_seconds" in row] == [0, 1]  # the second start is from step 1
    assert [row["step"] for row in measured if "seconds" in row] == [1, 2]  # and no step is made twice
    rows = [json.loads(line) for line in (published / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert row["probability_difference_max"] < 1e-5
        assert row["probability_pearson"] > 0.999
        assert {"reward", "pass_rate", "response_length", "entropy", "clip_fraction", "rewards_failed"} <= set(row)
    assert any(row["rewards_failed"] > 0 for row in rows[1:])
    assert json.loads((published / "checkpoints.json").read_text()) == {"final": 2, "best": 2, "steps": [2]}
    metrics = json.loads((published / "metrics.json").read_text())
    assert {"validation_pass_rate", "validation_pass_rate_before"} <= set(metrics)

    from safetensors.torch import load_file

    before, after = (
        load_file(path / "model.safetensors") for path in (tiny_model, published / "checkpoints" / "step_2")
    )
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def test_dapo_on_a_saturated_task_ends_with_a_message(tiny_model, write_prompts, stage_command, tmp_path):
    data = write_prompts(tmp_path / "data")
    command = stage_command(
        tmp_path,
        tiny_model,
        data,
        algorithm="dapo",
        clip_high=0.28,
        dynamic_sampling={"enabled": True, "max_batches": 2},
        reward={"name": "own_reward.right"},
    )
    code, output = run(command, tmp_path, "saturated", 12 * MINUTES)
    assert code != 0
    assert "SaturatedError: rl.dynamic_sampling.max_batches: step 1 dropped" in output
    assert not processes_of(tmp_path)


def rows_of(directory: pathlib.Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "output" / "curve.jsonl").read_text().splitlines()]


def weights_of(path: pathlib.Path) -> dict:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_dapo_samples_again_and_punishes_length(untied_model, write_prompts, stage_command, tmp_path):
    """Two steps of two optimizer updates with everything that DAPO adds; a random model rarely stops by itself."""
    data = write_prompts(tmp_path / "data")
    command = stage_command(
        tmp_path,
        untied_model,
        data,
        algorithm="dapo",
        samples=2,
        mini_batch=4,
        lr=1e-2,
        clip_high=0.28,
        loss_aggregation="token-mean",
        dynamic_sampling={"enabled": True, "max_batches": 10},
        overlong={"enabled": True, "buffer": 8, "penalty": 0.5},
        reward={"name": "own_reward.even", "correct": 1.0, "wrong": -1.0},
    )
    code, output = run(command, tmp_path, "dapo", 12 * MINUTES)
    assert code == 0, output[-3000:]
    first, second = rows_of(tmp_path)[1:]
    for row in (first, second):
        assert row["groups_dropped"] > 0
        assert row["pass_rate"] == 0.5  # of two responses exactly one is right in every group that is left
        assert row["overlong"] > 0.5
        assert -0.5 * row["overlong"] <= row["score"] < 0  # +1 and -1 cancel, the penalty is what remains
        assert row["probability_difference_max"] < 1e-5
    assert first["clip_fraction"] + second["clip_fraction"] > 0


def test_lora_trains_serves_and_publishes_the_merged_model(tiny_model, write_prompts, stage_command, tmp_path):
    data = write_prompts(tmp_path / "data")
    lora = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}
    command = stage_command(tmp_path, tiny_model, data, lora=lora, lr=1e-2, reward={"name": "own_reward.even"})
    code, output = run(command, tmp_path, "lora", 12 * MINUTES)
    assert code == 0, output[-3000:]
    # At step 2 vLLM must serve base and update together.
    assert rows_of(tmp_path)[2]["probability_difference_max"] < 1e-6
    assert rows_of(tmp_path)[2]["probability_pearson"] > 0.999
    before, after = weights_of(tiny_model), weights_of(tmp_path / "output" / "checkpoints" / "step_2")
    assert before.keys() == after.keys()
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {name for name in before if name.endswith("proj.weight")}


def test_colocate_async_trains(tiny_model, write_prompts, stage_command, tmp_path):
    data = write_prompts(tmp_path / "data")
    command = stage_command(tmp_path, tiny_model, data, mode="colocate_async", reward={"name": "own_reward.even"})
    code, output = run(command, tmp_path, "async", 12 * MINUTES)
    assert code == 0, output[-3000:]
    assert [row["step"] for row in rows_of(tmp_path)] == [0, 1, 2]
    before, after = weights_of(tiny_model), weights_of(tmp_path / "output" / "checkpoints" / "step_2")
    assert any((before[name] != after[name]).any() for name in before)
    assert not processes_of(tmp_path)


def test_the_filter_goes_on_after_a_kill_and_writes_the_same(tiny_model, write_prompts, stage_command, tmp_path):
    data = write_prompts(tmp_path / "data", rows=64)

    def command_in(directory: pathlib.Path) -> list[str]:
        return stage_command(
            directory,
            tiny_model,
            data,
            stage="rl_stage.filter",
            filter={"enabled": True, "samples": 16},
            reward={"name": "own_reward.even"},
        )

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    stage = start(command_in(killed), killed, "first")

    def shards() -> list[pathlib.Path]:
        return sorted(killed.glob("scratch/samples/*/*.parquet"))

    assert wait_until(lambda: shards() or stage.poll() is not None, 5 * MINUTES)
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    assert wait_until(lambda: not processes_of(killed), 2 * MINUTES)
    finished = {path: path.stat().st_mtime_ns for path in shards()}
    assert 0 < len(finished) < 4
    for directory in (killed, whole):
        code, output = run(command_in(directory), directory, "last", 5 * MINUTES)
        assert code == 0, output[-3000:]
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    outputs = [
        {path.name: path.read_bytes() for path in (directory / "output").iterdir()} for directory in (killed, whole)
    ]
    assert outputs[0] == outputs[1]
    metrics = json.loads(outputs[0]["metrics.json"])
    assert sum(metrics["histogram"].values()) == metrics["prompts"] == 64
    assert 0 < metrics["kept"] <= 64
