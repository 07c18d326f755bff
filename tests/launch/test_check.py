from __future__ import annotations

import json
from pathlib import Path

import pynvml
import pytest
import toy
from fake_nvml import FakeDriver

from common.models import FILES
from launch.check import check, judge, probe
from launch.graph.plan import Input
from launch.recipe.platform import Platform


@pytest.fixture
def plan(tmp_path):
    return toy.plan(tmp_path / "runs", toy.steps())


def node(name, **changes):
    return {"host": name, "packages": {"torch": "2.11"}, "problems": [], "note": name, "free": 1e12, **changes}


def failures(plan, probes, seen=None, needed=2e9):
    notes = {p["note"] for p in probes}
    return {f.name: f for f in judge(plan, probes, seen or [notes] * len(probes), needed=needed) if not f.fine}


def test_this_machine_passes_and_nothing_is_left(plan, capsys):
    assert check(plan) == 0
    text = capsys.readouterr().out
    assert "FAIL" not in text and "ok   shared store" in text and "the plan needs about" in text
    assert list(Path(plan.root).iterdir()) == []


def test_an_empty_address_means_this_machine(plan, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert check(plan) == 0 and "FAIL" not in capsys.readouterr().out


def test_equal_nodes_pass(plan):
    assert failures(plan, [node("a"), node("b")]) == {}


def test_another_version_on_one_node_is_named(plan):
    found = failures(plan, [node("a"), node("b"), node("c", packages={"torch": "2.12"})])
    assert found["versions"].seen == "torch is 2.11 on a and 2.12 on c"
    assert found["versions"].remedy


def test_a_store_that_a_node_does_not_see_is_refused(plan):
    found = failures(plan, [node("a"), node("b")], seen=[{"a", "b"}, {"b"}])
    assert found["shared store"].seen.startswith("b does not see")


def test_little_space_and_few_nodes_fail(plan):
    recipe = plan.branches[0].recipe.model_copy(update={"platform": Platform(name="gpu", nodes=4, gpus_per_node=8)})
    object.__setattr__(plan.branches[0], "recipe", recipe)
    found = failures(plan, [node("a", free=1e9, devices=["H100 (driver 1)"] * 4)])
    assert set(found) == {"disk", "nodes", "devices"}
    assert "a has 4 devices" in found["devices"].seen


def test_a_node_says_what_it_lacks(tmp_path, monkeypatch):
    FakeDriver(monkeypatch, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    settings = {"root": str(tmp_path), "token": "t", "models": [str(tmp_path / "no")], "platform": "gpu"}
    settings |= {"hub": [], "prefetch": False}
    found = probe({**settings, "attention": "sdpa"})
    assert {name for name, _, _ in found["problems"]} == {"model", "driver"}
    (tmp_path / "file").write_text("")
    found = probe(
        {**settings, "root": str(tmp_path / "file" / "x"), "models": [], "platform": "cpu", "attention": "sdpa"}
    )
    assert [name for name, _, _ in found["problems"]] == ["store"] and "note" not in found


def plan_of(tmp_path, path, revision=None):
    stage = toy.steps(models={"model": {"revision": revision, "eos": None}})
    stage.inputs["model"] = Input(path=path)
    return toy.plan(tmp_path / "runs", stage)


def test_the_plans_models_are_looked_at(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    plan = plan_of(tmp_path, str(tmp_path / "model"))
    assert check(plan) == 1
    assert "FAIL model" in capsys.readouterr().out
    (tmp_path / "model" / "config.json").write_text(json.dumps({}))
    assert check(plan) == 0


def test_a_hub_model_must_be_in_the_nodes_cache(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    plan = plan_of(tmp_path, "org/model", "a" * 40)
    assert check(plan) == 1
    assert "org/model is not in" in (text := capsys.readouterr().out) and "check --prefetch" in text
    snapshot = tmp_path / "hub" / "models--org--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert check(plan) == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert check(plan_of(tmp_path, "org/other"), prefetch=True) == 1
    assert "check the name, the network and HF_TOKEN" in capsys.readouterr().out


def test_absent_models_are_fetched_when_asked(tmp_path, monkeypatch):
    fetched = []

    def download(*given, **options):
        fetched.append((given, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert check(plan_of(tmp_path, "org/model", "a" * 40), prefetch=True) == 0
    (((name,), options),) = fetched
    assert (name, options["revision"], options["local_files_only"]) == ("org/model", "a" * 40, False)
    assert options["allow_patterns"] == list(FILES) and "*.gguf" not in FILES


@pytest.fixture
def gpu_node(tmp_path, monkeypatch):
    """What a node with one device says: given the memory in use (MiB), what torch prints, and the kernel."""
    monkeypatch.setattr("launch.check.sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("common.attention.importlib.util.find_spec", lambda name: None)

    def say(used=4, torch="echo '13.0 True (2, 28, 9)'", attention="sdpa"):
        FakeDriver(monkeypatch, (used,))
        (tmp_path / "python").write_text(f"#!/bin/sh\n{torch}\n")
        (tmp_path / "python").chmod(0o755)
        settings = {"root": str(tmp_path / "runs"), "token": "t", "models": [], "hub": [], "prefetch": False}
        return probe({**settings, "platform": "gpu", "attention": attention})

    return say


def test_a_device_its_driver_and_nccl_are_seen(gpu_node):
    found = gpu_node()
    assert found["problems"] == []
    assert found["devices"] == ["NVIDIA H100 (driver 580.65)"] and found["nccl"] == "13.0 True (2, 28, 9)"
    assert gpu_node(used=None)["problems"] == []


def test_held_memory_a_torch_without_a_device_and_an_absent_kernel_are_named(gpu_node):
    for given, name, seen, remedy in (
        ({"used": 2048}, "device memory", "device 0 has 2048 MiB in use", "end the process"),
        ({"torch": "echo '13.0 False None'"}, "NCCL", "13.0 False None", "this driver supports"),
        ({"torch": "echo 'no NCCL' >&2; exit 1"}, "NCCL", "no NCCL", "this driver supports"),
        ({"torch": "exit 3"}, "NCCL", "torch says nothing and ends with exit code 3", "this driver supports"),
        ({"attention": "flash_attention_2"}, "attention kernel", "flash_attn is not installed", "pip install flash"),
        ({"attention": "varlen"}, "attention kernel", "this PyTorch has no torch.nn.attention.varlen", "PyTorch 2.11"),
    ):
        (problem,) = gpu_node(**given)["problems"]
        assert problem[:2] == (name, seen) and remedy in problem[2]


def test_another_nccl_or_driver_on_one_node_is_named(plan):
    one = {"devices": ["H100 (driver 1)"], "nccl": "2.28"}
    found = failures(plan, [node("a", **one), node("b", **one | {"nccl": "2.27", "devices": ["H100 (driver 2)"]})])
    assert found["NCCL"].seen == "NCCL is 2.28 on a and 2.27 on b"
    assert "H100 (driver 2)" in found["devices"].seen and found["devices"].remedy
