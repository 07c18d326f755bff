"""Reading published artifacts, checked against their records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import file_digest
from evaluation import artifact
from evaluation.compare import NOT_REPRODUCIBLE
from launch.graph.plan import Stage
from launch.report.lines import Model
from launch.store import Corrupt, Record, Store


class Source:
    """Reads artifacts of a store and remembers what it read; `damaged` says which ones differ from their records."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.damaged: list[str] = []
        self._records: dict[str, Record | None] = {}
        self._whole: dict[str, bool] = {}
        self._files: dict[Path, bool] = {}
        self._metrics: dict[tuple[str, ...], dict[str, Any]] = {}
        self._outcomes: dict[tuple[str, str], dict[str, dict[str, list[bool]]]] = {}

    def record(self, stage: Stage) -> Record | None:
        """The record of a stage; None if it is not published or a file is missing or has another size."""
        if stage.fingerprint not in self._records:
            try:
                record = self.store.find(stage)
            except Corrupt as error:
                self.damaged.append(str(error))
                record = None
            self._records[stage.fingerprint] = record
        return self._records[stage.fingerprint]

    def whole(self, stage: Stage) -> bool:
        """Whether a stage is published and every byte is as its record says."""
        if self.record(stage) is None:
            return False
        if stage.fingerprint not in self._whole:
            try:
                self.store.verify(self.store.directory(stage), stage.fingerprint)
                self._whole[stage.fingerprint] = True
            except Corrupt as error:
                self.damaged.append(str(error))
                self._records[stage.fingerprint], self._whole[stage.fingerprint] = None, False
        return self._whole[stage.fingerprint]

    def file(self, stage: Stage, name: str) -> Path | None:
        """A file of a published artifact; None if the artifact has none of that name, or its bytes have changed."""
        record = self.record(stage)
        if record is None or name not in record.payload:
            return None
        path = self.store.directory(stage) / name
        if path not in self._files:
            self._files[path] = path.is_file() and file_digest(path) == record.payload[name]["sha256"]
            if not self._files[path]:
                self.damaged.append(
                    f"{path} differs from its record; restore it, or delete the artifact to have it made again"
                )
        return path if self._files[path] else None

    def metrics(self, model: Model | None) -> dict[str, Any] | None:
        """What was measured of a model, laid out as by `evaluation.artifact.read_metrics`; None if nothing was yet."""
        if model is None:
            return None
        there = {stage.fingerprint: stage for stage in model.measures.values() if self.whole(stage)}
        if not there:
            return None
        key = tuple(there)
        if key not in self._metrics:
            self._metrics[key] = artifact.read_metrics([self.store.directory(stage) for stage in there.values()])
        return self._metrics[key]

    def reproducible(self) -> str:
        """A sentence to add if not all responses read so far would be drawn again; else nothing."""
        repeat = all(metrics["engine"]["reproducible"] for metrics in self._metrics.values())
        return "" if repeat else NOT_REPRODUCIBLE

    def outcomes(self, model: Model | None, benchmark: str, mode: str) -> Mapping[str, Sequence[bool]]:
        """Problem id -> whether each response is right, of mode "sampled" or "greedy"; empty if not measured."""
        stage = None if model is None else model.measures.get(benchmark)
        if stage is None or not self.whole(stage):
            return {}
        key = (stage.fingerprint, benchmark)
        if key not in self._outcomes:
            self._outcomes[key] = artifact.read_outcomes(self.store.directory(stage), benchmark)
        return self._outcomes[key].get(mode, {})

    def scores(self, model: Model | None, benchmark: str, mode: str) -> Mapping[str, float]:
        """Problem id -> pass@1 (mode "sampled") or correctness of the greedy response; empty if not measured."""
        found = self.outcomes(model, benchmark, mode)
        return {problem: sum(correct) / len(correct) for problem, correct in found.items()}

    def curve(self, stage: Stage) -> list[dict[str, float]]:
        """The rows of a stage's curve.jsonl; none if it has no curve."""
        path = self.file(stage, "curve.jsonl")
        return [] if path is None else [json.loads(line) for line in path.read_text().splitlines()]
