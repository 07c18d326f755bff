"""Our typed `rl` section in verl's words: the only place that knows both.

`verl_config` composes verl's own Hydra files, writes our values over them and merges `rl.verl` last.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import pathlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

# One KV block of vLLM's CPU backend, in tokens.
CPU_BLOCK_SIZE = 128
# vLLM's own default is 2 s between two looks at the rollouts; a step of a small model takes less.
POLL_SECONDS = 0.05


def verl_config(settings: SimpleNamespace, inputs: Mapping[str, pathlib.Path], scratch: pathlib.Path) -> DictConfig:
    """verl's complete PPO configuration for one RL run. Needs no GPU and starts nothing.

    settings: the stage's tree {rl, data, model, platform, seed}; inputs: `model` (Hugging Face directory) and `data`
    (with rl_train.parquet and rl_val.parquet); scratch: where checkpoints go. `rl.verl` is merged last and may hold
    any other key of verl. Raises ValueError naming the key for a key verl does not have.
    """
    rl, on_cpu = settings.rl, settings.platform.name == "cpu"
    config = compose_verl()
    for section in (
        _data(settings, inputs),
        _model(settings, inputs),
        _actor(settings),
        _rollout(settings),
        _algorithm_and_reward(settings),
        _trainer(settings, scratch),
        _cpu(settings) if on_cpu else {},
    ):
        for key, value in section.items():
            set_key(config, key, value)
    merge_passthrough(config, rl.verl)
    validate(config)
    return config


def compose_verl() -> DictConfig:
    """verl's `ppo_trainer` with its defaults, composed from the installed package's own files."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("verl is not installed: install requirements/cpu.txt or the gpu extra")
    directory = pathlib.Path(spec.submodule_search_locations[0]) / "trainer" / "config"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory), version_base=None):
        return compose("ppo_trainer")


