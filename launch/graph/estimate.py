"""What a stage will cost: device-hours from a count of floating-point operations, bytes from the artifact's layout.

Every kind of stage counts its own work (`StageKind.cost`). Operations are turned into seconds by what earlier stages of
the same kind took (records and cost ledger of the store), else by a rough speed of the platform. Everything is
approximate but sizes that a kind computes from published counts.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import read_json
from launch import stages
from launch.graph.plan import Input, Plan, Stage
from launch.recipe.shapes import published_shapes
from launch.stages.contract import Cost, StageKind, Tokens
from launch.stages.memory import GB, GIB, Memory, Shape, shape_of, typical_shape
from launch.stages.references import FROZEN
from launch.store import Store
from launch.store.prune import wanted_again

# Operations a second that one device reaches, (training, sampling): guesses until the store holds a record of the kind.
SPEED = {"gpu": (1.5e14, 1.5e13), "cpu": (6e10, 1e10)}
RECORDS_READ = 20  # latest records of a kind that speeds are learnt from


@dataclass(frozen=True)
class Estimate:
    """Cost of one stage. `exact_bytes` is True where the size follows from counts, not from guesses.

    flops: floating-point operations; seconds: wall time; device_hours: seconds x devices; bytes: of the artifact;
    scratch_bytes: resumable checkpoints that exist while it runs; source: "record" (it is done), "attempt" (an earlier
    attempt of the same stage), "records" (speed of this kind in this store) or "guess". memory: of one device.
    """

    flops: float
    seconds: float
    device_hours: float
    bytes: float
    scratch_bytes: float
    source: str
    exact_bytes: bool = False
    memory: Memory | None = None


@cache
def _configuration(directory: str) -> dict[str, Any]:
    """A model's config.json: from a directory, or from the local hub cache; {} where neither has it."""
    path = Path(directory).expanduser() / "config.json"
    if not path.is_file():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(directory, "config.json")
        except HFValidationError:
            return {}
        if not isinstance(found, str):
            return {}
        path = Path(found)
    return read_json(path) or {}


def parameters(config: Mapping[str, Any]) -> float:
    """Parameters of a decoder with gated feed-forward layers (Llama, Qwen) from the fields of its config.json."""
    return shape_of(config).parameters


def _is_decoder(config: Mapping[str, Any]) -> bool:
    return "hidden_size" in (config.get("text_config") or config)


def check_device(kind: StageKind, stage: Stage, memory: Memory, shapes: Mapping[str, Shape]) -> None:
    """Raise ConfigError where a GPU has less memory than a stage takes, with the setting that makes it fit.

    Of a model of which only the name is known the shape is a guess: it is refused for its weights alone.
    """
    platform = stage.settings["platform"]
    has = platform["device_memory"] * GB
    weighed = memory.total if shapes["model"].known else memory.parts.get("weights", 0.0)
    if platform["name"] == "cpu" or weighed <= has:
        return
    settings, changes = stage.settings, {}
    remedy = "no setting makes it fit; name a larger device, more of them, or a smaller model"
    for field, value in kind.smaller(stage.settings):
        section, _, name = field.partition(".")
        settings = {**settings, section: {**settings[section], name: value}}
        changes[field] = value
        found = kind.memory(settings, shapes)
        if found is not None and found.total <= has:
            needed = _needed(kind, stage.settings, changes, shapes, has)
            remedy = "set " + " ".join(f"{key}={str(value).lower()}" for key, value in needed.items())
            break
    raise ConfigError(
        f"{stage.name}: {memory.phase} takes {memory.text()} of each device, "
        f"platform.device_memory={platform['device_memory']:g} is {has / GIB:.1f} GiB; {remedy}"
    )


def _needed(
    kind: StageKind, settings: Mapping[str, Any], changes: Mapping[str, Any], shapes: Mapping[str, Shape], has: float
) -> dict[str, Any]:
    """Those of the changes without which it does not fit."""
    kept = dict(changes)
    for field in changes:
        fewer = {key: value for key, value in kept.items() if key != field}
        trial: dict[str, Any] = dict(settings)
        for key, value in fewer.items():
            section, _, name = key.partition(".")
            trial[section] = {**trial[section], name: value}
        found = kind.memory(trial, shapes)
        if found is not None and found.total <= has:
            kept = fewer
    return kept


