"""Settings of a stage with sections of the real schema."""

from __future__ import annotations

from launch.recipe.model import Pretrain
from launch.recipe.recipe import Recipe


class TypedSettings(Recipe):
    pretrain: Pretrain
    role: str
