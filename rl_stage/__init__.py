"""Reinforcement learning after SFT: GRPO and DAPO on verl's own trainer, rewards, the hand-off gate, the filter."""

from common.lazy import attributes

__all__, __getattr__ = attributes(__name__, {"grade_math": "rl_stage.rewards", "verl_config": "rl_stage.config"})
