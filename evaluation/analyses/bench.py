"""Memory and speed of the analyses over streams of any length: `python -m evaluation.analyses.bench [--tokens N ...]`.

For each size a cache and held-out tables of a base, a checkpoint and a teacher are written (the same chats again and
again) and every analysis that streams them runs in a process of its own. Prints tokens, seconds and the peak resident
memory above that of the imports, in MiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("plateaus", "drift", "exploration", "difficulty", "alignment", "tokens")
CHATS = 40
SIZES = (100_000, 1_000_000)


def write(directory: Path, tokens: int) -> int:
    """The artifacts of one size; returns how many tokens they have."""
    from evaluation.analyses.synthetic import chats, write_cache, write_model

    once = sum(len(ids) for ids, _, _ in chats(CHATS, 0))
    repeats = max(1, round(tokens / once))
    for line, model in (("", "base"), ("dft", "sft"), ("", "teacher")):
        write_model(directory / model, line, model, CHATS, 0, repeats)
    write_model(directory / "once", "", "base", CHATS, 0)
    for role in ("base", "teacher"):
        write_cache(directory / f"{role}_cache", directory / "once", repeats)
    return once * repeats


def measure(directory: Path, name: str) -> dict[str, float]:
    """Seconds and MiB of one analysis, in this process."""
    import matplotlib.figure  # noqa: F401
    import psutil
    import torch  # noqa: F401

    from evaluation import analyse, analyses

    process = psutil.Process()
    inputs, given = {}, []
    for model in ("base", "sft", "teacher"):
        line = "dft" if model == "sft" else ""
        objective = {"name": "dft"} if line else {}
        what = {
            "kind": "generate",
            "line": line,
            "seed": "",
            "model": model,
            "name": "held_out",
            "objective": objective,
        }
        inputs[model] = directory / model
        given.append({"input": model, **what})
    for role in ("base", "teacher"):
        inputs[f"{role}_cache"] = directory / f"{role}_cache" / "cache"
        what = {"kind": "cache", "line": "", "seed": "", "model": "", "name": role}
        given.append({"input": f"{role}_cache", **what})
    before, peak, started = process.memory_info().rss, 0, time.monotonic()

    def report(*_: object, **__: object) -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss)

    given = [one for one in given if one["kind"] in analyses.load(name).needs]
    with tempfile.TemporaryDirectory() as output:
        settings = argparse.Namespace(analysis=name, settings={}, given=given, target="target")
        analyse.run(settings, inputs, Path(output), Path(output), report)
    return {"seconds": time.monotonic() - started, "mib": (peak - before) / 2**20}


def main(argv: list[str] | None = None) -> int:
    """The command; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.analyses.bench", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--only", action="append", choices=NAMES, help="repeatable; all without it")
    parser.add_argument("--measure", nargs=2, metavar=("DIR", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), arguments.measure[1])))
        return 0
    print(f"{'analysis':<12}{'tokens':>12}{'seconds':>10}{'MiB':>8}")
    for size in arguments.tokens:
        with tempfile.TemporaryDirectory() as directory:
            tokens = write(Path(directory), size)
            for name in arguments.only or NAMES:
                command = [sys.executable, "-m", "evaluation.analyses.bench", "--measure", directory, name]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                print(f"{name:<12}{tokens:>12}{found['seconds']:>10.1f}{found['mib']:>8.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
