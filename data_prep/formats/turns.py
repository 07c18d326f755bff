"""The turns of a chat, checked: roles, text, thinking, calls of tools and what is trained on, in one shape.

A turn has `role` (system, developer, user, assistant or tool), `content` (text) and, only where the row has them,
`name`, `tool_calls` (a list of {id?, type, function: {name, arguments}}, arguments an object where they are JSON),
`tool_call_id`, `reasoning_content`, `weight` (0 or 1) and `train`. Whether a family's template can render them in this
order is for the renderer to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from common.problems import INSTRUCTIONS
from data_prep.formats.contract import Fields
from data_prep.sources.contract import RowError

ROLES = ("system", "developer", "user", "assistant", "tool")
# What other formats call a role. `function_call` is an assistant's turn that is a call.
ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
CALLS = ("function_call", "tool_call")
EXTRAS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "weight", "train")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TRAINED = ("train", "loss", "training")
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = {"thinking": "thinking", "reasoning": "reasoning"}


def check_turns(fields: Fields, field: str, messages: Any, ends: tuple[str, ...]) -> list[dict[str, Any]]:
    """The turns of a row in the shape above; fields of a message that are not known are counted in `fields`.

    Args:
        field: what the row calls them. ends: roles that the last turn may have.

    Raises:
        RowError: not a list of turns; an unknown role; no user's turn, or another last role; an empty turn where an
            answer or a question belongs; content that is not text; text that is not Unicode; nothing to train on.
    """
    where = fields.where
    if not isinstance(messages, list) or not messages:
        raise RowError("broken", f"{where}: {field} must be a non-empty list of {{role, content}}")
    clean = [_turn(fields, field, number, message) for number, message in enumerate(messages, 1)]
    roles = [turn["role"] for turn in clean]
    if "user" not in roles or roles[-1] not in ends:
        raise RowError(
            "roles", f"{where}: roles of {field} are {', '.join(roles)}; there must be a user's turn, and the last "
            f"must be of {' or '.join(ends)}"
        )  # fmt: skip
    if roles[-1] == "assistant" and not any(is_trained(turn) for turn in clean):
        raise RowError("nothing to train on", f"{where}: every answer of {field} has weight 0 or train false")
    return clean


def is_trained(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is an answer that counts in training."""
    return turn["role"] == "assistant" and turn.get("train", True) and turn.get("weight", 1) != 0


