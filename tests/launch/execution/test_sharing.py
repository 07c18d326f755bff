"""Where stages that share an engine fit, never in a negative number of places, and when idle devices take a share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from launch.execution.jobs import Job
from launch.execution.sharing import IDLE, IdleDevices, free_places

ONE = {"nodes": 1, "gpus_per_node": 1, "cpus": 1}
NONE = {"nodes": 1, "gpus_per_node": 0, "cpus": 1}


@pytest.mark.parametrize(("busy", "places"), [(0, 2), (1, 1), (2, 0), (3, 0), (5, 0)])
def test_jobs_that_wait_for_devices_leave_no_place(busy, places):
    assert free_places("engine", ONE, 2.0, [Job([], ONE, engine=str(n)) for n in range(busy)]) == places


def test_one_job_of_an_engine_without_a_device():
    assert free_places("a", NONE, 0.0, []) == 1
    assert free_places("a", NONE, 0.0, [Job([], NONE, engine="a")]) == 0
    assert free_places("a", NONE, 0.0, [Job([], NONE, engine="b")]) == 1


def shared(*, begun=1, ahead=5, seconds=40.0, placement=ONE, turns=False):
    """A job that has taken so long at the time 0 for what it has begun."""
    attempts = {str(number): 1 for number in range(begun + ahead)}
    return Job([SimpleNamespace()] * (ahead + 1), placement, attempts=attempts, started=-begun * seconds, turns=turns)


def parted(running, total, *, queued=(), free=8.0, idle=IDLE):
    """The jobs that are named when devices have idled so long."""
    devices = IdleDevices(lambda: free)
    assert devices.share_out(running, queued, total, -idle) == []
    return devices.share_out(running, queued, total, 0.0)


def test_an_idle_device_gets_its_share_of_the_longest_job():
    short, long = shared(ahead=3, seconds=30.0), shared(begun=2, ahead=5)
    assert parted([short, long], 2.0) == []  # no device idles
    assert parted([short, long], 3.0, queued=[shared()]) == []
    assert parted([short, long], 3.0, idle=IDLE - 1) == []
    assert parted([short, long], 3.0, free=0.0) == []  # another driver has it
    assert parted([short, long], 3.0) == [long]
    assert parted([short, long], 3.0) == []  # until it has ended
    assert parted([short], 2.0) == []  # a stage earlier is not worth a start
    assert parted([shared(ahead=3, seconds=61.0)], 2.0) != []


@pytest.mark.parametrize(
    "job",
    [
        shared(ahead=0, seconds=500.0),
        shared(ahead=1, seconds=500.0),
        shared(placement=NONE, seconds=500.0),
        shared(placement={**ONE, "gpus_per_node": 2}, seconds=500.0),
        shared(turns=True, seconds=500.0),
    ],
    ids=["in its last stage", "before its last", "no device", "too large for what idles", "a cluster by turns"],
)
def test_jobs_that_no_idle_device_can_help(job):
    assert parted([job], job.placement["gpus_per_node"] + 1.0) == []
