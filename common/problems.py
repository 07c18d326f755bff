"""What makes two rows ask the same problem, and the turns of a chat as a table holds them."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from common.errors import ConfigError

INSTRUCTIONS = ("system", "developer")  # they say how to answer, not what is asked
# Characters without a shape (zero-width spaces, joiners, marks of direction): a copy of a problem may have others.
_INVISIBLE = re.compile(
    "[" + "".join(re.escape(chr(c)) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) == "Cf") + "]+"
)


def plain(text: str) -> str:
    """`text` without what a copy may change unseen: case, white space, Unicode's compatibility and invisible forms."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return " ".join(text.split()).casefold()


def problem_key(messages: Sequence[Mapping[str, Any]], tools: Any = None) -> bytes:
    """16 bytes of what a row asks: a digest of all its turns before the last answer, as `plain` text, and of its tools.

    System and developer messages do not count: the same question under another instruction is the same problem. tools:
    what may be called, a list or its JSON text; other functions make another problem. Raises ConfigError for a chat
    without a user message.
    """
    *_, (whole, _) = _questions(messages)
    return _with_tools(whole, tools)


def asked_keys(messages: Sequence[Mapping[str, Any]], tools: Any = None) -> set[bytes]:
    """Keys of every problem that a row asks: of each answered turn the whole history before it, and its question alone.

    A row that answers a benchmark's problem anywhere, with the problem's own tools where it has any, has that problem's
    `problem_key` among them. Raises ConfigError for a chat without a user message.
    """
    keys = {key for pair in _questions(messages) for key in pair}
    return keys | {_with_tools(key, tools) for key in keys}


def _with_tools(key: bytes, tools: Any) -> bytes:
    found = json.loads(tools) if isinstance(tools, str) and tools else tools
    if not found:
        return key
    return hashlib.sha256(b"%s\x1e%s" % (key, json.dumps(found, sort_keys=True).encode())).digest()[:16]


def _questions(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[bytes, bytes]]:
    """(key of the history, key of the last user message) before each answer, or at the end of a prompt."""
    history, last, found = hashlib.sha256(), b"", False
    for place, message in enumerate(messages):
        role = message["role"]
        if role in INSTRUCTIONS:
            continue
        if role == "assistant" and last:
            found = True
            yield history.digest()[:16], last
        text = plain(message["content"] or "").encode()
        if calls := message.get("tool_calls"):
            text += (calls if isinstance(calls, str) else dump(calls)).encode()
        if role == "user":
            last = hashlib.sha256(text).digest()[:16]
        first_question = role == "user" and not any(m["role"] not in INSTRUCTIONS for m in messages[:place])
        history.update(text if first_question else b"\x1e%s\x1f%s" % (role.encode(), text))
    if not last:
        raise ConfigError("messages: no user message; each row asks something")
    if not found or messages[-1]["role"] != "assistant":
        yield history.digest()[:16], last


def dump(value: Any) -> str:
    """The JSON text that tables hold of a nested value; its keys keep their order, which templates print."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A chat as templates take it, from a table: without the fields that a turn lacks, `tool_calls` as a list."""
    found = []
    for message in messages:
        turn = {name: value for name, value in message.items() if value is not None}
        if isinstance(turn.get("tool_calls"), str):
            turn["tool_calls"] = json.loads(turn["tool_calls"])
        found.append(turn)
    return found
