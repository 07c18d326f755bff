"""What a device holds, by arithmetic: against models, against measured peaks, and what is refused when planned."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from launch.graph.builder import make_plan
from launch.graph.estimate import Estimator
from launch.graph.show import plan_json, print_plan
from launch.recipe.recipe import Recipe
from launch.stages.memory import GIB, Memory, lora_parameters, shape_of, trained, typical_shape
from launch.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
QWEN_1P5B = {
    "hidden_size": 1536, "num_hidden_layers": 28, "vocab_size": 151_936, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "tie_word_embeddings": True,
}  # fmt: skip
QWEN_7B = {
    "hidden_size": 3584, "num_hidden_layers": 28, "vocab_size": 152_064, "num_attention_heads": 28,
    "num_key_value_heads": 4, "intermediate_size": 18_944, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS_30B = {
    "hidden_size": 2048, "num_hidden_layers": 48, "vocab_size": 151_936, "num_attention_heads": 32, "head_dim": 128,
    "num_key_value_heads": 4, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128,
    "num_experts_per_tok": 8, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_0P5B = {
    "hidden_size": 896, "num_hidden_layers": 24, "vocab_size": 151_936, "num_attention_heads": 14,
    "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": True,
}  # fmt: skip
FAMILIES = {
    "Qwen2": {},
    "Llama": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 24},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_counts_a_models_parameters(family):
    import torch
    import transformers

    fields = {
        "vocab_size": 500, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, **FAMILIES[family],
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**fields)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    shape = shape_of(json.loads(json.dumps(config.to_dict())))
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert shape.parameters == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(("config", "size"), [(QWEN_1P5B, 1.54e9), (QWEN_7B, 7.62e9), (EXPERTS_30B, 30.5e9)])
def test_published_sizes(config, size):
    assert shape_of(config).parameters == pytest.approx(size, rel=0.01)
    assert shape_of({"text_config": config, "vision_config": {}}) == shape_of(config)
    assert typical_shape(size).parameters == pytest.approx(size, rel=0.1) and not typical_shape(size).known


def test_a_low_rank_update_is_counted_as_peft_makes_it():
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
    config = LlamaConfig(**fields, num_attention_heads=4, num_key_value_heads=2)
    with torch.device("meta"):
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=5, target_modules="all-linear"))
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora_parameters(shape_of(config.to_dict()), 5) == counted
    parts = trained(shape_of(config.to_dict()), 1, {"rank": 5})
    assert parts["optimizer"] == 8 * counted and parts["weights"] > 8 * parts["gradients"]


def written(tmp_path, config):
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    return [
        f"model.path={tmp_path / 'model'}", "model.pretrain=null", "platform=gpu_node", "model.dtype=bfloat16",
        "eval.dtype=bfloat16", "cache.dtype=bfloat16", "model.attention=flash_attention_2", "rl.enabled=false",
        f"run.root={tmp_path}",
    ]  # fmt: skip


def memory_of(kind, overrides):
    plan = make_plan("microworld", overrides)
    estimator = Estimator(plan, Store(plan.root))
    return next(estimator.memory(stage) for stage in plan.stages.values() if stage.kind == kind)


def test_the_parts_of_a_known_case_are_the_textbooks(tmp_path):
    """1.54 billion parameters on one device: 16 bytes each for weights, gradients and two moments."""
    assert sum(trained(shape_of(QWEN_1P5B), 1, None).values()) == pytest.approx(16 * 1.54e9, rel=0.01)
    memory = memory_of("sft", [*written(tmp_path, QWEN_1P5B), "sft.batch_size=64"])
    eight = memory_of("sft", [*written(tmp_path, QWEN_1P5B), "sft.processes=8", "sft.batch_size=64"])
    assert isinstance(memory, Memory)
    assert eight.parts["optimizer"] == pytest.approx(memory.parts["optimizer"] / 8) == pytest.approx(1.54e9, rel=0.01)


def test_whole_logits_are_predicted_within_a_quarter_of_what_an_h200_held(tmp_path):
    """Item 5 of the GPU check, in GB: docs/gpu.md. All of the device counts, the CUDA context too."""
    case = ["data.max_length=2048", "sft.batch_size=16", "sft.tokens_per_micro_batch=16384", "sft.fused=off"]
    case += ["sft.gradient_checkpointing=true", "platform.device_memory=141"]
    assert memory_of("sft", [*written(tmp_path, QWEN_0P5B), *case]).total / 1e9 == pytest.approx(90.2, rel=0.25)


CHATS = ["data.max_length=4096", "sft.batch_size=64"]


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (QWEN_1P5B, ["sft.tokens_per_micro_batch=131072"], r"sft sft: training takes .* of each device,"
         r" platform\.device_memory=80 is 74\.5 GiB; set sft\.gradient_checkpointing=true$"),
        (QWEN_1P5B, ["sft.tokens_per_micro_batch=131072", "sft.gradient_checkpointing=true", "sft.fused=off"],
         r"\(logits .*; set sft\.fused=auto$"),
        (QWEN_1P5B,
         ["sft.tokens_per_micro_batch=32768", "sft.gradient_checkpointing=true", "platform.device_memory=36"],
         r"; set sft\.tokens_per_micro_batch=\d+$"),
        (QWEN_7B, ["sft.gradient_checkpointing=true"], r"\(optimizer 56\.7.*; set sft\.processes=(2|4)$"),
        (QWEN_7B, ["platform.gpus_per_node=1"], r"no setting makes it fit; name a larger device, more of them"),
        (QWEN_7B, ["platform.gpus_per_node=1", "sft.lora={rank: 16}", "sft.gradient_checkpointing=true"], None),
        (QWEN_7B, ["sft.processes=8", "sft.gradient_checkpointing=true"], None),
        (EXPERTS_30B, ["sft.processes=4", "sft.gradient_checkpointing=true"], r"; set sft\.processes=8$"),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_with_the_setting_that_makes_it_fit(tmp_path, config, overrides, message):
    given = [*written(tmp_path, config), *CHATS, *overrides, "eval.enabled=false"]
    plan = make_plan("microworld", list(dict.fromkeys(given)))
    if message is None:
        assert plan_json(plan)["total"]["missing"] > 0
        return
    with pytest.raises(ConfigError, match=message) as refused:
        plan_json(plan)
    if "; set " not in str(refused.value):
        return
    remedy = str(refused.value).rpartition("; set ")[2].split()
    changed = {text.partition("=")[0] for text in remedy}
    kept = [text for text in given if text.partition("=")[0] not in changed]
    assert plan_json(make_plan("microworld", list(dict.fromkeys([*kept, *remedy]))))["total"]["missing"] > 0


def test_rl_counts_vllm_beside_the_trainer_that_it_interrupts(tmp_path):
    given = [text for text in written(tmp_path, QWEN_1P5B) if text != "rl.enabled=false"]
    given += ["rl.max_response_length=2048", "rl.prompts=32", "rl.mini_batch=32", "rl.tokens_per_micro_batch=4096"]
    given += ["rl.gradient_checkpointing=true", "rl.samples=8"]
    given += ["eval.enabled=false"]
    fits = memory_of("rl", [*given, "rl.gpu_memory=0.5"])
    assert fits.phase == "sampling" and fits.parts["vLLM (rl.gpu_memory)"] == pytest.approx(40e9)
    with pytest.raises(ConfigError, match=r"rl .*: sampling takes .*; set rl\.gpu_memory=0\.4$"):
        plan_json(make_plan("microworld", [*given, "rl.gpu_memory=0.8"]))
    large = [text for text in given if not text.startswith("rl.tokens")]
    with pytest.raises(ConfigError, match=r"rl .*: training takes .*logits.*; set rl\.tokens_per_micro_batch=\d+$"):
        plan_json(make_plan("microworld", [*large, "rl.tokens_per_micro_batch=65536"]))


def test_the_plan_shows_gib_of_each_device(tmp_path, capsys):
    plan = make_plan("microworld", ["objective=lp_sft", f"run.root={tmp_path}"])
    rows = {row["stage"]: row for row in plan_json(plan)["stages"]}
    for kind in ("sft", "rl", "cache", "generate"):
        assert rows[kind]["device_bytes"] == pytest.approx(sum(rows[kind]["estimate"]["memory"].values()))
        assert 0 < rows[kind]["device_bytes"] < 8 * GIB
    assert rows["prepare"]["device_bytes"] is None
    print_plan(plan)
    assert "GiB each" in capsys.readouterr().out


def test_the_plan_says_which_stages_wait_for_one_another(tmp_path, capsys):
    given = [*written(tmp_path, QWEN_1P5B), "rl.processes=2", "platform.nodes=4", "platform.gpus_per_node=1"]
    given = [text for text in given if text != "rl.enabled=false"]
    given += ["objective=sft,dft", "eval.enabled=false", "rl.prompts=32", "rl.mini_batch=32", "sft.processes=2"]
    plan = make_plan("microworld", [*given, "sft.batch_size=64"])
    found = plan_json(plan)["stages"]
    assert {row["turns"] is not None for row in found if row["stage"] == "rl"} == {True}
    assert {row["turns"] for row in found if row["stage"] != "rl"} == {None}
    print_plan(plan)
    out = " ".join(capsys.readouterr().out.split())
    assert "2 rl stages over several nodes run one at a time, the others are queued: verl's queue" in out


# --- against measured peaks

VOCABULARY, LENGTH = 4000, 128


def write_world(directory, *, hidden=256, layers=3, intermediate=1024, tied=True):
    """A random model with a byte tokenizer, and chats that fill it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from common.tiny_models import byte_tokenizer, ends_of, random_model, save

    tokenizer = byte_tokenizer(512)
    model = random_model(
        "Qwen2", VOCABULARY, hidden=hidden, layers=layers, heads=4, key_value_heads=2, intermediate_size=intermediate,
        tie_word_embeddings=tied, max_position_embeddings=512, **ends_of(tokenizer),
    )  # fmt: skip
    save(directory / "model", model, tokenizer)
    rng = random.Random(0)
    (directory / "data").mkdir()
    for name, count in (("sft_train", 4), ("sft_val", 1)):
        rows = []
        for index in range(count):
            answer = "".join(rng.choice("abcdef") for _ in range(LENGTH - 36))
            turns = [{"role": "user", "content": "a" * 6}, {"role": "assistant", "content": answer}]
            rows.append({"id": f"{name}-{index}", "messages": turns})
        pq.write_table(pa.Table.from_pylist(rows), directory / "data" / f"{name}.parquet")


