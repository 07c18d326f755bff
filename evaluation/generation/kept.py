"""An engine whose answers are kept on disk, so that a killed run of a harness task goes on."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from evaluation.generation.engine import GENERATE_AT_ONCE, Completion, VllmEngine

if TYPE_CHECKING:
    from evaluation.generation.replicas import Replicas


class KeptEngine:
    """`score` and `complete` of an engine in fixed batches, each a file in `directory`, found again after a kill.

    A kill loses the batches in flight: one for each replica.
    """

    def __init__(self, engine: "VllmEngine | Replicas", directory: pathlib.Path):
        self.engine = engine
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def score(
        self, rows: Sequence[tuple[Sequence[int], int]], heartbeat: Callable[[], None] = lambda: None
    ) -> list[tuple[float, bool]]:
        """See `VllmEngine.score`."""
        keys = [(list(ids), start) for ids, start in rows]
        return [(score, greedy) for score, greedy in self._kept("score", rows, keys, heartbeat)]

    def complete(self, completions: Sequence[Completion], heartbeat: Callable[[], None] = lambda: None) -> list[str]:
        """See `VllmEngine.complete`."""
        return self._kept("complete", completions, [astuple(completion) for completion in completions], heartbeat)

    def _kept(self, method: str, items: Sequence, keys: Sequence, heartbeat: Callable[[], None]) -> list[Any]:
        batches, paths = [], []
        for start in range(0, len(items), GENERATE_AT_ONCE):
            part = slice(start, start + GENERATE_AT_ONCE)
            content = json.dumps([method, self.engine.description, keys[part]], sort_keys=True)
            batches.append(items[part])
            paths.append(self.directory / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json")
        pending = [place for place, path in enumerate(paths) if not path.exists()]
        for first in range(0, len(pending), self.engine.count):
            wave = pending[first : first + self.engine.count]
            # Only the very last batch can be short, so that every engine computes whole batches as they are.
            found = getattr(self.engine, method)([item for place in wave for item in batches[place]], heartbeat)
            for number, place in enumerate(wave):
                start = number * GENERATE_AT_ONCE
                _write(paths[place], found[start : start + len(batches[place])])
        return [value for path in paths for value in json.loads(path.read_text())]


def _write(path: pathlib.Path, values: list) -> None:
    """Either whole or absent under its name."""
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.write_text(json.dumps(values))
    partial.replace(path)
