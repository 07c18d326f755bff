"""`analyse`: one analysis over what a recipe has left in the store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from launch.commands.contract import Command
from launch.commands.planned import planned


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("analysis", help="an analysis by name (docs/analyses.md), or one's own by dotted path")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="one of its own settings, as YAML; repeatable"
    )
    parser.add_argument("--output", metavar="DIR", help="write it there instead of beside the recipe's report")


def _run(arguments: argparse.Namespace) -> int:
    from evaluation.analyses import check_settings
    from launch.analysed import analyse

    settings = _settings(arguments.set)
    check_settings(arguments.analysis, settings)
    arguments.overrides.append(f'analyses=["{arguments.analysis}"]')
    output = None if arguments.output is None else Path(arguments.output).expanduser()
    return analyse(planned(arguments), arguments.analysis, settings, output)


def _settings(given: list[str]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {text}: allowed: FIELD=VALUE, such as --set chat=3")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: not YAML ({' '.join(str(error).split())}); quote the value") from None
    return found


ANALYSE = Command(
    "analyse", "run one analysis over what is in the store, and draw its pictures", _run, _options, before=_name
)
