"""Time and memory of every objective on the output head: `python -m sft_objectives.bench [--json]`.

Each figure is forward and backward of the head alone, from the last hidden states to the gradients of hidden states and
head. `time_vs_X` and `memory_vs_X` divide the fused objective's figure by that of X. Times of the fused objective, of
the same as the trainer calls it and of verl_plain are taken in turn, then, at most three times, those of it and of
naive, and the median of the ratios counts; the other baselines, which no objective changes, are compared with
verl_plain in the same way once, at the start, and the two ratios are multiplied. X is

    verl_plain      verl's own cross-entropy on whole logits (PyTorch's cross_entropy where verl is not installed)
    verl_fused      verl's FusedLinearForPPO, torch backend
    verl_liger      the same with its backend of Liger-Kernel's scaled function (GPU)
    verl_triton     verl's own Triton kernel, linear_cross_entropy (GPU)
    torch_fused     torch.nn.functional.linear_cross_entropy with chunks
    liger           Liger-Kernel's fused linear cross-entropy (GPU)
    liger_scaled    the same with each token's loss scaled by its probability, as `dft` does
    cut             Apple's cut-cross-entropy (GPU)
    naive           the same objective on whole logits, by `token_losses`

and null where it is not installed, does not run on the device, or runs out of memory. `time_diagnostics` divides the
time of the trainer's call, which also gives the entropy and the objective's diagnostics, by that of the bare one.
`seconds_verl_plain` is the plain form's own time: a ratio beside a baseline that is slow for a reason of its own says
nothing. `spread_vs_X` is the distance of the ratios' quartiles, divided by their median; where it is over 0.2 the
ratio is null, and the table says so.

Time is elapsed time, on a GPU the device's; `processor_time_vs_X` is that of all threads on a CPU, which other
processes disturb less, but which counts a thread that waits for another as work. Memory is the peak of what was
allocated beyond the inputs. On a CPU numbers too small for their exponent count as 0 on all sides, as in the trainer:
some processors compute with them twenty times more slowly. Needs torch only; on a CPU psutil too.

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
from dataclasses import dataclass
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
WIDEST_SPREAD = 0.2
"""Quartile distance over median beyond which a median of ratios is no figure."""


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
        steps = {"verl_plain": plain, "fused": work.fused(objective)}
        if trainer := work.trainer(objective):
            steps["trainer"] = trainer
        taken = {"verl_plain": _seconds(work, steps, repeats)}
        peaks = {**memory, "fused": work.peak_bytes(steps["fused"])}
        if naive:
            whole = work.naive(objective)
            taken["naive"] = _seconds(work, {"naive": whole, "fused": steps["fused"]}, min(repeats, NAIVE_REPEATS))
            peaks["naive"] = _within_memory(lambda: work.peak_bytes(whole))  # noqa: B023  (called at once)
        together = taken["verl_plain"]
        row: dict[str, Any] = {
            "objective": name,
            "settings": settings,
            "passes": 2 if objective.needs.student_first else 1,
            "reference": "live" if work.reference(objective) is work.live else "cached",
            "seconds": _seconds_of(together.get("fused")),
            "seconds_verl_plain": _seconds_of(together.get("verl_plain")),
            "peak_bytes": peaks["fused"],
        }
        diagnostics = _ratio(together.get("trainer"), together.get("fused"))
        row["time_diagnostics"] = diagnostics and diagnostics.shown
        row["spread_diagnostics"] = diagnostics and diagnostics.spread
        of_processor = _ratio(together.get("trainer"), together.get("fused"), clock=1)
        row["processor_time_diagnostics"] = of_processor and of_processor.shown
        for key in ("verl_plain", "naive"):
            pair = taken.get(key, {})
            elapsed = _ratio(pair.get("fused"), pair.get(key))
            row[f"time_vs_{key}"], row[f"spread_vs_{key}"] = elapsed and elapsed.shown, elapsed and elapsed.spread
            of_processor = _ratio(pair.get("fused"), pair.get(key), clock=1)
            row[f"processor_time_vs_{key}"] = of_processor and of_processor.shown
        for key in (key for key in TITLES if key not in ("verl_plain", "naive")):
            to, by_plain = to_plain.get(key), row["time_vs_verl_plain"]
            row[f"time_vs_{key}"] = by_plain * to.shown if to and to.shown and by_plain else None
            row[f"spread_vs_{key}"] = to and to.spread
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


@dataclass(frozen=True)
class Ratio:
    """A median of ratios, and the distance of their quartiles divided by it (0 of a single one)."""

    median: float
    spread: float

    @property
    def shown(self) -> float | None:
        """The median; None where the ratios are too far apart for one."""
        return self.median if self.spread <= WIDEST_SPREAD else None


def _ratio(mine: list[Seconds] | None, theirs: list[Seconds] | None, *, clock: int = 0) -> Ratio | None:
    """Of what was measured one after the other; clock 0: elapsed, 1: the processor's, which a GPU does not have."""
    if not mine or not theirs:
        return None
    ratios = [a[clock] / b[clock] for a, b in zip(mine, theirs, strict=True)]
    median = statistics.median(ratios)
    if math.isnan(median):
        return None
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (median,) * 3
    return Ratio(median, (high - low) / median)


def _seconds_of(taken: list[Seconds] | None) -> float | None:
    """The median elapsed time."""
    return statistics.median(elapsed for elapsed, _ in taken) if taken else None


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
    flushed = args.device == "cpu" and torch.set_flush_denormal(True)  # before there are threads, which take it over
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
        "flush_denormal": flushed,
        "repeats": args.repeats,
        "verl": installed("verl") is not None,
    }
    if isinstance(work, TrainingStep):
        run |= {"step": True, "layers": args.layers, "parameters": work.parameters}
    rows = []
    if not args.json:
        print(", ".join(f"{key} {value}" for key, value in run.items()))
        columns = ["plain s", "diagnostics", *TITLES.values()]
        print(f"{'time, memory relative to':28}", *(f"{title:>13}" for title in columns), flush=True)
    for row in measure(work, objectives, args.repeats, naive=not (args.no_naive or args.step)):
        rows.append({**row, **run})
        if not args.json:
            label = " ".join([row["objective"], *map(str, row["settings"].values())])
            print(f"{label:28}", *(f"{cell:>13}" for cell in _cells(row)), flush=True)
    torch.set_flush_denormal(False)
    if args.json:
        print(json.dumps(rows, indent=1))


TITLES = {
    "verl_plain": "verl plain",
    "verl_fused": "verl fused",
    "verl_liger": "verl Liger",
    "verl_triton": "verl Triton",
    "torch_fused": "torch fused",
    "liger": "Liger",
    "liger_scaled": "Liger scaled",
    "cut": "cut",
    "naive": "naive",
}


def _cells(row: dict[str, Any]) -> list[str]:
    """The row's figures as text: `-` for what is not there, `unsteady` for a median that is no figure."""
    plain = row["seconds_verl_plain"]
    cells = ["-" if plain is None else f"{plain:.3g}", _cell(row["time_diagnostics"], row["spread_diagnostics"])]
    for key in TITLES:
        time, memory = _cell(row[f"time_vs_{key}"], row[f"spread_vs_{key}"]), row[f"memory_vs_{key}"]
        cells.append(time if memory is None or time == "-" else f"{time} {memory:.2f}")
    return cells


def _cell(median: float | None, spread: float | None) -> str:
    if median is None:
        return "-" if spread is None else "unsteady"
    return f"{median:.2f}"


if __name__ == "__main__":
    main()
