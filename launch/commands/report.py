"""`report`: the tables and pictures of the records that exist."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.errors import ConfigError
from launch.commands.contract import Command
from launch.commands.planned import planned


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the table as JSON too")
    parser.add_argument("--output", metavar="DIR", help="write it there, such as beside a store that is read-only")
    parser.add_argument("--watch", action="store_true", help="serve it on this machine, rewritten as records come")
    parser.add_argument("--port", type=int, metavar="N", help="with --watch: the port; else a free one")


def _run(arguments: argparse.Namespace) -> int:
    output = None if arguments.output is None else Path(arguments.output).expanduser()
    if arguments.watch:
        return _watch(arguments, output)
    if arguments.port is not None:
        raise ConfigError("--port is of --watch; give both")
    from launch.report.write import write_report

    return write_report(planned(arguments), as_json=arguments.json, output=output)


def _watch(arguments: argparse.Namespace, output: Path | None) -> int:
    if arguments.json:
        raise ConfigError("--watch goes on and --json prints once; give one of them")
    port = arguments.port or 0
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: allowed: 1 to 65535, or none for a free one")
    plan = planned(arguments)
    from launch import interrupts
    from launch.report.serve import watch

    interrupts.raise_again()
    return watch(plan, port=port, output=output)


REPORT = Command("report", "write report.html and report.md from the records that exist", _run, _options)
