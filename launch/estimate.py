"""What a stage will cost: device-hours from a count of floating-point operations, bytes from the artifact's layout.

An operation count is turned into seconds by what earlier stages of the same kind took (records and cost ledger of the
store), else by a rough speed of the platform. Everything is approximate but the size of a reference cache, which is
computed from the token counts that `prepare` publishes.
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

from common.files import read_json
from launch.plan import STAGES, Input, Plan, Stage
from launch.store import Store

# Operations a second that one device reaches, (training, sampling): guesses until the store holds a record of the kind.
SPEED = {"gpu": (1.5e14, 1.5e13), "cpu": (6e10, 1e10)}
START_SECONDS = {
    "prepare": 15.0,
    "pretrain": 15.0,
    "cache": 15.0,
    "sft": 40.0,
    "average": 10.0,
}  # imports, start of Ray
START_SECONDS |= {"filter": 60.0, "rl": 90.0, "evaluate": 40.0}
SAMPLING = frozenset({"filter", "rl", "evaluate"})
MICROWORLD_TOKENS, MICROWORLD_RESPONSE, MICROWORLD_VOCABULARY = 32, 16, 128  # of a chat; the world's text is short
BYTES_PER_TOKEN = 4.0  # of text
CHAT_SHARE = 0.5  # of data.max_length that a chat fills when nothing is known
RESPONSE_SHARE = 0.5  # of the length limit that a sampled response fills
OPTIMIZER_BYTES = 12  # fp32 weights and two moments, a parameter
TOKENIZER_BYTES = 4_000_000
RESPONSE_BYTES = 2.5  # of a sampled token in a Parquet file
RECORDS_READ = 20  # latest records of a kind that speeds are learnt from


@dataclass(frozen=True)
class Estimate:
    """Cost of one stage. `exact_bytes` is True where the size follows from counts, not from guesses.

    flops: floating-point operations; seconds: wall time; device_hours: seconds x devices; bytes: of the artifact;
    scratch_bytes: resumable checkpoints that exist while it runs; source: "record" (it is done), "attempt" (an earlier
    attempt of the same stage), "records" (speed of this kind in this store) or "guess".
    """

    flops: float
    seconds: float
    device_hours: float
    bytes: float
    scratch_bytes: float
    source: str
    exact_bytes: bool = False


@dataclass(frozen=True)
class _Tokens:
    """Of the training chats: how many, their tokens, the supervised ones, and whether `prepare` counted them."""

    chats: float
    tokens: float
    responses: float
    counted: bool


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
    """Parameters of a decoder with gated feed-forward layers (Llama, Qwen2) from the fields of its config.json."""
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    key_value = head * (config.get("num_key_value_heads") or heads)
    attention = 2 * hidden * head * heads + 2 * hidden * key_value
    feed_forward = 3 * hidden * config["intermediate_size"]
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return float(layers * (attention + feed_forward + 2 * hidden) + embeddings)


def _named_size(path: str) -> float:
    """Parameters that a model's name claims (Qwen2.5-Math-1.5B), or one billion."""
    found = re.findall(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", path.lower())
    return float(found[-1][0]) * {"b": 1e9, "m": 1e6}[found[-1][1]] if found else 1e9


def _trained_size(pretrain: Mapping[str, Any]) -> float:
    hidden = pretrain["hidden"]
    embeddings = MICROWORLD_VOCABULARY * hidden * (1 if pretrain["tied"] else 2)
    return float(pretrain["layers"] * 12 * hidden * hidden + embeddings)


class Estimator:
    """Estimates the stages of a plan against a store; reads each record once."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        self.records = {mark: store.find(stage) for mark, stage in plan.stages.items()}
        self._attempts: dict[str, float] = {}
        for row in store.costs():
            if row["outcome"] != "ok":
                continue
            self._attempts[row["fingerprint"]] = row["seconds"]
        self._speeds: dict[tuple[str, str], float] | None = None
        self._sizes: dict[str, float] = {}
        self._token_counts: dict[str, _Tokens] = {}

    # --- what a stage reads

    def _model_size(self, stage: Stage, given: Input) -> float:
        if given.stage is None:
            assert given.path is not None
            config = _configuration(given.path)
            return parameters(config) if "hidden_size" in config else _named_size(given.path)
        if given.stage not in self._sizes:
            source = self.plan.stages[given.stage]
            if source.kind == "pretrain":
                size = _trained_size(source.settings["pretrain"])
            else:
                inner = source.inputs.get("model") or source.inputs.get("base") or source.inputs["sft"]
                size = self._model_size(source, inner)
            self._sizes[given.stage] = size
        return self._sizes[given.stage]

    def _tokens(self, stage: Stage) -> _Tokens:
        """Of the chats of the `prepare` stage that `stage` reads."""
        mark = stage.inputs["data"].stage
        assert mark is not None
        source = self.plan.stages[mark]
        if source.kind == "filter":
            return self._tokens(source)
        if mark not in self._token_counts:
            self._token_counts[mark] = self._count(source)
        return self._token_counts[mark]

    def _count(self, source: Stage) -> _Tokens:
        data = source.settings["data"]
        if self.records[source.fingerprint] is not None:
            summary = read_json(self.store.directory(source) / "summary.json") or {}
            counts = summary.get("tokens", {}).get("sft_train")  # artifacts of older versions have none
            if counts is not None:
                return _Tokens(counts["chats"], counts["tokens"], counts["response_tokens"], True)
        if data["source"] == "microworld":
            chats = data["microworld"]["sft_examples"]
            return _Tokens(chats, chats * MICROWORLD_TOKENS, chats * MICROWORLD_RESPONSE, False)
        size = Path(str(source.inputs["sft_train"].path)).expanduser().stat().st_size
        tokens = size / BYTES_PER_TOKEN
        return _Tokens(max(1.0, tokens / (CHAT_SHARE * data["max_length"])), tokens, tokens * 0.7, False)

    def _rows(self, stage: Stage, field: str, key: str) -> float:
        """Rows of a part of the prepared data, from the world's sizes or the file's size."""
        mark = stage.inputs["data"].stage
        assert mark is not None
        source = self.plan.stages[mark]
        if source.kind == "filter":
            return self._rows(source, field, key)
        if source.settings["data"]["source"] == "microworld":
            return float(source.settings["data"]["microworld"][field])
        given = source.inputs.get(key)
        return 1000.0 if given is None else max(1.0, Path(str(given.path)).expanduser().stat().st_size / 500)

    # --- operations and bytes

    def _work(self, stage: Stage) -> tuple[float, float, float, bool]:
        """Operations, bytes of the artifact, bytes of scratch, whether the artifact's bytes are exact."""
        if stage.function != STAGES[stage.kind][0]:
            return 0.0, 0.0, 0.0, False  # not one of our stages: nothing is known of its work
        settings = stage.settings
        if stage.kind == "prepare":
            data = settings["data"]
            if data["source"] == "microworld":
                size = 40.0 * sum(data["microworld"].values())
            else:
                size = 0.5 * sum(Path(str(i.path)).stat().st_size for i in stage.inputs.values() if _is_file(i.path))
            return 0.0, size, 0.0, False
        if stage.kind == "pretrain":
            pretrain = settings["pretrain"]
            size = _trained_size(pretrain)
            seen = pretrain["steps"] * pretrain["batch_size"] * MICROWORLD_TOKENS
            return 6 * size * seen, 4 * size + 100_000, 0.0, False
        if stage.kind == "average":
            size = self._model_size(stage, stage.inputs["sft"])
            return 4 * size, 4 * size + TOKENIZER_BYTES, 0.0, False
        size = self._model_size(stage, stage.inputs["model"])
        weights = size * (2 if settings["model"]["dtype"] == "bfloat16" else 4) + min(TOKENIZER_BYTES, size)
        if stage.kind == "cache":
            return self._cache(stage, size)
        if stage.kind == "sft":
            return self._sft(stage, size, weights)
        if stage.kind == "filter":
            rl = settings["rl"]
            prompts, tokens = self._rows(stage, "rl_prompts", "rl_train"), rl["max_response_length"] * RESPONSE_SHARE
            return 2 * size * prompts * rl["filter"]["samples"] * tokens, 200 * prompts, 0.0, False
        if stage.kind == "rl":
            rl = settings["rl"]
            responses = rl["steps"] * rl["prompts"] * rl["samples"]
            tokens = responses * (rl["max_prompt_length"] + rl["max_response_length"]) * RESPONSE_SHARE
            passes = 2 + 2 + (2 if rl["kl_weight"] else 0) + (8 if rl["gradient_checkpointing"] else 6)
            published = len(set(rl["publish_steps"])) + 1
            kept = rl["keep_checkpoints"] * size * OPTIMIZER_BYTES if rl["save_every"] else 0.0
            return passes * size * tokens, published * weights, kept, False
        sampled = 0.0
        for benchmark in settings["eval"]["benchmarks"]:
            target = benchmark["name"] == settings["eval"]["target"]
            name = benchmark["name"]
            problems = self._rows(stage, "target_problems" if target else "skill_problems", f"benchmark_{name}")
            length = min(benchmark["max_tokens"], settings["eval"]["max_length"]) * RESPONSE_SHARE
            sampled += problems * (benchmark["num_samples"] + benchmark["greedy"]) * length
        return 2 * size * sampled, 20_000 + RESPONSE_BYTES * sampled, 0.0, False

    def _cache(self, stage: Stage, size: float) -> tuple[float, float, float, bool]:
        from data_prep.reference_cache import predict_bytes

        tokens = self._tokens(stage)
        counts = {"chats": tokens.chats, "tokens": tokens.tokens, "response_tokens": round(tokens.responses)}
        whole = {name: max(1, round(value)) for name, value in counts.items()}
        size_on_disk = predict_bytes({"tokens": {"sft_train": whole}}, stage.settings["cache"])
        return 2 * size * tokens.tokens, float(size_on_disk), 0.0, tokens.counted

    def _sft(self, stage: Stage, size: float, weights: float) -> tuple[float, float, float, bool]:
        sft, tokens = stage.settings["sft"], self._tokens(stage)
        passes = sft["epochs"]
        if sft["steps"] is not None:
            passes = sft["steps"] * sft["batch_size"] / max(1.0, tokens.chats)
        cost = 8 if sft["gradient_checkpointing"] else 6
        live = 2 * sum(name in ("base", "teacher", "checkpoint") for name in stage.inputs)
        published = len(set(sft["publish_steps"])) + 1 + (1 if sft["validate_every"] else 0)
        return (
            (cost + live) * size * tokens.tokens * passes,
            published * weights,
            sft["keep_checkpoints"] * size * OPTIMIZER_BYTES,
            False,
        )

    # --- seconds

    def _learnt(self) -> dict[tuple[str, str], float]:
        """Operations a second and device, by kind and platform: the median over this plan's latest records."""
        if self._speeds is None:
            found: dict[tuple[str, str], list[float]] = defaultdict(list)
            done = [(record.started, mark, record) for mark, record in self.records.items() if record is not None]
            for _, mark, record in sorted(done, key=lambda item: item[:2], reverse=True):
                stage = self.plan.stages[mark]
                key = (stage.kind, stage.settings["platform"]["name"])
                flops = self._work(stage)[0]
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
        flops, size, scratch, exact = self._work(stage)
        devices = stage.placement["nodes"] * stage.placement["gpus_per_node"]
        if record is not None:
            seconds = record.seconds
            return Estimate(flops, seconds, devices * seconds / 3600, float(record.bytes), 0.0, "record", True)
        platform = stage.settings["platform"]["name"]
        speed = self._learnt().get((stage.kind, platform))
        if stage.fingerprint in self._attempts:
            seconds, source = self._attempts[stage.fingerprint], "attempt"
        elif speed is not None:
            seconds, source = flops / speed / max(1.0, devices), "records"
        else:
            guessed = SPEED[platform][stage.kind in SAMPLING]
            seconds, source = START_SECONDS[stage.kind] + flops / guessed / max(1.0, devices), "guess"
        return Estimate(flops, seconds, devices * seconds / 3600, size, scratch, source, exact)


def _is_file(path: str | None) -> bool:
    return path is not None and Path(path).is_file()


def disk_forecast(estimates: Mapping[str, Estimate], together: int) -> float:
    """Bytes that the store still needs: every artifact to come, and the largest `together` scratch directories."""
    missing = [estimate for estimate in estimates.values() if estimate.source != "record"]
    scratch = sorted((estimate.scratch_bytes for estimate in missing), reverse=True)
    return sum(estimate.bytes for estimate in missing) + sum(scratch[: max(1, together)])


def estimate_plan(plan: Plan, store: Store) -> dict[str, Estimate]:
    """Fingerprint -> estimate of every stage of the plan."""
    estimator = Estimator(plan, store)
    return {mark: estimator.of(stage) for mark, stage in plan.stages.items()}
