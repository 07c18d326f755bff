"""Stock `verl.trainer.main_ppo` with every key that our stage sets: the other side of `rl_stage.bench`."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast

from omegaconf import OmegaConf

from rl_stage.config import POLL_SECONDS, verl_config
from rl_stage.demands import demand
from rl_stage.session import OBJECT_STORE_BYTES
from rl_stage.verl_keys import compose_verl

STOCK_SAMPLER = f"""\
from functools import partial
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
Polling = partial(ReplayBuffer, poll_interval={POLL_SECONDS})
"""
# Ours alone: extension points of verl that only our side fills, and where each side writes.
OURS_ALONE = (
    "actor_rollout_ref.model.external_lib",
    "actor_rollout_ref.rollout.agent.default_agent_loop",
    "reward.num_workers",
    "trainer.default_local_dir",
    "trainer.v1.sampler",
)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of `ours` whose values differ from `theirs`, sections that only `ours` has as a whole."""
    for name, value in ours.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            yield from differences(value, other, f"{prefix}{name}.")
        elif name not in theirs or value != other:
            yield f"{prefix}{name}", value


def hydra_value(value: Any) -> str:
    """`value` in the grammar of Hydra's command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    return f"'{value}'" if isinstance(value, str) else repr(value)


def stock_command(settings: Any, paths: Mapping[str, pathlib.Path]) -> list[str]:
    """`python -m verl.trainer.main_ppo` with every key that our stage sets, but for our own extensions."""

    def plain(config: Any) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], OmegaConf.to_container(config))

    config = verl_config(settings, paths, paths["scratch"])
    cores = demand(lambda key: OmegaConf.select(config, key)).total + 1  # its trainer is an actor too
    keys = dict(differences(plain(config), plain(compose_verl())))
    keys = {name: value for name, value in keys.items() if not name.startswith(OURS_ALONE)}
    sampler = paths["scratch"] / "stock_sampler.py"
    sampler.write_text(STOCK_SAMPLER)
    keys |= {
        "actor_rollout_ref.model.external_lib": "verl_cpu.engine",
        "reward.num_workers": 1,
        "trainer.default_local_dir": str(paths["scratch"] / "checkpoints"),
        "trainer.v1.sampler.custom_sampler.path": str(sampler),
        "trainer.v1.sampler.custom_sampler.name": "Polling",
        "ray_kwargs.ray_init.address": "local",
        "ray_kwargs.ray_init.num_cpus": cores,
        "ray_kwargs.ray_init.num_gpus": settings.rl.processes,
        "ray_kwargs.ray_init.include_dashboard": False,
        "ray_kwargs.ray_init.object_store_memory": OBJECT_STORE_BYTES,
        "ray_kwargs.ray_init._node_ip_address": "127.0.0.1",
        "hydra.run.dir": str(paths["scratch"]),
        "hydra.output_subdir": None,
    }
    overrides = [f"{'' if key.startswith('hydra.') else '++'}{key}={hydra_value(v)}" for key, v in keys.items()]
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
