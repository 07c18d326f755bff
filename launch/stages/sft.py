"""Stage `sft`: supervised fine-tuning with an objective, by verl's trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from common.attention import FLASH
from common.errors import ConfigError
from launch.recipe.data import Data
from launch.recipe.platform import Placement
from launch.recipe.section import Section, identity, runtime, setting
from launch.stages._code import own_code
from launch.stages.contract import (
    Branch,
    Cost,
    Counts,
    Made,
    Outside,
    Published,
    Settings,
    Sibling,
    StageKind,
    Step,
)
from launch.stages.memory import (
    FLOAT,
    REST,
    WIDTH,
    Memory,
    Shape,
    activations,
    gathered,
    head_in_chunks,
    logits_of_objectives,
    trained,
    training_step,
)
from launch.stages.references import (
    FROZEN,
    is_cached,
    is_live,
    local_directory,
    model_of,
    numerics,
    sources,
    training_chats,
    without_loggers,
)
from launch.stages.sizes import more_processes, optimizer_bytes, placed, spread, weight_bytes
from launch.stages.starts import BASE, checkpoint_of, fine_tunes, starts, trains
from sft_objectives import load
from sft_objectives.trainer.supported import check_model, check_settings
from sft_objectives.trainer.vocabularies import check_vocabulary

# Overrides of how long SFT goes on; what it starts from was trained without them.
LENGTH = ("sft.from", "sft.start", "sft.epochs", "sft.steps")


class Lora(Section):
    rank: int = setting(16, "rank of the update", gt=0)
    alpha: int = setting(32, "scale is alpha / rank", gt=0)
    target_modules: str | list[str] = setting("all-linear", "modules that get an update")
    target_parameters: list[str] = setting([], "parameters that get one too: experts, such as mlp.experts.down_proj")


class Regularizer(Section):
    name: Literal["none", "l2_to_init"] = setting("none", "penalty on the parameters, with any objective")
    weight: float = setting(0.0, "its coefficient", ge=0)


class SftMetrics(Section):
    kl_from_base: bool = setting(False, "log KL(base || student) on the training tokens; makes a base cache")


class Sft(Section):
    enabled: bool = runtime(True, "fine-tune; false: the base model is evaluated alone")
    start: str | None = setting(
        None, "go on from a branch's SFT model (its name), or from a model's directory; null: the base", alias="from"
    )
    adopt: str | None = setting(None, "a model trained elsewhere in the place of SFT's: directory, or hub name@commit")
    lr: float = setting(1e-5, "peak learning rate", gt=0)
    epochs: int = setting(1, "passes over the data", gt=0)
    steps: int | None = setting(None, "optimizer steps; replaces epochs", gt=0)
    batch_size: int = setting(64, "chats a step, over all devices", gt=0)
    schedule: Literal["constant", "cosine"] = setting("cosine", "learning rate after warm-up")
    warmup: float = setting(0.05, "share of the steps", ge=0, lt=1)
    min_lr_ratio: float = setting(0.0, "last learning rate over the peak (cosine)", ge=0, le=1)
    weight_decay: float = setting(0.0, "AdamW", ge=0)
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW")
    clip_grad: float = setting(1.0, "global gradient norm", gt=0)
    packed: bool = setting(True, "concatenate chats without padding")
    lora: Lora | None = setting(None, "train a low-rank update")
    regularizer: Regularizer = setting(Regularizer(), "penalty on the parameters")
    router_aux_loss: float = setting(0.0, "weight of a mixture-of-experts router's auxiliary loss; 0: off", ge=0)
    metrics: SftMetrics = setting(SftMetrics(), "extra measurements")
    validate_every: int = setting(0, "steps between validations; 0: only at the end", ge=0)
    publish_steps: list[int] = setting([], "checkpoints published, and evaluated, beside the final one")
    fused: Literal["auto", "on", "off"] = runtime("auto", "compute the objective without whole logits")
    processes: int = runtime(1, "data-parallel processes (devices)", gt=0)
    sequence_parallel: int = runtime(1, "Ulysses sequence parallel size", gt=0)
    micro_batch_size: int = runtime(16, "chats a device takes at once without dynamic batches", gt=0)
    dynamic_batch: bool = runtime(True, "fill micro-batches by tokens")
    tokens_per_micro_batch: int = runtime(8192, "token budget of a dynamic micro-batch", gt=0)
    gradient_checkpointing: bool = runtime(False, "recompute activations in the backward pass")
    save_every: int = runtime(50, "steps between resumable checkpoints", gt=0)
    keep_checkpoints: int = runtime(1, "resumable checkpoints kept", gt=0)
    verl: dict[str, Any] = setting({}, "any other key of verl's SFT configuration")


class SftSettings(Settings):
    sft: Sft = setting(Sft(), "the recipe's sft section")
    data: Data = setting(Data(), "the recipe's data section")  # type: ignore[valid-type]
    objective: dict[str, Any] = setting({"name": "sft"}, "the objective and its settings")
    seed: int = setting(0, "of training")


class SftStage(StageKind):
    name = "sft"
    version = 3
    function = "sft_objectives.trainer.stage:run"
    section = Sft
    describes = "supervised fine-tuning"
    after = ("prepare", "pretrain", "rewrite", "cache")
    halves = ("sft.tokens_per_micro_batch", "sft.micro_batch_size")
    decides = True
    series = "sft"
    curve = "curve.jsonl"

    def check(self, recipe: Any) -> None:
        sft = recipe.sft
        tuned = fine_tunes(recipe)
        reads = recipe.rl.enabled and starts(recipe) != [BASE]
        after = f"rl.from={recipe.rl.start}" if reads else "average.weight" if recipe.average.weight is not None else ""
        if not tuned and after:
            why = "rl.from=base" if sft.enabled else "sft.enabled=false"
            other = "set rl.from=base, or rl.enabled=false" if reads else "leave that out as well"
            raise ValueError(f"{why}: {after} starts from a fine-tuned model; {other}")
        if not tuned and sft.start is not None:
            raise ValueError(f"sft.from={sft.start}: nothing is fine-tuned here; leave it out, or train SFT")
        if sft.adopt is not None and (not tuned or sft.start is not None or sft.publish_steps):
            other = "sft.publish_steps" if sft.publish_steps else "sft.from" if tuned else "a branch without SFT"
            raise ValueError(f"sft.adopt={sft.adopt}: an adopted model is what SFT ended with; leave out {other}")
        late = [step for step in sft.publish_steps if step < 1 or (sft.steps is not None and step > sft.steps)]
        if late:
            raise ValueError(f"sft.publish_steps={late}: allowed: 1 to sft.steps={sft.steps}")
        if sft.processes % sft.sequence_parallel:
            raise ValueError(
                f"sft.processes={sft.processes} is not a multiple of sft.sequence_parallel={sft.sequence_parallel}"
            )
        if sft.sequence_parallel > 1 and not (sft.packed and recipe.model.attention == FLASH):
            # verl spreads sequences over devices inside the flash attention call; another kernel would cut attention
            raise ValueError(
                f"sft.sequence_parallel={sft.sequence_parallel}: more than 1 needs sft.packed=true and "
                "model.attention=flash_attention_2"
            )
        ranks = sft.processes // sft.sequence_parallel
        if sft.batch_size % ranks:
            raise ValueError(
                f"sft.batch_size={sft.batch_size} is not a multiple of the {ranks} data-parallel processes; change it "
                "or sft.processes"
            )
        chats = sft.batch_size // ranks
        if not sft.dynamic_batch and chats % min(sft.micro_batch_size, chats):
            raise ValueError(
                f"sft.micro_batch_size={sft.micro_batch_size} does not divide the {chats} chats of a device; change it "
                "or set sft.dynamic_batch=true"
            )
        if sft.tokens_per_micro_batch < recipe.data.max_length:
            raise ValueError(
                f"sft.tokens_per_micro_batch={sft.tokens_per_micro_batch} holds no chat of data.max_length="
                f"{recipe.data.max_length}; raise it to at least that"
            )
        if sft.router_aux_loss and sft.sequence_parallel > 1:
            raise ValueError(
                f"sft.router_aux_loss={sft.router_aux_loss}: a router's loss is of whole chats; set "
                "sft.sequence_parallel=1"
            )
        check_settings(sft)
        if recipe.platform.name == "cpu" and recipe.model.dtype != "float32":
            raise ValueError(
                f"model.dtype={recipe.model.dtype}: platform cpu trains in float32; set model.dtype=float32"
            )

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        if not trains(recipe):
            return
        self._check_devices(recipe)
        base = model_of(recipe, "base")
        self._check_model(base, recipe)
        inputs: dict[str, Any] = {"model": base if recipe.sft.start is None else self._start(branch)}
        for role in sources(branch):
            if is_live(branch, role):
                inputs[role] = model_of(recipe, role)
                self._check_vocabulary(base, inputs[role], role)
            if is_cached(branch, role):
                inputs[f"{role}_cache"] = Made(f"cache:{role}")
        if recipe.sft.regularizer.name == "l2_to_init":
            inputs["base"] = base
        objective = recipe.objective
        label = objective["name"]
        counted = {key: value for key, value in identity(recipe.sft).items() if key not in ("start", "adopt")}
        averaged = recipe.average.weight is not None
        published = [
            Published(f"sft@{step}", "sft", Made("sft", f"checkpoint:{step}"), f"{label}-{step}", step=step)
            for step in sorted(set(recipe.sft.publish_steps))
            if step != recipe.sft.steps or str(step) in starts(recipe)
        ]
        last = Published("sft", "sft", Made("sft", "checkpoint:final"), label, measured=not averaged)
        yield Step(
            "sft",
            label,
            SftSettings(
                sft=recipe.sft,
                data=recipe.data,
                objective=objective,
                seed=recipe.seed,
                model=recipe.model,
                platform=recipe.platform,
            ),
            {
                "objective": {"name": label, **dataclasses.asdict(branch.objective), **own_code(label)},
                "sft": without_loggers(counted),
                "seed": recipe.seed,
                **numerics(recipe, "attention", "dtype"),
            },
            {**inputs, "data": training_chats(recipe)},
            (*published, last),
        )

    def _start(self, branch: Branch) -> Outside | Sibling:
        """The model that `sft.from` names. Raises ConfigError where the base would no longer be the base."""
        recipe, given = branch.recipe, branch.recipe.sft.start
        without_update = f"objective {recipe.objective['name']}" if is_live(branch, "base") else ""
        if recipe.sft.regularizer.name == "l2_to_init":
            without_update = "sft.regularizer"
        if recipe.sft.lora is not None and without_update:
            raise ConfigError(
                f"sft.from={given}: with sft.lora the model without its update stands for the base, which "
                f"{without_update} asks for; set sft.lora=null"
            )
        if "/" not in given:
            return Sibling(given, "sft.from", LENGTH)
        found = Outside(checkpoint_of(given, recipe.run.root), "sft.from", model=True, eos=recipe.model.eos)
        self._check_model(found, recipe)
        return found

    def _check_model(self, base: Made | Outside, recipe: Any) -> None:
        directory = local_directory(base)
        if directory is not None:
            check_model(directory, recipe.sft)

    def _check_vocabulary(self, base: Made | Outside, other: Made | Outside, role: str) -> None:
        student, directory = local_directory(base), local_directory(other)
        if role != "base" and student is not None and directory is not None:
            check_vocabulary(student, directory, f"the {role}")

    def _check_devices(self, recipe: Any) -> None:
        platform, processes = recipe.platform, recipe.sft.processes
        devices = platform.nodes * platform.gpus_per_node
        if platform.name == "gpu" and processes > devices:  # whatever platform.placement.sft says
            raise ConfigError(f"sft.processes={processes} exceeds platform.nodes * platform.gpus_per_node={devices}")
        nodes = placed(self.placement(recipe), platform.placement.get(self.name), self.name, platform.name).nodes
        if processes % nodes:
            raise ConfigError(
                f"sft.processes={processes} does not divide over {nodes} nodes; make it a multiple of {nodes}"
            )

    def placement(self, recipe: Any) -> Placement:
        return spread(recipe.sft.processes, recipe.platform)

    def halved(self, settings: Mapping[str, Any], field: str) -> int:
        sft, half = settings["sft"], super().halved(settings, field)
        if field == "sft.tokens_per_micro_batch":
            return max(min(settings["data"]["max_length"], sft["tokens_per_micro_batch"]), half)
        if sft["dynamic_batch"]:
            return sft["micro_batch_size"]  # not in use
        chats = sft["batch_size"] // (sft["processes"] // sft["sequence_parallel"])
        return next(size for size in range(min(half, chats), 0, -1) if chats % size == 0)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        sft, tokens, size = counts.settings["sft"], counts.tokens(), counts.parameters()
        passes = sft["epochs"]
        if sft["steps"] is not None:
            passes = sft["steps"] * sft["batch_size"] / max(1.0, tokens.chats)
        operations = 8 if sft["gradient_checkpointing"] else 6
        live = 2 * sum(counts.has(role) for role in FROZEN)
        published = len(set(sft["publish_steps"])) + 1 + (1 if sft["validate_every"] else 0)
        return Cost(
            (operations + live) * size * tokens.tokens * passes,
            published * weight_bytes(size, counts.settings["model"]["dtype"]),
            sft["keep_checkpoints"] * optimizer_bytes(size),
            start_seconds=40.0,
        )

    def memory(self, settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Memory:
        sft, width, shape = settings["sft"], WIDTH[settings["model"]["dtype"]], shapes["model"]
        name = settings["platform"]["name"]
        ranks = 1 if name == "cpu" else sft["processes"]
        longest = settings["data"]["max_length"]
        given = sft["batch_size"] * sft["sequence_parallel"] / sft["processes"] * longest
        budget = sft["tokens_per_micro_batch"] if sft["dynamic_batch"] else sft["micro_batch_size"] * longest
        tokens = min(budget, given) / sft["sequence_parallel"]
        needs, lora = load(**settings["objective"]).needs, sft["lora"]
        frozen = [shapes[role] for role in needs.live if role in shapes and not (lora and role == "base")]
        copies = (sft["regularizer"]["name"] == "l2_to_init" and not lora) + (needs.state is not None)
        kept = {
            **trained(shape, ranks, lora),
            "frozen models": sum(width * one.parameters / ranks for one in frozen),
            "copies of the weights": FLOAT * shape.parameters / ranks * copies,
        }
        whole = sft["fused"] == "off"
        passing = {
            "gathered layers": sum(gathered(one, width) for one in (shape, *frozen)),
            "activations": activations(shape, tokens, width, sft["gradient_checkpointing"]),
            "logits" if whole else "head": (
                logits_of_objectives(shape, tokens, width, name)
                if whole
                else head_in_chunks(shape, tokens, bool(needs.live), width, settings["platform"])
            ),
        }
        return training_step(kept, passing, given / budget, REST[name])

    def smaller(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        sft, platform = settings["sft"], settings["platform"]
        if sft["fused"] == "off":
            yield "sft.fused", "auto"
        if not sft["gradient_checkpointing"]:
            yield "sft.gradient_checkpointing", True
        budget, longest = sft["tokens_per_micro_batch"], settings["data"]["max_length"]
        if sft["dynamic_batch"]:
            while budget > longest:
                budget = max(longest, budget // 2)
                yield "sft.tokens_per_micro_batch", budget
        yield from more_processes("sft.processes", sft["processes"], platform)

    def dry_run(self, settings: Any, inputs: Mapping[str, Path], scratch: Path) -> str:
        from sft_objectives.trainer.config import verl_config

        verl_config(settings, dict(inputs), scratch)
        return "verl accepts the configuration"


SFT = SftStage()
