"""`check`: is every node of the cluster ready?"""

from __future__ import annotations

import argparse

from launch.commands.contract import Command
from launch.commands.planned import planned


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefetch", action="store_true", help="download the models, once on each node")


def _run(arguments: argparse.Namespace) -> int:
    from launch.check import check

    return check(planned(arguments), prefetch=arguments.prefetch)


CHECK = Command(
    "check", "preflight of the cluster: driver, kernels, versions, shared store, disk, models", _run, _options
)
