from __future__ import annotations

import pytest
import toy

from launch.store import Store


def test_every_attempt_has_a_row_in_the_ledger_and_lost_ones_too(tmp_path):
    store, stage = Store(tmp_path), toy.steps(placement={"gpus_per_node": 2, "nodes": 2})
    store.acquire(stage, "run")
    first = store.begin(stage)
    (store.logs(stage) / f"attempt-{first}.request.json").write_text("{}")
    second = store.begin(stage)
    assert (first, second) == (1, 2)
    store.finish(stage, second, {"outcome": "ok", "message": "", "seconds": 36.0})
    lost, fine = store.costs()
    assert (lost["attempt"], lost["outcome"]) == (1, "lost")
    assert (fine["attempt"], fine["outcome"], fine["devices"]) == (2, "ok", 4)
    assert fine["device_hours"] == pytest.approx(0.04)
    assert (store.logs(stage) / "latest").readlink().name == "attempt-2.log"