def _data(settings: SimpleNamespace, inputs: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    rl = settings.rl
    return {
        "data.train_files": str(inputs["data"] / "rl_train.parquet"),
        "data.val_files": str(inputs["data"] / "rl_val.parquet"),
        "data.train_batch_size": rl.prompts,
        "data.max_prompt_length": rl.max_prompt_length,
        "data.max_response_length": rl.max_response_length,
        "data.shuffle": True,
        "data.seed": settings.seed,
        "data.dataloader_num_workers": 0,  # tokenising a prompt costs less than a process
        "data.trust_remote_code": settings.model.trust_remote_code,
    }


def _model(settings: SimpleNamespace, inputs: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    rl, model = settings.rl, settings.model
    keys: dict[str, Any] = {
        "path": str(inputs["model"]),
        "trust_remote_code": model.trust_remote_code,
        "external_lib": "rl_stage.verl_plugins",
        "override_config": {"attn_implementation": model.attention},
        # Without a variable-length kernel a packed batch costs the square of all its tokens.
        "use_remove_padding": model.attention == "flash_attention_2",
        "enable_gradient_checkpointing": rl.gradient_checkpointing,
    }
    if rl.lora is not None:
        # Merged before each weight sync, so that vLLM serves exactly the weights that are trained.
        keys |= {
            "lora_rank": rl.lora.rank,
            "lora_alpha": rl.lora.alpha,
            "target_modules": rl.lora.target_modules,
            "lora": {"merge": True},
        }
    return {f"actor_rollout_ref.model.{key}": value for key, value in keys.items()}


def _actor(settings: SimpleNamespace) -> dict[str, Any]:
    rl = settings.rl
    dtype = {"float32": "fp32", "bfloat16": "bf16"}[settings.model.dtype]
    precision = {"param_dtype": dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    actor: dict[str, Any] = {
        "strategy": "fsdp2",
        "ppo_mini_batch_size": rl.mini_batch,
        "ppo_epochs": 1,
        "use_dynamic_bsz": True,
        "ppo_max_token_len_per_gpu": max(rl.tokens_per_micro_batch, rl.max_prompt_length + rl.max_response_length),
        "clip_ratio": rl.clip_low,
        "clip_ratio_low": rl.clip_low,
        "clip_ratio_high": rl.clip_high,
        "loss_agg_mode": rl.loss_aggregation,
        "entropy_coeff": rl.entropy_weight,
        "use_kl_loss": rl.kl_weight > 0,
        "kl_loss_coef": rl.kl_weight,
        "kl_loss_type": rl.kl_estimator,
        "grad_clip": rl.clip_grad,
        "data_loader_seed": settings.seed,
        "optim.lr": rl.lr,
        "optim.lr_warmup_steps": rl.warmup_steps,
        "optim.lr_scheduler_type": "constant",
        "optim.weight_decay": rl.weight_decay,
        "optim.clip_grad": rl.clip_grad,
        "fsdp_config.dtype": settings.model.dtype,
        "fsdp_config.mixed_precision": precision,
        "fsdp_config.seed": settings.seed,
        "fsdp_config.full_determinism": rl.full_determinism,
        "checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        "checkpoint.load_contents": ["model", "optimizer", "extra"],
    }
    reference = {"fsdp_config.dtype": settings.model.dtype, "fsdp_config.mixed_precision": precision}
    return {f"actor_rollout_ref.actor.{key}": value for key, value in actor.items()} | {
        f"actor_rollout_ref.ref.{key}": value for key, value in reference.items()
    }


def _rollout(settings: SimpleNamespace) -> dict[str, Any]:
    rl = settings.rl
    keys: dict[str, Any] = {
        "name": "vllm",
        "dtype": settings.model.dtype,
        "n": rl.samples,
        "temperature": rl.temperature,
        "top_p": rl.top_p,
        "seed": settings.seed,
        "full_determinism": rl.full_determinism,
        "tensor_model_parallel_size": rl.tensor_parallel,
        "gpu_memory_utilization": rl.gpu_memory,
        "max_model_len": rl.max_prompt_length + rl.max_response_length,
        "calculate_log_probs": True,
        "val_kwargs.temperature": 0,
        "val_kwargs.do_sample": False,
        "val_kwargs.n": 1,
        "agent.default_agent_loop": "scored_single_turn",
    }
    return {f"actor_rollout_ref.rollout.{key}": value for key, value in keys.items()}


def _algorithm_and_reward(settings: SimpleNamespace) -> dict[str, Any]:
    rl = settings.rl
    keys: dict[str, Any] = {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": rl.normalize_advantage,
        "algorithm.use_kl_in_reward": False,
        "algorithm.filter_groups.enable": rl.dynamic_sampling.enabled,
        "algorithm.filter_groups.metric": "acc",
        "reward.custom_reward_function.path": "pkg://rl_stage.rewards",
        "reward.custom_reward_function.name": "compute_score",
        "reward.custom_reward_function.reward_kwargs": {
            "reward": rl.reward.name,
            "settings": rl.reward.settings,
            "correct": rl.reward.correct,
            "wrong": rl.reward.wrong,
            "timeout": rl.reward.timeout,
        },
        "reward.num_workers": 0,  # our agent loop scores its own responses
        "reward.reward_manager.name": "dapo" if rl.overlong.enabled else "naive",
    }
    if rl.overlong.enabled:
        keys["reward.reward_kwargs"] = {
            "max_resp_len": rl.max_response_length,
            "overlong_buffer_cfg": {
                "enable": True,
                "len": rl.overlong.buffer,
                "penalty_factor": rl.overlong.penalty,
                "log": True,
            },
        }
    return keys


def _trainer(settings: SimpleNamespace, scratch: pathlib.Path) -> dict[str, Any]:
    rl, platform = settings.rl, settings.platform
    per_node = min(rl.processes, platform.gpus_per_node)
    sampler = "BoundedReplayBuffer" if rl.mode == "sync" else "BoundedReplayBufferAsync"
    return {
        "trainer.n_gpus_per_node": per_node,
        "trainer.nnodes": rl.processes // per_node,
        "trainer.logger": [],
        "trainer.project_name": "sft_then_rl",
        "trainer.experiment_name": rl.algorithm,
        "trainer.total_training_steps": rl.steps,
        "trainer.total_epochs": rl.steps,  # an epoch has at least one step
        "trainer.val_before_train": True,
        "trainer.test_freq": rl.validate_every or rl.steps,
        "trainer.save_freq": rl.save_every or rl.steps,
        "trainer.resume_mode": "auto",
        "trainer.default_local_dir": str(scratch / "checkpoints"),
        # verl drops the old checkpoint before the new one is complete, so one more is kept.
        "trainer.max_actor_ckpt_to_keep": rl.keep_checkpoints + 1,
        "trainer.v1.trainer_mode": rl.mode,
        "trainer.v1.sampler.custom_sampler.path": "pkg://rl_stage.sampler",
        "trainer.v1.sampler.custom_sampler.name": sampler,
        "trainer.v1.sampler.sampler_kwargs": {
            "poll_interval": POLL_SECONDS,
            "train_batch_size": rl.prompts,
            "filter_groups_metric": "acc" if rl.dynamic_sampling.enabled else None,
            "max_batches": rl.dynamic_sampling.max_batches,
        },
    }


def _cpu(settings: SimpleNamespace) -> dict[str, Any]:
    """What the CPU platform needs (docs/cpu.md): no compilation, no sleep mode, few helper processes."""
    rl = settings.rl
    length = rl.max_prompt_length + rl.max_response_length
    sequences = min(rl.prompts * rl.samples, 128)
    rollout: dict[str, Any] = {
        "enforce_eager": True,
        "free_cache_engine": False,
        "enable_sleep_mode": False,
        "max_num_seqs": sequences,
        "max_num_batched_tokens": max(2048, length),
        "agent.num_workers": 1,
        "checkpoint_engine.update_weights_bucket_megabytes": 16,
        "engine_kwargs.vllm.worker_extension_cls": "verl_cpu.vllm_extension.CPUColocateWorkerExtension",
        # verl waits for whole responses: sending each token of each would cost more than computing it.
        "engine_kwargs.vllm.stream_interval": rl.max_response_length,
        # One process fewer; VLLM_ENABLE_V1_MULTIPROCESSING=0 allows it (see rl.prepare_environment).
        "engine_kwargs.vllm.distributed_executor_backend": "uni",
        "engine_kwargs.vllm.num_gpu_blocks_override": sequences * math.ceil(length / CPU_BLOCK_SIZE) + 8,
    }
    return {f"actor_rollout_ref.rollout.{key}": value for key, value in rollout.items()} | {
        "trainer.device": "cpu",
        "actor_rollout_ref.actor.use_torch_compile": False,
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
        "actor_rollout_ref.ref.fsdp_config.use_torch_compile": False,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    }


def set_key(config: DictConfig, key: str, value: Any) -> None:
    """Set one dotted key that verl's files or dataclasses know. Raises ValueError naming the key otherwise."""
    from omegaconf import DictConfig, OmegaConf, open_dict

    *parents, leaf = key.split(".")
    node = config
    for depth, name in enumerate(parents):
        if not isinstance(node, DictConfig) or name not in node:
            raise _unknown(key, parents[: depth + 1], node)
        if node[name] is None and _is_open(".".join(parents[: depth + 1])):
            with open_dict(node):
                node[name] = {}
        node = node[name]
    if not isinstance(node, DictConfig):
        raise ValueError(f"rl.verl.{key}: {'.'.join(parents)} is a value, not a section")
    if leaf not in node and not _is_open(".".join(parents)) and leaf not in _fields_of(node):
        raise _unknown(key, [*parents, leaf], node)
    with open_dict(node):
        node[leaf] = OmegaConf.create(value) if isinstance(value, dict | list) else value


def merge_passthrough(config: DictConfig, tree: Mapping[str, Any], prefix: str = "") -> None:
    """Write every leaf of `rl.verl` over `config`. Raises ValueError naming a key that verl does not have."""
    for key, value in _leaves(tree, prefix):
        set_key(config, key, value)


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and (key in _OPEN or not _is_open(key)):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


# Sections that verl hands on to someone else (vLLM, Ray, transformers, a reward function): any key may stand there.
_OPEN = (
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.model.lora",
    "actor_rollout_ref.rollout.engine_kwargs.vllm",
    "actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision",
    "actor_rollout_ref.actor.optim.override_optimizer_config",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision",
    "data.apply_chat_template_kwargs",
    "data.mm_processor_kwargs",
    "ray_kwargs.ray_init",
    "reward.reward_kwargs",
    "reward.custom_reward_function.reward_kwargs",
    "trainer.v1.sampler.sampler_kwargs",
)
# Keys that verl reads with `.get` and lists in none of its files.
_UNLISTED = {"reward": {"reward_kwargs"}, "custom_reward_function": {"reward_kwargs"}}


def _is_open(key: str) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in _OPEN)


def _fields_of(node: DictConfig) -> set[str]:
    """Keys that the node's dataclass has beyond those its YAML file lists."""
    name = str(node._key())
    target = node.get("_target_") if not node._is_none() else None
    return _UNLISTED.get(name, set()) | (_dataclass_fields(target) if target else set())


def _dataclass_fields(target: str) -> set[str]:
    from hydra.utils import get_class

    return {field.name for field in dataclasses.fields(get_class(target))}


def _unknown(key: str, path: list[str], node: Any) -> ValueError:
    from omegaconf import DictConfig

    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    close = difflib.get_close_matches(path[-1], known, n=3)
    parent = ".".join(path[:-1]) or "verl's configuration"
    hint = f"; did you mean {', '.join(close)}?" if close else f"; {parent} has {', '.join(sorted(known)[:12])}"
    return ValueError(f"rl.verl.{key}: verl has no key {'.'.join(path)}{hint}")


def validate(config: DictConfig) -> None:
    """Build verl's own dataclasses from `config` and run verl's checks. Raises ValueError with verl's message.

    The model's files are not read: its dataclass is checked by field names alone.
    """
    import contextlib
    import io

    from hydra.errors import InstantiationException
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    model = config.actor_rollout_ref.model
    strange = {str(key) for key in model} - _dataclass_fields(model._target_) - {"_target_"}
    if strange:
        raise ValueError(f"rl.verl.actor_rollout_ref.model: verl has no key {', '.join(sorted(strange))}")
    try:
        # Not `reward`: verl never builds that dataclass, and its RewardManagerConfig cannot be built.
        for section in ("actor_rollout_ref.actor", "actor_rollout_ref.rollout", "algorithm"):
            omega_conf_to_dataclass(OmegaConf.select(config, section))
        with contextlib.redirect_stdout(io.StringIO()):
            validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, InstantiationException, TypeError, ValueError) as error:
        raise ValueError(f"rl: verl refuses this configuration: {' '.join(str(error).split())[:500]}") from error