def _named_size(path: str) -> float:
    """Parameters that a model's name claims (Qwen2.5-Math-1.5B), or one billion."""
    found = re.findall(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", path.lower())
    return float(found[-1][0]) * {"b": 1e9, "m": 1e6}[found[-1][1]] if found else 1e9


class _Counts:
    """What is known of one stage's inputs; see `launch.stages.contract.Counts`."""

    def __init__(self, estimator: Estimator, stage: Stage) -> None:
        self._estimator, self._stage = estimator, stage
        self.settings = stage.settings

    def has(self, name: str) -> bool:
        return name in self._stage.inputs

    def parameters(self, name: str = "model") -> float:
        return self._estimator.model_size(self._stage.inputs[name])

    def tokens(self, name: str = "data") -> Tokens:
        found = self._estimator.contents(self._stage.inputs[name])
        return found if isinstance(found, Tokens) else Tokens(found, found, found, False)

    def rows(self, name: str = "data") -> float:
        found = self._estimator.contents(self._stage.inputs[name])
        return found.chats if isinstance(found, Tokens) else found


class Estimator:
    """Estimates the stages of a plan against a store; reads each record once."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.kinds: dict[str, StageKind] = {kind.name: kind for kind in stages.in_order(plan.own_stages)}
        again = wanted_again(plan.stages, store)
        self.records = {mark: None if mark in again else store.find(stage) for mark, stage in plan.stages.items()}
        self._recipes = {mark: branch.recipe for branch in plan.branches for mark in branch.stages.values()}
        self._attempts = {row["fingerprint"]: row["seconds"] for row in store.costs() if row["outcome"] == "ok"}
        self._speeds: dict[tuple[str, str], float] | None = None
        self._sizes: dict[str, float] = {}
        models = (branch.recipe.model for branch in plan.branches)
        self._shapes = {one.path: one.shapes.model_dump() for one in models if one.shapes is not None}
        self._contents: dict[str, Any] = {}
        self._works: dict[str, Cost] = {}

    # --- what a stage reads

    def _configuration(self, path: str) -> dict[str, Any]:
        """The config.json of a model from outside, or what of it the recipe or a model group tells."""
        config = _configuration(path)
        return config if _is_decoder(config) else self._shapes.get(path) or published_shapes().get(path, {})

    def model_size(self, given: Input) -> float:
        """Parameters of the model that an input is or leads to."""
        if given.stage is None:
            assert given.path is not None
            config = self._configuration(given.path)
            return parameters(config) if _is_decoder(config) else _named_size(given.path)
        if given.stage not in self._sizes:
            source = self.plan.stages[given.stage]
            size = self.kinds[source.kind].parameters(source.settings)
            if size is None:
                inner = next(source.inputs[name] for name in ("model", "base", "sft") if name in source.inputs)
                size = self.model_size(inner)
            self._sizes[given.stage] = size
        return self._sizes[given.stage]

    def shape(self, given: Input) -> Shape:
        """Shape of the model that an input is or leads to; a typical one of its size where only a name is known."""
        if given.stage is None:
            assert given.path is not None
            config = self._configuration(given.path)
            return shape_of(config) if _is_decoder(config) else typical_shape(_named_size(given.path))
        source = self.plan.stages[given.stage]
        shape = self.kinds[source.kind].shape(source.settings)
        if shape is not None:
            return shape
        return self.shape(next(source.inputs[name] for name in ("model", "base", "sft") if name in source.inputs))

    def memory(self, stage: Stage) -> Memory | None:
        """What one device holds at most while the stage runs. Raises ConfigError where it has not as much."""
        kind = self.kinds.get(stage.kind)
        if kind is None or stage.function != kind.function or type(kind).memory is StageKind.memory:
            return None
        models = ("model", *FROZEN)
        shapes = {name: self.shape(stage.inputs[name]) for name in models if name in stage.inputs}
        memory = kind.memory(stage.settings, shapes)
        if memory is not None and self.records[stage.fingerprint] is None:
            check_device(kind, stage, memory, shapes)
        return memory

    def contents(self, given: Input) -> Any:
        """Tokens or rows of the data that an input is or leads to."""
        assert given.stage is not None
        if given.stage not in self._contents:
            source = self.plan.stages[given.stage]
            directory = self.store.directory(source) if self.records[given.stage] is not None else None
            paths = {name: one.path for name, one in source.inputs.items() if one.path is not None}
            found = self.kinds[source.kind].contents(source.settings, paths, directory)
            self._contents[given.stage] = self.contents(source.inputs["data"]) if found is None else found
        return self._contents[given.stage]

    def work(self, stage: Stage) -> Cost:
        """Operations and bytes of a stage; nothing is known of functions that are not its kind's."""
        if stage.fingerprint not in self._works:
            kind = self.kinds.get(stage.kind)
            known = kind is not None and stage.function == kind.function
            recipe = self._recipes.get(stage.fingerprint)
            cost = kind.cost(recipe, _Counts(self, stage)) if kind is not None and known else Cost()
            self._works[stage.fingerprint] = cost
        return self._works[stage.fingerprint]

    # --- seconds

    def _learnt(self) -> dict[tuple[str, str], float]:
        """Operations a second and device, by kind and platform: the median over this plan's latest records."""
        if self._speeds is None:
            found: dict[tuple[str, str], list[float]] = defaultdict(list)
            done = [(record.started, mark, record) for mark, record in self.records.items() if record is not None]
            for _, mark, record in sorted(done, key=lambda item: item[:2], reverse=True):
                stage = self.plan.stages[mark]
                key = (stage.kind, stage.settings["platform"]["name"])
                flops = self.work(stage).flops
                if flops and record.seconds and len(found[key]) < RECORDS_READ:
                    devices = max(1.0, record.placement["nodes"] * record.placement["gpus_per_node"])
                    found[key].append(flops / record.seconds / devices)
            for key, speed in self._ledger().items():
                found.setdefault(key, []).append(speed)
            self._speeds = {key: statistics.median(values) for key, values in found.items() if values}
        return self._speeds

    def _ledger(self) -> dict[tuple[str, str], float]:
        """Speeds that other plans' attempts noted in costs.jsonl."""
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for row in self.store.costs():
            if row["outcome"] == "ok" and row.get("flops") and row["seconds"]:
                found[row["kind"], row["platform"]].append(row["flops"] / row["seconds"] / max(1.0, row["devices"]))
        return {key: statistics.median(values[-RECORDS_READ:]) for key, values in found.items()}

    def of(self, stage: Stage) -> Estimate:
        """The estimate of one stage; of a finished one its record."""
        record = self.records[stage.fingerprint]
        work = self.work(stage)
        flops = work.flops
        devices = stage.placement["nodes"] * stage.placement["gpus_per_node"]
        if record is not None:
            seconds = record.seconds
            hours = devices * seconds / 3600
            return Estimate(flops, seconds, hours, float(record.bytes), 0.0, "record", True, self.memory(stage))
        platform = stage.settings["platform"]["name"]
        speed = self._learnt().get((stage.kind, platform))
        if stage.fingerprint in self._attempts:
            seconds, source = self._attempts[stage.fingerprint], "attempt"
        elif speed is not None:
            seconds, source = flops / speed / max(1.0, devices), "records"
        else:
            guessed = SPEED[platform][work.sampling]
            seconds, source = work.start_seconds + flops / guessed / max(1.0, devices), "guess"
        hours = devices * seconds / 3600
        memory = self.memory(stage)
        return Estimate(flops, seconds, hours, work.bytes, work.scratch_bytes, source, work.exact, memory)


def disk_forecast(estimates: Mapping[str, Estimate], together: int) -> float:
    """Bytes that the store still needs: every artifact to come, and the largest `together` scratch directories."""
    missing = [estimate for estimate in estimates.values() if estimate.source != "record"]
    scratch = sorted((estimate.scratch_bytes for estimate in missing), reverse=True)
    return sum(estimate.bytes for estimate in missing) + sum(scratch[: max(1, together)])


def estimate_plan(plan: Plan, store: Store) -> dict[str, Estimate]:
    """Fingerprint -> estimate of every stage of the plan."""
    estimator = Estimator(plan, store)
    return {mark: estimator.of(stage) for mark, stage in plan.stages.items()}
