"""The preflight: is every node of the cluster ready for this plan? Runs nothing of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynvml import NVMLError

from common.attention import obstacle
from common.models import fetch
from launch.execution.cluster import Refused, join
from launch.execution.devices import list_devices
from launch.execution.preconditions import bytes_needed, outside_models
from launch.graph.estimate import estimate_plan
from launch.graph.plan import Plan
from launch.store import Store
from launch.store.records import host, packages
from launch.text import bytes_text


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is fine, what was seen, and what to do if not."""

    name: str
    fine: bool
    seen: str
    remedy: str = ""


def probe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What one node says of itself; runs on the node.

    settings: root (absolute path of the store), token (a file that this node writes), models (local paths that must be
    readable), hub ([name, revision or None] of models that must be in the node's cache), prefetch (download the absent
    ones), attention (kernel), platform ("cpu" or "gpu").
    """
    root = Path(settings["root"])
    found: dict[str, Any] = {"host": host(), "packages": packages(), "problems": []}
    note = root / f".check-{settings['token']}-{uuid.uuid4().hex}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        note.write_text(found["host"])
        found["note"] = note.name
        found["free"] = shutil.disk_usage(root).free
    except OSError as error:
        found["problems"].append(("store", f"{root}: {error.strerror}", "give every node write access to run.root"))
    for model in settings["models"]:
        if not os.access(model, os.R_OK) or not (Path(model) / "config.json").is_file():
            found["problems"].append(("model", f"{model} is not a readable model directory", "put it on a shared path"))
    for name, revision in settings["hub"]:
        problem = _fetch(name, revision, settings["prefetch"])
        if problem is not None:
            found["problems"].append(problem)
    if settings["platform"] == "gpu":
        found |= _devices(found["problems"])
        if (lacking := obstacle(settings["attention"])) is not None:
            found["problems"].append(("attention kernel", *lacking))
    return found


def _fetch(name: str, revision: str | None, download: bool) -> tuple[str, str, str] | None:
    """Looks for a hub model in this node's cache, or brings it there; returns the problem, if any."""
    from huggingface_hub import constants

    try:
        fetch(name, revision, offline=not download)
    except Exception as error:  # the hub's client raises a dozen kinds: network, access, name, disk
        if download:
            return "model", f"{name}: {' '.join(str(error).split())[:200]}", "check the name, the network and HF_TOKEN"
        remedy = "run `check --prefetch`, or set HF_HOME to a directory that holds it"
        return "model", f"{name} is not in {constants.HF_HUB_CACHE}", remedy
    return None


def _devices(problems: list[tuple[str, str, str]]) -> dict[str, Any]:
    try:
        devices = list_devices()
    except NVMLError as error:
        problems.append(("driver", f"NVIDIA's driver: {error}", "install it, or choose platform=cpu"))
        return {"devices": []}
    for device in devices:
        if device.busy:
            problems.append(("device memory", device.use, "end the process that holds it"))
    versions = "import torch; print(torch.version.cuda, torch.cuda.is_available(), torch.cuda.nccl.version())"
    usable = False
    try:
        done = subprocess.run([sys.executable, "-c", versions], capture_output=True, text=True, timeout=300)
        usable = done.returncode == 0 and " True " in done.stdout
        said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        nccl = said[-1] if said else f"torch says nothing and ends with exit code {done.returncode}"
    except subprocess.TimeoutExpired:
        nccl = "torch does not answer within 300 s"
    if not usable:
        problems.append(("NCCL", nccl, "install the gpu extra whose CUDA this driver supports"))
    return {"devices": [f"{device.name} (driver {device.driver})" for device in devices], "nccl": nccl}


