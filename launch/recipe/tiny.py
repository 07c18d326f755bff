"""`--scale tiny`: a recipe's own walk in minutes on a CPU.

The objectives, stages, benchmarks and template of the recipe stay; its models become small random ones of the same
family, its data and problems fixture rows, its harness tasks two of our own, and every phase takes two steps. What it
computes says nothing about a method.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from launch.recipe.library import RECIPES, RecipeError

TINY = "tiny"
FOLDER = ".tiny"  # below run.root: the small models and tasks
LENGTH = 1024  # tokens of a chat; a token is a byte
RESPONSE = 16  # tokens of a response
PROBLEMS = RECIPES.parent / "data_prep" / "sources" / "fixtures" / "problems"
SFT = {
    "steps": 2, "batch_size": 4, "processes": 1, "sequence_parallel": 1, "tokens_per_micro_batch": 2 * LENGTH,
    "packed": False, "gradient_checkpointing": False, "validate_every": 0, "publish_steps": [],
}  # fmt: skip
CACHE = {
    "dtype": "float32", "workers": 1, "processes": 1, "tensor_parallel": 1, "tokens_per_batch": 2 * LENGTH,
    "sample_sequences": 4,
}  # fmt: skip
RL = {
    "steps": 2, "prompts": 4, "samples": 2, "mini_batch": 4, "max_prompt_length": 512, "max_response_length": RESPONSE,
    "processes": 1, "tensor_parallel": 1, "tokens_per_micro_batch": 4 * LENGTH, "gradient_checkpointing": False,
    "validate_every": 0, "publish_steps": [], "save_every": 0, "on_unreachable": "warn",
}  # fmt: skip
EVAL = {
    "dtype": "float32", "replicas": 1, "tensor_parallel": 1, "max_length": LENGTH, "resamples": 50, "batch_size": 64,
    "k": [1, 2], "base_minimum": None,
}  # fmt: skip
REWRITE = {
    "model": None, "max_tokens": RESPONSE, "max_length": 4 * LENGTH, "unanswered": "demonstration",
    "dtype": "float32", "replicas": 1, "tensor_parallel": 1, "batch_size": 64,
}  # fmt: skip
SAMPLING = {"num_samples": 2, "max_tokens": RESPONSE}
TASKS = {
    "tiny_choice": ("multiple_choice", 'doc_to_choice: ["1", "2", "3"]\ndoc_to_target: "{{answer}}"\n', "acc"),
    "tiny_text": (
        "generate_until",
        'doc_to_target: "{{answer}}"\ngeneration_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}\n',
        "exact_match",
    ),
}
CHOICE_TASKS = ("mmlu", "arc_easy", "arc_challenge", "piqa", "hellaswag")


def shrunk(tree: dict[str, Any]) -> dict[str, Any]:
    """The composed recipe at scale tiny; builds what it needs below run.root. Raises RecipeError (one line)."""
    root = tree["run"]["root"]
    if "://" in str(root):
        raise RecipeError(f"scale=tiny: run.root={root}: give a local directory")
    folder = Path(root).expanduser().resolve() / FOLDER
    found = {**tree, "platform": _platform(tree["platform"]), "model": _model(tree["model"], folder)}
    found["data"] = _data(tree["data"])
    found["rewrite"] = _rewrite(tree["rewrite"])
    found["sft"] = {**tree["sft"], **SFT}
    found["cache"] = {**tree["cache"], **CACHE}
    found["rl"] = _rl(tree["rl"])
    if tree["eval"]["enabled"]:
        found["eval"] = _eval(tree["eval"], found["data"], folder)
    return found


def _platform(given: Mapping[str, Any]) -> dict[str, Any]:
    from launch.recipe.files import read

    cpu = read(RECIPES / "platform" / "cpu.yaml", ("platform",))
    return {**given, **cpu, "env": {**given["env"], **cpu["env"]}, "placement": {}}


def _model(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from common.tiny_families import FAMILIES

    if given.get("pretrain") is not None:
        return dict(given)
    family = given.get("family")
    if family is None:
        raise RecipeError(f"scale=tiny: model.family is not set; allowed: {', '.join(FAMILIES)}")
    found = {**given, "path": _built(family, 0, folder), "revision": None, "attention": "sdpa", "dtype": "float32"}
    found |= {"chat_template": FAMILIES[family].template, "eos": FAMILIES[family].end, "shapes": None}
    for seed, role in enumerate(("teacher", "checkpoint"), 1):
        if given[role].get("path") is not None:
            found[role] = {**given[role], "path": _built(family, seed, folder), "revision": None}
    return found


def _built(family: str, seed: int, folder: Path) -> str:
    """The directory of a small model, which is made if it is not there."""
    target = folder / f"{family}-{seed}"
    if not target.is_dir():
        made = folder / f".{family}-{seed}-{os.getpid()}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        command = [sys.executable, "-m", "common.tiny_families", family, str(seed), str(made)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(RECIPES.parent), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RecipeError(f"scale=tiny: no small model of family {family}: {last}")
        made.replace(target)
    return str(target)


def _data(given: Mapping[str, Any]) -> dict[str, Any]:
    from data_prep import sources
    from data_prep.sources._published import PublishedSource

    found = {**given, "max_length": LENGTH, "on_long_row": "truncate_right", "files": dict(given["files"])}
    for part in ("sft", "rl"):
        entries = []
        for entry in given[part]:
            own = {key: value for key, value in entry.items() if key not in ("rows", "weight")}
            source = sources.load(own["source"])
            if isinstance(source, PublishedSource):
                own["path"] = str(source.fixture())
            entries.append(own)
        found[part] = entries
    return found


def _rewrite(given: Mapping[str, Any]) -> dict[str, Any]:
    """Few short answers of the base model; a random one is never right, so that demonstrations stay."""
    most = 1 if given["temperature"] == 0 else SAMPLING["num_samples"]
    return {**given, **REWRITE, "samples": min(given["samples"], most)}


def _rl(given: Mapping[str, Any]) -> dict[str, Any]:
    """A random model solves nothing: what leaves out problems that are never solved would leave out all of them."""
    found = {**given, **RL}
    found["filter"] = {**given["filter"], "enabled": False}
    found["dynamic_sampling"] = {**given["dynamic_sampling"], "enabled": False}
    found["overlong"] = {**given["overlong"], "buffer": RESPONSE // 2}
    found["probe"] = {**given["probe"], "prompts": 2, "samples": 2}
    return found


def _eval(given: Mapping[str, Any], data: dict[str, Any], folder: Path) -> dict[str, Any]:
    found = {**given, **EVAL, "benchmarks": [_sampled(one) for one in given["benchmarks"]]}
    found["held_out_chats"] = min(4, given["held_out_chats"])
    own = dict(data["files"]["benchmarks"])
    for entry in found["benchmarks"]:
        if "." not in entry["name"] and ":" not in entry["name"] and entry.get("source") in (None, "published"):
            fixture = _problems(entry["name"])
            if fixture is not None:
                entry["source"], own[entry["name"]] = "files", str(fixture)
    data["files"]["benchmarks"] = own
    if given["tasks"]:
        kinds = dict.fromkeys("tiny_choice" if one["name"] in CHOICE_TASKS else "tiny_text" for one in given["tasks"])
        found["tasks"] = [{"name": name, "num_fewshot": 0, "limit": 4, "chat": False} for name in kinds]
        found["task_files"] = str(_tasks(folder))
    names = [one["name"] for one in (*found["benchmarks"], *found["tasks"])]
    found["target"] = given["target"] if given["target"] in names else names[0]
    return found


def _sampled(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of eval.benchmarks with few short samples; greedy ones are all equal."""
    greedy = entry.get("temperature") == 0
    return {**entry, **SAMPLING, **({"num_samples": 1} if greedy else {})}


def _problems(name: str) -> Path | None:
    """Fixture problems of a published benchmark, by what grades it; None for another one."""
    from evaluation import benchmarks

    try:
        grader = benchmarks.load(name).grader
    except ConfigError:
        return None
    kind = grader if isinstance(grader, str) else "range"
    return PROBLEMS / f"{kind}.jsonl"


def _tasks(folder: Path) -> Path:
    """A directory with two harness tasks and their rows."""
    target = folder / "tasks"
    if not target.is_dir():
        made = folder / f".tasks-{os.getpid()}"
        made.mkdir(parents=True, exist_ok=True)
        rows = [{"question": f"{number} + {number} = ", "answer": number % 3} for number in range(4)]
        (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name, (kind, more, metric) in TASKS.items():
            (made / f"{name}.yaml").write_text(
                f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {target / 'rows.jsonl'}}}}}\n"
                f'test_split: test\noutput_type: {kind}\ndoc_to_text: "{{{{question}}}}"\n{more}'
                f"metric_list: [{{metric: {metric}}}]\nmetadata: {{version: 1.0}}\n"
            )
        made.replace(target)
    return target
