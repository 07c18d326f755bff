"""Our settings give the advantages and the loss of the papers' formulas, through verl's own functions."""

import asyncio
import os
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from evaluation.grading import GradingPool, Outcome
from rl_stage.config import verl_config


@pytest.fixture(scope="module")
def rollouts():
    """Two groups of four responses: rewards, masks and log-probabilities of five positions, float64."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 3, 4, 1, 2, 5, 5, 4])
    mask = (torch.arange(5)[None] < lengths[:, None]).double()
    old = -torch.rand(8, 5, generator=generator, dtype=torch.float64)
    new = old + 0.6 * torch.randn(8, 5, generator=generator, dtype=torch.float64)
    reference = old + 0.2 * torch.randn(8, 5, generator=generator, dtype=torch.float64)
    rewards = torch.tensor([1.0, -1, -1, 1, -1, -1, -1, 1], dtype=torch.float64)
    groups = np.array(list("aaaabbbb"), dtype=object)
    return mask, old, new, reference, rewards, groups


def actor_config(settings, inputs, tmp_path):
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(verl_config(settings, inputs, tmp_path).actor_rollout_ref.actor)


def advantages_of(config, mask, rewards, groups):
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    token_rewards = torch.zeros_like(mask)
    token_rewards[torch.arange(8), mask.sum(1).long() - 1] = rewards
    return get_adv_estimator_fn(config.algorithm.adv_estimator)(
        token_level_rewards=token_rewards,
        response_mask=mask,
        index=groups,
        norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo,
    )[0]


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_relative_to_the_group(normalize, rollouts, cpu_settings, inputs, tmp_path):
    """GRPO: A_i = (r_i - mean(r)) / std(r) on every token of response i; Dr. GRPO leaves out the division."""
    mask, _, _, _, rewards, groups = rollouts
    config = verl_config(cpu_settings(normalize_advantage=normalize), inputs, tmp_path)
    found = advantages_of(config, mask, rewards, groups)
    per_group = rewards.view(2, 4)
    expected = per_group - per_group.mean(1, keepdim=True)
    if normalize:
        expected = expected / (per_group.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(found, expected.view(8, 1) * mask)


def loss_of(actor, rollouts, advantages):
    from verl.workers.utils.losses import ppo_loss

    mask, old, new, reference, _, _ = rollouts
    lengths = mask.sum(1).long().tolist()

    def nested(values):
        return torch.nested.as_nested_tensor(
            [row[:n] for row, n in zip(values, lengths, strict=True)], layout=torch.jagged
        )

    data = TensorDict(
        {
            "prompts": torch.nested.as_nested_tensor([torch.zeros(1, dtype=torch.int64)] * 8, layout=torch.jagged),
            "responses": nested(torch.zeros_like(mask, dtype=torch.int64)),
            "input_ids": torch.nested.as_nested_tensor(
                [torch.zeros(n + 1, dtype=torch.int64) for n in lengths], layout=torch.jagged
            ),
            "attention_mask": torch.nested.as_nested_tensor(
                [torch.ones(n + 1, dtype=torch.int64) for n in lengths], layout=torch.jagged
            ),
            "response_mask": nested(mask),
            "old_log_probs": nested(old),
            "ref_log_prob": nested(reference),
            "advantages": nested(advantages),
        },
        batch_size=8,
    )
    from verl.utils import tensordict_utils

    for name, value in (("dp_size", 1), ("batch_num_tokens", int(mask.sum())), ("global_batch_size", 8)):
        tensordict_utils.assign_non_tensor_data(data, name, value)
    # The engine gives one log-probability for each position of prompt and response; the last predicts nothing.
    whole = torch.nested.as_nested_tensor(
        [torch.cat([row[:n], row.new_zeros(1)]) for row, n in zip(new, lengths, strict=True)], layout=torch.jagged
    )
    return float(ppo_loss(actor, {"log_probs": whole}, data)[0])


def expected_loss(rollouts, advantages, low, high, dual, kl):
    """DAPO's objective (arXiv:2503.14476, eq. 8) with verl's dual clip, and PriFT's KL term (k3 estimator)."""
    mask, old, new, reference, _, _ = rollouts
    ratio = (new - old).exp()
    clipped = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    clipped = torch.where(advantages < 0, torch.minimum(clipped, -advantages * dual), clipped)
    delta = (reference - new).clamp(-20, 20)
    penalty = (delta.exp() - delta - 1).clamp(-10, 10)
    return float(((clipped + kl * penalty) * mask).sum() / mask.sum())


