"""Our RL stage beside stock `verl.trainer.main_ppo` with the same keys: `python -m rl_stage.bench [--json]`.

The two run in turn, each in processes of its own, from the same model and prompts, with the same reward, batch, group
and lengths; `rows` holds every run. Both write verl's own JSONL log, and this process notes when a line arrives:

    step_time_ratio  median seconds from one step's line to the next, ours over stock's, without the first step (which
                     warms up) and the last (which saves a checkpoint)
    startup_ratio    median seconds from the command to the line of the validation before training, ours over stock's
    warm_start       the same of a second run in the session of the first (`rl.warm`), from its beginning, over stock's
                     from the command
    peak_memory_gb   largest memory of all processes of one of our runs, pages they share counted once

`step_cpu_ratio`, `startup_cpu_ratio` and `warm_start_cpu` are the same of processor seconds (of all processes of a
run), which other work on the machine hardly changes.

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
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from common.files import write_json
from common.processes import end_processes
from common.registry import ROOT
from rl_stage.bench_inputs import stage_settings, write_model, write_prompts
from rl_stage.bench_stock import stock_command

if TYPE_CHECKING:
    import psutil

OURS = """
import json, os, pathlib, sys
from omegaconf import OmegaConf
from rl_stage.stage import run
for name in sys.argv[1:]:
    request = json.loads(pathlib.Path(name).read_text())
    paths = {name: pathlib.Path(path) for name, path in request["paths"].items()}
    os.environ["VERL_FILE_LOGGER_PATH"] = request["log"]
    print(MARK, flush=True)
    run(OmegaConf.create(request["settings"]), paths, paths["output"], paths["scratch"], lambda *_, **__: None)