def check_text(where: str, name: str, text: str) -> str:
    """`text`. Raises RowError where it has half of a surrogate pair, which no file and no tokenizer can hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                "not Unicode",
                f"{where}: {name} has half a character (U+{ord(text[error.start]):04X}) at {error.start}; text was cut "
                "within an emoji",
            ) from None
    return text


def _turn(fields: Fields, field: str, number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RowError("broken", f"{fields.where}: {field} {number} is not {{role, content}}")
    part = Fields(f"{fields.where}: {field} {number}", message)
    role = part.take("role", "from")
    if not isinstance(role, str):
        raise RowError("broken", f"{part.where} has no role; give {{role, content}}")
    said = role.strip().lower()
    role = ALIASES.get(said, said)
    if role not in ROLES:
        raise RowError("roles", f"{part.where} has the role {said!r}; allowed: {', '.join(ROLES)}")
    turn: dict[str, Any] = {"role": role, "content": ""}
    _fill(part, turn, said)
    for name in part.unknown():
        fields.strange(f"{field}.{name}")
    return turn


def _fill(part: Fields, turn: dict[str, Any], said: str) -> None:
    where, role = part.where, turn["role"]
    content, thoughts = _content(part, part.take("content", "value"))
    calls = part.take("tool_calls")
    if (single := part.take("function_call")) is not None:  # OpenAI's first way to call
        calls = [single] if calls is None else calls
    if said in CALLS:
        calls, content = part.nested("content", content), ""
        calls = calls if isinstance(calls, list) else [calls]
    turn["content"] = content
    for name in ("name", "tool_call_id"):
        if (value := part.take(name)) is not None:
            turn[name] = check_text(where, name, str(value))
    if calls := part.nested("tool_calls", calls):
        if role != "assistant" or not isinstance(calls, list):
            raise RowError("broken", f"{where} ({role}): tool_calls must be a list, of an assistant")
        turn["tool_calls"] = [_call(part, call) for call in calls]
    _think(part, turn, thoughts)
    _training(part, turn)
    if not content.strip() and not turn.get("tool_calls") and role not in ("tool", *INSTRUCTIONS):
        kind = "empty response" if role == "assistant" else "empty message"
        raise RowError(kind, f"{where} ({role}) is empty")


def _think(part: Fields, turn: dict[str, Any], thoughts: str | None) -> None:
    """Puts the thinking of a turn, of whatever name or of its parts, into `reasoning_content`."""
    found = {name: value for name in _THOUGHTS if (value := part.take(name)) not in (None, "")}
    if thoughts:
        found["content"] = thoughts
    for name, value in found.items():
        if not isinstance(value, str) or turn["role"] != "assistant":
            raise RowError("broken", f"{part.where} ({turn['role']}): {name} must be text, of an assistant")
        if value != turn.setdefault("reasoning_content", check_text(part.where, name, value)):
            raise RowError("broken", f"{part.where}: {' and '.join(found)} hold different thinking; give one of them")


def _content(part: Fields, content: Any) -> tuple[str, str | None]:
    """The text of a turn, and of its thinking parts."""
    if content is None:
        # An assistant may only call; whether the turn is empty is decided with its calls.
        if part.has("tool_calls", "function_call"):
            return "", None
        raise RowError("broken", f"{part.where} has no text content")
    if isinstance(content, str):
        return check_text(part.where, "content", content), None
    if not isinstance(content, list):
        raise RowError("broken", f"{part.where} has no text content")
    texts, thoughts = [], []
    for piece in content:
        kind = "text" if isinstance(piece, str) else piece.get("type") if isinstance(piece, Mapping) else None
        text = piece if isinstance(piece, str) else piece.get(_THOUGHT_PARTS.get(kind, "text")) if kind else None
        if not isinstance(text, str) or kind not in (*_TEXT_PARTS, *_THOUGHT_PARTS):
            raise RowError("content", f"{part.where} has a content part of type {kind!r}; allowed: text, thinking")
        (texts if kind in _TEXT_PARTS else thoughts).append(check_text(part.where, "content", text))
    return "".join(texts), "".join(thoughts) or None


def _call(part: Fields, call: Any) -> dict[str, Any]:
    """{id?, type, function: {name, arguments}} of a call, which may also be written flat."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("broken", f"{part.where}: tool_calls must be {{function: {{name, arguments}}}}")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            # OpenAI writes the object as text, templates take the object.
            found = json.loads(arguments)
            arguments = found if isinstance(found, dict) else arguments
        except json.JSONDecodeError:
            pass
    check_text(part.where, "tool_calls", json.dumps([function["name"], arguments], ensure_ascii=False, default=str))
    known = {"id", "type", "function"} if function is not call else {"id", "type", "name", "arguments", "parameters"}
    for name in call.keys() - known:
        if call[name] is not None:
            part.strange(f"tool_calls.{name}")
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return made if call.get("id") is None else {"id": str(call["id"]), **made}


def _training(part: Fields, turn: dict[str, Any]) -> None:
    weight, train = part.take("weight"), part.take(*_TRAINED)
    if weight is not None:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
            raise RowError("broken", f"{part.where}: weight is {weight!r}; allowed: 0 (not trained on) or 1")
        turn["weight"] = float(weight)
    if train is not None:
        if not isinstance(train, bool) and train not in (0, 1):
            raise RowError("broken", f"{part.where}: train is {train!r}; allowed: true or false")
        turn["train"] = bool(train)
    if weight is not None and train is not None and bool(weight) != bool(train):
        raise RowError("broken", f"{part.where}: weight and train contradict each other; give one of them")


def check_tools(fields: Fields) -> list[Any] | None:
    """The functions that a chat may call, of `tools` or OpenAI's older `functions`; None without any.

    Raises RowError where they are not a list of objects with a name.
    """
    given = fields.nested("tools", fields.take("tools"))
    if (older := fields.take("functions")) is not None and given is None:
        older = fields.nested("functions", older)
        given = older if not isinstance(older, list) else [{"type": "function", "function": tool} for tool in older]
    if not given:
        return None
    named = isinstance(given, list) and all(
        isinstance(tool, Mapping) and isinstance((tool.get("function") or tool).get("name"), str) for tool in given
    )
    if not named:
        raise RowError("broken", f"{fields.where}: tools must be a list of {{type, function: {{name, parameters}}}}")
    check_text(fields.where, "tools", json.dumps(given, ensure_ascii=False, default=str))
    return given
