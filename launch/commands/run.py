"""`run`: what is missing, then the report."""

from __future__ import annotations

import argparse

from launch.commands.contract import Command
from launch.commands.planned import planned


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything that can be checked without running: as `plan`, and verl's keys",
    )
    parser.add_argument("--data", action="store_true", help="with --dry-run: read every row as well; keeps nothing")
    parser.add_argument(
        "--max-device-hours", metavar="HOURS", help="start no further stage beyond that; as run.max_device_hours=HOURS"
    )


def _run(arguments: argparse.Namespace) -> int:
    if arguments.max_device_hours is not None:
        arguments.overrides.append(f"run.max_device_hours={arguments.max_device_hours}")
    if arguments.dry_run or arguments.data:
        return _dry_run(arguments)
    plan = planned(arguments, write=True)
    from launch import interrupts
    from launch.graph.tracked import check_trackers

    check_trackers(plan)
    from launch.execution.run import run

    interrupts.raise_again()
    return run(plan)


def _dry_run(arguments: argparse.Namespace) -> int:
    from launch.graph.dry_run import check_stage_configs
    from launch.graph.show import print_plan
    from launch.graph.tracked import check_trackers

    plan = planned(arguments)
    check_trackers(plan)
    print_plan(plan)
    for (kind, fine), count in check_stage_configs(plan).items():
        print(f"{fine} of {count} {kind} stage{'s' if count > 1 else ''}")
    if not arguments.data:
        return 0
    from launch.rows import read_rows

    return read_rows(plan, keep=False)


RUN = Command("run", "run what is missing, then write the report", _run, _options)
