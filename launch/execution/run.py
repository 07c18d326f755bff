"""Runs, stops and cleans up after drivers."""

from __future__ import annotations

import shutil
import sys
import time

from launch.execution.cluster import Refused
from launch.execution.driver import Driver
from launch.execution.tracking import Tracking
from launch.graph.plan import Plan, plan_key
from launch.graph.select import select
from launch.report.write import write_report
from launch.store import Store, StoreError
from launch.store.errors import clear_errors
from launch.store.leases import end_run

LEAVING = 20.0  # seconds beside run.grace that a driver may take to notice `stop`, to end Ray and to sign off


def run(plan: Plan) -> int:
    """Runs every stage of the plan that the store lacks, then writes the report.

    With `selection.fields` it goes twice: the candidates' SFT first, then what the best of them need; with
    `selection.rungs` once for each rung that decides. Returns 0 when everything is done, 1 when a stage failed (others
    that could run have run), 3 when it was stopped (SIGTERM, `launch stop`, run.max_device_hours) and the same command
    continues.
    """
    store = Store(plan.root)
    try:
        with clear_errors(store.root):
            store.root.mkdir(parents=True, exist_ok=True)
        clean_up(store)
        with Tracking(plan, store) as tracking:
            code = tracking.code = _drive(plan, store)
    except (StoreError, Refused) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return max(code, write_report(plan)) if code != 3 else code


def _drive(plan: Plan, store: Store) -> int:
    """Runs what the plan lacks, the candidates of a selection before what the best of them need."""
    code, before, selected = 0, None, select(plan, store)
    while code == 0 and selected != before:
        code, before = Driver(selected.plan, store, plan).run(), selected
        selected = select(plan, store) if selected.undecided else before
    if code == 0 and selected.undecided:
        raise Refused("selection: the candidates are trained and yet undecided; see `launch status`")
    return code


def stop(plan: Plan) -> int:
    """Asks every living driver of this plan to stop its stages and leave, and waits for run.grace and a little more.

    Returns 1 if none runs, or if one is still there then.
    """
    store = Store(plan.root)
    living = [driver for driver in store.list_drivers() if store.alive(driver.run)]
    drivers = [driver for driver in living if driver.plan == plan_key(plan)]
    others = [driver for driver in living if driver.recipe == plan.recipe and driver not in drivers]
    if not drivers:
        print(f"no run of this plan ({plan.recipe} with these overrides) is alive in {store.root}")
        if others:
            print(f"{len(others)} other runs of {plan.recipe} are: give `stop` the overrides that one was started with")
        return 1
    for driver in drivers:
        with clear_errors(store.root):
            (store.drivers / f"{driver.run}.stop").touch()
        print(f"asked {driver.host} process {driver.pid} to stop; stages end within run.grace")
    limit = plan.branches[0].recipe.run.grace + LEAVING
    deadline = time.monotonic() + limit
    while drivers := [driver for driver in drivers if store.driver(driver.run) is not None and store.alive(driver.run)]:
        if time.monotonic() > deadline:
            for driver in drivers:
                print(
                    f"{driver.host} process {driver.pid} is still there after {limit:g} s: look at that host; its "
                    "stages are taken over once its heartbeat stands still"
                )
            return 1
        time.sleep(0.2)
    return 0


def clean_up(store: Store) -> None:
    """Ends and removes what dead drivers of this host left: processes, temporary directories, their sign-on."""
    for driver in store.list_drivers():
        if driver.here and not store.alive(driver.run):
            end_run(driver.run)
            shutil.rmtree(driver.temporary, ignore_errors=True)
            store.sign_off(driver.run)
