"""Which models RL and SFT start from (`rl.from`, `sft.from`), and whether a branch fine-tunes at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import read_json

BASE = "base"  # RL from the base model, without SFT
NAMED = (BASE, "final", "best", "all")


def starts(recipe: Any) -> list[str]:
    """What RL starts from, each once: `base`, `final`, `best` or the step of a published SFT checkpoint.

    Raises ConfigError for a step that is not published.
    """
    if not recipe.rl.enabled:
        return []
    given, published = recipe.rl.start, list(map(str, recipe.sft.publish_steps))
    found: dict[str, None] = {}
    for one in [given] if isinstance(given, str) else map(str, given):
        if one == "all":
            found |= dict.fromkeys([*published, "final"])
        elif one in NAMED or one in published:
            found[one] = None
        elif recipe.sft.adopt is not None:
            raise ConfigError(f"rl.from={given}: an adopted model has no step {one}; set rl.from=final")
        else:
            raise ConfigError(f"rl.from={given}: step {one} is not published; add it to sft.publish_steps")
    return list(found)


def fine_tunes(recipe: Any) -> bool:
    """Whether a branch trains SFT: not where it is off, nor where RL starts from the base alone."""
    start = recipe.rl.start
    only_base = start == BASE or (isinstance(start, list) and set(start) == {BASE})
    return recipe.sft.enabled and not (recipe.rl.enabled and only_base)


def trains(recipe: Any) -> bool:
    """Whether a branch trains SFT itself: not where a model from elsewhere stands in its place."""
    return fine_tunes(recipe) and recipe.sft.adopt is None


def called(recipe: Any) -> str:
    """A word for what the models of a branch come from: its objective, or the name of the adopted model."""
    given = recipe.sft.adopt
    if given is None:
        return recipe.objective["name"]
    names = [name for name, path in recipe.adopt.items() if path == given]
    return names[0] if names else Path(adopted(recipe)[0]).name


def adopted(recipe: Any) -> tuple[str, str | None]:
    """Directory or hub name of the adopted model, and the commit of a hub name."""
    place = checkpoint_of(recipe.sft.adopt, recipe.run.root)
    if Path(place).is_dir():
        return place, None
    name, _, commit = place.partition("@")
    return name, commit or None


def checkpoint_of(text: str, root: str) -> str:
    """A model's directory: itself, or the last checkpoint of an artifact, by its directory or its address in `root`.

    What is no directory is returned as it is: it may be a hub name.
    """
    for directory in (Path(text).expanduser(), Path(root).expanduser() / text):
        if directory.is_dir():
            listing = read_json(directory / "checkpoints.json")
            return str(directory if listing is None else directory / "checkpoints" / f"step_{listing['final']}")
    return text
