"""`status` and `stop`: what runs of a recipe do, from any machine that sees the store."""

from __future__ import annotations

import argparse

from launch.commands.contract import Command
from launch.commands.planned import planned


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="refresh until everything is done")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _status(arguments: argparse.Namespace) -> int:
    from launch.status import show_status

    return show_status(planned(arguments), watch=arguments.watch, as_json=arguments.json)


def _stop(arguments: argparse.Namespace) -> int:
    from launch.execution.run import stop

    return stop(planned(arguments))


STATUS = Command("status", "one screen: stages by state, progress, last metrics, where the logs are", _status, _options)
STOP = Command("stop", "ask the running driver of this recipe's stages to stop them and leave", _stop)
