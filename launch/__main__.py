"""`python -m launch`: plan, run, resume and explain recipes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from launch.graph.builder import make_plan
from launch.graph.plan import Plan
from launch.recipe.compose import groups, recipe_names

DESCRIPTION = """\
Runs a recipe: prepare data, fine-tune with one or more objectives, reinforce each checkpoint, evaluate, report.
Every result is kept under its fingerprint in the store (runs/), so the same command continues where it stopped and
shares what is equal between recipes, objectives and seeds."""

EXAMPLES = """\
examples:
  python -m launch plan microworld objective=sft,lp_sft            what would run, and what is there already
  python -m launch run microworld objective=sft,dft seed=1,2,3     a sweep: every combination is a branch
  python -m launch run microworld sft.lr=1e-5,5e-5 rl.enabled=false
  python -m launch status microworld objective=sft,lp_sft --watch
  python -m launch report microworld objective=sft,lp_sft
  ray job submit --working-dir . -- python -m launch run math_1p5b run.root=/shared/runs
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=_choices(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument("recipe", help=f"{', '.join(recipe_names())}, or a path to a .yaml file")
        sub.add_argument(
            "overrides", nargs="*", help="Hydra overrides: field=value, field=a,b, field=range(1,4), group=choice"
        )
        return sub

    plan = command("plan", "print the stages, what is done already and what is shared; starts nothing")
    plan.add_argument("--json", action="store_true", help="machine-readable")
    run = command("run", "run what is missing, then write the report")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything that can be checked without running: as `plan`, and verl's keys",
    )
    run.add_argument(
        "--max-device-hours", metavar="HOURS", help="start no further stage beyond that; as run.max_device_hours=HOURS"
    )
    status = command("status", "one screen: stages by state, progress, last metrics, where the logs are")
    status.add_argument("--watch", action="store_true", help="refresh until everything is done")
    status.add_argument("--json", action="store_true", help="machine-readable")
    command("stop", "ask the running driver of this recipe's stages to stop them and leave")
    preflight = command("check", "preflight of the cluster: driver, kernels, versions, shared store, disk, models")
    preflight.add_argument("--prefetch", action="store_true", help="download the models, once on each node")
    report = command("report", "write report.html and report.md from the records that exist")
    report.add_argument("--json", action="store_true", help="print the table as JSON too")
    explain = commands.add_parser("explain", help="field by field, why two artifacts are not the same")
    explain.add_argument("first", help="an artifact's address, e.g. sft/dft-0123456789abcdef")
    explain.add_argument("second")
    explain.add_argument("--root", default="runs", help="the artifact store")
    gc = commands.add_parser(
        "gc", help="delete what no record refers to: temporary directories, scratch space, old logs"
    )
    gc.add_argument("--root", default="runs", help="the artifact store")
    gc.add_argument("--delete", action="store_true", help="really delete; without it only print")
    return parser


def _choices() -> str:
    return "config groups:\n" + "\n".join(f"  {group}={'|'.join(names)}" for group, names in groups().items())


def _plan(arguments: argparse.Namespace) -> Plan:
    root = next((o.split("=", 1)[1] for o in arguments.overrides if o.startswith("run.root=")), "runs")
    return make_plan(arguments.recipe, arguments.overrides, Path(root) / ".hashes.json" if "://" not in root else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code (0 fine, 1 a stage failed, 2 a wrong recipe or argument)."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse stops collecting overrides at the first option between them
    if any(text.startswith("-") for text in rest) or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unknown argument {rest[0]}; see python -m launch {arguments.command} --help")
    if rest:
        arguments.overrides += rest
    if getattr(arguments, "max_device_hours", None) is not None:
        arguments.overrides.append(f"run.max_device_hours={arguments.max_device_hours}")
    from launch.store import StoreError

    try:
        return _dispatch(arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _dispatch(arguments: argparse.Namespace) -> int:
    if arguments.command == "explain":
        from launch.store import Store
        from launch.store.explain import explain_difference

        print(explain_difference(Store(arguments.root), arguments.first, arguments.second))
        return 0
    if arguments.command == "gc":
        from launch.store import Store
        from launch.store.gc import collect

        for path in collect(Store(arguments.root), delete=arguments.delete):
            print(path)
        return 0
    plan = _plan(arguments)
    if arguments.command == "plan":
        from launch.graph.show import plan_json, print_plan

        print(json.dumps(plan_json(plan), indent=1)) if arguments.json else print_plan(plan)
        return 0
    if arguments.command == "run":
        if arguments.dry_run:
            from launch.graph.dry_run import check_stage_configs
            from launch.graph.show import print_plan

            print_plan(plan)
            for (kind, fine), count in check_stage_configs(plan).items():
                print(f"{fine} of {count} {kind} stage{'s' if count > 1 else ''}")
            return 0
        from launch.execution.run import run

        return run(plan)
    if arguments.command == "status":
        from launch.status import show_status

        return show_status(plan, watch=arguments.watch, as_json=arguments.json)
    if arguments.command == "check":
        from launch.check import check

        return check(plan, prefetch=arguments.prefetch)
    if arguments.command == "stop":
        from launch.execution.run import stop

        return stop(plan)
    from launch.report.write import write_report

    return write_report(plan, as_json=arguments.json)


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    sys.exit(main())
