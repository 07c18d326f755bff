"""The process of one item: `python -m launch.gpu_check.item <number> <out> <device> <full|tiny> <seconds>`."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

from launch.gpu_check.context import Context, read_rows
from launch.gpu_check.listing import ITEMS


def main(number: str, out: str, device: str, size: str, seconds: str) -> int:
    """Measure what earlier runs have not; 0 if no part failed, else 1."""
    item = next(item for item in ITEMS if item.number == int(number))
    context = Context(item.number, device, size == "tiny", Path(out), time.monotonic() + float(seconds))
    context.done = {row["part"] for row in read_rows(context.rows) if "figures" in row}
    importlib.import_module(f"launch.gpu_check.items.{item.module}").run(context)
    return 1 if context.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
