"""Memory and speed of the analyses over streams of any length: `python -m evaluation.analyses.bench [--tokens N ...]`.

For each size a cache and held-out tables of a base, a checkpoint and a teacher are written (the same chats again and
again) and every analysis that streams them runs in a process of its own. Prints tokens, seconds, tokens of all inputs a
second, and the peak anonymous memory (Linux: RssAnon, which no other process shares and no file backs) above that of
the imports, in MiB; then how often memory grew from the smallest size to the largest.

With `--directory` what is written and measured is kept there and the same command continues; a size whose analyses are
all measured is deleted. `--minutes` starts nothing further after that time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.files import read_json, write_json

NAMES = ("plateaus", "drift", "exploration", "difficulty", "alignment", "tokens")
CHATS = 40
SIZES = (100_000, 1_000_000)
RESULTS, WRITTEN = "results.jsonl", "written.json"
PERIOD = 0.01  # seconds between two looks at the memory


def write(directory: Path, tokens: int) -> int:
    """The artifacts of one size; returns how many tokens each of them has."""
    from evaluation.analyses.synthetic import chats, write_cache, write_model

    known = read_json(directory / WRITTEN)
    if known is not None:
        return known["tokens"]
    shutil.rmtree(directory, ignore_errors=True)
    once = sum(len(ids) for ids, _, _ in chats(CHATS, 0))
    repeats = max(1, round(tokens / once))
    for line, model in (("", "base"), ("dft", "sft"), ("", "teacher")):
        write_model(directory / model, line, model, CHATS, 0, repeats)
    write_model(directory / "once", "", "base", CHATS, 0)
    for role in ("base", "teacher"):
        write_cache(directory / f"{role}_cache", directory / "once", repeats)
        shutil.rmtree(directory / f"{role}_cache" / "made")
    write_json(directory / WRITTEN, {"tokens": once * repeats})
    return once * repeats


def anonymous() -> int:
    """Bytes of this process's resident anonymous memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:")) * 1024


@contextlib.contextmanager
def watched() -> Iterator[list[int]]:
    """Holds [the largest `anonymous()` while the block runs], looked at by a thread."""
    peak, ended = [anonymous()], threading.Event()

    def look() -> None:
        while not ended.wait(PERIOD):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def measure(directory: Path, name: str) -> dict[str, float]:
    """Seconds and MiB of one analysis, in this process."""
    import matplotlib.figure  # noqa: F401
    import torch  # noqa: F401

    from evaluation import analyse, analyses

    inputs: dict[str, Path] = {}
    given: list[dict[str, Any]] = []

    def add(path: Path, kind: str, line: str, model: str, named: str) -> None:
        inputs[str(len(inputs))] = path
        objective = {"name": line} if line else {}
        what = {"kind": kind, "line": line, "seed": "", "model": model, "name": named, "objective": objective}
        given.append({"input": str(len(given)), **what})

    for model in ("base", "sft", "teacher"):
        add(directory / model, "generate", "dft" if model == "sft" else "", model, "held_out")
    for role in ("base", "teacher"):
        add(directory / f"{role}_cache" / "cache", "cache", "", "", role)
    kept = [one for one in given if one["kind"] in analyses.load(name).needs]
    settings = argparse.Namespace(analysis=name, settings={}, given=kept, target="target")
    with tempfile.TemporaryDirectory() as output:
        before, started = anonymous(), time.monotonic()
        with watched() as peak:
            analyse.run(settings, inputs, Path(output), Path(output), lambda *_, **__: None)
        return {"seconds": time.monotonic() - started, "mib": (peak[0] - before) / 2**20, "inputs": len(kept)}


def run(directory: Path, sizes: Sequence[int], names: Sequence[str], minutes: float) -> list[dict[str, Any]]:
    """Measures what `directory` has no result of, and prints it; returns all results of these sizes."""
    results = directory / RESULTS
    directory.mkdir(parents=True, exist_ok=True)
    found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    deadline = time.monotonic() + 60 * minutes
    print(f"{'analysis':<12}{'tokens':>12}{'seconds':>10}{'tokens/s':>12}{'MiB':>8}", flush=True)
    for size in sizes:
        place = directory / str(size)
        for name in names:
            known = [one for one in found if (one["size"], one["analysis"]) == (size, name)]
            if not known and time.monotonic() > deadline:
                print(f"{name:<12}{size:>12} not begun within {minutes:g} minutes; the same command continues")
                return found
            if not known:
                tokens = write(place, size)
                command = [sys.executable, "-m", "evaluation.analyses.bench", "--measure", str(place), name]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                known = [{"size": size, "analysis": name, "tokens": tokens, **json.loads(done.stdout.splitlines()[-1])}]
                found += known
                with results.open("a") as file:
                    file.write(json.dumps(known[0]) + "\n")
            one = known[0]
            rate = one["tokens"] * one["inputs"] / one["seconds"]
            print(f"{name:<12}{one['tokens']:>12}{one['seconds']:>10.1f}{rate:>12.0f}{one['mib']:>8.0f}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
    return found


def growth(found: list[dict[str, Any]], names: Sequence[str], sizes: Sequence[int]) -> Iterator[str]:
    """A line for each analysis: its memory at the largest size over that at the smallest."""
    for name in names:
        mib = {one["size"]: one["mib"] for one in found if one["analysis"] == name and one["size"] in sizes}
        if len(mib) > 1:
            small, large = min(mib), max(mib)
            grown = mib[large] / max(1.0, mib[small])
            yield f"{name}: {large / small:g} times the tokens, {grown:.2f} times the memory"


def main(argv: list[str] | None = None) -> int:
    """The command; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.analyses.bench", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--only", action="append", choices=NAMES, help="repeatable; all without it")
    parser.add_argument("--directory", type=Path, help="keep results there, and continue with them")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing further after that time")
    parser.add_argument("--measure", nargs=2, metavar=("DIR", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), arguments.measure[1])))
        return 0
    names: list[str] = arguments.only or [*NAMES]
    sizes = arguments.tokens
    with contextlib.ExitStack() as stack:
        directory = arguments.directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = run(directory, sizes, names, arguments.minutes)
    print("\n".join(growth(found, names, sizes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
