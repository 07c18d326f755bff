"""Order of what the bounded replay buffer hands to the trainer."""

import pytest

from common.errors import ConfigError


@pytest.fixture(params=["sync", "colocate_async"])
def buffer(request):
    from rl_stage.sampler import BoundedReplayBuffer, BoundedReplayBufferAsync

    kind = BoundedReplayBuffer if request.param == "sync" else BoundedReplayBufferAsync
    return kind(
        trainer_mode=request.param,
        trainer_config=None,
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={"poll_interval": 0.05, "train_batch_size": 2, "filter_groups_metric": "acc", "max_batches": 3},
        refill_fn=lambda count: count,
    )


def test_its_options_arrive(buffer):
    assert (buffer.poll_interval, buffer.train_batch_size, buffer.max_batches) == (0.05, 2, 3)
    assert (buffer.filter_groups_metric, buffer.gen_batch_size) == ("acc", 1)


def test_ties_go_in_order_of_submission(buffer):
    names = [f"prompt{number}" for number in (7, 3, 9, 1)]
    buffer.prompt_global_steps["train"] = dict.fromkeys(names, 5)
    chosen, _, _ = buffer._select_prompt_uids("train", set(names), 3)
    assert chosen == names[:3]


def test_both_modes_are_verls_own_classes():
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

    from rl_stage.sampler import BoundedReplayBuffer, BoundedReplayBufferAsync

    assert issubclass(BoundedReplayBuffer, ReplayBuffer)
    assert issubclass(BoundedReplayBufferAsync, ReplayBufferAsync)


def test_a_saturated_task_ends_in_one_line_that_counts(buffer, monkeypatch):
    """`max_batches` 3 of 2 prompts: the batch that is trained on and four dropped groups."""
    from collections import Counter

    from rl_stage.sampler import SaturatedError

    monkeypatch.setattr(buffer, "_clear_groups", lambda partition, uids: None)  # what would ask verl's queue

    def drop(*values: float) -> None:
        uids = {f"prompt{number}" for number in range(len(values))}
        buffer._evict_terminal_groups(7, "train", (set(), uids, set(), Counter(values)))

    drop(1.0, 1.0)
    drop(0.0, 1.0)
    with pytest.raises(SaturatedError) as caught:
        drop(1.0)
    message = str(caught.value)
    assert "step 7 dropped 5 groups (limit 4)" in message
    assert "all right (4) or all wrong (1)" in message
    assert "\n" not in message
    assert isinstance(caught.value, ConfigError)  # launch never retries it
