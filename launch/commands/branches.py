"""`show` and `rm`: the branches of a plan, where they are, what they cost, and what of them may go."""

from __future__ import annotations

import argparse

from launch.commands.contract import Command
from launch.commands.planned import planned


def _branches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--branch", action="append", default=[], help="name of a branch, as `plan` says; default: all")


def _show_options(parser: argparse.ArgumentParser) -> None:
    _branches(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable, with every stage")


def _show(arguments: argparse.Namespace) -> int:
    from launch.branches import show

    return show(planned(arguments), arguments.branch, as_json=arguments.json)


def _rm_options(parser: argparse.ArgumentParser) -> None:
    _branches(parser)
    parser.add_argument(
        "--checkpoints", action="store_true", help="only the weights of its models; scores, curves and records stay"
    )
    parser.add_argument(
        "--keep-reported",
        action="store_true",
        help="only weights that no line of the report is about: published steps, losers of a selection",
    )
    parser.add_argument("--keep-last", type=int, metavar="N", help="all branches but the N that were made last")
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="only what was made longer ago")
    parser.add_argument("--delete", action="store_true", help="really delete; without it only print")


def _rm(arguments: argparse.Namespace) -> int:
    from launch.removal import Rule, remove

    rule = Rule(
        arguments.branch,
        arguments.checkpoints,
        arguments.older_than,
        arguments.keep_last,
        arguments.keep_reported,
    )
    return remove(planned(arguments), rule, delete=arguments.delete)


SHOW = Command("show", "where the models of the branches are, what was measured, what it cost", _show, _show_options)
RM = Command("rm", "delete branches or their checkpoints, by name or by rule; shows first what goes", _rm, _rm_options)
