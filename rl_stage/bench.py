"""Our RL stage beside stock `verl.trainer.main_ppo` with the same keys: `python -m rl_stage.bench [--json]`.

The two run in turn, each in processes of its own, from the same model and prompts, with the same reward, batch, group
and lengths; `rows` holds every run. Both write verl's own JSONL log, and this process notes when a line arrives:

    step_time_ratio  median seconds from one step's line to the next, ours over stock's, without the first step (which
                     warms up) and the last (which saves a checkpoint)
    startup_ratio    median seconds from the command to the line of the validation before training, ours over stock's
    peak_memory_gb   largest memory of all processes of one of our runs, pages they share counted once

`step_cpu_ratio` and `startup_cpu_ratio` are the same of processor seconds (of all processes of a run), which other
work on the machine hardly changes.

Stock verl polls its rollouts every 2 s and starts 8 reward workers, which no small model needs: it gets our interval of
0.05 s through verl's sampler option, and one reward worker. Without --model and --data the model is random (the size of
the micro-world's), so that most responses have the full length. CPU platform only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from rl_stage.config import POLL_SECONDS
from rl_stage.rl import LOGICAL_CPUS, OBJECT_STORE_BYTES, PROJECT, end_processes

if TYPE_CHECKING:
    import psutil

MAPPINGS = ("env", "placement", "settings", "verl")  # fields of a recipe that stay plain dicts
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
STOCK_SAMPLER = f"""\
from functools import partial
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
Polling = partial(ReplayBuffer, poll_interval={POLL_SECONDS})
"""
# Ours alone: extension points of verl that only our side fills, and where each side writes.
OURS_ALONE = (
    "actor_rollout_ref.model.external_lib",
    "actor_rollout_ref.rollout.agent.default_agent_loop",
    "reward.num_workers",
    "trainer.default_local_dir",
    "trainer.v1.sampler",
)
OURS = """
import json, pathlib, sys
from rl_stage.bench import namespace
from rl_stage.rl import run
request = json.loads(pathlib.Path(sys.argv[1]).read_text())
paths = {name: pathlib.Path(path) for name, path in request["paths"].items()}
run(namespace(request["settings"]), paths, paths["output"], paths["scratch"], lambda done, total, **metrics: None)
"""


def namespace(value: Any, name: str = "") -> Any:
    """A tree of mappings as the SimpleNamespace tree that a stage receives."""
    if isinstance(value, Mapping) and name not in MAPPINGS:
        return SimpleNamespace(**{str(key): namespace(item, str(key)) for key, item in value.items()})
    return value


def _recipe(name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(PROJECT / "recipes" / f"{name}.yaml")))


def stage_settings(prompts: int, samples: int, steps: int) -> dict[str, Any]:
    """The stage's settings as JSON: the recipe's defaults, the CPU platform, and the micro-world's lengths."""
    base, cpu = _recipe("base"), _recipe("platform/cpu")
    platform = base["platform"] | cpu
    rl = base["rl"] | {
        "steps": steps,
        "prompts": prompts,
        "samples": samples,
        "mini_batch": prompts,
        "max_prompt_length": 64,
        "max_response_length": 48,
        "gradient_checkpointing": False,
        "save_every": 0,
        "probe": base["rl"]["probe"] | {"prompts": 0},
        "reward": base["rl"]["reward"] | {"name": "boxed"},
        "verl": {"trainer": {"logger": ["file"]}},
    }
    return {"rl": rl, "data": base["data"], "model": base["model"], "platform": platform, "seed": base["seed"]}


def write_model(
    directory: pathlib.Path,
    hidden: int = 192,
    layers: int = 4,
    heads: int = 6,
    initializer_range: float = 0.02,
    tied: bool = True,
) -> pathlib.Path:
    """A random fp32 byte-level Qwen2 model with a ChatML tokenizer, as a Hugging Face directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

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
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
        bos_token_id=None,
        **ends,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.update(**ends)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_prompts(directory: pathlib.Path) -> pathlib.Path:
    """rl_train.parquet and rl_val.parquet of sums, in verl's columns."""
    import pyarrow
    import pyarrow.parquet as pq

    directory.mkdir()
    for name, count in (("train", 512), ("val", 16)):
        rows = [
            {
                "data_source": "sums",
                "prompt": [{"role": "user", "content": f"{number} + {7 * number} = "}],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": str(8 * number)},
                "extra_info": {"index": number, "split": name, "id": f"{name}-{number}"},
            }
            for number in range(count)
        ]
        pq.write_table(pyarrow.Table.from_pylist(rows), directory / f"rl_{name}.parquet")
    return directory


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of `ours` whose values differ from `theirs`, sections that only `ours` has as a whole."""
    for name, value in ours.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from differences(value, other, f"{prefix}{name}.")
        elif name not in theirs or value != other:
            yield f"{prefix}{name}", value


def hydra_value(value: Any) -> str:
    """`value` in the grammar of Hydra's command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    return f"'{value}'" if isinstance(value, str) else repr(value)


