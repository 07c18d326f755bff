"""The stage's settings as verl's SFT configuration. Imports neither torch nor verl."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.templates import template_file
from data_prep.truncation import dataset_config

from ..contract import Objective
from ..registry import load
from .ranks import node_count
from .supported import check_model, check_settings
from .vocabularies import check_vocabulary

if TYPE_CHECKING:
    from omegaconf import DictConfig

REFERENCE_INPUTS = ("base", "teacher", "checkpoint")
_SUPPORT = {"support_ids", "support_logprobs"}
# keys that verl's dataclasses know and its YAML files leave out, and mappings whose keys are free
_NOT_IN_YAML = {
    "engine.mixed_precision": {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
    "model.target_parameters": None,
    "checkpoint.save_lora_only": False,
    "data.mapped": None,
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


def verl_config(settings: Any, inputs: Mapping[str, Path], scratch: Path) -> DictConfig:
    """verl's SFT configuration for the stage's settings; imports neither torch nor verl.

    Composed from verl's own YAML files; `settings.sft.verl` is merged last. Raises ConfigError that names the key for
    an unknown one, and for a model or cache that the objective asks for and that is not among the inputs.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf, open_dict

    sft, data, model = settings.sft, settings.data, settings.model
    check_settings(sft)
    check_models(settings, inputs)
    check_model(Path(inputs["model"]), sft)
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
        "model.custom_chat_template": (
            template_file(model.chat_template).read_text(encoding="utf-8") if model.chat_template else None
        ),
        "model.override_config": {
            "attn_implementation": model.attention,
            **({"output_router_logits": True} if sft.router_aux_loss else {}),
        },
        "model.use_remove_padding": sft.packed,
        "model.enable_gradient_checkpointing": sft.gradient_checkpointing,
        "model.lora_rank": sft.lora.rank if sft.lora else 0,
        "model.lora_alpha": sft.lora.alpha if sft.lora else 16,
        "model.target_modules": sft.lora.target_modules if sft.lora else "all-linear",
        "model.target_parameters": sft.lora.target_parameters or None if sft.lora else None,
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
        **{f"data.{name}": value for name, value in dataset_config(data, model).items()},
        "data.num_workers": 0 if cpu else 4,
        "data.custom_cls.path": "pkg://data_prep.chat_dataset",
        "data.custom_cls.name": "ChatDataset",
        "data.mapped": str(scratch / "chats"),
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
        raise ConfigError("verl is not installed; install requirements/cpu.txt, or the gpu extra on a cluster")
    return Path(spec.submodule_search_locations[0])


def flattened(nested: Mapping[str, Any], known: DictConfig, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} or {"a.b": 1} as {"a.b": 1}; ConfigError for a key that `known` does not have."""
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
            raise ConfigError(f"sft.verl: verl's SFT configuration has no key {key!r}; allowed there: {there}")
        if isinstance(value, Mapping) and not free and isinstance(section[last], DictConfig) and key not in _FREE:
            flat.update(flattened(value, known, f"{key}."))
        else:
            flat[key] = value
    return flat


def data_parallel(settings: Any) -> int:
    """Processes that see different rows."""
    return settings.sft.processes // settings.sft.sequence_parallel


def check_models(settings: Any, inputs: Mapping[str, Path]) -> None:
    """Raise ConfigError (one line) if a model or cache that the objective asks for is not among the inputs."""
    objective = load_objective(settings)
    for source in live_sources(objective):
        if source not in inputs:
            raise objective.error(
                f"reads the whole vocabulary of the {source}, which no cache holds; input {source} is missing; give "
                "the model, or choose a setting that uses cached ids (estimator=topk, scope=local, variant=paper)"
            )
        if source != "base" and all((Path(inputs[name]) / "config.json").is_file() for name in ("model", source)):
            check_vocabulary(Path(inputs["model"]), Path(inputs[source]), f"the {source}")
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


def load_objective(settings: Any) -> Objective:
    """The objective of the stage's settings."""
    return load(**settings.objective)


def cache_references(settings: Any, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """`data.references` of the data set: which fields of which cache each chat brings along.

    The ranks of a node have compared the caches' checksums together (`caches.verify_caches`) before any opens its data.
    """
    objective = load_objective(settings)
    references = {}
    for source in REFERENCE_INPUTS:
        cached = source in objective.needs.references and source not in live_sources(objective)
        fields = set(objective.needs.references[source].fields) if cached else set()
        measured = source == "base" and settings.sft.metrics.kl_from_base
        if not fields and not measured:
            continue
        if f"{source}_cache" not in inputs:
            raise ConfigError(
                f"objective {settings.objective['name']!r} needs the {source} cache; input {source}_cache is missing"
            )
        names = sorted(fields | _SUPPORT if measured else fields)
        path = str(inputs[f"{source}_cache"])
        references[source] = {"path": path, "fields": names, "top_k": None, "verified": True}
    return references


def dataset_constants(objective: Objective, inputs: Mapping[str, Path]) -> dict[str, float]:
    """The objective's constants of the training set, from the base cache; empty if it needs none."""
    if objective.needs.dataset is None:
        return {}
    import torch

    from data_prep.reference.reader import ReferenceCache

    parts = ReferenceCache(inputs["base_cache"]).scalar_parts(objective.needs.dataset.fields)
    condensed = [objective.condensed(part) for part in parts]
    return objective.dataset_constants({name: torch.cat([part[name] for part in condensed]) for name in condensed[0]})


def live_sources(objective: Objective) -> list[str]:
    """Frozen models that must give their whole distribution while training runs."""
    return [source for source in REFERENCE_INPUTS if source in objective.needs.live]
