"""What each tracker wrote, read back with its own library."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from launch import trackers
from launch.trackers.contract import Row, TrackedRun, Tracker

ROOT = Path(__file__).parents[3]
NAMES = ("mlflow", "tensorboard", "trackio", "wandb")

# Two sessions of one run, the second of which goes on with it, beside another run that is open at the same time.
WRITE = """
import sys
from pathlib import Path
from launch import trackers
from launch.trackers.contract import Row, TrackedRun

name, directory = sys.argv[1], Path(sys.argv[2])
config = {"branch": "dft a", "sft": {"lr": 0.1}, "long": "x" * 9000}
ours = TrackedRun("0123456789abcdef", "dft-a-0123456789abcdef", "micro", "dft a", config)
other = TrackedRun("fedcba9876543210", "sft-fedcba9876543210", "micro", "sft", {})
for session in (0, 1):
    run, beside = (trackers.load(name).open(one, directory) for one in (ours, other))
    steps = range(1 + 3 * session, 4 + 3 * session)
    run.log([Row("sft", step, {"loss": 1.0 / step, "lr": 0.5}) for step in steps])
    beside.log([Row("sft", step, {"loss": 9.0}) for step in steps])
    if session:
        run.log([Row("rl@final", 1, {"reward": 0.25}), Row("eval/sft/target", 0, {"pass@1": 0.5, "pass@1.low": 0.4})])
    run.close("finished" if session else "stopped")
    beside.close("failed")
"""
EXPECTED = {
    "sft/loss": [(step, 1.0 / step) for step in range(1, 7)],
    "sft/lr": [(step, 0.5) for step in range(1, 7)],
    "rl@final/reward": [(1, 0.25)],
    "eval/sft/target/pass@1": [(0, 0.5)],
    "eval/sft/target/pass@1.low": [(0, 0.4)],
}


def written(name: str, directory: Path, monkeypatch) -> None:
    """Writes as a driver does, in a process of its own: libraries keep state, and read variables when imported."""
    pytest.importorskip(trackers.load(name).package, reason=f"needs the extra `trackers` ({name})")
    for variable in ("WANDB_DIR", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run(
        [sys.executable, "-c", WRITE, name, str(directory)], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]


def same(found: dict[str, list[tuple[int, float]]], expected=EXPECTED) -> bool:
    assert set(found) == set(expected)
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found[name], points, strict=True)), name
    return True


def test_tensorboard_reads_back_what_two_sessions_wrote(tmp_path, monkeypatch):
    written("tensorboard", tmp_path, monkeypatch)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    assert {path.name for path in tmp_path.iterdir()} == {"dft-a-0123456789abcdef", "sft-fedcba9876543210"}
    events = EventAccumulator(str(tmp_path / "dft-a-0123456789abcdef"), size_guidance={"tensors": 0})
    events.Reload()
    found = {
        tag: sorted((event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag))
        for tag in events.Tags()["tensors"]
    }
    assert same(found)


def test_wandb_keeps_one_id_over_two_offline_sessions(tmp_path, monkeypatch):
    written("wandb", tmp_path, monkeypatch)
    folders = sorted((tmp_path / "wandb").glob("offline-run-*-0123456789abcdef*"))
    assert folders and all(folder.name.count("fedcba") == 0 for folder in folders)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2 * len(folders)  # the other run has its own
    found: dict[str, list[tuple[int, float]]] = {}
    codes = []
    for folder in folders:
        for record in wandb_records(next(folder.glob("run-0123456789abcdef.wandb"))):
            if record.WhichOneof("record_type") == "run":
                assert (record.run.run_id, record.run.project, record.run.display_name) == (
                    "0123456789abcdef", "micro", "dft a",
                )  # fmt: skip
            if record.WhichOneof("record_type") == "exit":
                codes.append(record.exit.exit_code)
            if record.WhichOneof("record_type") == "history":
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                step = next(value for name, value in row.items() if name.endswith("/step") and not name.startswith("_"))
                for name, value in row.items():
                    if not name.startswith("_") and not name.endswith("/step"):
                        found.setdefault(name, []).append((step, value))
    assert same(found)
    assert codes == [1, 0]  # stopped, then finished


def wandb_records(path: Path):
    """The records of a run's file: LevelDB's log format, blocks of 32 KiB with the library's protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if kind == 0:
            at += left
            continue
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the last part of a record
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_mlflow_finds_the_run_again_by_its_tag(tmp_path, monkeypatch):
    written("mlflow", tmp_path, monkeypatch)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("micro")
    runs = client.search_runs([experiment.experiment_id], "tags.`sft_then_rl.id` = '0123456789abcdef'")
    assert len(runs) == 1 and len(client.search_runs([experiment.experiment_id])) == 2
    run = runs[0]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "dft-a-0123456789abcdef")
    assert run.data.params["sft.lr"] == "0.1" and run.data.params["long"].endswith("... (9000 characters)")
    found = {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }
    assert same(found, {name.replace("@", "_"): points for name, points in EXPECTED.items()})


