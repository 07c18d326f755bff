"""verl's worker for an objective: it sets the engine up, and reduces its sums over micro-batches and ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker

from .engine import ObjectiveEngine, Setup
from .metrics import SUM, token_means
from .token_loss import TokenLoss


class ObjectiveWorker(TrainingWorker):
    """verl's worker with an `ObjectiveEngine`."""

    engine: ObjectiveEngine

    def configure(self, token_loss: TokenLoss, setup: Setup) -> None:
        """Say what is trained, and with what beside it; before `reset`."""
        self.set_loss_fn(token_loss)
        self.engine.configure(token_loss, setup)

    def _postprocess_output(self, output, **kwargs):
        metrics = output["metrics"]
        sums = {name: sum(metrics.pop(name)) for name in list(metrics) if name.startswith(SUM)}
        penalty = metrics.pop("penalty", None)
        names = sorted(sums)
        totals = torch.tensor([sums[name] for name in names], dtype=torch.float64, device=self.device_name)
        dist.all_reduce(totals, group=self.engine.get_data_parallel_group())
        final = super()._postprocess_output(output, **kwargs)
        reduced = tu.get(final, "metrics")
        reduced.update(
            token_means({name.removeprefix(SUM): total for name, total in zip(names, totals.tolist(), strict=True)})
        )
        if penalty is not None:
            reduced["penalty"] = penalty
        tu.assign_non_tensor_data(final, "metrics", reduced)
        return final
