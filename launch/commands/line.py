"""Arguments, and what is said when a command cannot do what they ask."""

from __future__ import annotations

import argparse
import errno
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from launch.commands.analyse import ANALYSE
from launch.commands.branches import RM, SHOW
from launch.commands.check import CHECK
from launch.commands.contract import Command
from launch.commands.evidence import EVIDENCE
from launch.commands.models import ADOPT, EVALUATE, EXPORT
from launch.commands.plan import PLAN
from launch.commands.prepare import PREPARE
from launch.commands.published import PUBLISHED
from launch.commands.report import REPORT
from launch.commands.run import RUN
from launch.commands.store import EXPLAIN, GC
from launch.commands.watch import STATUS, STOP
from launch.recipe.library import RecipeWarning, groups, recipe_names
from launch.store import StoreError

COMMANDS = (
    *(PLAN, RUN, PREPARE, STATUS, STOP, SHOW, CHECK),
    *(REPORT, ANALYSE, PUBLISHED, EVIDENCE, EVALUATE, ADOPT, EXPORT, EXPLAIN, RM, GC),
)
# What the file system may refuse whatever the code does.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR)

DESCRIPTION = """\
Runs a recipe: prepare data, fine-tune with one or more objectives, reinforce each checkpoint, evaluate, report.
Every result is kept under its fingerprint in the store (runs/), so the same command continues where it stopped and
shares what is equal between recipes, objectives and seeds."""

EXAMPLES = """\
examples:
  {program} plan microworld objective=sft,lp_sft            what would run, and what is there already
  {program} run microworld objective=sft,dft seed=1,2,3     a sweep: every combination is a branch
  {program} run microworld sft.lr=1e-5,5e-5 rl.enabled=false
  {program} status microworld objective=sft,lp_sft --watch
  {program} report microworld objective=sft,lp_sft
  {program} analyse drift microworld objective=sft,dft sft.publish_steps=[5,10]
  ray job submit --working-dir . -- python -m launch run math_1p5b run.root=/shared/runs
"""


def program() -> str:
    """How this command line was called."""
    name = Path(sys.argv[0]).name
    return name if name == "sft-then-rl" else "python -m launch"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    name = program()
    whole = argparse.ArgumentParser(
        prog=name,
        description=DESCRIPTION,
        epilog=EXAMPLES.format(program=name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="command")
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            epilog=_choices() if command.of_recipe else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.before(sub)
        if command.of_recipe:
            sub.add_argument("recipe", help=f"{', '.join(recipe_names())}, or a path to a .yaml file")
            sub.add_argument(
                "overrides", nargs="*", help="Hydra overrides: field=value, field=a,b, field=range(1,4), group=choice"
            )
            sub.add_argument(
                "--scale", choices=("full", "tiny"), help="tiny: the same walk in minutes on a CPU; as scale=tiny"
            )
        command.options(sub)
        sub.set_defaults(chosen=command)
    return whole


def _choices() -> str:
    return "config groups:\n" + "\n".join(f"  {group}={'|'.join(names)}" for group, names in groups().items())


def call(argv: Sequence[str] | None) -> int:
    """Runs the command that the arguments name; returns the exit code. What is wrong is one line on stderr."""
    whole = parser()
    arguments, rest = whole.parse_known_args(argv)
    # argparse stops collecting overrides at the first option between them
    if any(text.startswith("-") for text in rest) or (rest and not hasattr(arguments, "overrides")):
        whole.error(f"unknown argument {rest[0]}; see {program()} {arguments.command} --help")
    if rest:
        arguments.overrides += rest
    command: Command = arguments.chosen
    if getattr(arguments, "scale", None):
        arguments.overrides.append(f"scale={arguments.scale}")
    with warnings.catch_warnings():
        warnings.simplefilter("always", RecipeWarning)
        shown, warnings.showwarning = warnings.showwarning, _say_in_one_line(warnings.showwarning)
        try:
            return command.run(arguments)
        except ConfigError as error:
            return _refused(error, 2)
        except StoreError as error:
            return _refused(error, 1)
        except OSError as error:
            if error.errno not in REFUSED or error.filename is None:
                raise
            return _refused(f"{error.filename}: {error.strerror}; check run.root and its permissions", 1)
        finally:
            warnings.showwarning = shown


def _refused(error: Any, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _say_in_one_line(otherwise: Any) -> Any:
    def say(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, RecipeWarning):
            print(f"warning: {message}", file=sys.stderr)
        else:
            otherwise(message, category, *rest, **more)

    return say
