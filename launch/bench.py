"""Measures launch itself: planning, re-running a finished sweep, and the time it adds to a stage.

python -m launch.bench [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.settings import describe
from launch.execution.driver import Driver
from launch.fingerprint import fingerprint
from launch.graph.builder import make_plan
from launch.graph.plan import Branch, Input, Plan, Stage
from launch.report import synthetic
from launch.report.write import write_report
from launch.stages.contract import Settings
from launch.store import Store
from launch.store.leases import Heartbeat
from launch.store.ledger import append_cost
from launch.store.records import RECORD

# seconds; what the project promises on an unloaded machine of two cores
LIMITS = {
    "plan_100_stages": 2.0,
    "plan_500_stages": 8.0,
    "rerun_100_cached_stages": 5.0,
    "status_10000_artifacts": 1.0,
    "overhead_per_stage": 1.0,
    "report_40_branches": 10.0,
}
CHAIN = 6
ARTIFACTS = 10_000
BRANCH_STAGES = 6  # SFT, RL, and after each of them answers and their measure


def sweep(branches: int, root: Path) -> list[str]:
    """Arguments of a micro-world sweep over seeds with one benchmark: BRANCH_STAGES a branch, some shared by all."""
    measured = ["eval.benchmarks=[{name: target, max_tokens: 64}]", "eval.held_out_chats=0"]
    return ["microworld", f"seed=range(0,{branches})", f"run.root={root}", *measured]


def _timed(arguments: list[str]) -> float:
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "launch", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begun


def fill(plan: Plan) -> None:
    """Publishes a one-file artifact for every stage, as if it had run."""
    store = Store(plan.root)
    with Heartbeat(store, plan.recipe) as beat:
        for stage in plan.stages.values():
            store.acquire(stage, beat.run)
            attempt = store.begin(stage)
            (store.temporary(stage, attempt) / "value.txt").write_text("0")
            store.publish(stage, attempt, beat.run, started=0.0, seconds=1.0, peak_memory_bytes=1)
            store.release(stage, beat.run)


def crowd(plan: Plan, artifacts: int) -> None:
    """Brings the store of a filled plan to so many artifacts, each with its row in the cost ledger."""
    store, stage = Store(plan.root), next(iter(plan.stages.values()))
    record = json.loads((store.directory(stage) / RECORD).read_text())
    for number in range(artifacts - len(plan.stages)):
        other = replace(stage, label="other", fingerprint=fingerprint({"crowd": number}))
        folder = store.directory(other)
        folder.mkdir()
        (folder / RECORD).write_text(json.dumps({**record, "label": other.label, "fingerprint": other.fingerprint}))
        (folder / "value.txt").write_text("0")
        append_cost(store.root, other, 1, {"outcome": "ok", "seconds": 1.0})


def stamp(settings: Any, inputs: Any, output: Path, scratch: Path, report: Any) -> None:
    """A stage that only notes when it began and ended; its two times are what no launcher can save."""
    begun = time.time()
    report(1, 1)
    (output / "timings.jsonl").write_text(json.dumps({"begun": begun, "ended": time.time()}) + "\n")


def chain(root: Path) -> Plan:
    """A hand-made plan of CHAIN stages, each of which waits for the one before."""
    recipe = make_plan("microworld", [f"run.root={root}"]).branches[0].recipe
    settings = describe(Settings(model=recipe.model, platform=recipe.platform))
    stages: dict[str, Stage] = {}
    before: str | None = None
    for number in range(CHAIN):
        inputs = {} if before is None else {"data": Input(stage=before)}
        mark = fingerprint({"bench": number})
        placement = {"nodes": 1, "gpus_per_node": 0, "cpus": 1.0, "strategy": "PACK"}
        stages[mark] = Stage(
            "prepare",
            f"bench{number}",
            "launch.bench:stamp",
            settings["values"],
            {},
            1,
            inputs,
            mark,
            placement,
            ("bench",),
            settings["type"],
        )
        before = mark
    roles = {f"prepare{number}": mark for number, mark in enumerate(stages)}
    return Plan("bench", [Branch("bench", (), recipe, roles)], stages)


def overhead(root: Path) -> list[float]:
    """Seconds from ready to the child's first line plus from its last line to the record, for each stage but the first.

    The first one also waits for Ray to start.
    """
    plan = chain(root)
    store = Store(root)
    store.root.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        code = Driver(plan, store).run()
    if code:
        raise RuntimeError(f"the bench's own stages failed; see the logs below {root}")
    records, times = [], []
    for stage in plan.stages.values():
        directory = store.directory(stage)
        records.append((directory / RECORD).stat().st_mtime)
        times.append(json.loads((directory / "timings.jsonl").read_text()))
    return [(times[n]["begun"] - records[n - 1]) + (records[n] - times[n]["ended"]) for n in range(1, len(records))]


def report_of_forty(root: Path) -> float:
    """Seconds to write the report of 40 branches from a store that has all that it reads; planning is not counted."""
    plan = synthetic.sweep(root, rates=len(synthetic.RATES))
    synthetic.fill(plan)
    begun = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        write_report(plan)
    return time.monotonic() - begun


def measure() -> dict[str, float]:
    """Seconds of each figure in LIMITS; the overhead is the median over stages."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        root = Path(folder)
        for stages in (100, 500):
            found[f"plan_{stages}_stages"] = _timed(
                ["plan", *sweep(math.ceil(stages / BRANCH_STAGES), root / "none"), "--json"]
            )
        finished = [*sweep(49, root / "full"), "eval.enabled=false"]  # 2 shared stages and 2 a branch
        plan = make_plan(finished[0], finished[1:])
        fill(plan)
        _timed(["run", *finished])  # the first one writes the report
        found["rerun_100_cached_stages"] = _timed(["run", *finished])
        crowd(plan, ARTIFACTS)
        found["status_10000_artifacts"] = _timed(["status", "microworld", f"run.root={root / 'full'}"])
        found["report_40_branches"] = report_of_forty(root / "forty")
        found["overhead_per_stage"] = statistics.median(overhead(root / "chain"))
    return found


def main() -> int:
    """Prints the figures; returns 1 if one is over its limit."""
    parser = argparse.ArgumentParser(prog="python -m launch.bench", description="Measures launch itself.")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    arguments = parser.parse_args()
    found = measure()
    if arguments.json:
        print(json.dumps({name: {"seconds": found[name], "limit": limit} for name, limit in LIMITS.items()}, indent=1))
    else:
        for name, limit in LIMITS.items():
            print(f"{name}: {found[name]:.2f} s, at most {limit:g} s")
    return int(any(found[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