def test_trackio_goes_on_with_the_run_of_its_name(tmp_path, monkeypatch):
    written("trackio", tmp_path, monkeypatch)
    read = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
runs = {run.name: run for run in trackio.Api().runs("micro")}
ours = runs["dft-a-0123456789abcdef"]
rows = SQLiteStorage.get_logs("micro", ours.name, run_id=ours.id)
print("READ", json.dumps([sorted(runs), rows, ours.config["sft"]]))
"""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, timeout=240, check=True)
    names, rows, sft = json.loads(done.stdout.partition("READ ")[2])
    assert sft == {"lr": 0.1} and names == ["dft-a-0123456789abcdef", "sft-fedcba9876543210"]
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if "/" in name:
                found.setdefault(name, []).append((row["step"], value))
    assert same({name: sorted(points) for name, points in found.items()})


def test_an_absent_library_is_named_with_what_installs_it():
    class Absent(Tracker):
        name, requirement, package = "absent", "absent-tracker>=2", "absent_tracker"

    with pytest.raises(
        ConfigError, match=r"absent-tracker is not installed; pip install 'absent-tracker>=2', or leave"
    ):
        Absent().check()


def test_a_library_that_is_too_old_is_named_with_its_version():
    class Old(Tracker):
        name, requirement, package = "old", "numpy>=1000", "numpy"

    with pytest.raises(ConfigError, match=r"run.trackers=old: numpy \d\S* is too old; pip install 'numpy>=1000'"):
        Old().check()


def test_wandb_without_a_key_is_refused_before_anything_runs(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra `trackers`")
    code = (
        "from launch import trackers\ntry:\n    trackers.load('wandb').check()\nexcept ValueError as e:\n    print(e)"
    )
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    for extra, said in (({}, "no key; set WANDB_API_KEY"), ({"WANDB_MODE": "offline"}, "")):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={**env, **extra}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert said in done.stdout and bool(done.stdout.strip()) == bool(said)


def test_every_tracker_is_found_by_its_name_and_one_of_ones_own_by_its_path(tmp_path, monkeypatch):
    assert tuple(trackers.names()) == NAMES
    (tmp_path / "my_tracker.py").write_text(
        "from launch.trackers.contract import Tracker\n"
        "class Mine(Tracker):\n    name, requirement, package = 'mine', 'numpy', 'numpy'\nMINE = Mine()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert trackers.load("my_tracker:MINE").name == "mine"
    with pytest.raises(ConfigError, match=r"unknown tracker 'wandbb'; did you mean wandb\?"):
        trackers.load("wandbb")


def test_rows_are_called_by_their_series():
    assert Row("eval/sft/t", 0, {"pass@1": 0.5}).named() == {"eval/sft/t/pass@1": 0.5}
    assert TrackedRun("a", "b", "c", "d", {}).config == {}