def settings_of_a_case(sft, objective="sft", **of_objective):
    given = Recipe.model_validate({"model": {"path": "unused"}}).model_dump(mode="json")
    given["platform"].update(name="cpu", threads=1, env={"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"})
    given["model"]["dtype"] = "float32"
    given["data"]["max_length"] = LENGTH
    given["sft"].update(steps=2, batch_size=4, tokens_per_micro_batch=2 * LENGTH, **sft)
    given["objective"] = {"name": objective, **of_objective}
    return Recipe.model_validate(given)


CASES = {
    "plain": (settings_of_a_case({}), {}),
    "recomputed": (settings_of_a_case({"gradient_checkpointing": True}), {}),
    "whole logits": (settings_of_a_case({"fused": "off"}), {}),
    "live base": (settings_of_a_case({}, "asft", weight=0.5), {}),
    "untied": (settings_of_a_case({}), {"hidden": 384, "layers": 2, "intermediate": 512, "tied": False}),
    "low rank": (settings_of_a_case({"lora": {"rank": 8, "alpha": 8}}), {}),
}


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_predictions_are_within_a_quarter_of_measured_peaks(tmp_path):
    from common.settings import describe
    from launch import stages
    from sft_objectives.trainer.ranks import rank_environment

    jobs, wanted = [], {}
    # the first of a process also pays for what it imports on the way
    for case, (settings, model) in {"imports": CASES["plain"], **CASES}.items():
        folder = tmp_path / case.replace(" ", "_")
        (folder / "scratch").mkdir(parents=True)
        write_world(folder, **model)
        inputs = {name: str(folder / name) for name in ("model", "data")} | {"base": str(folder / "model")}
        job = {"settings": describe(settings), "inputs": inputs, "scratch": str(folder / "scratch")}
        jobs.append(folder / "job.json")
        jobs[-1].write_text(json.dumps(job))
        shape = shape_of(json.loads((folder / "model" / "config.json").read_text()))
        shapes = {"model": shape, "base": shape}
        wanted[case] = stages.load("sft").memory(settings.model_dump(mode="json"), shapes)
    environment = rank_environment(settings_of_a_case({}), 0, 1) | {
        "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", str(HERE / "peak_of_training.py"), *map(str, jobs)]
    with (tmp_path / "log.txt").open("w") as log:
        ran = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=2300)
    assert ran.returncode == 0, (tmp_path / "log.txt").read_text()[-3000:]
    peaks = {
        case: json.loads(job.with_suffix(".peak.json").read_text())["peak"]
        for case, job in zip(wanted, jobs, strict=True)
    }
    del wanted["imports"]
    ratios = {case: round(memory.total / peaks[case], 3) for case, memory in wanted.items()}
    print(ratios)
    for case, memory in wanted.items():
        print(
            case, f"measured {peaks[case] / 2**20:.1f} MiB", {k: round(v / 2**20, 1) for k, v in memory.parts.items()}
        )
    assert all(0.75 <= ratio <= 1.25 for ratio in ratios.values()), ratios


