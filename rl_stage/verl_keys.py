"""verl's own PPO configuration: composed from its files, written to key by key, checked with its own checks."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import pathlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

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


def compose_verl() -> DictConfig:
    """verl's `ppo_trainer` with its defaults, composed from the installed package's own files."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("verl is not installed: install requirements/cpu.txt or the gpu extra")
    directory = pathlib.Path(spec.submodule_search_locations[0]) / "trainer" / "config"
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(directory), version_base=None):
        return compose("ppo_trainer")


def set_key(config: DictConfig, key: str, value: Any) -> None:
    """Set one dotted key that verl's files or dataclasses know. Raises ConfigError naming the key otherwise."""
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
        raise ConfigError(f"rl.verl.{key}: {'.'.join(parents)} is a value, not a section")
    if leaf not in node and not _is_open(".".join(parents)) and leaf not in _fields_of(node):
        raise _unknown(key, [*parents, leaf], node)
    with open_dict(node):
        node[leaf] = OmegaConf.create(value) if isinstance(value, dict | list) else value


def merge_passthrough(config: DictConfig, tree: Mapping[str, Any], prefix: str = "") -> None:
    """Write every leaf of `rl.verl` over `config`. Raises ConfigError naming a key that verl does not have."""
    for key, value in _leaves(tree, prefix):
        set_key(config, key, value)


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and (key in _OPEN or not _is_open(key)):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


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


def _unknown(key: str, path: list[str], node: Any) -> ConfigError:
    from omegaconf import DictConfig

    known = [str(name) for name in node] if isinstance(node, DictConfig) else []
    close = difflib.get_close_matches(path[-1], known, n=3)
    parent = ".".join(path[:-1]) or "verl's configuration"
    hint = f"; did you mean {', '.join(close)}?" if close else f"; {parent} has {', '.join(sorted(known)[:12])}"
    return ConfigError(f"rl.verl.{key}: verl has no key {'.'.join(path)}{hint}")


def validate(config: DictConfig) -> None:
    """Build verl's own dataclasses from `config` and run verl's checks. Raises ConfigError with verl's message.

    The model's files are not read: its dataclass is checked by field names alone.
    """
    from hydra.errors import InstantiationException
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    model = config.actor_rollout_ref.model
    strange = {str(key) for key in model} - _dataclass_fields(model._target_) - {"_target_"}
    if strange:
        raise ConfigError(f"rl.verl.actor_rollout_ref.model: verl has no key {', '.join(sorted(strange))}")
    try:
        # Not `reward`: verl never builds that dataclass, and its RewardManagerConfig cannot be built.
        for section in ("actor_rollout_ref.actor", "actor_rollout_ref.rollout", "algorithm"):
            omega_conf_to_dataclass(OmegaConf.select(config, section))
        with contextlib.redirect_stdout(io.StringIO()):
            validate_config(config, need_reference_policy(config), need_critic(config))
    except (AssertionError, InstantiationException, TypeError, ValueError) as error:
        raise ConfigError(f"rl: verl refuses this configuration: {' '.join(str(error).split())[:500]}") from error
