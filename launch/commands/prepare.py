"""`prepare`: reads every row of the recipe's data and keeps what it made; takes no device."""

from __future__ import annotations

import argparse

from launch.commands.contract import Command
from launch.commands.planned import planned


def _run(arguments: argparse.Namespace) -> int:
    from launch.rows import read_rows

    return read_rows(planned(arguments, write=True), keep=True)


PREPARE = Command("prepare", "read every row of the data, say what is wrong, keep what was prepared; no device", _run)
