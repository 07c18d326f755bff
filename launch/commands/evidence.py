"""`evidence`: a study's runs as CSV, and its page's tables made from that."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError
from launch.commands.contract import Command
from launch.commands.planned import planned

if TYPE_CHECKING:
    from launch.evidence.runs import Run


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write runs.csv to")
    parser.add_argument(
        "--page",
        metavar="FILE",
        help="page whose tables are made anew from DIR, which takes its pictures (docs/evidence.md)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from launch.evidence.runs import collect, count, read_csv, write_csv

    folder = Path(arguments.output).expanduser()
    path = folder / "runs.csv"
    earlier = read_csv(path) if path.exists() else []
    plan = planned(arguments)
    found, whole = collect(plan, earlier), count(plan)
    _keep_all(earlier, found, path)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(found, path)
    print(f"evidence: {len(found)} models of {len({run.arm for run in found})} arms in {path}")
    if whole > len(found):
        print(f"evidence: {whole - len(found)} more are not measured, or not on all benchmarks yet")
    if arguments.page is not None:
        from launch.evidence.page import fill

        fill(Path(arguments.page).expanduser(), folder)
        print(f"evidence: tables of {arguments.page}, pictures in {folder}")
    return 0


def _keep_all(earlier: Sequence[Run], found: Sequence[Run], path: Path) -> None:
    """Raises ConfigError where a file has rows that this plan would drop."""
    there = {run.measured for run in found}
    gone = [run for run in earlier if run.measured not in there]
    if gone:
        named = ", ".join(f"{run.arm} seed {run.seed} {run.phase}" for run in gone[:3]) + (" ..." if gone[3:] else "")
        raise ConfigError(
            f"{path}: {len(gone)} of its {len(earlier)} rows are of stages that this plan has not ({named}); name the "
            "whole plan that they are of, or move the file away"
        )


EVIDENCE = Command("evidence", "what a study's branches measured, as one CSV for its page", _run, _options)
