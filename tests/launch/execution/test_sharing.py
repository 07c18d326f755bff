"""Where stages that share an engine fit, never in a negative number of places, and when idle devices take a share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from launch.execution.jobs import Job
from launch.execution.sharing import free_places, shared_out

ONE = {"nodes": 1, "gpus_per_node": 1, "cpus": 1}
NONE = {"nodes": 1, "gpus_per_node": 0, "cpus": 1}


@pytest.mark.parametrize(("busy", "places"), [(0, 2), (1, 1), (2, 0), (3, 0), (5, 0)])
def test_jobs_that_wait_for_devices_leave_no_place(busy, places):
    assert free_places("engine", ONE, 2.0, [Job([], ONE, engine=str(n)) for n in range(busy)]) == places


def test_one_job_of_an_engine_without_a_device():
    assert free_places("a", NONE, 0.0, []) == 1
    assert free_places("a", NONE, 0.0, [Job([], NONE, engine="a")]) == 0
    assert free_places("a", NONE, 0.0, [Job([], NONE, engine="b")]) == 1


def shared(*seconds, placement=ONE, turns=False):
    """A job of stages with these estimates."""
    return Job([SimpleNamespace(fingerprint=one) for one in seconds], placement, turns=turns)


def parted(running, total):
    """The jobs that `shared_out` names; every stage here is called as long as it takes."""
    stages = [stage for job in running for stage in job.stages]
    estimates = {stage.fingerprint: SimpleNamespace(seconds=stage.fingerprint) for stage in stages}
    return shared_out(running, total, estimates)


def test_an_idle_device_gets_its_share_of_the_longest_job_once():
    short, long = shared(50.0, 60.0, 70.0), shared(50.0, 60.0, 90.0)
    assert parted([short, long], 2.0) == []  # no device idles
    assert parted([short, long], 3.0) == [long]
    assert parted([short, long], 3.0) == [short]
    assert parted([short, long], 3.0) == []


@pytest.mark.parametrize(
    "job",
    [
        shared(500.0),
        shared(500.0, 119.0),
        shared(500.0, 500.0, placement=NONE),
        shared(500.0, 500.0, placement={**ONE, "gpus_per_node": 2}),
        shared(500.0, 500.0, turns=True),
    ],
    ids=["one stage", "not worth a start", "no device", "too large for what idles", "a cluster by turns"],
)
def test_jobs_that_no_idle_device_can_help(job):
    assert parted([job], 1.0 + job.placement["gpus_per_node"] * (job.placement["gpus_per_node"] < 2)) == []
