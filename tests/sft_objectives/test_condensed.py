"""Constants of the training set from its parts equal those of the whole, to the last bit."""

from __future__ import annotations

import pytest
import torch

from sft_objectives import load, names

CASES = [
    ("flow", {}),
    ("flow", {"median": "mean"}),
    ("q_target", {"rule": "flow", "residual_weight": 0.5}),
]


def cache(chats: int) -> dict[str, torch.Tensor]:
    """Supervised tokens of chats of several lengths; some positions are not supervised."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (chats,), generator=generator)
    total = int(lengths.sum())
    return {
        "label_logprob": -torch.rand(total, generator=generator) * 8,
        "mask": torch.rand(total, generator=generator) < 0.8,
        "sequence": torch.arange(chats).repeat_interleave(lengths),
    }


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize("chats_of_a_part", [1, 7, 1000])
def test_parts_give_the_constants_of_the_whole(name, settings, chats_of_a_part):
    objective, whole = load(name, **settings), cache(301)
    expected = objective.dataset_constants(whole)
    assert expected
    parts = []
    for start in range(0, 301, chats_of_a_part):
        inside = (whole["sequence"] >= start) & (whole["sequence"] < start + chats_of_a_part)
        parts.append(objective.condensed({key: value[inside] for key, value in whole.items()}))
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    assert len(joined["sequence"]) <= 301
    assert objective.dataset_constants(joined) == expected


def test_every_objective_with_constants_of_tokens_condenses_them():
    """What reads all supervised tokens of the cache would otherwise hold them all."""
    for name in names():
        needs = load(name).needs.dataset
        if needs is not None and not needs.fields & {"support_ids", "support_logprobs"}:
            assert any(name == case for case, _ in CASES), name
