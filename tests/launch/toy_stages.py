"""Stage functions for the tests of launch: each shows one behaviour, chosen by its settings."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.errors import ConfigError, Paused
from common.pauses import note_pause


class Section(BaseModel):
    """Any fields by attribute, as a stage reads its settings."""

    model_config = ConfigDict(extra="allow", frozen=True)


class ToyPlatform(Section):
    env: dict[str, str] = {}


class ToySettings(Section):
    toy: Section
    platform: ToyPlatform
    sft: Section | None = None


def steps(settings, inputs, output, scratch, report):
    """Adds up bytes of its inputs in resumable steps, so that the payload depends on them and on nothing else."""
    state = scratch / "state.json"
    at, total = json.loads(state.read_text()) if state.exists() else (0, settings.toy.seed)
    text = b"".join(p.read_bytes() for _, d in sorted(inputs.items()) for p in sorted(d.rglob("*.txt")))
    while at < settings.toy.steps:
        total = (total * 31 + sum(text) + at) % 1_000_003
        at += 1
        time.sleep(settings.toy.sleep)
        temporary = scratch / "state.tmp"
        temporary.write_text(json.dumps([at, total]))
        temporary.replace(state)
        report(at, settings.toy.steps, total=total)
    (output / "part").mkdir()
    (output / "part" / "value.txt").write_text(f"{total}\n")
    (output / "timings.jsonl").write_text(json.dumps({"time": time.time(), "pid": os.getpid()}) + "\n")


def pauses(settings, inputs, output, scratch, report):
    """Counts on in its scratch directory; pauses where its settings say so, with the count as its score."""
    state, rl = scratch / "at", settings.rl
    at = int(state.read_text()) if state.exists() else 0
    last = rl["pause_at"] or rl["steps"]
    while at < last:
        at += 1
        state.write_text(str(at))
        report(at, rl["steps"])
    if last < rl["steps"]:
        note_pause(scratch, last, {"validation_pass_rate": at / 100})
        raise Paused(f"paused after step {last}")
    (output / "value.txt").write_text(str(at))


def model(settings, inputs, output, scratch, report):
    """Publishes two checkpoints as a model stage does."""
    for step in (1, 2):
        folder = output / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "weights.txt").write_text(f"step {step} seed {settings.toy.seed}\n")
    (output / "checkpoints.json").write_text(json.dumps({"final": 2, "best": 1, "steps": [1, 2]}))


def bad_config(settings, inputs, output, scratch, report):
    raise ConfigError("toy.rows: row 7 has no answer; give one")


def fails_times(settings, inputs, output, scratch, report):
    """Fails `toy.times` times, then writes how often it was called."""
    count = scratch / "count"
    calls = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(calls))
    if calls <= settings.toy.times and calls % 2:
        raise RuntimeError("a passing fault")
    if calls <= settings.toy.times:
        raise ConnectionError("another passing fault")
    (output / "calls.txt").write_text(str(calls))


def out_of_memory(settings, inputs, output, scratch, report):
    if settings.sft.tokens_per_micro_batch > settings.toy.fits:
        raise MemoryError("CUDA out of memory")
    (output / "tokens.txt").write_text(str(settings.sft.tokens_per_micro_batch))


def disk_full(settings, inputs, output, scratch, report):
    (output / "half.txt").write_text("half")
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def weights_find_no_space(settings, inputs, output, scratch, report):
    """As safetensors says it: its error is no OSError."""
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def a_rank(code):
    """A process below the child that prints its traceback and fails."""
    subprocess.run([sys.executable, "-c", code], check=False)
    raise RuntimeError("a rank ended with status 1")


def a_rank_finds_no_space(settings, inputs, output, scratch, report):
    a_rank("with open('/dev/full', 'w') as file: file.write('x' * 100_000)")


def a_rank_fails(settings, inputs, output, scratch, report):
    a_rank("{}['layers.0']")


def library_refuses(settings, inputs, output, scratch, report):
    raise ValueError("Free memory on device is less than desired")


def nothing_can_be_written(settings, inputs, output, scratch, report):
    """The log and the results are on the disk that is full."""
    from launch.execution import child

    def write(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    child.write_json = write
    for descriptor in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)
    write()


def reports_the_same(settings, inputs, output, scratch, report):
    while True:
        report(0, 1)
        time.sleep(0.05)


def hangs(settings, inputs, output, scratch, report):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def grandchildren(settings, inputs, output, scratch, report):
    """Starts a process in a session of its own that nobody waits for, says its number, and waits."""
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(settings.toy.pids).write_text(f"{os.getpid()} {os.getppid()} {orphan.pid}")
    libc = ctypes.CDLL(None)
    assert libc
    while not Path(settings.toy.pids).with_suffix(".go").exists():
        report(0, 1)
        time.sleep(0.05)
    (output / "done.txt").write_text("done")


def killed(settings, inputs, output, scratch, report):
    once = scratch / "killed"
    if not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (output / "survived.txt").write_text("yes")


def engine(settings, inputs, output, scratch, report):
    """Writes the process it ran in: stages that share a child share it."""
    (output / "value.txt").write_text("same\n")
    (output / "timings.jsonl").write_text(json.dumps({"pid": os.getpid()}))


def memory(settings, inputs, output, scratch, report):
    block = b"x" * (300 * 2**20)
    time.sleep(1.5)
    (output / "size.txt").write_text(str(len(block)))


def says_environment(settings, inputs, output, scratch, report):
    names = ("TOY", "OMP_NUM_THREADS", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "VERL_PLATFORM", "RAY_JOB_ID")
    (output / "environment.json").write_text(json.dumps({name: os.environ.get(name) for name in names}))


def shares_memory(settings, inputs, output, scratch, report):
    """Leaves a shared-memory segment behind, as a killed process does."""
    from multiprocessing import resource_tracker, shared_memory

    segment = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister(segment._name, "shared_memory")
    Path(settings.toy.name).write_text(segment.name)
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def cache(settings, inputs, output, scratch, report):
    """A reference cache of three shards, made as the real stage makes one; writes which shards it had to compute."""
    from data_prep.reference import layout as layouts
    from data_prep.reference import writer

    layout = layouts.Layout("compact", 2, 18, 100, ("entropy",))
    identity = {"producer": "toy"}
    writer.keep_matching(scratch, identity, layout, [1, 1, 1])
    records, computed = [], []
    for index in range(3):
        name = layouts.shard_name(index)
        record = writer.finished_shard(scratch, name)
        if record is None:
            arrays = layout.allocate(4, 1)
            arrays["offsets"][:] = [0, 4]
            arrays["entropy"][:] = index
            record = writer.write_shard(scratch, name, layout, arrays)
            computed.append(name)
        records.append(record)
    writer.publish(scratch, output, layout, identity, records, None)
    (output / "timings.jsonl").write_text(json.dumps(computed))


def validated(settings, inputs, output, scratch, report):
    """Publishes a model whose validation loss is a setting."""
    model(settings, inputs, output, scratch, report)
    (output / "metrics.json").write_text(json.dumps({"val_loss": settings.toy.val_loss}))


def trains_with_a_fault(settings, inputs, output, scratch, report):
    """Keeps a curve as trainers do; fails once after step `fault`, and goes on from step `resume`."""
    toy, curve = settings.toy, scratch / "curve.jsonl"
    resumed = curve.exists()
    rows = curve.read_text().splitlines()[: toy.resume] if resumed else []
    curve.with_suffix(".new").write_text("".join(row + "\n" for row in rows))
    curve.with_suffix(".new").replace(curve)
    for step in range(len(rows) + 1, toy.steps + 1):
        with curve.open("a") as file:
            file.write(json.dumps({"step": step, "loss": 1.0 / step}) + "\n")
        report(step, toy.steps)
        if step == toy.fault and not resumed:
            raise RuntimeError("a passing fault")
    (output / "curve.jsonl").write_text(curve.read_text())
