"""`evaluate`, `adopt` and `export`: a model from elsewhere comes in, a model of a branch goes out."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.errors import ConfigError
from launch.commands.contract import Command
from launch.commands.planned import planned


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory of a Hugging Face model, or its hub name")
    parser.add_argument("recipe", help="recipe whose `eval` and `data` sections say what is measured, and on what")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as eval=talr")
    parser.add_argument("--revision", help="commit of a hub name")
    parser.add_argument("--dry-run", action="store_true", help="print the plan; start nothing")


def _evaluate(arguments: argparse.Namespace) -> int:
    alone = ["model.pretrain=null", "sft.enabled=false", "rl.enabled=false", "average.weight=null"]
    arguments.overrides += [f"model.path={_quoted(arguments.model)}", *alone]
    if arguments.revision is not None:
        arguments.overrides.append(f"model.revision={_quoted(arguments.revision)}")
    from launch.graph.tracked import check_trackers

    plan = planned(arguments, write=not arguments.dry_run)
    check_trackers(plan)
    if arguments.dry_run:
        from launch.graph.show import print_plan

        print_plan(plan)
        return 0
    from launch import interrupts
    from launch.execution.run import run

    interrupts.raise_again()
    return run(plan)


def _quoted(text: str) -> str:
    """A text as one value of Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _adopt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory of a Hugging Face model, or its hub name")
    parser.add_argument("recipe", help="recipe in whose store it is kept")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as run.root=runs or model.eos=...")
    parser.add_argument("--as", dest="name", required=True, metavar="NAME", help="what its branch is called")
    parser.add_argument("--revision", help="commit of a hub name")


def _adopt(arguments: argparse.Namespace) -> int:
    from launch.adoption import adopt

    model = arguments.model if arguments.revision is None else f"{arguments.model}@{arguments.revision}"
    arguments.overrides.append(f"adopt.{arguments.name}={_quoted(model)}")
    return adopt(planned(arguments, write=True), arguments.name, model)


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--branch", help="name of a branch, as `plan` says; needless where there is one")
    parser.add_argument("--model", default=None, help="sft, sft@50, rl@final, ...; default: the last one of the branch")
    parser.add_argument("--to", required=True, metavar="DIR", help="directory to make")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload it to the hub as well; the token is HF_TOKEN's")
    parser.add_argument("--private", action="store_true", help="of a repository that --push makes")
    parser.add_argument(
        "--licence", help="licence of the weights, for the card, as the hub calls it: apache-2.0, other"
    )
    parser.add_argument("--licence-name", help="with --licence other: its name")
    parser.add_argument("--licence-link", help="with --licence other: address of its text, or a file in the repository")


def _export(arguments: argparse.Namespace) -> int:
    from launch.card import Licence
    from launch.export import export

    given = Licence(arguments.licence, arguments.licence_name, arguments.licence_link)
    if (given.identifier == "other") != (given.name is not None) or (given.link and given.identifier != "other"):
        raise ConfigError(
            f"--licence {given.identifier}: other, and no other, needs --licence-name, and takes --licence-link"
        )
    return export(
        planned(arguments),
        arguments.branch,
        arguments.model,
        Path(arguments.to).expanduser(),
        licence=given,
        push=arguments.push,
        private=arguments.private,
    )


EVALUATE = Command("evaluate", "measure a model from elsewhere; trains nothing", _evaluate, _evaluate_options, False)
ADOPT = Command("adopt", "a model from elsewhere as SFT's in later plans", _adopt, _adopt_options, False)
EXPORT = Command("export", "a branch's model as a directory with a model card", _export, _export_options)
