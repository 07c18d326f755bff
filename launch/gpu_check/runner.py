"""Runs the items one after the other within the time, each in a process of its own, and says what they found."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.gpu_check.context import BOUNDS, read_rows
from launch.gpu_check.listing import ITEMS, Item

LEAST = 10.0  # seconds that an item is started for
ELASTIC = 1.5  # an item may take so much more than its share of what is left: the others seldom take all of theirs
POLL = 0.2
GRACE = 3.0
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class State:
    """How an item ended: done, incomplete (some part lacks something), failed (some part raised), stopped (at its
    limit), crashed, or not run."""

    status: str
    why: str = ""
    seconds: float = 0.0


class Check:
    """One run of the check, which continues what an earlier one in the same directory began.

    Raises ValueError for a directory that holds the check of another device or size.
    """

    def __init__(self, out: Path, device: str, *, tiny: bool, minutes: float, chosen: Sequence[int]) -> None:
        self.out, self.device, self.tiny, self.chosen = out, device, tiny, chosen
        self.until = time.monotonic() + 60 * minutes
        out.mkdir(parents=True, exist_ok=True)
        kind = {"device": device, "tiny": tiny}
        file = out / "kind.json"
        if file.is_file() and json.loads(file.read_text()) != kind:
            raise ValueError(f"--out {out}: holds a check with {file.read_text()}; name another directory")
        file.write_text(json.dumps(kind))
        self.states = self._read_states()
        self.shown: set[str] = set()

    def _read_states(self) -> dict[int, State]:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            found = json.loads((self.out / "states.json").read_text())
            return {int(number): State(**state) for number, state in found.items()}
        return {}

    def run(self) -> int:
        """0 if every item that ran is done and what was asked of it is met, else 1."""
        items = [item for item in ITEMS if item.number in self.chosen]
        for place, item in enumerate(items):
            print(f"\n({item.number}) {item.title}", flush=True)
            before = self.states.get(item.number)
            if before is not None and before.status == "done":
                self._show(item)
                print("    done by an earlier run", flush=True)
                continue
            self.states[item.number] = state = self._run(item, items[place:])
            self._show(item)
            print(f"    {state.status}{': ' if state.why else ''}{state.why} ({state.seconds:.0f} s)", flush=True)
            self._write()
        self._write()
        rows = [row for item in items for row in read_rows(self.out / f"item_{item.number}.jsonl")]
        missed = [asked for row in rows for asked in row.get("asked", ()) if asked["met"] is False]
        bad = [number for number, state in self.states.items() if state.status in ("failed", "crashed", "stopped")]
        print(f"\n{self.out / 'gpu_check.json'}: {len(rows)} parts, {len(missed)} figures missed", flush=True)
        return 1 if missed or set(bad) & set(self.chosen) else 0

    def _run(self, item: Item, rest: Sequence[Item]) -> State:
        if missing := item.missing():
            return State("not run", f"{', '.join(missing)} not installed")
        left = self.until - time.monotonic()
        if left < LEAST:
            return State("not run", "no time left")
        waiting = [other for other in rest if not other.missing()]
        limit = min(left, ELASTIC * left * item.share / sum(other.share for other in waiting))
        limit = left if len(waiting) == 1 else max(limit, min(left, LEAST))
        self._forget_what_is_measured_again(item)
        started = time.monotonic()
        with (self.out / f"item_{item.number}.log").open("a") as log:
            process = subprocess.Popen(
                self.command(item, limit),
                cwd=ROOT,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = self._wait(process, item, started + limit)
            finally:
                end_group(process)
        seconds = round(time.monotonic() - started, 1)
        if code is None:
            return State("stopped", f"at its limit of {limit:.0f} s; run again to go on", seconds)
        rows = read_rows(self.out / f"item_{item.number}.jsonl")
        if code == 0:
            return State("incomplete" if any(row.get("later") for row in rows) else "done", "", seconds)
        if code == 1 and any("failed" in row for row in rows):
            return State("failed", f"see {self.out / f'item_{item.number}.log'}", seconds)
        return State("crashed", f"exit code {code}: {self._last_line(item)}", seconds)

    def _forget_what_is_measured_again(self, item: Item) -> None:
        path = self.out / f"item_{item.number}.jsonl"
        kept = [row for row in read_rows(path) if "failed" not in row and not row.get("later")]
        _replace(path, "\n".join(map(json.dumps, kept)))

    def command(self, item: Item, limit: float) -> list[str]:
        """What an item's process is started with; `limit` in seconds."""
        size = "tiny" if self.tiny else "full"
        given = [str(item.number), str(self.out.resolve()), self.device, size, f"{limit:.0f}"]
        return [sys.executable, "-m", "launch.gpu_check.item", *given]

    def _wait(self, process: subprocess.Popen[bytes], item: Item, until: float) -> int | None:
        while time.monotonic() < until:
            if process.poll() is not None:
                return process.returncode
            self._show(item)
            time.sleep(POLL)
        return None

    def _environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        paths = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
        env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        if self.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        return env

    def _last_line(self, item: Item) -> str:
        lines = (self.out / f"item_{item.number}.log").read_text(errors="replace").splitlines()
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no output")

    def _show(self, item: Item) -> None:
        """Print the parts that are new."""
        for row in read_rows(self.out / f"item_{item.number}.jsonl"):
            text = f"    {row['part']:30} {_told(row)}"
            if text not in self.shown:
                self.shown.add(text)
                print(text, flush=True)

    def _write(self) -> None:
        states = {str(number): asdict(state) for number, state in sorted(self.states.items())}
        _replace(self.out / "states.json", json.dumps(states, indent=1))
        found: dict[str, Any] = {"device": self.device, "tiny": self.tiny, "items": []}
        for item in ITEMS:
            rows = read_rows(self.out / f"item_{item.number}.jsonl")
            state = states.get(str(item.number), asdict(State("not run", "not asked for")))
            found["items"].append({"item": item.number, "title": item.title, **state, "parts": rows})
        _replace(self.out / "gpu_check.json", json.dumps(found, indent=1))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End an item's process and what it started in its session."""
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait)


def _told(row: dict[str, Any]) -> str:
    if "not_run" in row:
        return f"not run: {row['not_run']}"
    if "failed" in row:
        return f"FAILED: {row['failed']}"
    asked = {one["figure"]: one for one in row.get("asked", ())}
    texts = []
    for name, value in row["figures"].items():
        text = f"{name} {_number(value)}"
        if name in asked:
            one = asked[name]
            bound = next(bound for bound in BOUNDS if bound in one)
            verdict = {True: "met", False: "MISSED", None: "not measured"}[one["met"]]
            text += f" ({bound.replace('_', ' ')} {one[bound]:g}: {verdict})"
        texts.append(text)
    return ", ".join(texts)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)
