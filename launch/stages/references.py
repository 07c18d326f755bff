"""The models that an objective reads beside the student: where they come from and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from launch.stages.contract import Branch, Made, Outside

FROZEN = ("base", "teacher", "checkpoint")


def sources(branch: Branch) -> tuple[str, ...]:
    """Which of base, teacher and checkpoint SFT reads, in that order."""
    needs, recipe = branch.objective.needs, branch.recipe
    asked = set(needs.references)
    if recipe.sft.metrics.kl_from_base or needs.dataset is not None:
        asked.add("base")
    return tuple(role for role in FROZEN if role in asked)


def is_live(branch: Branch, role: str) -> bool:
    """Whether SFT loads the model itself, because it needs logits over the whole vocabulary."""
    return role in branch.objective.needs.live


def is_cached(branch: Branch, role: str) -> bool:
    """Whether SFT reads a reference cache of the model."""
    if role not in sources(branch):
        return False
    needs, recipe = branch.objective.needs, branch.recipe
    measured = role == "base" and (recipe.sft.metrics.kl_from_base or needs.dataset is not None)
    return not is_live(branch, role) or measured


def model_of(recipe: Any, role: str) -> Made | Outside:
    """The base or another frozen model: read from a path, or trained from nothing. Raises ConfigError if not named."""
    model = recipe.model if role == "base" else getattr(recipe.model, role)
    if model.pretrain is not None:
        return Made(f"pretrain:{role}", "checkpoint:final")
    field = "model" if role == "base" else f"model.{role}"
    if model.path is None:
        raise ConfigError(f"the objective asks for a {role}; set {field}.path or {field}.pretrain")
    eos = recipe.model.eos if role == "base" else None
    return Outside(model.path, f"{field}.path", model.revision, model=True, eos=eos, revision_field=f"{field}.revision")


def training_chats(recipe: Any) -> Made:
    """The demonstrations that are trained on: prepared, or as a data-level method has rewritten them."""
    return Made("prepare:sft" if recipe.rewrite.method is None else "rewrite")


def local_directory(model: Made | Outside) -> Path | None:
    """Where a model's configuration and tokenizer are at hand: its directory, or the local hub cache; else None."""
    if isinstance(model, Made):
        return None
    directory = Path(model.path).expanduser()
    if directory.is_dir():
        return directory
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def numerics(recipe: Any, *used: str) -> dict[str, Any]:
    """Settings of the model and the platform on which sums depend: of the model's those that a stage has `used`."""
    model, platform = recipe.model, recipe.platform
    return {
        "model": {name: getattr(model, name) for name in (*used, "trust_remote_code", "template_arguments")},
        "platform": {"name": platform.name, "threads": platform.threads},
    }


# Of verl's configuration: where and how a run is shown. The same run shown elsewhere is the same run.
_SHOWN = (
    "trainer.logger",
    "trainer.project_name",
    "trainer.experiment_name",
    "trainer.log_val_generations",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
)


def without_loggers(section: dict[str, Any]) -> dict[str, Any]:
    """A section's identity without the keys of its `verl` that choose loggers, nested or dotted."""
    return {**section, "verl": _not_shown(section["verl"], "")}


def _not_shown(values: Mapping[str, Any], above: str) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        path = f"{above}{name}"
        if any(path == shown or path.startswith(f"{shown}.") for shown in _SHOWN):
            continue
        kept = _not_shown(value, f"{path}.") if isinstance(value, Mapping) else value
        if kept != {} or value == {}:
            found[name] = kept
    return found
