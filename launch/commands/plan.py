"""`plan`: what would run, and what is there already."""

from __future__ import annotations

import argparse
import json

from launch.commands.contract import Command
from launch.commands.planned import planned


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _run(arguments: argparse.Namespace) -> int:
    from launch.graph.show import plan_json, print_plan
    from launch.graph.tracked import check_trackers

    plan = planned(arguments)
    check_trackers(plan)
    print(json.dumps(plan_json(plan), indent=1)) if arguments.json else print_plan(plan)
    return 0


PLAN = Command("plan", "print the stages, what is done already and what is shared; starts nothing", _run, _options)
