"""`evidence`: a study's runs as CSV, and its page's tables made from that."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.commands.contract import Command
from launch.commands.planned import planned


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write runs.csv to")
    parser.add_argument(
        "--page",
        metavar="FILE",
        help="page whose tables are made anew from DIR, which takes its pictures (docs/evidence.md)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from launch.evidence.runs import collect, read_csv, write_csv

    folder = Path(arguments.output).expanduser()
    path = folder / "runs.csv"
    earlier = read_csv(path) if path.exists() else []
    found = collect(planned(arguments), earlier)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(found, path)
    print(f"evidence: {len(found)} models of {len({run.arm for run in found})} arms in {path}")
    gone = {run.measured for run in earlier} - {run.measured for run in found}
    if gone:
        print(f"evidence: {len(gone)} rows that were there are of stages that this plan has not; they are left out")
    if arguments.page is not None:
        from launch.evidence.page import fill

        fill(Path(arguments.page).expanduser(), folder)
        print(f"evidence: tables of {arguments.page}, pictures in {folder}")
    return 0


EVIDENCE = Command("evidence", "what a study's branches measured, as one CSV for its page", _run, _options)
