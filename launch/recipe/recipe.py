"""The recipe: its common sections, those of the stages, and the checks between them.

This is the only place where defaults are put together. `recipes/base.yaml` is printed from it
(`python -m launch.recipe.base_yaml`), the other YAML files hold differences, and a stage receives the resolved values.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import create_model, model_validator

from common.attention import PACKED, VARLEN
from launch import stages
from launch.recipe.data import Data
from launch.recipe.model import Model
from launch.recipe.platform import Platform
from launch.recipe.published import Published
from launch.recipe.run import Run, Selection
from launch.recipe.section import Section, runtime, setting


class _Recipe(Section):
    name: str = runtime("", "set from the file name")
    seed: int = setting(0, "training seed of SFT and RL")
    scale: Literal["full", "tiny"] = setting(
        "full", "tiny: two steps on fixture rows with a small random model, on a CPU"
    )
    model: Model = setting(Model(), "base model and teacher")
    data: Data = setting(Data(), "data sets")  # type: ignore[valid-type]
    objective: dict[str, Any] = setting({"name": "sft"}, "an SFT objective and its settings (recipes/objective)")
    platform: Platform = setting(Platform(), "devices")
    run: Run = setting(Run(), "store, retries, limits")
    selection: Selection = setting(Selection(), "choosing swept settings on validation data")
    analyses: list[str | dict[str, Any]] = setting(
        ["pass_at_k", "entropy_histogram"],
        "over all branches, for the report: names, paths of one's own, or {name: ..., and its settings}",
    )
    adopt: dict[str, str] = setting(
        {}, "models trained elsewhere, each a branch beside the others: name -> directory, or hub name@commit"
    )
    published: Published = setting(Published(), "the paper's rows that the branches stand for")
    stages: list[str] = setting([], "stages of one's own, by dotted path (docs/extend.md)")
    sweep: list[dict[str, Any]] = runtime([], "uneven branches: each entry is a mapping of overrides")

    @model_validator(mode="after")
    def _one_base(self) -> _Recipe:
        if (self.model.path is None) == (self.model.pretrain is None):
            raise ValueError("model: set exactly one of model.path and model.pretrain")
        return self

    @model_validator(mode="after")
    def _kernel_fits(self) -> _Recipe:
        attention, dtype = self.model.attention, self.model.dtype
        if self.platform.name == "cpu" and attention == VARLEN:
            raise ValueError(f"model.attention={attention}: platform cpu allows sdpa and eager; set sdpa")
        if self.platform.name == "gpu" and attention in PACKED and dtype != "bfloat16":
            raise ValueError(
                f"model.attention={attention}: its kernel takes no model.dtype={dtype}; set model.dtype=bfloat16, or "
                "model.attention=sdpa"
            )
        return self

    @model_validator(mode="after")
    def _stages_agree(self) -> _Recipe:
        kinds = stages.in_order(self.stages)
        names = [kind.name for kind in kinds]
        for name in self.platform.placement:
            if name not in names:
                given = ", ".join(self.platform.placement)
                raise ValueError(f"platform.placement={given}: there is no stage {name}; allowed: {', '.join(names)}")
        for kind in kinds:
            kind.check(self)
        return self


@cache
def recipe_class(own_stages: tuple[str, ...] = ()) -> type[_Recipe]:
    """The schema of a recipe with these stages of the user's beside the package's.

    Raises ConfigError for a path that leads to no stage, or a section whose name is taken.
    """
    fields: dict[str, Any] = {}
    for kind in stages.in_order(own_stages):
        if kind.section is not None:
            if kind.key in fields or kind.key in _Recipe.model_fields:
                raise ValueError(f"stage {kind.name}: the recipe has a section {kind.key} already; choose another name")
            fields[kind.key] = (kind.section, setting(kind.section(), kind.describes))
    return create_model("Recipe", __base__=_Recipe, __module__=__name__, **fields)


Recipe = recipe_class()
