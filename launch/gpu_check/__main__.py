"""`python -m launch.gpu_check [--minutes 10]`: what works on this machine's GPU, what is right, and how fast it is.

Seven items, most valuable first, each in a process of its own with a limit of its own; a table as it goes, and
gpu_check.json in --out. Needs no network. Items 1 to 3 need PyTorch with numpy, Triton and these files alone; an
item that lacks something says so and is left out. What an earlier run in the same directory has measured stays.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.gpu_check.listing import ITEMS
from launch.gpu_check.runner import Check


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every item that ran is done and what is asked of it is met, 1 if not, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m launch.gpu_check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all items together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: small sizes, whose speeds mean nothing")
    parser.add_argument("--out", type=Path, default=Path("build/gpu_check"), help="directory of results")
    parser.add_argument("--items", default="1,2,3,4,5,6,7", help="numbers, separated by commas")
    parser.add_argument("--afresh", action="store_true", help="forget what an earlier run has measured")
    given = parser.parse_args(argv)
    numbers = [item.number for item in ITEMS]
    chosen = [int(text) for text in given.items.split(",") if text.isdecimal() and int(text) in numbers]
    if len(chosen) != len(given.items.split(",")):
        parser.error(f"--items {given.items}: allowed: {','.join(map(str, numbers))}")
    if given.device == "cpu" and not given.tiny:
        parser.error("--device cpu: only with --tiny, as a rehearsal")
    if given.device == "cuda" and (problem := _no_device()):
        parser.error(f"--device cuda: {problem}; --device cpu --tiny rehearses without one")
    if given.afresh:
        shutil.rmtree(given.out, ignore_errors=True)
    try:
        return Check(given.out, given.device, tiny=given.tiny, minutes=given.minutes, chosen=chosen).run()
    except ValueError as error:
        parser.error(str(error))


def _no_device() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return None if torch.cuda.is_available() else "PyTorch sees no device"


if __name__ == "__main__":
    sys.exit(main())
