"""Command line: `python -m evaluation compare A B`."""

import argparse
import json
import pathlib
import sys


def main() -> int:
    """Parse the arguments and run; prints one line and returns 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description="Evaluation results at the command line.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("compare", help="paired comparison of two evaluate artifacts, b minus a")
    command.add_argument("a", type=pathlib.Path)
    command.add_argument("b", type=pathlib.Path)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--resamples", type=int, default=10_000)
    command.add_argument("--json", action="store_true", help="rows as JSON")
    arguments = parser.parse_args()

    from evaluation.compare import compare

    try:
        rows = compare(arguments.a, arguments.b, seed=arguments.seed, resamples=arguments.resamples)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(
        f"{'benchmark':20} {'metric':8} {'a':>7} {'b':>7} {'b - a':>8} "
        f"{'95% interval':>18} {'p':>7} {'p Holm':>7} {'n':>5}"
    )
    for row in rows:
        interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        print(
            f"{row['benchmark']:20} {row['metric']:8} {row['a']:7.4f} {row['b']:7.4f} {row['difference']:+8.4f} "
            f"{interval:>18} {row['p_value']:7.4f} {row['p_holm']:7.4f} {row['n']:5d}"
        )
    print(f"p Holm: adjusted for the {len(rows)} comparisons of this table.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