PASSES = """
import gc, json, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
sys.path.insert(0, sys.argv[1])
from peak_of_training import forget_peak, resident
import torch
from transformers.models.qwen2 import modeling_qwen2
from data_prep.reference.producers.forward import ForwardProducer
from evaluation.held_out import forward

torch.set_num_threads(1)
directory, length = Path(sys.argv[2]), int(sys.argv[3])
chats = [np.arange(length) % 250 for _ in range(4)]

def cache():
    settings = SimpleNamespace(tokens_per_batch=2 * length, dtype="float32")
    producer = ForwardProducer(directory, settings, SimpleNamespace(attention="sdpa", trust_remote_code=False), None)
    forget_peak()
    list(producer.rows(chats, [np.arange(length - 1)] * 4, 16, lambda _: None))

def held_out():
    encoded = [(list(map(int, chat)), 1) for chat in chats]
    forward(directory, directory, encoded, dtype="float32", device="cpu", progress=lambda _: None)

found = {}
for measured in (cache, held_out):
    gc.collect()
    forget_peak()
    before = resident("VmRSS")
    measured()
    found[measured.__name__] = resident("VmHWM") - before
print(json.dumps(found))
"""


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_so_are_those_of_passes_without_gradients(tmp_path):
    from launch import stages

    length = 512
    write_world(tmp_path)
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PASSES, str(HERE), str(tmp_path / "model"), str(length)]
    ran = subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=1100
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    peaks = json.loads(ran.stdout.splitlines()[-1])
    shape = shape_of(json.loads((tmp_path / "model" / "config.json").read_text()))
    given = settings_of_a_case({}).model_dump(mode="json")
    given["data"]["max_length"] = given["eval"]["max_length"] = length
    given["cache"].update(tokens_per_batch=2 * length, dtype="float32")
    memories = {
        "cache": stages.load("cache").memory(given, {"model": shape}),
        "held_out": stages.load("generate").memory({**given, "held_out": True}, {"model": shape, "base": shape}),
    }
    ratios = {name: round(memory.total / peaks[name], 3) for name, memory in memories.items()}
    print(ratios, peaks, {name: memory.text() for name, memory in memories.items()})
    assert all(0.75 <= ratio <= 1.25 for ratio in ratios.values()), ratios


