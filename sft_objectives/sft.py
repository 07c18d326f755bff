"""The `sft` stage: settings to verl's configuration, one process a device, Hugging Face checkpoints.

`run` imports no torch: it has `ranks` run one process a device and assembles the artifact. A rank is this module as a
program (`python -m sft_objectives.sft <job.json> <descriptor>`) and ends when the process that started it does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .ranks import BAD_CONFIGURATION, node_count, run_ranks
from .registry import load

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from .contract import Needs, Objective

REFERENCE_INPUTS = ("base", "teacher", "checkpoint")
_SUPPORT = {"support_ids", "support_logprobs"}
# keys that verl's dataclasses know and its YAML files leave out, and mappings whose keys are free
_NOT_IN_YAML = {
    "engine.mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
    "model.target_parameters": None,
    "checkpoint.save_lora_only": False,
    "data.references": {},
    "data.columns": [],
}
_FREE = (
    "data.apply_chat_template_kwargs",
    "data.references",
    "engine.wrap_policy",
    "model.override_config",
    "optim.override_optimizer_config",
)


def verl_config(settings: SimpleNamespace, inputs: Mapping[str, Path], scratch: Path) -> DictConfig:
    """verl's SFT configuration for the stage's settings; imports neither torch nor verl.

    Composed from verl's own YAML files; `settings.sft.verl` is merged last. Raises ValueError that names the key for an
    unknown one, and for a model or cache that the objective asks for and that is not among the inputs.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf, open_dict

    sft, data, model = settings.sft, settings.data, settings.model
    check_models(settings, inputs)
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with initialize_config_dir(version_base=None, config_dir=str(_verl_directory() / "trainer" / "config")):
        config = compose("sft_trainer_engine")
    with open_dict(config):
        for key, value in _NOT_IN_YAML.items():
            OmegaConf.update(config, key, value)
    cpu = settings.platform.name == "cpu"
    precision = {"float32": "fp32", "bfloat16": "bf16"}[model.dtype]
    per_device = sft.batch_size // data_parallel(settings)
    nodes = node_count(settings)
    values: dict[str, Any] = {
        "model.path": str(inputs["model"]),
        "model.trust_remote_code": model.trust_remote_code,
        "model.external_lib": "verl_cpu.engine" if cpu else None,
        "model.custom_chat_template": Path(model.chat_template).read_text() if model.chat_template else None,
        "model.override_config": {"attn_implementation": model.attention},
        "model.use_remove_padding": sft.packed,
        "model.enable_gradient_checkpointing": sft.gradient_checkpointing,
        "model.lora_rank": sft.lora.rank if sft.lora else 0,
        "model.lora_alpha": sft.lora.alpha if sft.lora else 16,
        "model.target_modules": sft.lora.target_modules if sft.lora else "all-linear",
        "engine.strategy": "fsdp2",
        "engine.fsdp_size": 1 if cpu else -1,  # a small model is replicated: no gathers
        "engine.ulysses_sequence_parallel_size": sft.sequence_parallel,
        "engine.mixed_precision": {"param_dtype": precision, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        "engine.use_torch_compile": False,
        "engine.seed": settings.seed,
        "optim.lr": sft.lr,
        "optim.weight_decay": sft.weight_decay,
        "optim.betas": list(sft.betas),
        "optim.clip_grad": sft.clip_grad,
        "optim.lr_scheduler_type": sft.schedule,
        "optim.lr_warmup_steps_ratio": sft.warmup,
        "optim.min_lr_ratio": sft.min_lr_ratio,
        "data.train_batch_size": sft.batch_size,
        "data.micro_batch_size_per_gpu": min(sft.micro_batch_size, per_device),
        "data.use_dynamic_bsz": sft.dynamic_batch,
        "data.max_token_len_per_gpu": sft.tokens_per_micro_batch,
        "data.train_files": str(inputs["data"] / "sft_train.parquet"),
        "data.val_files": str(inputs["data"] / "sft_val.parquet"),
        "data.max_length": data.max_length,
        "data.truncation": _truncation(data.on_long_row),
        "data.enable_thinking_default": None,  # verl's YAML says `none`, a string that its data set takes for true
        "data.num_workers": 0 if cpu else 4,
        "data.custom_cls.path": "pkg://data_prep.chat_dataset",
        "data.custom_cls.name": "ChatDataset",
        "data.references": cache_references(settings, inputs),
        "data.columns": sorted(load_objective(settings).needs.columns),
        "trainer.default_local_dir": str(scratch / "checkpoints"),
        "trainer.project_name": "sft_then_rl",
        "trainer.experiment_name": settings.objective["name"],
        "trainer.total_epochs": sft.epochs,
        "trainer.total_training_steps": sft.steps,
        "trainer.logger": [],
        "trainer.seed": settings.seed,
        "trainer.save_freq": sft.save_every,
        "trainer.test_freq": sft.validate_every or -1,
        "trainer.max_ckpt_to_keep": sft.keep_checkpoints,
        "trainer.device": "cpu" if cpu else "cuda",
        "trainer.nnodes": nodes,
        "trainer.n_gpus_per_node": sft.processes // nodes,
    }
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.set_struct(config, True)
    for key in _FREE:
        OmegaConf.set_struct(OmegaConf.select(config, key) or OmegaConf.create({}), False)
    for key, value in flattened(sft.verl, known=config).items():
        OmegaConf.update(config, key, value, force_add=key.startswith(_FREE))
    return config


def _verl_directory() -> Path:
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("verl is not installed; install requirements/cpu.txt, or the gpu extra on a cluster")
    return Path(spec.submodule_search_locations[0])


def flattened(nested: Mapping[str, Any], known: DictConfig, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} or {"a.b": 1} as {"a.b": 1}; ValueError for a key that `known` does not have."""
    from omegaconf import DictConfig, OmegaConf

    flat = {}
    for name, value in nested.items():
        key = f"{prefix}{name}"
        parent, _, last = key.rpartition(".")
        section = OmegaConf.select(known, parent) if parent else known
        free = key.startswith(tuple(f"{free}." for free in _FREE))
        if not free and (not isinstance(section, DictConfig) or last not in section):
            there = (
                ", ".join(sorted(map(str, section))) if isinstance(section, DictConfig) else f"no section {parent!r}"
            )
            raise ValueError(f"sft.verl: verl's SFT configuration has no key {key!r}; allowed there: {there}")
        if isinstance(value, Mapping) and not free and isinstance(section[last], DictConfig) and key not in _FREE:
            flat.update(flattened(value, known, f"{key}."))
        else:
            flat[key] = value
    return flat


def data_parallel(settings: SimpleNamespace) -> int:
    """Processes that see different rows."""
    return settings.sft.processes // settings.sft.sequence_parallel


def check_models(settings: SimpleNamespace, inputs: Mapping[str, Path]) -> None:
    """Raise ValueError (one line) if a model or cache that the objective asks for is not among the inputs."""
    objective = load_objective(settings)
    for source in live_sources(objective.needs):
        if source not in inputs:
            raise objective.error(
                f"reads the whole vocabulary of the {source}, which no cache holds; input {source} is missing; give "
                "the model, or choose a setting that uses cached ids (estimator=topk, scope=local, variant=paper)"
            )
        if settings.sft.sequence_parallel > 1:
            raise objective.error(
                f"keeps the {source} in memory, which sft.sequence_parallel={settings.sft.sequence_parallel} does not "
                "support; set sft.sequence_parallel=1"
            )
    if objective.needs.dataset and "base_cache" not in inputs:
        raise objective.error(
            "takes constants of the training set from the base cache; input base_cache is missing; give it, or fix "
            "them as settings"
        )


def _truncation(on_long_row: str) -> str:
    return {"truncate_left": "left", "truncate_right": "right"}.get(on_long_row, "error")


def load_objective(settings: SimpleNamespace) -> Objective:
    """The objective of the stage's settings."""
    return load(**settings.objective)


def cache_references(settings: SimpleNamespace, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """`data.references` of the data set: which fields of which cache each chat brings along."""
    needs = load_objective(settings).needs
    references = {}
    for source in REFERENCE_INPUTS:
        fields = set(needs.references.get(source, ())) if source not in live_sources(needs) else set()
        measured = source == "base" and settings.sft.metrics.kl_from_base
        if not fields and not measured:
            continue
        if f"{source}_cache" not in inputs:
            raise ValueError(
                f"objective {settings.objective['name']!r} needs the {source} cache; input {source}_cache is missing"
            )
        names = sorted(fields | _SUPPORT if measured else fields)
        references[source] = {"path": str(inputs[f"{source}_cache"]), "fields": names, "top_k": None}
    return references


def dataset_constants(objective: Objective, inputs: Mapping[str, Path]) -> dict[str, float]:
    """The objective's constants of the training set, from the base cache; empty if it needs none."""
    if not objective.needs.dataset:
        return {}
    from data_prep.reference.reader import ReferenceCache

    return objective.dataset_constants(ReferenceCache(inputs["base_cache"]).scalars(objective.needs.dataset_fields))


def live_sources(needs: Needs) -> list[str]:
    """Frozen models that must give their whole distribution while training runs."""
    return [source for source in REFERENCE_INPUTS if "logits" in needs.references.get(source, ())]


def run(
    settings: SimpleNamespace,
    inputs: Mapping[str, Path],
    output: Path,
    scratch: Path,
    report: Callable[..., None],
) -> None:
    """Fine-tune `inputs["model"]` on `inputs["data"]` with the objective of the settings.

    Other inputs: base_cache, teacher_cache, checkpoint_cache (reference caches); base, teacher, checkpoint (live
    models). Writes checkpoints/step_<n>/, checkpoints.json, metrics.json, curve.jsonl and timings.jsonl to `output`. A
    killed run continues from the last complete checkpoint in `scratch` and ends with the same bytes. Raises ValueError
    for settings or data that are wrong, RuntimeError if a process failed.
    """
    verl_config(settings, inputs, scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    result = scratch / "result.json"
    result.unlink(missing_ok=True)
    job = {
        "settings": as_dict(settings),
        "inputs": {name: str(path) for name, path in inputs.items()},
        "scratch": str(scratch),
    }
    (scratch / "job.json").write_text(json.dumps(job, sort_keys=True))
    started = time.monotonic()
    run_ranks(settings, scratch / "job.json", report)
    outcome = json.loads(result.read_text())
    _assemble(outcome, scratch, output, seconds=time.monotonic() - started)


def as_dict(value: Any) -> Any:
    """A SimpleNamespace tree as plain JSON values."""
    if isinstance(value, SimpleNamespace):
        return {name: as_dict(item) for name, item in vars(value).items()}
    if isinstance(value, (list, tuple)):
        return [as_dict(item) for item in value]
    return value


def as_namespace(value: Any, like: tuple[str, ...] = ("objective", "verl", "env", "benchmarks", "placement")) -> Any:
    """The inverse of `as_dict`; the named mappings have free keys and stay dicts."""
    if isinstance(value, dict):
        items = {name: item if name in like else as_namespace(item) for name, item in value.items()}
        return SimpleNamespace(**items)
    return value


def _assemble(outcome: Mapping[str, Any], scratch: Path, output: Path, seconds: float) -> None:
    for step in outcome["steps"]:
        source = scratch / "exports" / f"step_{step}"
        shutil.copytree(source, output / "checkpoints" / source.name, copy_function=_link_or_copy, dirs_exist_ok=True)
    shutil.copyfile(scratch / "curve.jsonl", output / "curve.jsonl")
    checkpoints = {name: outcome[name] for name in ("best", "final", "steps")}
    (output / "checkpoints.json").write_text(json.dumps(checkpoints, sort_keys=True) + "\n")
    (output / "metrics.json").write_text(json.dumps(outcome["metrics"], sort_keys=True, indent=1) + "\n")
    (output / "timings.jsonl").write_text(json.dumps({"seconds": round(seconds, 3), **outcome["timings"]}) + "\n")


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# a rank


def main(job_path: str, descriptor: str) -> int:
    """Train as one rank; the environment says which. Returns the exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(job_path).read_text())
    with os.fdopen(int(descriptor), "w", buffering=1) as messages:
        try:
            _train(
                as_namespace(job["settings"]),
                {k: Path(v) for k, v in job["inputs"].items()},
                Path(job["scratch"]),
                messages,
            )
        except ValueError as error:
            messages.write(json.dumps({"refused": " ".join(str(error).split())}) + "\n")
            import traceback

            traceback.print_exc()
            return BAD_CONFIGURATION
    return 0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _train(settings: SimpleNamespace, inputs: Mapping[str, Path], scratch: Path, messages: Any) -> None:
    started = time.monotonic()
    for unused in ("vllm", "sklearn"):  # verl and transformers import them where installed, for several seconds
        sys.modules[unused] = None  # pyright: ignore[reportArgumentType]
    if settings.model.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise ValueError("model.attention=flash_attention_2: flash-attn is not installed; install it, or set sdpa")
    if settings.platform.name == "cpu":
        from verl_cpu import plugin

        plugin.require_active()
    import torch

    if settings.platform.name == "cpu":
        torch.set_num_threads(max(1, settings.platform.threads // settings.sft.processes))
    torch.manual_seed(settings.seed)
    from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

    from .verl_worker import ObjectiveTrainer, TokenLoss, write_json

    initialize_global_process_group()
    objective = load_objective(settings)
    regularizer = settings.sft.regularizer
    trainer = ObjectiveTrainer(
        verl_config(settings, inputs, scratch),
        token_loss=TokenLoss(
            objective,
            dataset_constants=dataset_constants(objective, inputs),
            layouts={},
            kl_from_base=settings.sft.metrics.kl_from_base,
        ),
        live_models={source: str(inputs[source]) for source in live_sources(objective.needs)},
        l2_to_init=regularizer.weight if regularizer.name == "l2_to_init" else 0.0,
        fused=settings.sft.fused,
        directory=scratch,
        publish=settings.sft.publish_steps,
        export_dtype=getattr(torch, settings.model.dtype),
        progress=lambda done, total, row: messages.write(
            json.dumps({"done": done, "total": total, "metrics": row}) + "\n"
        ),
    )
    ready = time.monotonic()
    outcome = trainer.fit()
    if trainer.rank == 0:
        outcome["timings"] = {"start": round(ready - started, 3), "train": round(time.monotonic() - ready, 3)}
        write_json(scratch / "result.json", outcome)
    destroy_global_process_group()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
