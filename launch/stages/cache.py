"""Stage `cache`: what a frozen model says about the training responses, computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from common.attention import PACKED
from common.errors import ConfigError
from launch.recipe.data import Data
from launch.recipe.platform import Placement
from launch.recipe.section import Section, identity, runtime, setting
from launch.stages.contract import Branch, Cost, Counts, Settings, StageKind, Step
from launch.stages.memory import FLOAT, GB, REST, WIDTH, Memory, Shape, forward_pass, gathered, logits_of_rows
from launch.stages.references import is_cached, is_live, model_of, numerics, sources, training_chats
from launch.stages.sizes import more_processes, spread
from launch.stages.starts import trains

# Bytes of logits that one product of a forward pass makes, and that one pass of the statistics reads: LOGITS_BYTES and
# STATISTICS_BYTES of data_prep.reference.producers.forward.
PASS_LOGITS = {"cpu": 1 << 25, "gpu": 1 << 30}
PASS_STATISTICS = {"cpu": 1 << 22, "gpu": 1 << 28}


class Cache(Section):
    """What the frozen base or teacher says about the training responses, computed once."""

    top_k: int = setting(64, "ids stored for each response token", gt=0)
    encoding: Literal["compact", "lossless"] = setting("compact", "4 bytes an entry, or fp32 log-probabilities")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "precision of the forward pass")
    producer: Literal["forward", "vllm"] = setting("forward", "a forward pass, or vLLM prompt log-probabilities")
    workers: int = runtime(1, "model replicas", gt=0)
    processes: int = runtime(1, "devices that one replica's weights are sharded over, by verl's engine", gt=0)
    tensor_parallel: int = runtime(1, "devices of one vLLM replica", gt=0)
    gpu_memory: float = runtime(0.85, "share of a device's memory for vLLM", gt=0, le=1)
    tokens_per_batch: int = runtime(8192, "token budget of one forward pass", gt=0)
    sample_sequences: int = setting(100, "chats whose every position is sampled, for SED-SFT's threshold", ge=0)
    tokens_per_shard: int = setting(262_144, "response tokens in one shard file", gt=0)


class CacheSettings(Settings):
    cache: Cache = setting(Cache(), "the recipe's cache section")
    data: Data = setting(Data(), "the recipe's data section")  # type: ignore[valid-type]
    role: str = setting("base", "which model it is of: base, teacher or checkpoint")


class CacheStage(StageKind):
    name = "cache"
    version = 2
    function = "data_prep.reference.stage:run"
    section = Cache
    describes = "reference cache"
    after = ("prepare", "pretrain", "rewrite")
    halves = ("cache.tokens_per_batch",)

    def check(self, recipe: Any) -> None:
        given = f"cache.processes={recipe.cache.processes}"
        if recipe.cache.processes > 1 and recipe.cache.producer == "vllm":
            raise ValueError(f"{given}: only cache.producer=forward is sharded; set cache.tensor_parallel for vllm")
        if recipe.cache.processes > 1 and recipe.cache.dtype != "float32" and recipe.platform.name == "cpu":
            raise ValueError(f"{given}: platform cpu shards models in float32; set cache.dtype=float32")

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        for role in sources(branch) if trains(recipe) else ():
            if not is_cached(branch, role):
                continue
            self._check_fields(branch, role)
            self._check_kernel(recipe)
            inputs: dict[str, Any] = {"model": model_of(recipe, role), "data": training_chats(recipe)}
            if role != "base":
                inputs["student"] = model_of(recipe, "base")
            yield Step(
                f"cache:{role}",
                role,
                CacheSettings(
                    cache=recipe.cache, data=recipe.data, role=role, model=recipe.model, platform=recipe.platform
                ),
                {
                    "cache": identity(recipe.cache),
                    **numerics(recipe, *(("attention",) if recipe.cache.producer == "forward" else ())),
                },
                inputs,
            )

    def _check_kernel(self, recipe: Any) -> None:
        """Refuses a forward pass in a precision that the attention kernel does not take."""
        attention, dtype = recipe.model.attention, recipe.cache.dtype
        if recipe.cache.producer == "forward" and attention in PACKED and dtype != "bfloat16":
            raise ConfigError(
                f"cache.dtype={dtype}: the kernel of model.attention={attention} does not take it; set "
                "cache.dtype=bfloat16, or model.attention=sdpa"
            )

    def _check_fields(self, branch: Branch, role: str) -> None:
        """Refuses an objective that the cache could not serve."""
        from data_prep.reference.layout import SAMPLE_TOP_K, fields_of

        cache, needs, name = branch.recipe.cache, branch.objective.needs, branch.recipe.objective["name"]
        wanted = needs.references.get(role)
        needed = frozenset() if wanted is None or is_live(branch, role) else wanted.fields
        absent = sorted(needed - fields_of(cache.producer))
        if absent:
            raise ConfigError(
                f"objective {name} needs {', '.join(absent)} of the {role}, which cache.producer={cache.producer} "
                "cannot give; set cache.producer=forward"
            )
        top_k = 0 if wanted is None else wanted.top_k
        if top_k > cache.top_k:
            raise ConfigError(
                f"objective {name} reads the {role}'s {top_k} most probable ids, cache.top_k={cache.top_k} keeps "
                f"fewer; set cache.top_k={top_k} or more"
            )
        if role != "base" or needs.dataset is None or not needs.dataset.top_k:
            return
        if not cache.sample_sequences:
            raise ConfigError(
                f"objective {name} takes its threshold from a sample of chats; set cache.sample_sequences above 0, or "
                "objective.threshold"
            )
        stored = min(cache.top_k, SAMPLE_TOP_K)
        if needs.dataset.top_k > stored:
            raise ConfigError(
                f"objective {name} takes its threshold from the {needs.dataset.top_k} most probable ids, the cache's "
                f"sample keeps {stored}; lower objective.top_k or objective.threshold_top_k, or set objective.threshold"
            )

    def placement(self, recipe: Any) -> Placement:
        cache = recipe.cache
        of_a_worker = cache.tensor_parallel if cache.producer == "vllm" else cache.processes
        return spread(cache.workers * of_a_worker, recipe.platform)

    def halved(self, settings: Mapping[str, Any], field: str) -> int:
        given = settings["cache"]["tokens_per_batch"]
        return max(min(settings["data"]["max_length"], given), super().halved(settings, field))

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        from data_prep.reference.layout import predict_bytes

        tokens, size = counts.tokens(), counts.parameters()
        whole = {"chats": tokens.chats, "tokens": tokens.tokens, "response_tokens": round(tokens.responses)}
        summary = {"tokens": {"sft_train": {name: max(1, round(value)) for name, value in whole.items()}}}
        size_on_disk = float(predict_bytes(summary, counts.settings["cache"]))
        return Cost(2 * size * tokens.tokens, size_on_disk, exact=tokens.counted, start_seconds=15.0)

    def memory(self, settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Memory:
        cache, platform, shape = settings["cache"], settings["platform"], shapes["model"]
        name, width = platform["name"], WIDTH[cache["dtype"]]
        if cache["producer"] == "vllm" and name == "gpu":
            return Memory({"vLLM (cache.gpu_memory)": cache["gpu_memory"] * platform["device_memory"] * GB}, "sampling")
        ranks, tokens = cache["processes"], max(cache["tokens_per_batch"], settings["data"]["max_length"])
        own = {"weights": width * shape.parameters}
        if ranks > 1:  # in the host's memory between passes on a GPU
            own = {"weights": FLOAT * shape.parameters / ranks, "gathered layers": gathered(shape, width)}
            own["head"] = width * shape.vocabulary * shape.hidden
        logits = min(logits_of_rows(shape, tokens), PASS_LOGITS[name])
        parts = {
            **own,
            "activations": forward_pass(shape, tokens, width),
            "logits": logits + 2 * min(logits, PASS_STATISTICS[name]),
            "rest": REST[name],
        }
        return Memory(parts, "forward passes")

    def smaller(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        cache, longest = settings["cache"], settings["data"]["max_length"]
        budget = cache["tokens_per_batch"]
        while budget > longest:
            budget = max(longest, budget // 2)
            yield "cache.tokens_per_batch", budget
        if cache["producer"] == "forward":
            yield from more_processes("cache.processes", cache["processes"], settings["platform"])

    def mend(self, artifact: Path, scratch: Path) -> str:
        from data_prep.reference.writer import mend

        return mend(artifact, scratch)


CACHE = CacheStage()
