"""Time and memory of every objective on the output head: `python -m sft_objectives.bench [--json]`.

Each figure is forward and backward of the head alone, from the last hidden states to the gradients of hidden states and
head. `time_vs_X` and `memory_vs_X` divide the fused objective's figure by that of X. Times of the fused objective and
of verl_plain are taken in turn, then, at most three times, those of it and of naive, and the median of the ratios
counts; the other baselines, which no objective changes, are compared with verl_plain in the same way once, at the
start, and the two ratios are multiplied. X is

    verl_plain      verl's own cross-entropy on whole logits (PyTorch's cross_entropy where verl is not installed)
    verl_fused      verl's FusedLinearForPPO, torch backend
    torch_fused     torch.nn.functional.linear_cross_entropy with chunks
    liger           Liger-Kernel's fused linear cross-entropy (GPU)
    liger_scaled    the same with each token's loss scaled by its probability, as `dft` does
    cut             Apple's cut-cross-entropy (GPU)
    naive           the same objective on whole logits, by `token_losses`

and null where it is not installed, does not run on the device, or runs out of memory. Time is elapsed time, on a GPU
the device's; `processor_time_vs_X` is that of all threads on a CPU, which other processes disturb less, but which
counts a thread that waits for another as work. Memory is the peak of what was allocated beyond the inputs. Needs torch
only; on a CPU psutil too.

With --step the figures are of a whole training step instead: forward, backward and AdamW of a Qwen2 model with random
weights, sharded by FSDP2 over one device, with gradient checkpointing. The fused objective sits in its head, as in the
trainer; verl_plain is on its whole logits. For objectives of one pass without live reference. Needs transformers.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from . import load, names
from .bench_workloads import SEQUENCE, Step, TrainingStep, Workload, installed

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sft_kl", {"estimator": "topk"}),
    ("asft", {"estimator": "topk"}),
    ("kd_decomposed", {"estimator": "topk"}),
    ("gem", {"variant": "logsigmoid"}),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "sed_sft": {"threshold": 0.9},
    "flow": {"temperature": 1.0, "mean_weight": 1.0},
}
"""Constants of a training set, which a benchmark does not have."""

NAIVE_REPEATS = 3


def measure(
    work: Workload, objectives: list[tuple[str, dict[str, Any]]], repeats: int, *, naive: bool
) -> Iterator[dict[str, Any]]:
    """One row for each objective, as soon as it is measured."""
    baselines = work.baselines()
    plain = baselines.pop("verl_plain")
    memory = {key: _within_memory(lambda step=step: work.peak_bytes(step)) for key, step in baselines.items()}
    memory["verl_plain"] = _within_memory(lambda: work.peak_bytes(plain))
    others = _seconds(work, {"verl_plain": plain, **baselines}, repeats)
    to_plain = {key: _ratio(others.get("verl_plain"), others.get(key)) for key in baselines}
    for name, settings in objectives:
        objective = load(name, **{**SETTINGS.get(name, {}), **settings})
        if not work.measures(objective):
            continue
        fused = work.fused(objective)
        taken = {"verl_plain": _seconds(work, {"verl_plain": plain, "fused": fused}, repeats)}
        peaks = {**memory, "fused": work.peak_bytes(fused)}
        if naive:
            whole = work.naive(objective)
            taken["naive"] = _seconds(work, {"naive": whole, "fused": fused}, min(repeats, NAIVE_REPEATS))
            peaks["naive"] = _within_memory(lambda: work.peak_bytes(whole))  # noqa: B023  (called at once)
        row: dict[str, Any] = {
            "objective": name,
            "settings": settings,
            "passes": 2 if objective.needs.student_first else 1,
            "reference": "live" if work.reference(objective) is work.live else "cached",
            "seconds": statistics.median(elapsed for elapsed, _ in taken["verl_plain"]["fused"]),
            "peak_bytes": peaks["fused"],
        }
        for key in ("verl_plain", "naive"):
            pair = taken.get(key, {})
            row[f"time_vs_{key}"] = _ratio(pair.get("fused"), pair.get(key))
            of_processor = _ratio(pair.get("fused"), pair.get(key), clock=1)
            row[f"processor_time_vs_{key}"] = None if of_processor is None or math.isnan(of_processor) else of_processor
        for key in ("verl_fused", "torch_fused", "liger", "liger_scaled", "cut"):
            to, by_plain = to_plain.get(key), row["time_vs_verl_plain"]
            row[f"time_vs_{key}"] = by_plain * to if to and by_plain else None
        for key in TITLES:
            other = peaks.get(key)
            row[f"memory_vs_{key}"] = peaks["fused"] / other if other else None
        yield row


Seconds = tuple[float, float]  # elapsed, of the processor


def _seconds(work: Workload, steps: Mapping[str, Step], repeats: int) -> dict[str, list[Seconds]]:
    """Of each step, taken in turn `repeats` times after one round to warm up; none for a step that lacks memory."""
    taken: dict[str, list[Seconds]] = {key: [] for key in steps}
    for repeat in range(repeats + 1):
        for key in list(taken):
            found = _within_memory(lambda key=key: work.seconds(steps[key]))
            if found is None:
                del taken[key]
            elif repeat:
                taken[key].append(found)
    return taken


def _ratio(mine: list[Seconds] | None, theirs: list[Seconds] | None, *, clock: int = 0) -> float | None:
    """The median of the ratios of what was measured one after the other; clock 0: elapsed, 1: the processor's."""
    if not mine or not theirs:
        return None
    return statistics.median(a[clock] / b[clock] for a, b in zip(mine, theirs, strict=True))