def stock_command(settings: SimpleNamespace, paths: Mapping[str, pathlib.Path]) -> list[str]:
    """`python -m verl.trainer.main_ppo` with every key that our stage sets, but for our own extensions."""
    from omegaconf import OmegaConf

    from rl_stage.config import compose_verl, verl_config

    def plain(config: Any) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], OmegaConf.to_container(config))

    keys = dict(differences(plain(verl_config(settings, paths, paths["scratch"])), plain(compose_verl())))
    keys = {name: value for name, value in keys.items() if not name.startswith(OURS_ALONE)}
    sampler = paths["scratch"] / "stock_sampler.py"
    sampler.write_text(STOCK_SAMPLER)
    keys |= {
        "actor_rollout_ref.model.external_lib": "verl_cpu.engine",
        "reward.num_workers": 1,
        "trainer.default_local_dir": str(paths["scratch"] / "checkpoints"),
        "trainer.v1.sampler.custom_sampler.path": str(sampler),
        "trainer.v1.sampler.custom_sampler.name": "Polling",
        "ray_kwargs.ray_init.address": "local",
        "ray_kwargs.ray_init.num_cpus": LOGICAL_CPUS,
        "ray_kwargs.ray_init.num_gpus": settings.rl.processes,
        "ray_kwargs.ray_init.include_dashboard": False,
        "ray_kwargs.ray_init.object_store_memory": OBJECT_STORE_BYTES,
        "ray_kwargs.ray_init._node_ip_address": "127.0.0.1",
        "hydra.run.dir": str(paths["scratch"]),
        "hydra.output_subdir": None,
    }
    overrides = [f"{'' if key.startswith('hydra.') else '++'}{key}={hydra_value(v)}" for key, v in keys.items()]
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]


def ours_command(settings: dict[str, Any], paths: Mapping[str, pathlib.Path]) -> list[str]:
    """Our stage as its own process, as launch starts it."""
    request = paths["scratch"].parent / "request.json"
    request.write_text(json.dumps({"settings": settings, "paths": {name: str(path) for name, path in paths.items()}}))
    return [sys.executable, "-c", OURS, str(request)]


def environment(settings: SimpleNamespace, log: pathlib.Path) -> dict[str, str]:
    """What the recipe's platform sets, which both sides need."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CUDA_"))}
    return (
        kept
        | settings.platform.env
        | {
            "OMP_NUM_THREADS": str(settings.platform.threads),
            "PYTHONPATH": str(PROJECT),
            "RAY_DEDUP_LOGS": "0",
            "VERL_FILE_LOGGER_PATH": str(log),
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
    )


def memory_bytes(processes: list[psutil.Process]) -> int:
    """Proportional set size of all of them: memory that several share counts once."""
    import psutil

    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return total


def cpu_seconds(processes: Iterable[psutil.Process], known: dict[psutil.Process, float]) -> float:
    """Processor time of all of them since they began; `known` remembers those that have ended."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            known[process] = times.user + times.system
    return sum(known.values())


def measure(command: list[str], env: Mapping[str, str], log: pathlib.Path, steps: int) -> dict[str, Any]:
    """Run `command` until it ends; when each line of verl's log at `log` arrived, in seconds from the start and in
    processor seconds, and the peak memory of its processes in bytes. Raises RuntimeError, with the end of its output,
    if it fails."""
    import psutil

    output = log.with_suffix(".out")
    arrivals: list[float] = []
    processor: list[float] = []
    peak, sampled = 0, 0.0
    seen: set[psutil.Process] = set()
    known: dict[psutil.Process, float] = {}
    began = time.monotonic()
    with output.open("w") as file:
        child = subprocess.Popen(command, env=dict(env), stdout=file, stderr=subprocess.STDOUT, cwd=log.parent)
    root = psutil.Process(child.pid)
    try:
        while child.poll() is None:
            time.sleep(0.02)
            now = time.monotonic() - began
            new = (log.read_bytes().count(b"\n") if log.exists() else 0) - len(arrivals)
            if not new and now - sampled < 1.0:
                continue
            with contextlib.suppress(psutil.Error):
                seen |= {root, *root.children(recursive=True)}
            seconds = cpu_seconds(seen, known)
            arrivals += [now] * new
            processor += [seconds] * new
            if now - sampled > 1.0:
                sampled = now
                peak = max(peak, memory_bytes([process for process in seen if process.is_running()]))
    finally:
        end_processes([process for process in seen if process.is_running()])
    if child.returncode or len(arrivals) != steps + 1:
        raise RuntimeError(f"{' '.join(command)[:200]} ... ended with {child.returncode}: {output.read_text()[-2000:]}")
    return {"arrivals": arrivals, "processor": processor, "peak": peak}


