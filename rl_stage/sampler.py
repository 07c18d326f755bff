"""verl's replay buffers with a bound on dynamic sampling and a reproducible order.

verl 0.9.1's V1 buffer ignores `algorithm.filter_groups.max_num_gen_batches`: where every group is all right or all
wrong it samples for ever. Chosen through `trainer.v1.sampler.custom_sampler`, whose contract passes `sampler_kwargs`.
"""

from __future__ import annotations

from typing import Any

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from common.errors import ConfigError


class SaturatedError(ConfigError):
    """Dynamic sampling found too few groups with both right and wrong responses."""


class _Bounded(ReplayBuffer):
    """sampler_kwargs: poll_interval (s), train_batch_size (prompts), filter_groups_metric, max_batches."""

    def __init__(self, *args: Any, sampler_kwargs: Any = None, **kwargs: Any):
        options = dict(sampler_kwargs or {})
        self.max_batches = options.pop("max_batches")
        self.dropped: dict[str, int] = {}
        super().__init__(*args, sampler_kwargs=sampler_kwargs, gen_batch_size=1, **options, **kwargs)

    def sample(self, *args: Any, **kwargs: Any):
        self.dropped = {}
        return super().sample(*args, **kwargs)

    def _evict_terminal_groups(self, global_steps: int, partition_id: str, reasons: tuple):
        _, uniform, _, counts = reasons
        for value, count in counts.items():
            label = "right" if value > 0 else "wrong"
            self.dropped[label] = self.dropped.get(label, 0) + count
        # The batch that is finally trained on is one of `max_batches`.
        limit = (self.max_batches - 1) * (self.train_batch_size or 0)
        total = sum(self.dropped.values())
        if uniform and total > limit:
            raise SaturatedError(
                f"rl.dynamic_sampling.max_batches: step {global_steps} dropped {total} groups (limit {limit}) whose "
                f"responses are all right ({self.dropped.get('right', 0)}) or all wrong "
                f"({self.dropped.get('wrong', 0)}); use harder or easier prompts (rl.filter), raise max_batches, or "
                "set rl.dynamic_sampling.enabled=false"
            )
        return super()._evict_terminal_groups(global_steps, partition_id, reasons)

    def _select_prompt_uids(self, partition_id: str, sampleable_keys: set[str], batch_size: int):
        """Oldest first, ties in the order in which prompts were submitted (upstream: in the order of a set)."""
        steps = dict(self.prompt_global_steps[partition_id])
        order = {uid: number for number, uid in enumerate(steps)}
        chosen = sorted(sampleable_keys, key=lambda uid: (steps.get(uid, 0), order.get(uid, len(order))))[:batch_size]
        return chosen, dict(self.partitions[partition_id]), steps

    def _materialize_batch(self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: dict):
        """The chosen trajectories by (prompt, session, index) instead of by time of completion."""
        batch = super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)
        place = {uid: number for number, uid in enumerate(selected_prompt_uids)}

        def position(pair: tuple[str, dict]) -> tuple[int, int, int]:
            uid, session, index = pair[0].rsplit("_", 2)
            return place[uid], int(session), int(index)

        pairs = sorted(zip(batch.keys, batch.tags, strict=True), key=position)
        return KVBatchMeta(partition_id=partition_id, keys=[key for key, _ in pairs], tags=[tag for _, tag in pairs])


class BoundedReplayBuffer(_Bounded):
    """For `rl.mode: sync`."""


class BoundedReplayBufferAsync(_Bounded, ReplayBufferAsync):
    """For `rl.mode: colocate_async`."""
