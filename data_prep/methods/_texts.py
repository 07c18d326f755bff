"""Prompts that say more than the question."""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_prep.methods.contract import Turn


def filled(template: str, *names: str) -> str:
    """The template. Raises ValueError where it does not hold each of `{name}`."""
    missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in template]
    if missing:
        raise ValueError(f"must hold {' and '.join(missing)}")
    return template


def with_last(prompt: Sequence[Turn], template: str, **texts: str) -> tuple[Turn, ...]:
    """The prompt whose last turn is the template around it: `{question}` is the turn's text, others are `texts`."""
    given = {**texts, "question": str(prompt[-1]["content"])}
    # Not str.format: questions are full of braces. One pass, so that a text is never searched for names.
    name = re.compile("|".join(rf"\{{{key}\}}" for key in given))
    text = name.sub(lambda match: given[match[0][1:-1]], template)
    return (*prompt[:-1], {**prompt[-1], "content": text})
