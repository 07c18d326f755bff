"""Order of what the bounded replay buffer hands to the trainer."""

import pytest


@pytest.fixture
def buffer():
    from rl_stage.sampler import BoundedReplayBuffer

    return BoundedReplayBuffer(
        trainer_mode="sync",
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