"""
MARK = "a run begins"


def ours_command(settings: DictConfig, runs: Sequence[Mapping[str, pathlib.Path]]) -> list[str]:
    """Our stage as its own process, as launch starts it, for one run after another in one session."""
    requests = []
    for paths in runs:
        requests.append(paths["scratch"].parent / "request.json")
        shown = {name: str(path) for name, path in paths.items()}
        log = str(log_of(paths))
        write_json(requests[-1], {"settings": OmegaConf.to_container(settings), "paths": shown, "log": log})
    return [sys.executable, "-c", OURS.replace("MARK", repr(MARK)), *map(str, requests)]


def log_of(paths: Mapping[str, pathlib.Path]) -> pathlib.Path:
    """Where verl writes the JSONL log of a run."""
    return paths["scratch"].parent / "verl.jsonl"


def environment(settings: DictConfig, log: pathlib.Path) -> dict[str, str]:
    """What the recipe's platform sets, which both sides need."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CUDA_"))}
    return (
        kept
        | dict(settings.platform.env)
        | {
            "OMP_NUM_THREADS": str(settings.platform.threads),
            "PYTHONPATH": str(ROOT),
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


class Run:
    """When the lines of verl's log of one run arrived, in seconds and in processor seconds since the run began."""

    def __init__(self, log: pathlib.Path) -> None:
        self.log = log
        self.began: tuple[float, float] | None = None
        self.arrivals: list[float] = []
        self.processor: list[float] = []
        self.peak = 0

    def new_lines(self) -> int:
        """How many lines have arrived since the last look."""
        return (self.log.read_bytes().count(b"\n") if self.log.exists() else 0) - len(self.arrivals)


def measure(command: list[str], env: Mapping[str, str], logs: Sequence[pathlib.Path], steps: int) -> list[Run]:
    """Run `command`, which makes one run after another, until it ends. The first begins with it, others where it says
    so (`MARK`); their `peak` is the largest memory of its processes in bytes. Raises RuntimeError, with the end of its
    output, if it fails."""
    import psutil

    output = logs[0].with_suffix(".out")
    runs = [Run(log) for log in logs]
    runs[0].began = (0.0, 0.0)
    sampled = 0.0
    seen: set[psutil.Process] = set()
    known: dict[psutil.Process, float] = {}
    began = time.monotonic()
    with output.open("w") as file:
        child = subprocess.Popen(command, env=dict(env), stdout=file, stderr=subprocess.STDOUT, cwd=logs[0].parent)
    root = psutil.Process(child.pid)
    try:
        while child.poll() is None:
            time.sleep(0.02)
            now = time.monotonic() - began
            begun = output.read_bytes().count(f"{MARK}\n".encode())
            starting = [run for run in runs[:begun] if run.began is None]
            lines = [run.new_lines() for run in runs]
            if not starting and not any(lines) and now - sampled < 1.0:
                continue
            with contextlib.suppress(psutil.Error):
                seen |= {root, *root.children(recursive=True)}
            seconds = cpu_seconds(seen, known)
            for run in starting:
                run.began = (now, seconds)
            for run, new in zip(runs, lines, strict=True):
                if run.began is not None:
                    run.arrivals += [now - run.began[0]] * new
                    run.processor += [seconds - run.began[1]] * new
            if now - sampled > 1.0:
                sampled = now
                held = memory_bytes([process for process in seen if process.is_running()])
                for run in runs:
                    if run.began is not None:
                        run.peak = max(run.peak, held)
    finally:
        end_processes([process for process in seen if process.is_running()])
    if child.returncode or any(len(run.arrivals) != steps + 1 for run in runs):
        raise RuntimeError(f"{' '.join(command)[:200]} ... ended with {child.returncode}: {output.read_text()[-2000:]}")
    return runs


def row(side: str, number: int, run: Run) -> dict[str, Any]:
    """One run's figures: seconds, gigabytes, and the mean length of its responses in tokens."""
    data = [json.loads(line)["data"] for line in run.log.read_text().splitlines()[2:-1]]

    def between(times: list[float]) -> list[float]:
        return [round(later - sooner, 3) for sooner, later in itertools.pairwise(times[1:-1])]

    return {
        "side": side,
        "round": number,
        "startup_seconds": round(run.arrivals[0], 2),
        "startup_cpu_seconds": round(run.processor[0], 2),
        "step_seconds": between(run.arrivals),
        "step_cpu_seconds": between(run.processor),
        "response_tokens": round(statistics.mean(entry["response_length/mean"] for entry in data), 1),
        "peak_memory_gb": round(run.peak / 1e9, 2),
    }


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratios over all rounds, and the lowest and highest ratio of step times of one round."""
    sides = {side: [row for row in rows if row["side"] == side] for side in ("ours", "stock", "warm")}

    def median(side: str, name: str) -> float:
        values = [row[name] for row in sides[side]]
        return statistics.median(v for value in values for v in (value if isinstance(value, list) else [value]))

    result: dict[str, Any] = {}
    for kind in ("step_seconds", "startup_seconds", "step_cpu_seconds", "startup_cpu_seconds"):
        ours, stock = median("ours", kind), median("stock", kind)
        name = kind.removesuffix("_seconds")
        result["step_time_ratio" if name == "step" else f"{name}_ratio"] = round(ours / stock, 4)
        result |= {kind: round(ours, 3), f"stock_{kind}": round(stock, 3)}
    for name, kind in (("warm_start", "startup_seconds"), ("warm_start_cpu", "startup_cpu_seconds")):
        warm = median("warm", kind)
        result |= {name: round(warm / median("stock", kind), 4), f"warm_{kind}": round(warm, 3)}
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
                names = [side] if side == "stock" else ["ours", "warm"]
                made = [{"model": model.resolve(), "data": data.resolve()} for _ in names]
                for name, paths in zip(names, made, strict=True):
                    for kind in ("output", "scratch"):
                        paths[kind] = folder / f"{name}-{number}" / kind
                        paths[kind].mkdir(parents=True)
                command = stock_command(settings, made[0]) if side == "stock" else ours_command(settings, made)
                logs = [log_of(paths) for paths in made]
                runs = measure(command, environment(settings, logs[0]), logs, arguments.steps)
                for name, run in zip(names, runs, strict=True):
                    rows.append(row(name, number, run))
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
