"""verl's actors with a way to begin anew: their processes, imports and compiled code stay, all that they hold is made
again by their own constructors.

Another run then finds what a fresh process would hold, the state of torch's random numbers included.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import ray
import torch
from verl.single_controller.base.decorator import Dispatch, register
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.utils.device import get_torch_device
from verl.workers.engine_workers import ActorRolloutRefWorker

_PlainAgentLoopWorker: Any = AgentLoopWorkerTQ.__ray_actor_class__  # type: ignore[attr-defined]


class RandomState:
    """The state of torch's random numbers in this process, to be set again."""

    def __init__(self) -> None:
        self._host, self._device = torch.get_rng_state(), get_torch_device().get_rng_state()

    def restore(self) -> None:
        torch.set_rng_state(self._host)
        get_torch_device().set_rng_state(self._device)


class RenewableWorker(ActorRolloutRefWorker):
    """verl's training worker, which can begin another run with another model of the same shapes."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._random_state = RandomState()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)  # type: ignore[attr-defined]
    def renew(self, config: Any) -> None:
        """As constructed with `config`, the section actor_rollout_ref; verl calls `init_model` next."""
        state, role, distillation = self._random_state, self.role, self.distillation_config
        for name in ("actor", "ref", "rollout"):  # their memory first, a device may not hold two of each
            setattr(self, name, None)
        gc.collect()
        get_torch_device().empty_cache()
        RenewableWorker.__init__(self, config, role, distillation)
        self._random_state = state
        state.restore()


class RenewableAgentLoopWorker(_PlainAgentLoopWorker):
    """verl's worker of agent loops, which can begin another run."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Ray sends the constructor of an actor to its process: this one by name, an inherited one as code of a class
        # that is another one there.
        super().__init__(*arguments, **named)

    async def settle(self) -> None:
        """Wait for the prompts that are still being answered: what they write would be the next run's."""
        await asyncio.gather(*self.background_tasks, return_exceptions=True)

    async def renew(self, *arguments: Any) -> None:
        """As constructed with these arguments; TransferQueue's client stays."""
        from rl_stage.agent_loop import forget

        forget()
        super(_PlainAgentLoopWorker, self).__init__(*arguments)
        self.background_tasks = set()


class RenewableAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager of agent loops over workers that can begin anew."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.agent_loop_workers_class = ray.remote(RenewableAgentLoopWorker)

    @classmethod
    def renewed(cls, workers: list[Any], *arguments: Any) -> RenewableAgentLoopManager:
        """A manager of `workers`, which begin anew; arguments: config, llm_client, teacher_client, reward handles."""
        manager = cls(*arguments)
        manager.agent_loop_workers = workers
        ray.get([worker.renew.remote(*arguments) for worker in workers])
        return manager
