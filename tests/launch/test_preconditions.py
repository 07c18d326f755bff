"""What a run refuses before it starts anything."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import toy

from launch.execution.cluster import Refused
from launch.execution.preconditions import check_disk, check_models
from launch.execution.run import run
from launch.graph.estimate import Estimate
from launch.store import Store

Usage = namedtuple("Usage", "total used free")
GB = 10**9


def estimate(size, scratch=0.0, source="guess"):
    return Estimate(1.0, 1.0, 0.0, size, scratch, source)


@pytest.fixture
def free(monkeypatch):
    def set_free(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 * count, 9 * count, count))

    return set_free


def test_a_plan_that_the_disk_cannot_hold_is_refused_with_the_sizes_and_the_remedy(tmp_path, free):
    stage = toy.steps()
    plan, store = toy.plan(tmp_path, stage), Store(tmp_path)
    free(3 * GB)
    check_disk(plan, store, {stage.fingerprint: estimate(2 * GB, 1 * GB)})
    with pytest.raises(Refused, match=r"need about 4\.00 GB, 3\.00 GB are free there; free some, set") as found:
        check_disk(plan, store, {stage.fingerprint: estimate(2 * GB, 2 * GB)})
    assert str(found.value).startswith(f"run.root={tmp_path}") and "\n" not in str(found.value)
    check_disk(plan, store, {stage.fingerprint: estimate(9 * GB, source="record")})  # it is there


def test_what_an_earlier_attempt_left_is_not_needed_again(tmp_path, free):
    stage = toy.steps()
    plan, store = toy.plan(tmp_path, stage), Store(tmp_path)
    store.scratch(stage).mkdir(parents=True)
    (store.scratch(stage) / "state").write_bytes(b"x" * 2000)
    free(1500)
    check_disk(plan, store, {stage.fingerprint: estimate(0.0, 3000.0)})
    with pytest.raises(Refused):
        check_disk(plan, store, {stage.fingerprint: estimate(0.0, 4000.0)})


def test_run_says_so_in_one_line_and_starts_nothing(tmp_path, free, monkeypatch, capsys):
    stage = toy.steps()
    monkeypatch.setattr(
        "launch.execution.driver.estimate_plan", lambda plan, store: {stage.fingerprint: estimate(5 * GB)}
    )
    free(GB)
    assert run(toy.plan(tmp_path, stage)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: run.root=") and len(captured.err.splitlines()) == 1
    assert not list(tmp_path.glob("*/*.logs")) and Store(tmp_path).list_drivers() == []


def of_the_hub(name="someone/model-that-is-nowhere", revision="main"):
    import dataclasses

    from launch.graph.plan import Input

    models = {"model": {"revision": revision, "eos": None}}
    return dataclasses.replace(toy.steps(models=models), inputs={"model": Input(path=name)})


def test_an_absent_hub_model_is_refused_only_where_downloads_are_switched_off(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    stage = of_the_hub()
    plan = toy.plan(tmp_path, stage)
    check_models(plan, [stage])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Refused, match=r"that-is-nowhere at main is not in the cache .*check toy \.\.\. --prefetch"):
        check_models(plan, [stage])
    check_models(plan, [])  # what is made already reads no model


def test_offline_mode_is_the_users_choice():
    from launch.graph.builder import make_plan

    platform = make_plan("microworld", []).branches[0].recipe.platform
    assert platform.name == "cpu" and "HF_HUB_OFFLINE" not in platform.env
