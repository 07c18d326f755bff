"""The page of a study: its tables made from the CSV, the claims and the design beside it, and nothing else."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError
from common.files import write_text
from launch.evidence import tables
from launch.evidence.claims import Claim, decide, read_claims
from launch.evidence.pictures import claims_picture, scores_picture
from launch.evidence.power import spread
from launch.evidence.runs import Run, arms, called, read_csv
from launch.report.lines import BASE

RUNS, CLAIMS, DESIGN = "runs.csv", "claims.yaml", "design.yaml"
SETTINGS = ("pilot", "pairs", "phase", "figure", "seeds", "problems", "against", "arms", "rates", "again")


def tables_of(folder: Path) -> dict[str, Callable[[], str]]:
    """How each table is made, by name.

    folder: holds `design.yaml`: `pilot` (a CSV of pilot runs), `pairs` of arms, `phase` and `figure` of the table of
    power, its `seeds` and `problems`, the arm that others are held `against`, `arms`: row of the report -> what the
    page calls it, `rates`: a CSV of `arm`, `rate`, `prompt_pass_rate`, and `again`: runs that were made a second time,
    a CSV like `runs.csv`. For the other tables `runs.csv` and `claims.yaml` (see `Claim`). A table raises ConfigError
    where its file is missing or names what there is not.
    """
    design = _design(folder / DESIGN)

    @functools.cache
    def runs() -> list[Run]:
        return _runs(folder)

    def power() -> str:
        pairs = [(first, second) for first, second in design["pairs"]]
        found = spread(read_csv(_file(folder, design["pilot"])), pairs, design["phase"], design["figure"])
        return tables.power_table(found, design["seeds"], design["problems"])

    def rates() -> list[dict[str, str]]:
        with _file(folder, design["rates"]).open(newline="") as file:
            return list(csv.DictReader(file))

    def again() -> str:
        return tables.again_table(runs(), read_csv(_file(folder, design["again"])), "pass@1")

    def contrasts(phase: str, figure: str = "pass@1") -> str:
        return tables.contrasts_table(runs(), arms(runs()), design["against"], phase, figure)

    return {
        "power": power,
        "rates": lambda: tables.rates_table(rates(), "prompt_pass_rate"),
        "arms": lambda: tables.arms_table(runs(), arms(runs()), [run for run in runs() if run.arm == BASE]),
        "sft": lambda: contrasts("sft"),
        "sft_pass16": lambda: contrasts("sft", "pass@16"),
        "rl": lambda: contrasts("rl"),
        "claims": lambda: tables.claims_table(decide(_claims(folder), runs())),
        "hypotheses": lambda: tables.hypotheses_table(_claims(folder)),
        "again": again,
        "predictors": lambda: tables.predictors_table(runs()),
    }


def pictures_of(folder: Path) -> dict[str, Callable[[], str]]:
    """How each picture is drawn, by name: SVG of `scores` and `claims`, from what `tables_of` reads."""
    design = _design(folder / DESIGN)
    return {
        "scores": lambda: scores_picture(_runs(folder), design["against"]),
        "claims": lambda: claims_picture(decide(_claims(folder), _runs(folder))),
    }


def _runs(folder: Path) -> list[Run]:
    """The runs by the names that the page gives to their arms."""
    return called(read_csv(_file(folder, RUNS)), _design(folder / DESIGN)["arms"])


def _claims(folder: Path) -> list[Claim]:
    return read_claims(_file(folder, CLAIMS).read_text())


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"{path}: missing, and a table of the page is made from it")
    return path


def _design(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    if not isinstance(found, dict) or set(found) != set(SETTINGS):
        raise ConfigError(f"{path}: the fields are {', '.join(SETTINGS)}, each of them once")
    return found


def fill(page: Path, folder: Path) -> None:
    """Writes the tables of a study between their marks in a page, and beside the tables' data the pictures it shows."""
    text = tables.fill(page.read_text(), tables_of(folder))
    shown = {name: draw() for name, draw in pictures_of(folder).items() if f"/{name}.svg)" in text}
    write_text(page, text)
    for name, svg in shown.items():
        write_text(folder / f"{name}.svg", svg)