def row(side: str, number: int, found: Mapping[str, Any], log: pathlib.Path) -> dict[str, Any]:
    """One run's figures: seconds, gigabytes, and the mean length of its responses in tokens."""
    data = [json.loads(line)["data"] for line in log.read_text().splitlines()[2:-1]]

    def between(times: list[float]) -> list[float]:
        return [round(later - sooner, 3) for sooner, later in itertools.pairwise(times[1:-1])]

    return {
        "side": side,
        "round": number,
        "startup_seconds": round(found["arrivals"][0], 2),
        "startup_cpu_seconds": round(found["processor"][0], 2),
        "step_seconds": between(found["arrivals"]),
        "step_cpu_seconds": between(found["processor"]),
        "response_tokens": round(statistics.mean(entry["response_length/mean"] for entry in data), 1),
        "peak_memory_gb": round(found["peak"] / 1e9, 2),
    }


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratios over all rounds, and the lowest and highest ratio of step times of one round."""
    sides = {side: [row for row in rows if row["side"] == side] for side in ("ours", "stock")}

    def medians(name: str) -> tuple[float, float]:
        ours, stock = (
            statistics.median(v for row in found for v in (row[name] if isinstance(row[name], list) else [row[name]]))
            for found in (sides["ours"], sides["stock"])
        )
        return ours, stock

    result: dict[str, Any] = {}
    for kind in ("step_seconds", "startup_seconds", "step_cpu_seconds", "startup_cpu_seconds"):
        ours, stock = medians(kind)
        name = kind.removesuffix("_seconds")
        result["step_time_ratio" if name == "step" else f"{name}_ratio"] = round(ours / stock, 4)
        result |= {kind: round(ours, 3), f"stock_{kind}": round(stock, 3)}
    rounds = [
        statistics.median(ours["step_seconds"]) / statistics.median(stock["step_seconds"])
        for ours, stock in zip(sides["ours"], sides["stock"], strict=True)
    ]
    return result | {
        "step_time_ratio_low": round(min(rounds), 4),
        "step_time_ratio_high": round(max(rounds), 4),
        "peak_memory_gb": max(row["peak_memory_gb"] for row in sides["ours"]),
        "stock_peak_memory_gb": max(row["peak_memory_gb"] for row in sides["stock"]),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m rl_stage.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--model", type=pathlib.Path, help="Hugging Face directory, float32 (default: a random model)")
    parser.add_argument("--data", type=pathlib.Path, help="directory with rl_train.parquet and rl_val.parquet")
    parser.add_argument("--prompts", type=int, default=16, help="prompts a step (batch)")
    parser.add_argument("--samples", type=int, default=8, help="responses a prompt (group)")
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, at least 4")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    arguments = parser.parse_args()
    if arguments.steps < 4 or (arguments.model is None) != (arguments.data is None):
        parser.error("--steps must be at least 4, and --model and --data go together")
    # As an exception, so that the processes of the run at hand are ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    settings = stage_settings(arguments.prompts, arguments.samples, arguments.steps)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        model = arguments.model or write_model(folder / "model")
        data = arguments.data or write_prompts(folder / "data")
        for number in range(arguments.rounds):
            for side in ("ours", "stock"):
                directory = folder / f"{side}-{number}"
                paths = {"model": model.resolve(), "data": data.resolve()}
                paths |= {name: directory / name for name in ("output", "scratch")}
                for name in ("output", "scratch"):
                    paths[name].mkdir(parents=True)
                tree = namespace(settings)
                command = ours_command(settings, paths) if side == "ours" else stock_command(tree, paths)
                log = directory / "verl.jsonl"
                found = measure(command, environment(tree, log), log, arguments.steps)
                rows.append(row(side, number, found, log))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    names = ("prompts", "samples", "max_prompt_length", "max_response_length", "steps")
    sizes = {name: settings["rl"][name] for name in names}
    sizes |= {"rounds": arguments.rounds, "cores": len(os.sched_getaffinity(0))}
    result = figures(rows) | {"sizes": sizes, "rows": rows}
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            if name != "rows":
                print(f"{name:24} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
