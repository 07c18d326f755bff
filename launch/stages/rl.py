"""Stage `rl`: GRPO or DAPO from SFT checkpoints, by verl's trainer with vLLM rollouts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from common.attention import FLASH
from common.errors import ConfigError
from common.nested import flat
from launch.recipe.data import Data
from launch.recipe.platform import Placement
from launch.recipe.section import Section, identity, runtime, setting
from launch.stages._code import reward_code
from launch.stages.contract import Branch, Cost, Counts, Made, Published, Settings, StageKind, Step
from launch.stages.memory import (
    FLOAT,
    GB,
    REST,
    WIDTH,
    Memory,
    Shape,
    activations,
    gathered,
    most,
    trained,
    training_step,
    whole_logits,
)
from launch.stages.references import model_of, numerics, without_loggers
from launch.stages.sft import Lora
from launch.stages.sizes import more_processes, optimizer_bytes, spread, weight_bytes
from launch.stages.starts import BASE, NAMED, called, starts
from rl_stage.demands import demand_of
from rl_stage.renewal import can_be_renewed

FILLED = 0.5  # of the length limits that prompts and responses fill when nothing is known


class DynamicSampling(Section):
    enabled: bool = setting(False, "drop groups whose rewards are all equal and sample again")
    max_batches: int = setting(10, "batches sampled for one update before the run stops with an error", gt=0)


class Overlong(Section):
    enabled: bool = setting(False, "penalise responses close to the length limit")
    buffer: int = setting(0, "tokens before the limit where the penalty starts", ge=0)
    penalty: float = setting(1.0, "penalty at the limit", ge=0)


class Probe(Section):
    prompts: int = setting(8, "prompts sampled before RL starts; 0: no probe", ge=0)
    samples: int = setting(16, "samples of each", gt=0)


class Reward(Section):
    name: str = setting("math", "a reward of rl_stage.rewards or a dotted path")
    settings: dict[str, Any] = setting({}, "keyword arguments of the reward")
    correct: float = setting(1.0, "score of a correct response")
    wrong: float = setting(0.0, "score of any other response")
    timeout: float = runtime(10.0, "seconds one response may take to grade", gt=0)

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, value: str) -> str:
        from rl_stage.rewards import names

        if value not in names() and not value.rpartition(".")[0]:
            raise ValueError(f"allowed: {', '.join(names())}, or a dotted path to a function or grader of one's own")
        return value


class DifficultyFilter(Section):
    """Keep the prompts that a model solves sometimes."""

    enabled: bool = setting(False, "filter the RL prompts first")
    model: str | None = setting(None, "Hugging Face name or directory; null: the base model")
    revision: str | None = setting(None, "commit of a Hugging Face name")
    samples: int = setting(8, "samples a prompt", gt=0)
    temperature: float = setting(1.0, "sampling temperature", ge=0)
    above: float = setting(0.0, "keep pass rates strictly above", ge=0, le=1)
    below: float = setting(1.0, "keep pass rates strictly below", ge=0, le=1)
    replicas: int | None = runtime(
        None, "vLLM engines, each on its own devices; null: as many as the recipe has devices for, on a CPU one", gt=0
    )

    @model_validator(mode="after")
    def _bounds(self) -> DifficultyFilter:
        if self.above >= self.below:
            raise ValueError(f"no pass rate is above {self.above:g} and below {self.below:g}; set above < below")
        return self


class Rl(Section):
    enabled: bool = setting(True, "run reinforcement learning")
    start: str | list[int | str] = setting(
        "final", "what RL starts from: final, best, all or steps of SFT, base: no SFT; several as a list", alias="from"
    )
    algorithm: Literal["grpo", "dapo"] = setting("grpo", "label of the group of settings below")
    steps: int = setting(100, "updates of the rollout policy", gt=0)
    prompts: int = setting(128, "prompts a step", gt=0)
    samples: int = setting(8, "responses a prompt (group size)", gt=1)
    mini_batch: int = setting(128, "prompts an optimizer step", gt=0)
    max_prompt_length: int = setting(1024, "tokens", gt=0)
    max_response_length: int = setting(2048, "tokens", gt=0)
    temperature: float = setting(1.0, "of rollouts", gt=0)
    top_p: float = setting(1.0, "of rollouts", gt=0, le=1)
    lr: float = setting(1e-6, "learning rate", gt=0)
    warmup_steps: int = setting(0, "updates of the rollout policy until the learning rate is reached", ge=0)
    weight_decay: float = setting(0.01, "AdamW", ge=0)
    clip_grad: float = setting(1.0, "global gradient norm", gt=0)
    clip_low: float = setting(0.2, "lower clip of the ratio", gt=0)
    clip_high: float = setting(0.2, "upper clip of the ratio", gt=0)
    normalize_advantage: bool = setting(True, "divide by the group's standard deviation")
    loss_aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = setting(
        "token-mean", "verl's name"
    )
    kl_weight: float = setting(0.0, "weight of the KL term against the reference policy; 0: no reference model", ge=0)
    kl_estimator: Literal["kl", "abs", "mse", "low_var_kl", "full"] = setting("low_var_kl", "verl's name")
    entropy_weight: float = setting(0.0, "entropy bonus", ge=0)
    dynamic_sampling: DynamicSampling = setting(DynamicSampling(), "DAPO's dynamic sampling")
    overlong: Overlong = setting(Overlong(), "DAPO's length penalty")
    reward: Reward = setting(Reward(), "how a response is scored")
    filter: DifficultyFilter = setting(DifficultyFilter(), "difficulty filter of the prompts")
    probe: Probe = setting(Probe(), "is any reward within reach?")
    on_unreachable: Literal["warn", "stop"] = setting("warn", "the probe found no or only solved prompts")
    lora: Lora | None = setting(None, "train a low-rank update")
    validate_every: int = setting(0, "steps between validations; 0: before and after", ge=0)
    publish_steps: list[int] = setting([], "checkpoints published, and evaluated, beside the final one")
    full_determinism: bool = setting(False, "verl's full-determinism mode: slower, equal bit for bit")
    eager: bool = setting(False, "without CUDA graphs and compilation: starts in seconds, steps are slower")
    mode: Literal["sync", "colocate_async"] = setting("sync", "verl's V1 trainer mode")
    pause_at: int | None = runtime(
        None, "step after which the run pauses, to be continued; selection.rungs sets it", gt=0
    )
    save_every: int = runtime(20, "steps between resumable checkpoints; 0: none", ge=0)
    keep_checkpoints: int = runtime(1, "resumable checkpoints kept", gt=0)
    tokens_per_micro_batch: int = runtime(16_384, "token budget of a dynamic micro-batch", gt=0)
    processes: int = runtime(1, "devices", gt=0)
    tensor_parallel: int = runtime(1, "devices of one vLLM replica", gt=0)
    gpu_memory: float = runtime(0.5, "share of a device's memory for vLLM", gt=0, le=1)
    gradient_checkpointing: bool = runtime(True, "recompute activations in the backward pass")
    step_timeout: float = runtime(
        3600.0, "seconds start-up, one step, one weight sync or one validation may take", gt=0
    )
    warm: bool = runtime(False, "branches that differ in weights, seed or objective alone share one engine")
    verl: dict[str, Any] = setting({}, "any other key of verl's RL configuration")

    @field_validator("start")
    @classmethod
    def _start_is_known(cls, value: str | list[int | str]) -> str | list[int | str]:
        given = [value] if isinstance(value, str) else value
        if not given or any(isinstance(one, str) and one not in NAMED for one in given):
            raise ValueError(f"allowed: {', '.join(NAMED)}, steps of SFT, or several of them like [base,50,final]")
        return value


class RlSettings(Settings):
    rl: Rl = setting(Rl(), "the recipe's rl section")
    data: Data = setting(Data(), "the recipe's data section")  # type: ignore[valid-type]
    seed: int = setting(0, "of training")


class RlStage(StageKind):
    name = "rl"
    version = 3
    function = "rl_stage.stage:run"
    section = Rl
    describes = "reinforcement learning"
    after = ("prepare", "filter", "sft", "adopt", "average")
    halves = ("rl.tokens_per_micro_batch",)
    shares_engine = True
    joins = "verl's queue has one name in a Ray cluster"
    series = "rl"
    curve = "curve.jsonl"

    def check(self, recipe: Any) -> None:
        rl, devices = recipe.rl, recipe.platform.gpus_per_node
        longest = rl.max_response_length
        if not rl.enabled:
            return
        if rl.mini_batch > rl.prompts or rl.prompts % rl.mini_batch:
            raise ValueError(f"rl.mini_batch={rl.mini_batch} does not divide rl.prompts={rl.prompts}; change either")
        if rl.processes > devices and rl.processes % devices:
            raise ValueError(
                f"rl.processes={rl.processes} does not fill whole nodes of platform.gpus_per_node={devices}; make it "
                f"at most {devices}, or a multiple of it"
            )
        responses = rl.mini_batch * rl.samples
        if responses % rl.processes:
            raise ValueError(
                f"rl.processes={rl.processes} does not divide the {responses} responses of rl.mini_batch * rl.samples; "
                "change one of them"
            )
        if rl.processes % rl.tensor_parallel:
            raise ValueError(
                f"rl.tensor_parallel={rl.tensor_parallel} does not divide rl.processes={rl.processes}; change either"
            )
        for name, allowed in (("tensor_parallel", 1), ("full_determinism", False)):  # the latter by Triton's kernels
            if recipe.platform.name == "cpu" and (given := getattr(rl, name)) != allowed:
                raise ValueError(f"rl.{name}={given}: set {allowed} on platform cpu".lower())
        self._check_cores(recipe)
        if rl.overlong.enabled and not 0 < rl.overlong.buffer <= longest:
            raise ValueError(f"rl.overlong.buffer={rl.overlong.buffer}: allowed: 1 to rl.max_response_length={longest}")
        self._check_kernel(recipe)
        late = [step for step in rl.publish_steps if not 0 < step <= rl.steps]
        if late:
            raise ValueError(f"rl.publish_steps={late}: allowed: 1 to rl.steps={rl.steps}")
        self._check_pauses(recipe)

    def _check_pauses(self, recipe: Any) -> None:
        rl, rungs = recipe.rl, recipe.selection.rungs
        if rl.pause_at is not None and rl.pause_at >= rl.steps:
            raise ValueError(f"rl.pause_at={rl.pause_at}: allowed: 1 to {rl.steps - 1}, before rl.steps={rl.steps}")
        if not rungs:
            return
        if rungs[-1] != rl.steps:
            raise ValueError(f"selection.rungs={rungs}: the last one is the whole run; set rl.steps={rungs[-1]}")
        apart = [step for step in rungs[:-1] if not rl.validate_every or step % rl.validate_every]
        if apart:
            raise ValueError(
                f"selection.rungs={rungs}: rl.validate_every={rl.validate_every} does not validate at {apart}; set "
                f"rl.validate_every={math.gcd(*rungs)}"
            )

    def _check_cores(self, recipe: Any) -> None:
        given, derived = recipe.platform.placement.get(self.name), self.placement(recipe)
        if given is None or given.cpus is None:
            return
        nodes = given.nodes or derived.nodes
        wanted = demand_of(recipe).of_node(nodes)
        if nodes > 1 and given.cpus < wanted:
            raise ValueError(
                f"platform.placement.rl.cpus={given.cpus:g}: verl reserves {wanted} cores on each of {nodes} nodes; "
                "leave it out, or raise it to that"
            )

    def _check_kernel(self, recipe: Any) -> None:
        """Refuses Ulysses with a kernel that sees only its own rank's share of a sequence."""
        split = [
            (key, value)
            for key, value in flat(recipe.rl.verl).items()
            if key.endswith("ulysses_sequence_parallel_size") and value != 1
        ]
        if split and recipe.model.attention != FLASH:
            key, value = split[0]
            raise ValueError(
                f"rl.verl.{key}={value}: sequences are spread over devices inside flash attention alone; set "
                f"model.attention={FLASH}, or leave it out"
            )

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        if not recipe.rl.enabled:
            return
        label = called(recipe)
        tuned = "average" if "average" in branch.steps else "sft"
        prompts = prompts_of(branch)
        counted = {
            key: value for key, value in identity(recipe.rl).items() if key not in ("enabled", "start", "filter")
        }
        for start in starts(recipe):
            name = {"final": label, BASE: BASE}.get(start, f"{label}-{start}")
            role = f"rl@{start}"
            model = model_of(recipe, "base") if start == BASE else _checkpoint(tuned, start)
            published = [
                Published(f"{role}-{step}", "rl", Made(role, f"checkpoint:{step}"), f"{name}.rl-{step}", start, step)
                for step in _before(recipe.rl.publish_steps, recipe.rl.steps)
            ]
            published.append(Published(role, "rl", Made(role, "checkpoint:final"), f"{name}.rl", start))
            if start == "best":  # the steps are published by the stage `sft`
                published.insert(0, Published(f"sft@{start}", "sft", model, name))
            yield Step(
                role,
                name,
                RlSettings(
                    rl=recipe.rl, data=recipe.data, seed=recipe.seed, model=recipe.model, platform=recipe.platform
                ),
                {
                    "rl": without_loggers(counted),
                    "seed": recipe.seed,
                    **reward_code(recipe),
                    **numerics(recipe, "attention", "dtype"),
                },
                {"model": model, "data": Made(prompts)},
                tuple(published),
            )

    def placement(self, recipe: Any) -> Placement:
        """Over several nodes, where verl joins the cluster's Ray, with the cores that it reserves on each."""
        found, given = spread(recipe.rl.processes, recipe.platform), recipe.platform.placement.get(self.name)
        nodes = found.nodes if given is None or given.nodes is None else given.nodes
        return found if nodes == 1 else found.model_copy(update={"cpus": demand_of(recipe).of_node(nodes)})

    def shares(self, settings: Mapping[str, Any]) -> bool:
        rl, platform = settings["rl"], settings["platform"]
        if not rl["warm"]:
            return False
        nodes = platform["placement"].get(self.name, {}).get("nodes") or 1
        given = {name: rl[name] for name in ("warm", "mode", "pause_at", "processes", "verl")}
        return nodes == 1 and can_be_renewed(**given, devices=platform["gpus_per_node"], platform=platform["name"])

    def engine(self, settings: Mapping[str, Any]) -> Any:
        if not settings["rl"]["warm"]:
            return super().engine(settings)
        # `rl_stage.warm` looks at the models too, and begins cold where they do not fit the session
        kept = {name: settings[name] for name in ("rl", "model", "platform")}
        return {**kept, "seed": settings["seed"] if settings["rl"]["full_determinism"] else None}

    def halved(self, settings: Mapping[str, Any], field: str) -> int:
        longest = settings["rl"]["max_prompt_length"] + settings["rl"]["max_response_length"]
        return max(min(longest, settings["rl"]["tokens_per_micro_batch"]), super().halved(settings, field))

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        rl, size = counts.settings["rl"], counts.parameters()
        responses = (rl["pause_at"] or rl["steps"]) * rl["prompts"] * rl["samples"]
        tokens = responses * (rl["max_prompt_length"] + rl["max_response_length"]) * FILLED
        passes = 2 + 2 + (2 if rl["kl_weight"] else 0) + (8 if rl["gradient_checkpointing"] else 6)
        published = len(set(rl["publish_steps"])) + 1
        kept = rl["keep_checkpoints"] * optimizer_bytes(size) if rl["save_every"] else 0.0
        return Cost(
            passes * size * tokens,
            published * weight_bytes(size, counts.settings["model"]["dtype"]),
            kept,
            start_seconds=90.0,
            sampling=True,
        )

    def memory(self, settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Memory:
        """verl and vLLM share a device: one trains while the other sleeps, the trainer's weights and moments stay."""
        rl, platform, shape = settings["rl"], settings["platform"], shapes["model"]
        width, on_cpu = WIDTH[settings["model"]["dtype"]], platform["name"] == "cpu"
        ranks, longest = rl["processes"], rl["max_prompt_length"] + rl["max_response_length"]
        responses = rl["mini_batch"] * rl["samples"] / rl["processes"]
        tokens = min(max(rl["tokens_per_micro_batch"], longest), responses * longest)
        kept = trained(shape, ranks, rl["lora"])
        reference = FLOAT * shape.parameters / ranks if rl["kl_weight"] and not rl["lora"] else 0.0
        passing = {
            "gathered layers": gathered(shape, width),
            "activations": activations(shape, tokens, width, rl["gradient_checkpointing"]),
            "logits": whole_logits(shape, tokens, width),
        }
        batches = responses * longest / tokens
        training = training_step({**kept, "reference": reference}, passing, batches, REST[platform["name"]])
        if on_cpu:  # vLLM is another process there
            return training
        rollouts = {
            "weights": kept["weights"],
            "optimizer": kept["optimizer"],
            "reference": reference,
            "vLLM (rl.gpu_memory)": rl["gpu_memory"] * platform["device_memory"] * GB,
            "rest": REST[platform["name"]],
        }
        return most(training, Memory(rollouts, "sampling"))

    def smaller(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        rl = settings["rl"]
        if not rl["gradient_checkpointing"]:
            yield "rl.gradient_checkpointing", True
        budget, longest = rl["tokens_per_micro_batch"], rl["max_prompt_length"] + rl["max_response_length"]
        while budget > longest:
            budget = max(longest, budget // 2)
            yield "rl.tokens_per_micro_batch", budget
        for share in (0.4, 0.3, 0.2):
            if share < rl["gpu_memory"]:
                yield "rl.gpu_memory", share
        yield from more_processes("rl.processes", rl["processes"], settings["platform"])

    def dry_run(self, settings: Any, inputs: Mapping[str, Path], scratch: Path) -> str:
        from rl_stage.config import verl_config

        verl_config(settings, dict(inputs), scratch)
        return "verl accepts the configuration"


def prompts_of(branch: Branch) -> str:
    """The role of the step whose prompts RL trains on."""
    return "filter" if "filter" in branch.steps else "prepare:rl"


def _checkpoint(tuned: str, start: str) -> Made:
    """An SFT checkpoint. Raises ConfigError for one of several whose average alone goes on."""
    if tuned != "sft" and start != "final":
        raise ConfigError(
            f"rl.from={start}: average.weight makes one model, of the last checkpoint; set rl.from=final, or leave "
            "average.weight out"
        )
    return Made(tuned, f"checkpoint:{start}")


def _before(steps: Sequence[int], last: int) -> list[int]:
    """Published steps before the last one, which is published anyway, in order and each once."""
    return sorted({step for step in steps if step < last})


RL = RlStage()
