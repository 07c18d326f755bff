"""`report`: the tables and pictures of the records that exist."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.commands.contract import Command
from launch.commands.planned import planned


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the table as JSON too")
    parser.add_argument("--output", metavar="DIR", help="write it there, such as beside a store that is read-only")


def _run(arguments: argparse.Namespace) -> int:
    from launch.report.write import write_report

    output = None if arguments.output is None else Path(arguments.output).expanduser()
    return write_report(planned(arguments), as_json=arguments.json, output=output)


REPORT = Command("report", "write report.html and report.md from the records that exist", _run, _options)
