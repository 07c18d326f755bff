"""`published`: what a paper prints, without running anything."""

from __future__ import annotations

import argparse

from launch.commands.contract import Command


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", help="a paper (lp_sft), one of its tables (lp_sft/t2), or one of its recipes")


def _run(arguments: argparse.Namespace) -> int:
    from launch.published.cells import tables_of
    from launch.published.show import print_tables

    paper, tables = tables_of(arguments.table)
    if not tables:
        print(f"{arguments.table}: the paper shows it as a figure, without numbers")
    print_tables(paper, tables)
    return 0


PUBLISHED = Command("published", "print a table of a paper; runs nothing", _run, _options, of_recipe=False)
