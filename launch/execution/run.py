"""Runs, stops and cleans up after drivers."""

from __future__ import annotations

import shutil
import sys
import time

from launch.execution.cluster import Refused
from launch.execution.driver import Driver
from launch.graph.plan import Plan
from launch.graph.select import select
from launch.report.write import write_report
from launch.store import Store, StoreError
from launch.store.leases import end_run
from launch.store.records import host


def run(plan: Plan) -> int:
    """Runs every stage of the plan that the store lacks, then writes the report.

    With `selection.fields` it goes twice: the candidates' SFT first, then what the best of them need. Returns 0 when
    everything is done, 1 when a stage failed (others that could run have run), 3 when it was stopped (SIGTERM, `launch
    stop`, run.max_device_hours) and the same command continues.
    """
    store = Store(plan.root)
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        clean_up(store)
        code, undecided = 0, None
        while code == 0 and undecided != 0:
            selected = select(plan, store)
            if len(selected.undecided) == undecided:
                raise Refused("selection: the candidates are trained and yet undecided; see `launch status`")
            undecided = len(selected.undecided)
            code = Driver(selected.plan, store).run()
    except (StoreError, Refused) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return max(code, write_report(plan)) if code != 3 else code


def stop(plan: Plan) -> int:
    """Asks every living driver of this recipe to stop its stages and leave, and waits. Returns 1 if none runs."""
    store = Store(plan.root)
    drivers = [d for d in store.list_drivers() if d.recipe == plan.recipe and store.alive(d.run)]
    if not drivers:
        print(f"no run of {plan.recipe} is alive in {store.root}")
        return 1
    for driver in drivers:
        (store.drivers / f"{driver.run}.stop").touch()
        print(f"asked {driver.host} process {driver.pid} to stop; stages end within run.grace")
    while any(store.alive(driver.run) for driver in drivers):
        time.sleep(0.2)
    return 0


def clean_up(store: Store) -> None:
    """Ends and removes what dead drivers of this host left: processes, temporary directories, their sign-on."""
    for driver in store.list_drivers():
        if driver.host == host() and not store.alive(driver.run):
            end_run(driver.run)
            shutil.rmtree(driver.temporary, ignore_errors=True)
            store.sign_off(driver.run)
