"""The page of a study: its tables made from the CSV, the claims and the sizes beside it, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.errors import ConfigError
from common.files import write_text
from launch.evidence import tables
from launch.evidence.claims import decide, read_claims
from launch.evidence.power import spread
from launch.evidence.runs import arms, read_csv
from launch.report.lines import BASE

RUNS, CLAIMS, DESIGN = "runs.csv", "claims.yaml", "design.yaml"
SETTINGS = ("pilot", "pairs", "phase", "figure", "seeds", "problems", "against")


def tables_of(folder: Path) -> dict[str, str]:
    """The tables by name: arms, rl, sft, claims, power, predictors.

    folder: holds `runs.csv`, `claims.yaml` (see `Claim`) and `design.yaml`: `pilot` (a CSV of pilot runs), `pairs` of
    arms, `phase` and `figure` of the power table, its `seeds` and `problems`, and the arm that others are held
    `against`. Raises ConfigError where one is missing or names something that there is not.
    """
    design = _design(folder / DESIGN)
    runs = read_csv(folder / RUNS)
    shown, against = arms(runs), design["against"]
    pilot = read_csv(folder / design["pilot"])
    pairs = [(first, second) for first, second in design["pairs"]]
    found = spread(pilot, pairs, design["phase"], design["figure"])
    return {
        "arms": tables.arms_table(runs, shown, [run for run in runs if run.arm == BASE]),
        "rl": tables.contrasts_table(runs, shown, against, "rl", "pass@1"),
        "sft": tables.contrasts_table(runs, shown, against, "sft", "pass@1"),
        "claims": tables.claims_table(decide(read_claims((folder / CLAIMS).read_text()), runs)),
        "power": tables.power_table(found, design["seeds"], design["problems"]),
        "predictors": tables.predictors_table(runs),
    }


def _design(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text())
    if not isinstance(found, dict) or set(found) != set(SETTINGS):
        raise ConfigError(f"{path}: the fields are {', '.join(SETTINGS)}, each of them once")
    return found


def fill(page: Path, folder: Path) -> None:
    """Writes the tables of a study between their marks in a page."""
    write_text(page, tables.fill(page.read_text(), tables_of(folder)))