def judge(plan: Plan, probes: Sequence[Mapping[str, Any]], seen: Sequence[set[str]], *, needed: float) -> list[Finding]:
    """Findings from the nodes' words.

    `seen[i]` are the notes of all nodes that node i sees in the store; `needed` are the bytes that the plan will add
    to it.
    """
    recipe = plan.branches[0].recipe
    platform = recipe.platform
    findings = []
    for node in probes:
        for name, what, remedy in node["problems"]:
            findings.append(Finding(name, False, f"{node['host']}: {what}", remedy))
    alike = {
        "versions": [tuple(sorted(node["packages"].items())) for node in probes],
        "NCCL": [node.get("nccl") for node in probes],
        "devices": [tuple(sorted(set(node.get("devices", ())))) for node in probes],
    }
    for name, values in alike.items():
        odd = next((i for i, value in enumerate(values) if value != values[0]), None)
        if odd is None:
            continue
        first, other = (dict(values[i]) if name == "versions" else {name: values[i]} for i in (0, odd))
        field = next(key for key in sorted({*first, *other}) if first.get(key) != other.get(key))
        text = f"{field} is {first.get(field)} on {probes[0]['host']} and {other.get(field)} on {probes[odd]['host']}"
        findings.append(Finding(name, False, text, "install one environment on every node"))
    notes = {node["note"] for node in probes if "note" in node}
    for node, sees in zip(probes, seen, strict=True):
        if notes - sees:
            text = f"{node['host']} does not see what another node wrote to {plan.root}"
            findings.append(Finding("shared store", False, text, "set run.root to a directory on a shared file system"))
    free = [node["free"] for node in probes if "free" in node]
    if free:
        text = f"{bytes_text(min(free))} free in {plan.root}, the plan needs about {bytes_text(needed)}"
        findings.append(Finding("disk", min(free) >= needed, text, "free some, or set run.root to a larger disk"))
    if len(probes) < platform.nodes:
        text = f"{len(probes)} nodes, the recipe says platform.nodes={platform.nodes}"
        findings.append(Finding("nodes", False, text, "set RAY_ADDRESS, add nodes or lower platform.nodes"))
    if platform.name == "gpu":
        for node in probes:
            if len(node["devices"]) < platform.gpus_per_node:
                there = len(node["devices"])
                text = f"{node['host']} has {there} devices, platform.gpus_per_node={platform.gpus_per_node}"
                findings.append(Finding("devices", False, text, "lower platform.gpus_per_node"))
    failed = {finding.name for finding in findings if not finding.fine}
    for name in (
        "versions",
        "shared store",
        "store",
        "model",
        "driver",
        "NCCL",
        "attention kernel",
        "nodes",
        "devices",
    ):
        needs_gpu = name in ("driver", "NCCL", "attention kernel", "devices")
        if name not in failed and (platform.name == "gpu" or not needs_gpu):
            findings.append(Finding(name, True, f"the same on {len(probes)} node(s)" if name in alike else "fine"))
    return findings


def check(plan: Plan, *, prefetch: bool = False) -> int:
    """Asks every node (of RAY_ADDRESS's cluster, else this machine) and prints a line for each check.

    `prefetch` downloads the plan's hub models, once on each node. Returns 0 if all are fine, else 1. NCCL is checked
    for its version and a usable device, not by sending anything.
    """
    recipe = plan.branches[0].recipe
    store = Store(plan.root)
    local, hub = outside_models(plan.stages.values())
    settings = {
        "root": str(store.root),
        "token": uuid.uuid4().hex[:8],
        "models": local,
        "hub": hub,
        "prefetch": prefetch,
        "attention": recipe.model.attention,
        "platform": recipe.platform.name,
    }
    try:
        probes, seen = _ask(settings)
    except Refused as error:
        print(f"FAIL cluster: {error}")
        return 1
    for note in store.root.glob(f".check-{settings['token']}-*"):
        with contextlib.suppress(OSError):
            note.unlink()
    findings = judge(plan, probes, seen, needed=bytes_needed(plan, store, estimate_plan(plan, store)))
    for finding in sorted(findings, key=lambda finding: finding.fine):
        print(
            f"{'ok  ' if finding.fine else 'FAIL'} {finding.name}: {finding.seen}"
            + ("" if finding.fine else f"; {finding.remedy}")
        )
    return 0 if all(finding.fine for finding in findings) else 1


def _notes(root: str, token: str) -> set[str]:
    return {path.name for path in Path(root).glob(f".check-{token}-*")}


def _ask(settings: dict[str, Any]) -> tuple[list[dict[str, Any]], list[set[str]]]:
    if not os.environ.get("RAY_ADDRESS"):
        found = probe(settings)
        return [found], [_notes(settings["root"], settings["token"])]
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    already = ray.is_initialized()
    if not already:
        join()
    try:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]

        def everywhere(function: Any, *arguments: Any) -> list[Any]:
            remote = ray.remote(function)
            places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
            tasks = [remote.options(num_cpus=0, scheduling_strategy=p).remote(*arguments) for p in places]
            return ray.get(tasks, timeout=600)

        probes = everywhere(probe, settings)
        return probes, everywhere(_notes, settings["root"], settings["token"])
    finally:
        if not already:
            ray.shutdown()
