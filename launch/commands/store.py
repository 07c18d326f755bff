"""`explain` and `gc`: what is in a store, whatever the recipe."""

from __future__ import annotations

import argparse

from launch.commands.contract import Command


def _two(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "first", help="an artifact's address (sft/dft-0123456789abcdef), its directory, its log or a file in it"
    )
    parser.add_argument("second")
    parser.add_argument("--root", default="runs", help="the artifact store, where an address is given")


def _explain(arguments: argparse.Namespace) -> int:
    from launch.store import Store
    from launch.store.explain import explain_difference

    print(explain_difference(Store(arguments.root), arguments.first, arguments.second))
    return 0


def _collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default="runs", help="the artifact store")
    parser.add_argument("--delete", action="store_true", help="really delete; without it only print")


def _gc(arguments: argparse.Namespace) -> int:
    from launch.store import Store, StoreError
    from launch.store.gc import collect

    store = Store(arguments.root)
    if not store.root.is_dir():
        raise StoreError(f"--root {arguments.root}: there is no store; name its directory")
    found = collect(store, delete=arguments.delete)
    for path in found:
        print(path)
    what = f"{len(found)} of them; add --delete to delete them"
    if not found:
        what = f"nothing to delete: every file in {store.root} belongs to a record or a living run"
    elif arguments.delete:
        what = f"{len(found)} deleted"
    print(what)
    return 0


EXPLAIN = Command("explain", "field by field, why two artifacts are not the same", _explain, _two, of_recipe=False)
GC = Command(
    "gc", "delete what no record refers to: temporary directories, scratch space, old logs", _gc, _collect, False
)
