"""Settings, a tiny model and prompts for the RL stage's tests."""

import json
import pathlib
import sys
from types import SimpleNamespace

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
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


def _gpu_settings(group: str) -> SimpleNamespace:
    """The `rl` stage's settings of a GPU recipe that takes everything about RL from `recipes/rl/<group>.yaml`."""
    import tempfile

    from launch.compose import branches
    from launch.schema import Recipe
    from launch.stage import namespace

    with tempfile.TemporaryDirectory() as directory:
        recipe = pathlib.Path(directory) / "published.yaml"
        recipe.write_text(
            f"defaults: [base, {{rl: {group}}}, {{platform: gpu}}, _self_]\n"
            "model: {path: some/model, attention: flash_attention_2, dtype: bfloat16}\n"
            "platform: {gpus_per_node: 8}\nrl: {processes: 8}\n"
        )
        (branch,) = branches(str(recipe), [])
    tree = branch.recipe.model_dump()
    return namespace({name: tree[name] for name in ("rl", "data", "model", "platform", "seed")}, Recipe)


def _cpu_settings(**rl: object) -> SimpleNamespace:
    """Settings of a tiny run on the CPU platform."""
    import yaml

    from launch.schema import Recipe
    from launch.stage import namespace

    platform = yaml.safe_load((ROOT / "recipes" / "platform" / "cpu.yaml").read_text())
    tree = Recipe.model_validate({"model": {"path": "unused"}, "rl": TINY_RL | rl, "platform": platform}).model_dump()
    return namespace({name: tree[name] for name in ("rl", "data", "model", "platform", "seed")}, Recipe)


@pytest.fixture
def inputs(tmp_path) -> dict[str, pathlib.Path]:
    """Where a run would find its model and data; nothing is there."""
    return {"model": tmp_path / "model", "data": tmp_path / "data"}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A random fp32 byte-level Qwen2 model with tied embeddings and a ChatML tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    directory = tmp_path_factory.mktemp("tiny") / "model"
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=special[2],
        pad_token=special[0],
        additional_special_tokens=[special[1]],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.1,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


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
import json, pathlib, sys
from launch.schema import Recipe
from launch.stage import namespace
from rl_stage.rl import run
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
paths = {name: pathlib.Path(path) for name, path in request["paths"].items()}
def report(done, total, **metrics):
    print("REPORT", done, total, flush=True)
run(namespace(request["settings"], Recipe), {"model": paths["model"], "data": paths["data"]}, paths["output"],
    paths["scratch"], report)
"""


def _stage_command(directory: pathlib.Path, model: pathlib.Path, data: pathlib.Path, **rl: object) -> list[str]:
    """A command that runs the stage in a process of its own, as launch does, with output and scratch in `directory`."""
    import yaml

    from launch.schema import Recipe

    platform = yaml.safe_load((ROOT / "recipes" / "platform" / "cpu.yaml").read_text())
    tree = Recipe.model_validate({"model": {"path": "unused"}, "rl": TINY_RL | rl, "platform": platform}).model_dump()
    paths = {"model": model, "data": data, "output": directory / "output", "scratch": directory / "scratch"}
    for path in (paths["output"], paths["scratch"]):
        path.mkdir(parents=True, exist_ok=True)
    request = {
        "settings": {name: tree[name] for name in ("rl", "data", "model", "platform", "seed")},
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
