"""What verl's actors of one RL run ask of Ray. Imports neither verl nor Ray.

A core is a number that Ray counts: verl's actors each reserve one or wait for one to be placed, and mostly sleep. A Ray
with fewer than are reserved never places them all, and the run waits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.nested import flat

PER_DEVICE = 3  # cores of each bundle: verl's ResourcePoolManager.max_colocate_count
CONTROLLER = 1  # of TransferQueue
PLACING = 1  # an actor that names no resources wants one while it is placed, and gives it back

# verl's own values of the keys that decide, where neither we nor the recipe set them
DEFAULTS: dict[str, Any] = {
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 8,
    "actor_rollout_ref.rollout.agent.num_workers": 8,
    "reward.num_workers": 8,
    "reward.reward_model.enable_resource_pool": False,
    "reward.reward_model.n_gpus_per_node": 8,
    "reward.reward_model.nnodes": 0,
    "distillation.enabled": False,
    "distillation.n_gpus_per_node": 8,
    "distillation.nnodes": 0,
}
OURS_ON_CPU = {
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    "actor_rollout_ref.rollout.agent.num_workers": 1,
}


@dataclass(frozen=True)
class Demand:
    """Cores of one run. bundles: reserved beside the devices; queue: reserved by TransferQueue; placed: actors that
    want a core each while they are placed (agent loops, vLLM servers, reward workers)."""

    devices: int
    bundles: int
    queue: int
    placed: int

    @property
    def total(self) -> int:
        """Cores with which nothing waits for another."""
        return self.bundles + self.queue + self.placed

    def of_node(self, nodes: int) -> int:
        """Cores that each of `nodes` equal nodes of a shared cluster needs: what is reserved, and one to place with."""
        return math.ceil(self.bundles / nodes) + math.ceil(self.queue / nodes) + PLACING


def demand(value: Callable[[str], Any]) -> Demand:
    """The demand of a run; `value` gives verl's value of a key of its PPO configuration."""
    devices = value("trainer.n_gpus_per_node") * value("trainer.nnodes")
    pools = devices
    if value("reward.reward_model.enable_resource_pool"):
        pools += value("reward.reward_model.n_gpus_per_node") * value("reward.reward_model.nnodes")
    if value("distillation.enabled"):
        pools += value("distillation.n_gpus_per_node") * value("distillation.nnodes")
    servers = pools // value("actor_rollout_ref.rollout.tensor_model_parallel_size")
    loops = value("actor_rollout_ref.rollout.agent.num_workers") + value("reward.num_workers")
    units = value("transfer_queue.backend.SimpleStorage.num_data_storage_units")
    return Demand(pools, PER_DEVICE * pools, CONTROLLER + units, loops + max(1, servers) + PLACING)


def demand_of(settings: Any) -> Demand:
    """The demand of a recipe's RL runs, before verl's configuration is composed. settings: with rl and platform."""
    rl, platform = settings.rl, settings.platform
    per_node = min(rl.processes, platform.gpus_per_node)
    values = {
        **DEFAULTS,
        "reward.num_workers": 0,
        "trainer.n_gpus_per_node": per_node,
        "trainer.nnodes": rl.processes // per_node,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": rl.tensor_parallel,
        **(OURS_ON_CPU if platform.name == "cpu" else {}),
        **flat(rl.verl),
    }
    return demand(values.__getitem__)
