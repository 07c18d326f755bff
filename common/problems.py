"""What makes two rows ask the same problem."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from common.errors import ConfigError


def problem_key(messages: Sequence[dict[str, str]]) -> bytes:
    """16 bytes of what a chat asks: a digest of its first user message, blind to case and white space.

    Raises ConfigError for a chat without a user message.
    """
    text = next((message["content"] for message in messages if message["role"] == "user"), None)
    if text is None:
        raise ConfigError("messages: no user message; each row asks something")
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).digest()[:16]
