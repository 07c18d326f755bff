"""Settings, a tiny model and prompts for the RL stage's tests."""

import json
import pathlib
import shutil
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TINY_RL = {
    "steps": 2,
    "prompts": 8,
    "samples": 4,
    "mini_batch": 8,
    "max_prompt_length": 64,
    "max_response_length": 16,
    "lr": 1e-3,
    "tokens_per_micro_batch": 4096,
    "gradient_checkpointing": False,
    "save_every": 1,
    "probe": {"prompts": 0},
    "reward": {"name": "has_boxed_answer"},
}


class ScriptedEngine:
    """An engine without vLLM: prompt n is answered rightly by its first `right(n)` samples; from its `cut`th on cut."""

    def __init__(self, right, cut=None):
        self.count, self.description, self.seen, self.requests = 1, {"vllm": "none"}, {}, 0
        self.right, self.cut = right, cut

    def run(self, shards, heartbeat):
        from evaluation.generation import Sample

        for number, requests in shards:
            samples = []
            for request in requests:
                prompt = request.prompt[0]
                drawn = self.seen[prompt] = self.seen.get(prompt, 0) + 1
                self.requests += 1
                text = rf"\boxed{{{prompt if drawn <= self.right(prompt) else 'no'}}}"
                ended = "stop" if self.cut is None or drawn < self.cut else "length"
                samples.append(Sample(text, ended, 1, request.seed))
            yield number, samples


@pytest.fixture
def scripted_engine():
    return ScriptedEngine


def _gpu_settings(group: str) -> Any:
    """Settings of a GPU recipe that takes everything about RL from `recipes/rl/<group>.yaml`."""
    import tempfile

    from launch.recipe.compose import branches

    with tempfile.TemporaryDirectory() as directory:
        recipe = pathlib.Path(directory) / "published.yaml"
        recipe.write_text(
            f"defaults: [base, {{rl: {group}}}, {{platform: gpu}}, _self_]\n"
            "model: {path: some/model, attention: flash_attention_2, dtype: bfloat16}\n"
            "platform: {gpus_per_node: 8}\nrl: {processes: 8}\n"
        )
        (branch,) = branches(str(recipe), [])
    return branch.recipe


def _cpu_settings(*, model: Any = None, **rl: object) -> Any:
    """Settings of a tiny run on the CPU platform."""
    import yaml

    from launch.recipe.recipe import Recipe

    platform = yaml.safe_load((ROOT / "recipes" / "platform" / "cpu.yaml").read_text())
    model = {"path": "unused"} | (model or {})
    return Recipe.model_validate({"model": model, "rl": TINY_RL | rl, "platform": platform})


@pytest.fixture
def inputs(tmp_path) -> dict[str, pathlib.Path]:
    """Where a run would find its model and data; nothing is there."""
    return {"model": tmp_path / "model", "data": tmp_path / "data"}


def _write_tiny_model(directory: pathlib.Path, tied: bool) -> pathlib.Path:
    from rl_stage.bench_inputs import write_model

    return write_model(directory, hidden=64, layers=2, heads=2, initializer_range=0.1, tied=tied)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A random model whose output head is its embedding."""
    return _write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", tied=True)


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory) -> pathlib.Path:
    """A random model with an output head of its own."""
    return _write_tiny_model(tmp_path_factory.mktemp("untied") / "model", tied=False)


@pytest.fixture
def model(tiny_model, tmp_path) -> pathlib.Path:
    """A copy of the tiny model that a test may break."""
    return pathlib.Path(shutil.copytree(tiny_model, tmp_path / "model"))


def _edit_json(path: pathlib.Path, **changes: object) -> None:
    """Change fields of a JSON file; `...` takes one out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@pytest.fixture
def recipe_template(tmp_path) -> pathlib.Path:
    """A chat template of the recipe's that spends 16 tokens of the byte tokenizer more than the model's own."""
    path = tmp_path / "recipe.jinja"
    path.write_text(
        "{{ '0123456789abcdef' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    return path


@pytest.fixture(scope="session")
def edit():
    return _edit_json


def _write_prompts(directory: pathlib.Path, rows: int = 32) -> pathlib.Path:
    """rl_train.parquet and rl_val.parquet of one-digit sums in verl's columns."""
    import pyarrow
    import pyarrow.parquet as pq

    directory.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", rows), ("val", 4)):
        pq.write_table(
            pyarrow.Table.from_pylist(
                [
                    {
                        "data_source": "sums",
                        "prompt": [{"role": "user", "content": f"{number % 9}+{number // 9 % 9}"}],
                        "ability": "math",
                        "reward_model": {"style": "rule", "ground_truth": str(number % 9 + number // 9 % 9)},
                        "extra_info": {"index": number, "split": name, "id": f"{name}-{number}"},
                    }
                    for number in range(count)
                ]
            ),
            directory / f"rl_{name}.parquet",
        )
    return directory


RUN = """
import importlib, json, pathlib, sys
from common.settings import rebuild
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
run = importlib.import_module(request["stage"]).run
paths = {name: pathlib.Path(path) for name, path in request["paths"].items()}
def report(done, total, **metrics):
    print("REPORT", done, total, flush=True)
run(rebuild(request["settings"]), {"model": paths["model"], "data": paths["data"]}, paths["output"],
    paths["scratch"], report)
"""


def _stage_command(
    directory: pathlib.Path, model: pathlib.Path, data: pathlib.Path, stage: str = "rl_stage.stage", **rl: object
) -> list[str]:
    """A command that runs a stage in a process of its own, as launch does, with output and scratch in `directory`."""
    from common.settings import describe

    paths = {"model": model, "data": data, "output": directory / "output", "scratch": directory / "scratch"}
    for path in (paths["output"], paths["scratch"]):
        path.mkdir(parents=True, exist_ok=True)
    request = {
        "stage": stage,
        "settings": describe(_cpu_settings(**rl)),
        "paths": {name: str(path) for name, path in paths.items()},
    }
    (directory / "request.json").write_text(json.dumps(request))
    return [sys.executable, "-c", RUN, str(directory / "request.json")]


@pytest.fixture(scope="session")
def gpu_settings():
    return _gpu_settings


@pytest.fixture(scope="session")
def cpu_settings():
    return _cpu_settings


@pytest.fixture(scope="session")
def write_prompts():
    return _write_prompts


@pytest.fixture(scope="session")
def stage_command():
    return _stage_command
