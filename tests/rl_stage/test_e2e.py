"""Real runs of the stage on the CPU: verl's trainer, Ray, vLLM."""

import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MINUTES = 60

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
"""


def environment(directory: pathlib.Path) -> dict[str, str]:
    (directory / "own_reward.py").write_text(FLAKY)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}",
        "PYTHONUNBUFFERED": "1",
        "VERL_PLATFORM": "cpu",
        "RL_STAGE_TEST": str(directory),
    }


def processes_of(directory: pathlib.Path) -> list[int]:
    """Processes that were started under this test's environment."""
    needle = f"RL_STAGE_TEST={directory}".encode()
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if needle in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


def run(command: list[str], directory: pathlib.Path, name: str, seconds: float) -> tuple[int, str]:
    log = directory / f"{name}.log"
    with log.open("w") as file:
        code = subprocess.run(
            command, env=environment(directory), stdout=file, stderr=subprocess.STDOUT, timeout=seconds, cwd=directory
        ).returncode
    return code, log.read_text()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(20 * MINUTES)
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
    with log.open("w") as file:
        stage = subprocess.Popen(
            command,
            env=environment(tmp_path),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            start_new_session=True,
        )
        tracker = tmp_path / "scratch" / "checkpoints" / "latest_checkpointed_iteration.txt"
        assert wait_until(lambda: tracker.exists() or stage.poll() is not None, 8 * MINUTES), log.read_text()[-3000:]
        assert stage.poll() is None, log.read_text()[-3000:]
        os.kill(stage.pid, signal.SIGKILL)
        stage.wait()
    # Ray's daemons die with the driver; vLLM's engine notices that its server is gone.
    assert wait_until(lambda: not processes_of(tmp_path), 60), [
        pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()[:200] for pid in processes_of(tmp_path)
    ]

    code, output = run(command, tmp_path, "resumed", 8 * MINUTES)
    assert code == 0, output[-3000:]
    assert "Resuming from" in output
    assert not processes_of(tmp_path)

    published = tmp_path / "output"
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


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(15 * MINUTES)
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
