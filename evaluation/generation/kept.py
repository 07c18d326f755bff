"""An engine whose answers are kept on disk, so that a killed run of a harness task goes on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from common.files import text_digest, write_text
from evaluation.generation.contract import GENERATE_AT_ONCE, Completion, Engine


class KeptEngine:
    """`score` and `complete` of an engine in fixed batches, each a file in `directory`, found again after a kill.

    A kill loses the batches in flight: one for each replica.
    """

    def __init__(self, engine: Engine, directory: Path):
        self.engine = engine
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def score(
        self, rows: Sequence[tuple[Sequence[int], int]], heartbeat: Callable[[], None] = lambda: None
    ) -> list[tuple[float, bool]]:
        """See `contract.Engine.score`."""
        keys = [(list(ids), start) for ids, start in rows]
        return [(score, greedy) for score, greedy in self._kept("score", rows, keys, heartbeat)]

    def complete(self, completions: Sequence[Completion], heartbeat: Callable[[], None] = lambda: None) -> list[str]:
        """See `contract.Engine.complete`."""
        return self._kept("complete", completions, [astuple(completion) for completion in completions], heartbeat)

    def _kept(self, method: str, items: Sequence, keys: Sequence, heartbeat: Callable[[], None]) -> list[Any]:
        batches, paths = [], []
        for start in range(0, len(items), GENERATE_AT_ONCE):
            part = slice(start, start + GENERATE_AT_ONCE)
            content = json.dumps([method, self.engine.description, keys[part]], sort_keys=True)
            batches.append(items[part])
            paths.append(self.directory / f"{text_digest(content)[:32]}.json")
        pending = [place for place, path in enumerate(paths) if not path.exists()]
        for first in range(0, len(pending), self.engine.count):
            wave = pending[first : first + self.engine.count]
            # Only the very last batch can be short, so that every engine computes whole batches as they are.
            found = getattr(self.engine, method)([item for place in wave for item in batches[place]], heartbeat)
            for number, place in enumerate(wave):
                start = number * GENERATE_AT_ONCE
                write_text(paths[place], json.dumps(found[start : start + len(batches[place])]))
        return [value for path in paths for value in json.loads(path.read_text())]
