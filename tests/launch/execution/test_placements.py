"""Devices that are waited for: how often Ray is asked, and what that costs its control service, with a real Ray."""

from __future__ import annotations

import psutil
import pytest

from launch.execution import placements
from launch.execution.jobs import Job

PLACEMENT = {"nodes": 1, "cpus": 1, "gpus_per_node": 2, "strategy": "PACK"}
LOOKS = 1500
GROWTH = 8 * 2**20  # of the control service; a look that Ray remembered would cost 27 MB


def resident() -> int:
    """Bytes of the control services that this process started."""
    services = [p for p in psutil.Process().children(recursive=True) if "gcs_server" in p.name()]
    assert services
    return sum(service.memory_info().rss for service in services)


@pytest.mark.e2e
def test_a_job_that_waits_for_hours_costs_no_memory(ray_session):
    held, waiting = Job([], PLACEMENT), Job([], PLACEMENT)
    while not placements.granted(held):
        pass
    assert not placements.granted(waiting)
    before = resident()
    assert not any(placements.granted(waiting) for _ in range(LOOKS))
    assert resident() - before < GROWTH
    placements.give_back(held)
    while not placements.granted(waiting):
        pass
    placements.give_back(waiting)
    assert held.group is waiting.group is None


def test_looks_are_frequent_after_a_change_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(placements.time, "monotonic", lambda: now[0])
    looks = placements.Looks()
    found = []
    for tenth in range(40):
        now[0] = 100 + tenth / 10
        if tenth == 20:
            looks.changed()
        if looks.due():
            found.append(tenth)
    assert found == [0, 5, 10, 15, *range(20, 31), 35]
