"""Which runs may share a session, and what becomes of it; a warm run is a cold one (slow)."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rl_stage import warm
from rl_stage.config import verl_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def key(tmp_path, model, cpu_settings):
    """The key of a run on a model of its own, with changed settings."""

    def found(directory: Path = model, seed: int = 0, **rl: Any) -> str:
        settings = cpu_settings(warm=True, **rl).model_copy(update={"seed": seed})
        scratch = tmp_path / f"scratch{seed}"
        config = verl_config(settings, {"model": directory, "data": tmp_path / f"data{seed}"}, scratch)
        return warm.key_of(settings, config, directory)

    return found


def test_weights_seed_and_data_may_differ(key, model, tmp_path, monkeypatch):
    import shutil

    from safetensors.torch import load_file, save_file

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    other = Path(shutil.copytree(model, tmp_path / "other"))
    tensors = {name: value + 1 for name, value in load_file(other / "model.safetensors").items()}
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    assert key() and key() == key(other) == key(seed=3) == key(step_timeout=5.0)


def test_anything_else_may_not(key, model, edit, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    first = key()
    for changes in ({"lr": 1e-4}, {"samples": 2}, {"max_response_length": 8}, {"reward": {"name": "exact"}}):
        assert key(**changes) not in ("", first)
    edit(model / "generation_config.json", temperature=0.5)
    assert key() != first


def test_how_to_sample_may_be_written_in_other_words(key, model, edit, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path, said = model / "generation_config.json", {"eos_token_id": 2, "temperature": 1.0}
    path.write_text(json.dumps(said))
    first = key()
    edit(path, eos_token_id=[2], _from_model_config=False, transformers_version="6")
    assert key() == first
    for changes in ({"eos_token_id": [2, 7]}, {"temperature": 0.5}, {"_from_model_config": True}):
        path.write_text(json.dumps(said | changes))
        assert key() != first


def test_what_cannot_begin_anew_shares_nothing(key, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert key(mode="colocate_async") == key(pause_at=1) == key(verl={"reward.num_workers": 1}) == ""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert key() == ""


def test_variables_count_as_the_process_has_them(model, cpu_settings, tmp_path, monkeypatch):
    """A run that follows another one in a process reads what that one's session has set."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = cpu_settings(warm=True)
    later = settings.platform.model_copy(update={"env": settings.platform.env | {"OMP_NUM_THREADS": "7"}})
    config = verl_config(settings, {"model": model, "data": tmp_path}, tmp_path / "scratch")
    first = warm.key_of(settings, config, model)
    assert first and first == warm.key_of(settings.model_copy(update={"platform": later}), config, model)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert first != warm.key_of(settings, config, model)


class Ended:
    """Stands for what a session would end."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def sessions(monkeypatch):
    monkeypatch.setattr(warm, "_kept", None)
    monkeypatch.setattr(warm.Session, "prepare", lambda self, settings: None)


def used(*, keeps: bool = True, error: type[BaseException] | None = None) -> tuple[warm.Session, Ended]:
    """A session through one run."""
    ended = Ended()
    try:
        with warm.kept_session() as session:
            session.at_end(ended)
            session.warm, session.parts = keeps, {}
            if error is not None:
                raise error("of the run")
    except BaseException as found:
        assert error is not None and isinstance(found, error)
    return session, ended


def test_a_session_is_left_to_the_next_run(sessions):
    first, ended = used()
    second, _ = used()
    assert second is first and not ended.count
    warm.close_kept()
    assert ended.count == 1
    third, _ = used()
    assert third is not first


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_ends_it(sessions, error):
    first, ended = used()
    second, own = used(error=error)
    assert second is first and ended.count == own.count == 1
    assert warm._kept is None and first.parts is None


@pytest.mark.parametrize("gone", [False, True])
def test_a_session_of_which_a_worker_is_gone_is_begun_again(sessions, monkeypatch, gone):
    import ray

    def get(_):
        if gone:
            raise ray.exceptions.RayActorError()

    begun = Ended()
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(warm, "key_of", lambda *_: "key")
    monkeypatch.setattr(warm, "demand", lambda _: None)
    monkeypatch.setattr(warm, "verl_session", lambda *_: contextlib.nullcontext(begun()))
    for _ in range(2):
        with warm.kept_session() as session:
            session.open(None, None, Path())
            session.parts = {}
    assert begun.count == 1 + gone
    warm.close_kept()


def test_a_run_that_cannot_be_renewed_ends_its_own(sessions):
    _, ended = used(keeps=False)
    assert ended.count == 1 and warm._kept is None


RUN = """
import json, pathlib, sys
from common.settings import rebuild
from rl_stage.stage import run
for path in sys.argv[1:]:
    request = json.loads(pathlib.Path(path).read_text())
    paths = {name: pathlib.Path(path) for name, path in request["paths"].items()}
    run(rebuild(request["settings"]), {"model": paths["model"], "data": paths["data"]}, paths["output"],
        paths["scratch"], lambda *_, **__: None)
    print("ENDED", path, flush=True)
