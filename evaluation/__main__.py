"""Command line: `python -m evaluation {compare,average,problems}`."""

import argparse
import json
import pathlib
import sys


def main() -> int:
    """Parse the arguments and run; prints one line and returns 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description="Evaluation results at the command line.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("compare", help="paired comparison of two models, b minus a")
    command.add_argument("a", type=_artifacts, help="measure artifacts of one model, joined by commas")
    command.add_argument("b", type=_artifacts, help="of the other")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--resamples", type=int, default=100_000, help="draws of signs for p, where not exact")
    command.add_argument("--json", action="store_true", help="rows as JSON")
    command.set_defaults(function=_compare)
    command = commands.add_parser("average", help="mean over the benchmarks and tasks of a model")
    command.add_argument("artifact", type=_artifacts, help="its measure artifacts, joined by commas")
    command.add_argument("--base", type=_artifacts, help="those of the model before fine-tuning")
    command.add_argument("--minimum", type=float, help="leave out where the base is below; default: eval.base_minimum")
    command.add_argument("--without", action="append", default=[], metavar="NAME", help="leave out, e.g. the target")
    command.set_defaults(function=_average)
    command = commands.add_parser("problems", help="turn a published benchmark into a Parquet file")
    command.add_argument("name", nargs="?", help="the benchmark; without a name all are listed with the file they need")
    command.add_argument("--file", type=pathlib.Path, help="a local copy of the published file; default: the hub's")
    command.add_argument("--output", type=pathlib.Path, help="default: problems/<name>.parquet")
    command.set_defaults(function=_problems)
    arguments = parser.parse_args()
    try:
        arguments.function(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _artifacts(text: str) -> list[pathlib.Path]:
    return [pathlib.Path(part) for part in text.split(",")]


def _average(arguments: argparse.Namespace) -> None:
    from evaluation.compare import NOT_REPRODUCIBLE, average

    found = average(arguments.artifact, arguments.base, arguments.minimum, arguments.without)
    print(json.dumps(found, indent=1))
    if not found["reproducible"]:
        print(NOT_REPRODUCIBLE, file=sys.stderr)


def _problems(arguments: argparse.Namespace) -> None:
    from evaluation import benchmarks
    from evaluation.problems import write_problems

    if arguments.name is None:
        print("\n".join(benchmarks.load(name).needed() for name in benchmarks.names()))
        return
    output = arguments.output or pathlib.Path("problems") / f"{arguments.name}.parquet"
    count = write_problems(arguments.name, arguments.file, output)
    print(f"{output}: {count} problems; data.files.benchmarks.{arguments.name}={output}")


def _compare(arguments: argparse.Namespace) -> None:
    from evaluation.compare import NOT_REPRODUCIBLE, compare

    rows = compare(arguments.a, arguments.b, seed=arguments.seed, resamples=arguments.resamples)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(
        f"{'benchmark':20} {'metric':8} {'a':>22} {'b':>22} {'b - a (95% interval)':>26} "
        f"{'p':>7} {'p Holm':>7} {'detectable':>10} {'n':>5}"
    )
    for row in rows:
        sides = [f"{row[side]:.4f} [{row[f'{side}_low']:.3f}, {row[f'{side}_high']:.3f}]" for side in ("a", "b")]
        difference = f"{row['difference']:+.4f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        detectable = "none" if row["detectable"] is None else f"{row['detectable']:.4f}"
        print(
            f"{row['benchmark']:20} {row['metric']:8} {sides[0]:>22} {sides[1]:>22} {difference:>26} "
            f"{row['p_value']:7.4f} {row['p_holm']:7.4f} {detectable:>10} {row['n']:5d}"
        )
    print(
        f"p Holm: adjusted for the {len(rows)} comparisons of this table. Detectable: the smallest difference that a "
        f"test at 5% finds four times in five on so many problems."
    )
    if not rows[0]["reproducible"]:
        print(NOT_REPRODUCIBLE)


if __name__ == "__main__":
    sys.exit(main())
