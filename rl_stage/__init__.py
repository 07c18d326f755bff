"""Reinforcement learning after SFT: GRPO and DAPO on verl's own trainer, rewards, the hand-off gate, the filter."""

from importlib import import_module

_HOMES = {"grade_math": "rl_stage.rewards", "verl_config": "rl_stage.config"}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'rl_stage' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