"""


SEEDED = """
from rl_stage.agent_loop import ScoredSingleTurnAgentLoop, request_seed

class Seeded(ScoredSingleTurnAgentLoop):
    async def run(self, sampling_params, **row):
        seed = request_seed(self.rollout_config.seed, row["global_steps"], row["index"], row.get("session_id", 0))
        return await super().run({**sampling_params, "seed": seed}, **row)
"""


@pytest.fixture
def seeded(tmp_path) -> dict[str, Any]:
    """verl's keys with which a CPU draws the same responses in every run: a seed for each, and one at a time."""
    (tmp_path / "seeded.py").write_text(SEEDED)
    loops = tmp_path / "loops.yaml"
    loops.write_text("- {name: scored_single_turn, _target_: seeded.Seeded}\n")
    rollout = {"agent.agent_loop_config_path": str(loops), "agent.num_workers": 1, "max_num_seqs": 1}
    return {f"actor_rollout_ref.rollout.{key}": value for key, value in rollout.items()}


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8, "target_modules": "all-linear"}])
def test_a_warm_run_is_a_cold_one(tiny_model, write_prompts, stage_command, tmp_path, seeded, lora):
    """The same responses, log-probabilities, updates and published weights in both."""
    import os
    import shutil
    import subprocess

    import yaml
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    tensors = {name: value * 1.1 for name, value in load_file(other / "model.safetensors").items()}
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    data = write_prompts(tmp_path / "data")
    runs = {"first": tiny_model, "warm": other, "cold": other}
    given = {"warm": True, "verl": seeded, "lora": lora, "kl_weight": 0.0 if lora else 0.01}
    given["probe"] = {"prompts": 2, "samples": 2}
    requests = {name: stage_command(tmp_path / name, model, data, **given)[-1] for name, model in runs.items()}
    platform = yaml.safe_load((ROOT / "recipes" / "platform" / "cpu.yaml").read_text())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | platform["env"] | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    for names in (("first", "warm"), ("cold",)):
        ran = subprocess.run(
            [sys.executable, "-c", RUN, *(requests[name] for name in names)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=700,
        )  # fmt: skip
        assert ran.returncode == 0, (ran.stdout + ran.stderr)[-24000:]
    rows = {name: (tmp_path / name / "output" / "curve.jsonl").read_text().splitlines() for name in runs}
    warm_rows, cold_rows = ([json.loads(line) for line in rows[name]] for name in ("warm", "cold"))
    assert [row["step"] for row in warm_rows] == [0, 1, 2]
    assert warm_rows == cold_rows != [json.loads(line) for line in rows["first"]]
    weights = {
        name: load_file(tmp_path / name / "output" / "checkpoints" / "step_2" / "model.safetensors") for name in runs
    }
    assert all((weights["warm"][name] == value).all() for name, value in weights["cold"].items())
    starts = {
        name: json.loads((tmp_path / name / "output" / "timings.jsonl").read_text().splitlines()[0])["start_seconds"]
        for name in runs
    }
    assert starts["warm"] < starts["first"] / 2  # Ray and the imports were there