@pytest.mark.parametrize(
    ("group", "low", "high", "dual", "kl"),
    [
        ("grpo", 0.2, 0.2, 3.0, 0.0),
        ("dapo", 0.2, 0.28, 10.0, 0.0),
        ("prift", 0.2, 0.28, 10.0, 0.01),
        ("sed_sft", 0.2, 0.2, 3.0, 0.001),
    ],
)
def test_loss_of_each_group(group, low, high, dual, kl, rollouts, gpu_settings, inputs, tmp_path):
    settings = gpu_settings(group)
    config = verl_config(settings, inputs, tmp_path)
    mask, _, _, _, rewards, groups = rollouts
    advantages = advantages_of(config, mask, rewards, groups)
    found = loss_of(actor_config(settings, inputs, tmp_path), rollouts, advantages)
    assert found == pytest.approx(expected_loss(rollouts, advantages, low, high, dual, kl), rel=1e-6)


def test_the_two_clips_matter_on_this_data(rollouts, cpu_settings, inputs, tmp_path):
    """The comparison above could not fail if no ratio were clipped."""
    mask, _, _, _, rewards, groups = rollouts
    advantages = advantages_of(verl_config(cpu_settings(), inputs, tmp_path), mask, rewards, groups)
    values = {expected_loss(rollouts, advantages, 0.2, high, dual, 0.0) for high in (0.2, 0.28) for dual in (1.5, 10.0)}
    assert len(values) == 4


@pytest.mark.parametrize(
    ("group", "limit", "buffer", "right", "wrong"),
    [("dapo", 2048, 512, 1.0, 0.0), ("prift", 3072, 512, 1.0, -1.0), ("sed_sft", 1024, 0, 1.0, 0.0)],
)
def test_reward_of_each_group_by_length(
    group, limit, buffer, right, wrong, gpu_settings, inputs, tmp_path, monkeypatch
):
    """Correctness plus DAPO's soft punishment (arXiv:2503.14476, eq. 13): 0 up to limit - buffer, then linear to -1."""
    from rl_stage import agent_loop

    config = verl_config(gpu_settings(group), inputs, tmp_path)
    assert config.data.max_response_length == limit
    monkeypatch.setattr("evaluation.grading.pool._default", InstantPool())
    monkeypatch.setattr(agent_loop, "_managers", {})
    loop: Any = agent_loop.ScoredSingleTurnAgentLoop
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "a response", bos_token=None, eos_token="end")
    stub = SimpleNamespace(config=config, tokenizer=tokenizer)
    row = {"data_source": "sums", "reward_model": {"ground_truth": "1"}, "extra_info": {}, "raw_prompt": []}
    lengths = (1, limit - buffer, limit - buffer // 2, limit)

    async def rewards_by_length() -> list[tuple[dict, dict]]:
        """For each length a response that the pool finds right and one that it finds wrong."""
        found = []
        for length in lengths:
            output = SimpleNamespace(prompt_ids=[0], response_ids=[1] * length, num_turns=2)
            found.append((await loop._score(stub, output, row), await loop._score(stub, output, row)))
        return found

    for length, pair in zip(lengths, asyncio.run(rewards_by_length()), strict=True):
        excess = max(0, length - (limit - buffer)) / buffer if buffer else 0.0
        for result, score, correct in zip(pair, (right, wrong), (1.0, 0.0), strict=True):
            assert float(result["reward_score"]) == pytest.approx(score - excess)
            assert result["reward_extra_info"]["acc"] == correct


class InstantPool(GradingPool):
    """A grading pool that finds every other response right."""

    def __init__(self):
        self.correct, self._pid, self._closed = False, os.getpid(), False

    def submit(self, *_, **__):
        done: Future[Outcome] = Future()
        self.correct = not self.correct
        done.set_result(Outcome("ok", {"correct": self.correct, "status": "ok"}))
        return done
