"""Chat templates by name: `recipes/templates/<name>.jinja`, and one's own by path."""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import ConfigError

FOLDER = Path(__file__).resolve().parent.parent / "recipes" / "templates"


def template_names() -> list[str]:
    """The templates that ship with the package."""
    return sorted(file.stem for file in FOLDER.glob("*.jinja"))


def template_file(given: str) -> Path:
    """The Jinja file that `model.chat_template` names: a template of the package, or a path.

    Raises ConfigError for a bare word that is neither.
    """
    path = Path(given).expanduser()
    if path.exists() or not re.fullmatch(r"\w+", given):
        return path
    if given not in template_names():
        raise ConfigError(f"model.chat_template={given}: allowed: {', '.join(template_names())}, or a Jinja file")
    return FOLDER / f"{given}.jinja"
