"""A tokenizer's chat template: what it renders of a chat, in which form it takes tool calls, how it ends turns.

Nothing here knows a model family. What differs between families is found by rendering a few short chats once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING = ("reasoning_content", "thinking", "reasoning")  # names that families give to the thinking of a turn
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "tokenize", "chat_template", "conversation")
TRAINED = ("weight", "train", "loss")  # say whether a message is trained on; no template reads them
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_BRACKETS = (("end", "begin"), ("end", "start"), ("END", "BEGIN"), ("END", "START"), ("</", "<"))
_ASKED, _SAID, _THOUGHT, _NAME = "Quvxa", "Zarbo", "Wimqe", "jolpf"  # words that no template writes by itself


class Ends(NamedTuple):
    """Ids of the tokens that end a turn: the chat's last turn, one before it, one that calls a tool; None: nothing."""

    last: int | None
    earlier: int | None
    tool: int | None


class ChatTemplate:
    """The chat template of `tokenizer`, called with `arguments` (`model.template_arguments`).

    name: of the template, for messages.

    Raises:
        ConfigError: the tokenizer has no template, or an argument has a reserved name.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        arguments: Mapping[str, Any] | None = None,
        name: str = "the chat template",
    ):
        self.tokenizer, self.arguments, self.name = tokenizer, dict(arguments or {}), name
        if not tokenizer.chat_template:
            raise ConfigError("the tokenizer has no chat template; set model.chat_template to a Jinja file")
        if taken := sorted(set(self.arguments) & set(RESERVED)):
            raise ConfigError(
                f"model.template_arguments.{taken[0]}: reserved; the messages and tools come from the data"
            )

    @property
    def eos(self) -> int | None:
        """The tokenizer's own end of sequence."""
        index: Any = self.tokenizer.eos_token_id
        return index

    def token(self, index: int) -> str:
        """The text of a special token."""
        return str(self.tokenizer.convert_ids_to_tokens([index])[0])

    def render(self, messages: Sequence[Mapping[str, Any]], tools: list | None, prompt: bool) -> str:
        """The text of a chat that `prepared` gave, with the assistant's header if `prompt`. Raises what Jinja does."""
        return self._render(messages, tools, add_generation_prompt=prompt)[0]

    def marked(
        self, messages: Sequence[Mapping[str, Any]], tools: list | None
    ) -> tuple[str, list[tuple[int, int]] | None]:
        """The text of a whole chat, and the [start, end) characters between its generation marks; None without any."""
        if not _MARKED.search(self._source(tools)):
            return self.render(messages, tools, False), None
        return self._render(messages, tools, return_assistant_tokens_mask=True)

    def _source(self, tools: list | None) -> str:
        return self.tokenizer.get_chat_template(None, tools)  # type: ignore[arg-type]

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: list | None, **options: Any) -> tuple[str, Any]:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            conversations=[list(messages)],  # type: ignore[list-item]
            tools=tools or None,
            chat_template=self._source(tools),
            **options,
            **{**self.tokenizer.special_tokens_map, **self.arguments},
        )
        texts, marks = rendered
        return texts[0], marks[0] if marks else None

    def prepared(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages in the form that this template takes.

        Empty fields and those that only steer training go; text parts are joined; thinking gets every name that
        families give it, or stands in <think> tags before the content where the template reads none of them.

        Raises ConfigError for content that is not text.
        """
        return [self._prepared(number, message) for number, message in enumerate(messages, 1)]

    def _prepared(self, number: int, message: Mapping[str, Any]) -> dict[str, Any]:
        clean = {key: value for key, value in message.items() if value is not None and key not in TRAINED}
        clean["content"] = _text(number, message)
        calls = _parsed(clean.pop("tool_calls", None))
        if calls:
            clean["tool_calls"] = [self._call(call) for call in calls]
            if not clean["content"] and not self._form[1]:
                clean["content"] = None
        thought = next((clean[key] for key in REASONING if clean.get(key)), None)
        for key in REASONING:
            clean.pop(key, None)
        if thought:
            if self._reads_reasoning[bool(calls)]:
                clean.update(dict.fromkeys(REASONING, thought))
            else:
                clean["content"] = f"<think>\n{thought.strip()}\n</think>\n\n{clean['content'] or ''}"
        return clean

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        clean = _without_none(call)
        function = clean.get("function", clean)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                return {"type": "function", **clean}
        function["arguments"] = json.dumps(arguments, ensure_ascii=False) if self._form[0] else arguments
        return {"type": "function", **clean} if "function" in clean else {"type": "function", "function": clean}

    @cached_property
    def _form(self) -> tuple[bool, bool]:
        """Whether the arguments of a call are given as JSON text, and an absent content as empty text."""
        for as_text, as_empty in ((False, True), (False, False), (True, True), (True, False)):
            called = _called(as_text, "" if as_empty else None)
            text = self._try([{"role": "user", "content": _ASKED}, called])
            if text is not None and _NAME in text and "None" not in text.split(_ASKED)[-1]:
                return as_text, as_empty
        return False, True

    @cached_property
    def _reads_reasoning(self) -> tuple[bool, bool]:
        """Whether the thinking of the chat's last turn is rendered: of an answer, of a turn that calls a tool."""
        asked, thought = {"role": "user", "content": _ASKED}, dict.fromkeys(REASONING, _SAID)
        answer = {"role": "assistant", "content": _NAME}
        called = _called(self._form[0], "" if self._form[1] else None)
        texts = (self._try([asked, {**turn, **thought}]) for turn in (answer, called))
        first, second = (text is not None and _SAID in text for text in texts)
        return first, second

    def _try(self, messages: list[dict[str, Any]], prompt: bool = False) -> str | None:
        try:
            return self.render(messages, None, prompt)
        except Exception:  # Jinja, and whatever a template's own expressions raise: the family takes no such chat
            return None

    @cached_property
    def specials(self) -> frozenset[int]:
        """Ids that the tokenizer keeps for structure, never made from other text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset({*self.tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)})

    @cached_property
    def ends(self) -> Ends:
        """The tokens that end turns, found where two renderings go on differently after an answer."""
        asked, said = {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID}
        more = [{"role": "user", "content": _NAME}, {"role": "assistant", "content": _THOUGHT}]
        alone, followed = self._try([asked, said]), self._try([asked, said, *more])
        if alone is None:
            return Ends(None, None, None)
        between = _after(followed, _SAID, _NAME)
        earlier = self._end(_after(alone, _SAID), between)
        found = self._ids(_after(alone, _SAID) or "")
        last = earlier if earlier in found else self._last(found)
        called = [asked, _called(self._form[0], "" if self._form[1] else None)]
        alone, followed = self._try(called), self._try([*called, {"role": "tool", "content": _SAID, "name": _NAME}])
        tool = None
        if alone is not None and _THOUGHT in alone:
            tool = self._end(_after(alone, _THOUGHT), _after(followed, _THOUGHT, _SAID))
            if tool not in (last, earlier, self.eos) and self._closes(tool, alone):
                tool = None
        return Ends(last, earlier, tool)

    def _end(self, alone: str | None, between: str | None) -> int | None:
        """The token that ends a turn, from the text after it when it is the last and when another message follows."""
        if between is None:
            return self._last(self._ids(alone or ""))
        shared = (alone or "")[: common_prefix(alone or "", between)]
        found = self._last(self._ids(shared))
        if found is not None:
            return found
        # Another token ends the last turn. The first one here does, unless it begins the next message's header.
        others = [index for index in self._ids(between) if index in self.specials]
        return others[0] if len(others) > 1 or others[:1] == [self.eos] else None

    def _closes(self, index: int | None, text: str) -> bool:
        """Whether a token only closes a bracket that the text opens (`<|call_begin|>`, `<|call_end|>`)."""
        if index is None:
            return False
        token = self.token(index)
        openers = {token.replace(*pair) for pair in _BRACKETS} | {re.sub(r"^<([^|<>]+)\|>$", r"<|\1>", token)}
        return any(opener in text for opener in openers - {token})

    def _last(self, ids: Sequence[int]) -> int | None:
        return next((index for index in reversed(ids) if index in self.specials), None)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def common_prefix(first: str, second: str) -> int:
    """Length of what two texts begin with alike."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while low < high:  # halving: comparing slices is much faster than characters one by one
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _after(text: str | None, word: str, until: str | None = None) -> str | None:
    """What follows the last `word` (before `until`); None where they are not there."""
    if text is None or word not in text:
        return None
    if until is None:
        return text[text.rindex(word) + len(word) :]
    begin = text.index(word) + len(word)
    end = text.find(until, begin)
    return None if end < 0 else text[begin:end]


def _called(as_text: bool, content: str | None) -> dict[str, Any]:
    arguments: Any = {"a": _THOUGHT}
    function = {"name": _NAME, "arguments": json.dumps(arguments) if as_text else arguments}
    call = {"id": "call00001", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _text(number: int, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise ConfigError(f"turn {number} ({message.get('role')}): content must be text or text parts")
    return "".join(map(str, texts))


def thinking(message: Mapping[str, Any]) -> str:
    """The thinking of a prepared message, without white space around it."""
    for key in REASONING:
        if message.get(key):
            return message[key].strip()
    content = message["content"] or ""
    return content.split("</think>")[0].split("<think>")[-1].strip() if "</think>" in content else ""


def prepared_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Schemas of functions as a template reads them; each of them, or their list, may be given as JSON text."""
    found = [_without_none(_parsed(tool)) for tool in _parsed(tools) or ()]
    return found or None


def _parsed(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value else value


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