def test_the_bytes_of_a_pass_are_those_of_the_code_that_makes_it():
    from data_prep.reference.producers.forward import LOGITS_BYTES, STATISTICS_BYTES
    from evaluation.held_out import POSITIONS_PER_CHUNK
    from launch.stages.cache import PASS_LOGITS, PASS_STATISTICS
    from launch.stages.generate import HELD_OUT_ROWS

    named = {"cpu": "cpu", "gpu": "cuda"}
    assert {name: LOGITS_BYTES[device] for name, device in named.items()} == PASS_LOGITS
    assert {name: STATISTICS_BYTES[device] for name, device in named.items()} == PASS_STATISTICS
    assert POSITIONS_PER_CHUNK == HELD_OUT_ROWS


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("device_memory", [24, 80, 141])
def test_the_rows_of_a_gpus_chunk_are_those_of_the_code_that_makes_it(monkeypatch, live, device_memory):
    import torch

    from launch.stages.memory import head_in_chunks
    from sft_objectives import load
    from sft_objectives.fused import chunk_size

    objective = load("asft" if live else "sft")
    assert bool(objective.needs.live) == live
    monkeypatch.setattr(chunk_size, "_total_bytes", lambda device: int(1e9 * device_memory))
    weight = SimpleNamespace(shape=(151_936, 2560), device=torch.device("cuda"))
    rows = chunk_size.fixed_chunk_size(objective, weight)  # pyright: ignore[reportArgumentType]
    shape = shape_of({**QWEN_1P5B, "hidden_size": 2560})
    platform = {"name": "gpu", "device_memory": device_memory}
    beside = 2 * 4 * 1e6 * 2560 + 4 * 151_936 * 2560
    logits = head_in_chunks(shape, 1e6, live, 2, platform) - beside
    assert logits == rows * 151_936 * (16 if live else 2)
