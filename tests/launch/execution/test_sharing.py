"""Where stages that share an engine fit: never in a negative number of places."""

from __future__ import annotations

import pytest

from launch.execution.jobs import Job
from launch.execution.sharing import free_places

ONE = {"nodes": 1, "gpus_per_node": 1, "cpus": 1}
NONE = {"nodes": 1, "gpus_per_node": 0, "cpus": 1}


@pytest.mark.parametrize(("busy", "places"), [(0, 2), (1, 1), (2, 0), (3, 0), (5, 0)])
def test_jobs_that_wait_for_devices_leave_no_place(busy, places):
    assert free_places("engine", ONE, 2.0, [Job([], ONE, engine=str(n)) for n in range(busy)]) == places


def test_one_job_of_an_engine_without_a_device():
    assert free_places("a", NONE, 0.0, []) == 1
    assert free_places("a", NONE, 0.0, [Job([], NONE, engine="a")]) == 0
    assert free_places("a", NONE, 0.0, [Job([], NONE, engine="b")]) == 1