def _within_memory(figure: Callable[[], Any]) -> Any:
    """The figure, or None if the device's memory does not suffice."""
    try:
        return figure()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    large = device == "cuda"
    parser.add_argument("--device", default=device, choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16" if large else "float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tokens", type=int, default=16384 if large else 2048)
    parser.add_argument("--width", type=int, default=2560 if large else 512)
    parser.add_argument("--vocab-size", type=int, default=151936 if large else 32000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    parser.add_argument("--objectives", default="", help="names, separated by commas; default: all and some variants")
    parser.add_argument("--no-naive", action="store_true", help="leave out the form on whole logits")
    parser.add_argument("--step", action="store_true", help="a whole training step of a model around the head")
    parser.add_argument("--layers", type=int, default=32 if large else 4, help="transformer layers of --step")
    parser.add_argument("--json", action="store_true", help="print one list of rows")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    wanted = args.objectives.split(",") if args.objectives else names()
    objectives: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in wanted]
    objectives += [(name, settings) for name, settings in VARIANTS if name in wanted]
    sizes = (args.tokens, args.width, args.vocab_size, getattr(torch, args.dtype), torch.device(args.device))
    if args.step and args.tokens > SEQUENCE and args.tokens % SEQUENCE:
        parser.error(f"--tokens {args.tokens}: --step takes a multiple of {SEQUENCE}")
    work = TrainingStep(*sizes, args.layers) if args.step else Workload(*sizes)
    processor = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    run = {
        "device": args.device,
        "processor": processor,
        "torch": torch.__version__,
        "dtype": args.dtype,
        "tokens": args.tokens,
        "width": args.width,
        "vocab_size": args.vocab_size,
        "threads": args.threads,
        "repeats": args.repeats,
        "verl": installed("verl") is not None,
    }
    if isinstance(work, TrainingStep):
        run |= {"step": True, "layers": args.layers, "parameters": work.parameters}
    rows = []
    if not args.json:
        print(", ".join(f"{key} {value}" for key, value in run.items()))
        print(f"{'time, memory relative to':34}", *(f"{title:>13}" for title in TITLES.values()), flush=True)
    for row in measure(work, objectives, args.repeats, naive=not (args.no_naive or args.step)):
        rows.append({**row, **run})
        if not args.json:
            label = " ".join([row["objective"], *map(str, row["settings"].values())])
            print(f"{label:34}", *(f"{_pair(row, key):>13}" for key in TITLES), flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))


TITLES = {
    "verl_plain": "verl plain",
    "verl_fused": "verl fused",
    "torch_fused": "torch fused",
    "liger": "Liger",
    "liger_scaled": "Liger scaled",
    "cut": "cut",
    "naive": "naive",
}


def _pair(row: dict[str, Any], key: str) -> str:
    pair = row[f"time_vs_{key}"], row[f"memory_vs_{key}"]
    return "-" if None in pair else "{:.2f} {:.2f}".format(*pair)


if __name__ == "__main__":
    main()
