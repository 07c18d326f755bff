"""Our typed `rl` section in verl's words: the only place that knows both.

`verl_config` composes verl's own Hydra files, writes our values over them and merges `rl.verl` last.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common.attention import PACKED
from common.chats import template_arguments
from common.models import tensor_headers
from common.templates import template_file
from rl_stage.demands import OURS_ON_CPU
from rl_stage.verl_keys import compose_verl, merge_passthrough, set_key, validate

if TYPE_CHECKING:
    from omegaconf import DictConfig

# One KV block of vLLM's CPU backend, in tokens.
CPU_BLOCK_SIZE = 128
# Megabytes of shared memory that weights go through at least; verl's own 2048 would not fit on a small machine.
CPU_BUCKET = 16
# vLLM's own default is 2 s between two looks at the rollouts; a step of a small model takes less.
POLL_SECONDS = 0.05


def verl_config(settings: Any, inputs: Mapping[str, pathlib.Path], scratch: pathlib.Path) -> DictConfig:
    """verl's complete PPO configuration for one RL run. Needs no GPU and starts nothing.

    settings: with sections rl, model and platform, and seed; inputs: `model` (Hugging Face directory) and `data`
    (with rl_train.parquet and rl_val.parquet); scratch: where checkpoints go. `rl.verl` is merged last and may hold
    any other key of verl. Raises ConfigError naming the key for a key verl does not have.
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
        _cpu(settings, inputs["model"]) if on_cpu else {},
    ):
        for key, value in section.items():
            set_key(config, key, value)
    merge_passthrough(config, rl.verl)
    validate(config)
    return config


def _data(settings: Any, inputs: Mapping[str, pathlib.Path]) -> dict[str, Any]:
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
        "data.apply_chat_template_kwargs": template_arguments(settings.model),
    }


def _model(settings: Any, inputs: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    rl, model = settings.rl, settings.model
    keys: dict[str, Any] = {
        "path": str(inputs["model"]),
        "trust_remote_code": model.trust_remote_code,
        "external_lib": "rl_stage.verl_plugins",
        "override_config": {"attn_implementation": model.attention},
        # Without a variable-length kernel a packed batch costs the square of all its tokens.
        "use_remove_padding": model.attention in PACKED,
        "enable_gradient_checkpointing": rl.gradient_checkpointing,
    }
    if model.chat_template is not None:
        keys["custom_chat_template"] = template_file(model.chat_template).read_text(encoding="utf-8")
    if rl.lora is not None:
        # Merged before each weight sync, so that vLLM serves exactly the weights that are trained.
        keys |= {
            "lora_rank": rl.lora.rank,
            "lora_alpha": rl.lora.alpha,
            "target_modules": rl.lora.target_modules,
            "lora": {"merge": True},
        }
    return {f"actor_rollout_ref.model.{key}": value for key, value in keys.items()}


def _actor(settings: Any) -> dict[str, Any]:
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
        "use_torch_compile": not rl.eager,
        "fsdp_config.use_torch_compile": not rl.eager,
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
    reference = {
        "fsdp_config.dtype": settings.model.dtype,
        "fsdp_config.mixed_precision": precision,
        "fsdp_config.use_torch_compile": not rl.eager,
    }
    return {f"actor_rollout_ref.actor.{key}": value for key, value in actor.items()} | {
        f"actor_rollout_ref.ref.{key}": value for key, value in reference.items()
    }


def _rollout(settings: Any) -> dict[str, Any]:
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
        "enforce_eager": rl.eager,
        "max_model_len": rl.max_prompt_length + rl.max_response_length,
        "calculate_log_probs": True,
        "val_kwargs.temperature": 0,
        "val_kwargs.do_sample": False,
        "val_kwargs.n": 1,
        "agent.default_agent_loop": "scored_single_turn",
    }
    return {f"actor_rollout_ref.rollout.{key}": value for key, value in keys.items()}


def _algorithm_and_reward(settings: Any) -> dict[str, Any]:
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


def _trainer(settings: Any, scratch: pathlib.Path) -> dict[str, Any]:
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


def weight_bucket(directory: pathlib.Path) -> int:
    """Megabytes (2^20 bytes) of the buffer through which weights reach vLLM on a CPU: the largest tensor has to fit.

    Weights are float32 there, whatever the files say. Experts that files hold one by one may be one tensor in the
    model. 16 where the directory has no weights, as when a stage is planned whose model is to come.
    """
    if not any(directory.glob("*.safetensors")):
        return CPU_BUCKET
    sizes: dict[str, int] = {}
    for name, header in tensor_headers(directory).items():
        whole = name.partition(".experts.")[0] if ".experts." in name else name
        sizes[whole] = sizes.get(whole, 0) + 4 * math.prod(header.shape)
    return max(CPU_BUCKET, math.ceil(max(sizes.values()) / 2**20))


def _cpu(settings: Any, model: pathlib.Path) -> dict[str, Any]:
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
        "checkpoint_engine.update_weights_bucket_megabytes": weight_bucket(model),
        "engine_kwargs.vllm.worker_extension_cls": "verl_cpu.vllm_extension.CPUColocateWorkerExtension",
        # verl waits for whole responses: sending each token of each would cost more than computing it.
        "engine_kwargs.vllm.stream_interval": rl.max_response_length,
        # One process fewer; VLLM_ENABLE_V1_MULTIPROCESSING=0 allows it (see session.py).
        "engine_kwargs.vllm.distributed_executor_backend": "uni",
        "engine_kwargs.vllm.num_gpu_blocks_override": sequences * math.ceil(length / CPU_BLOCK_SIZE) + 8,
    }
    return (
        {f"actor_rollout_ref.rollout.{key}": value for key, value in rollout.items()}
        | {
            "trainer.device": "cpu",
            "actor_rollout_ref.actor.use_torch_compile": False,
            "actor_rollout_ref.actor.fsdp_config.use_torch_compile": False,
            "actor_rollout_ref.ref.fsdp_config.use_torch_compile": False,
        }
        | OURS_ON_CPU
    )
