"""Whether two models speak of the same ids. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.models import vocabulary_size


def check_vocabulary(student: Path, other: Path, role: str) -> None:
    """Raise ConfigError (one line) unless a model's ids mean to it what they mean to the student.

    The ordinary tokens of both tokenizers must agree, id by id; their special tokens may have other names, and the
    heads may be padded to other widths: ids beyond the tokens are never trained. Models without a tokenizer.json agree
    if their heads have one width. role: of the other model, for the message.
    """
    of_student, of_other = _tokens(student), _tokens(other)
    if of_student is None or of_other is None:
        widths = vocabulary_size(student), vocabulary_size(other)
        if widths[0] != widths[1]:
            raise ConfigError(
                f"{other}: {widths[1]} ids, the student has {widths[0]}, and no tokenizer.json says which are padding; "
                f"{role} must share the student's vocabulary"
            )
        return
    (ours, special), (theirs, other_special) = of_student, of_other
    ordinary = {*ours, *theirs} - special - other_special
    different = sorted(index for index in ordinary if ours.get(index) != theirs.get(index))
    if different:
        shown = ", ".join(f"{index}: {ours.get(index)!r} / {theirs.get(index)!r}" for index in different[:3])
        raise ConfigError(
            f"{other}: its vocabulary differs from the student's in {len(different)} ids (id: student / {role}) "
            f"{shown}; {role} must share the student's vocabulary, up to the padding of its head"
        )


def _tokens(directory: Path) -> tuple[dict[int, str], set[int]] | None:
    """Id to token of a tokenizer.json's model, and the ids of special tokens; None without such a file."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    vocab = content["model"].get("vocab") or {}
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], place) for place, entry in enumerate(vocab))
    special = {token["id"] for token in content.get("added_tokens", []) if token.get("special")}
    return {index: token for token, index in pairs}, special
