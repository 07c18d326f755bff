from __future__ import annotations

import toy

from launch.store import Store
from launch.store.gc import collect


def test_gc_keeps_what_records_and_living_drivers_refer_to(tmp_path):
    store = Store(tmp_path)
    done, held, dead = toy.steps("done"), toy.steps("held"), toy.steps("dead")
    toy.published(store, done)
    toy.signed_on(store, "alive")
    toy.signed_on(store, "gone", started=1.0)
    for stage, run in ((held, "alive"), (dead, "gone")):
        store.acquire(stage, run)
        store.begin(stage)
    unfinished = toy.steps("renamed")
    (store.directory(unfinished)).mkdir()
    before = sorted(tmp_path.rglob("*"))
    found = set(collect(store, delete=False))
    assert sorted(tmp_path.rglob("*")) == before
    assert found == {
        store.temporary(dead, 1),
        store.scratch(dead),
        store.lease(dead),
        store.directory(unfinished),
        store.drivers / "gone.json",
    }
    assert set(collect(store, delete=True)) == found
    assert not any(path.exists() for path in found)
    assert store.find(done) is not None
    assert store.temporary(held, 1).exists() and store.scratch(held).exists() and store.owner(held) == "alive"
    assert collect(store, delete=True) == []
