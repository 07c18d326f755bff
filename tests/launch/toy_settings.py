"""Settings of a stage with sections of the real schema."""

from __future__ import annotations

from launch.schema import Pretrain, Recipe


class TypedSettings(Recipe):
    pretrain: Pretrain
    role: str
