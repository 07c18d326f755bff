"""The one way from messages to token ids and to what of them is supervised.

A chat is rendered once, whole. A turn's supervised span begins where the prompt that inference would show ends, token
for token, and goes up to the token that ends the turn. Where a template writes the past differently from the prompt
(DeepSeek-R1 opens its thinking in the prompt alone, Qwen3.5 drops it from earlier turns), no span of the whole chat is
what the model would see; that turn becomes a row of its own: the prompt as inference shows it, then the answer.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from common.chat_template import REASONING, ChatTemplate, common_prefix
from common.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Literal["all", "last"]
PromptMismatch = Literal["as_inferred", "error"]
_THINK = re.compile(r"\s*<think>\n?")
_CUT_TAG = re.compile(r"[<\[][^<>\[\]\s]*$")
_TAG = re.compile(r"[<\[][^<>\[\]\s]*[>\]]")
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Rendered:
    """A training row: `ids` and `supervised`, 1 where the id is to be predicted and 0 elsewhere, of equal length.

    text: what the ids were made from. last: it holds the chat's last supervised turn.
    """

    ids: list[int]
    supervised: list[int]
    text: str = field(default="", compare=False, repr=False)
    last: bool = field(default=True, compare=False, repr=False)


@dataclass
class _Turn:
    """An assistant turn in the whole text: [start, bound) holds the answer, its end and perhaps the next header."""

    number: int
    start: int
    bound: int
    ends: tuple[int, ...]


@dataclass
class _Own:
    """A turn that is a row of its own."""

    number: int
    prompt: str
    answer: str
    ends: tuple[int, ...]


@dataclass
class _Plan:
    whole: str
    marks: list[tuple[int, int]] | None
    turns: list[_Turn]
    own: list[_Own]
    last: int


class Renderer:
    """Renders chats with the template of `tokenizer`.

    Args:
        template_arguments: variables of the template (`enable_thinking: false`).
        turns: which assistant turns are supervised, all or the last.
        prompt_mismatch: a turn whose prompt is no prefix of the whole chat becomes a row of its own (as_inferred), or
            is refused (error).
        supervise_after_end: the white space after the token that ends a turn is supervised too, as verl does.
        name: of the template, for messages.

    Raises:
        ConfigError: the tokenizer has no template, or an argument has a reserved name.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template_arguments: Mapping[str, Any] | None = None,
        turns: Turns = "all",
        prompt_mismatch: PromptMismatch = "as_inferred",
        supervise_after_end: bool = False,
        name: str = "the chat template",
    ):
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, template_arguments, name)
        self.turns, self.prompt_mismatch, self.supervise_after_end = turns, prompt_mismatch, supervise_after_end

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: list | None = None) -> tuple[str, list[int]]:
        """What inference shows the model: the chat so far and the assistant's header, as text and ids.

        Raises ConfigError where the template refuses the chat.
        """
        text = self._prompt_text(self.template.prepared(messages), tools, len(messages))
        return text, self._ids(text)

    def prompts(self, chats: Iterable[Sequence[Mapping[str, Any]]]) -> list[list[int]]:
        """The ids of `prompt` for several chats, tokenised together."""
        texts = [self._prompt_text(self.template.prepared(chat), None, len(chat)) for chat in chats]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def rows(self, messages: Sequence[Mapping[str, Any]], tools: list | None = None) -> list[Rendered]:
        """The training rows of one chat.

        Raises:
            ConfigError: one line that names the turn: the template cannot render it, leaves something of it out or ends
                it with nothing, or a prompt is no prefix and `prompt_mismatch` is error.
        """
        found = self.many([(messages, tools)])[0]
        if isinstance(found, ConfigError):
            raise found
        return found

    def many(
        self, chats: Iterable[tuple[Sequence[Mapping[str, Any]], list | None]]
    ) -> list[list[Rendered] | ConfigError]:
        """`rows` of several chats, tokenised together; the error stands in the place of a chat that is refused."""
        plans: list[_Plan | ConfigError] = []
        for messages, tools in chats:
            try:
                plans.append(self._plan(messages, tools))
            except ConfigError as error:
                plans.append(error)
        good = [plan for plan in plans if isinstance(plan, _Plan)]
        encoded = _encode(self.tokenizer, [plan.whole for plan in good])
        places = [
            (text, turn, text.place(turn.start))
            for plan, text in zip(good, encoded, strict=True)
            for turn in plan.turns
        ]
        tails = [text.tail(place, turn.start, self.template.specials) for text, turn, place in places]
        matches = iter(
            place is not None and ids == expected
            for (_, _, place), (_, expected), ids in zip(
                places, tails, self._batch([tail for tail, _ in tails]), strict=True
            )
        )
        taken = iter(zip(good, encoded, strict=True))
        found: list[list[Rendered] | ConfigError] = []
        for plan in plans:
            if isinstance(plan, ConfigError):
                found.append(plan)
                continue
            _, text = next(taken)
            fits = [next(matches) for _ in plan.turns]
            try:
                found.append(self._assembled(plan, text, fits))
            except ConfigError as error:
                found.append(error)
        return found

    def _plan(self, messages: Sequence[Mapping[str, Any]], tools: list | None) -> _Plan:
        """What of a chat is supervised, as text."""
        chat = self.template.prepared(messages)
        answers = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
        wanted = [index for index in answers if _is_trained(messages[index])]
        if not wanted:
            raise ConfigError("no assistant turn is trained on; a chat needs one")
        if self.turns == "last":
            wanted = wanted[-1:]
        self._check_text(chat)
        whole, marks = self._whole(chat, tools)
        self._check_kept(chat, tools, whole)
        turns, own = [], []
        for index in wanted:
            prompt = self._prompt_text(chat[:index], tools, index + 1)
            ends = self._ends(chat, index)
            if whole.startswith(prompt) and self._keeps_thinking(chat, index, whole[len(prompt) :]):
                turns.append(_Turn(index + 1, len(prompt), self._bound(chat, tools, index, whole), ends))
                continue
            if self.prompt_mismatch == "error":
                raise ConfigError(
                    f"turn {index + 1} (assistant): {self.template.name} writes the chat before it otherwise than the "
                    "prompt; set model.template_arguments (such as enable_thinking: false) or "
                    "data.prompt_mismatch=as_inferred"
                )
            own.append(_Own(index + 1, prompt, self._answer(chat, tools, index, prompt), ends))
        return _Plan(whole, marks, turns, own, wanted[-1] + 1)

    def _keeps_thinking(self, chat: list[dict[str, Any]], index: int, rest: str) -> bool:
        """Whether the thinking of the chat's last turn stands in the whole text; templates drop that of earlier ones."""
        thought = _thinking(chat[index])
        return index < len(chat) - 1 or not thought or thought in rest

    def _whole(self, chat: list[dict[str, Any]], tools: list | None) -> tuple[str, list[tuple[int, int]] | None]:
        try:
            return self.template.marked(chat, tools)
        except Exception as error:
            raise self._refusal(chat, tools, error) from error

    def _prompt_text(self, chat: list[dict[str, Any]], tools: list | None, number: int) -> str:
        try:
            return self.template.render(chat, tools, True)
        except Exception as error:
            raise ConfigError(f"turn {number}: {self.template.name} gives no prompt for it: {_line(error)}") from error

    def _refusal(self, chat: list[dict[str, Any]], tools: list | None, error: Exception) -> ConfigError:
        """Says which turn a template does not take: the first one with which it fails."""
        number = len(chat)
        for count in range(1, len(chat)):
            try:
                self.template.render(chat[:count], tools, False)
            except Exception as earlier:
                if _line(earlier) == _line(error):
                    number = count
                    break
        return ConfigError(
            f"turn {number} ({chat[number - 1]['role']}): {self.template.name} refuses it: {_line(error)}"
        )

    def _check_text(self, chat: list[dict[str, Any]]) -> None:
        """Refuses text in which the tokenizer would read the end of a turn."""
        ends = {index for index in (*self.template.ends, self.tokenizer.eos_token_id) if index is not None}
        for token in self.tokenizer.convert_ids_to_tokens(sorted(ends)):
            for number, message in enumerate(chat, 1):
                if token in (message["content"] or ""):
                    raise ConfigError(
                        f"turn {number} ({message['role']}): its text has {token}, which would end the turn there; "
                        "write it in another way or leave the row out"
                    )

    def _check_kept(self, chat: list[dict[str, Any]], tools: list | None, whole: str) -> None:
        """Refuses a chat of which the template leaves something out."""
        for number, message in enumerate(chat, 1):
            content = (message["content"] or "").split("</think>")[-1].strip()
            if content and content not in whole and not _mostly_in(content, whole):
                raise self._left_out(number, message, "its content")
            if message.get("tool_calls") and not self._shows_calls(chat, number - 1):
                raise self._left_out(number, message, "its tool_calls")
        for tool in tools or ():
            name = str(tool.get("function", tool).get("name"))
            if name not in whole:
                raise ConfigError(f"{self.template.name} leaves out the tools; use another model.chat_template")

    def _shows_calls(self, chat: list[dict[str, Any]], index: int) -> bool:
        """Whether the calls of a turn stand in what the template writes of the chat up to it."""
        try:
            text = self.template.render(chat[: index + 1], None, False)  # without tools: their names would be there
        except Exception:  # it takes calls of declared tools alone, so it reads them
            return True
        return all(str(call["function"].get("name")) in text for call in chat[index]["tool_calls"])

    def _left_out(self, number: int, message: Mapping[str, Any], what: str) -> ConfigError:
        return ConfigError(
            f"turn {number} ({message['role']}): {self.template.name} leaves out {what}; "
            "use another role or model.chat_template, or leave the row out"
        )

    def _upto(self, chat: list[dict[str, Any]], tools: list | None, index: int) -> str:
        """The text of the chat that ends with the message `index`."""
        try:
            return self.template.render(chat[: index + 1], tools, False)
        except Exception as error:
            raise self._refusal(chat[: index + 1], tools, error) from error

    def _ends(self, chat: list[dict[str, Any]], index: int) -> tuple[int, ...]:
        """Ids that may end the turn, the likeliest first."""
        ends = self.template.ends
        order = [ends.last, ends.earlier] if index == len(chat) - 1 else [ends.earlier, ends.last]
        if chat[index].get("tool_calls"):
            order.insert(0, ends.tool)
        order.append(self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(end for end in order if end is not None))

    def _bound(self, chat: list[dict[str, Any]], tools: list | None, index: int, whole: str) -> int:
        """A place in the whole text behind the end of the turn and before any text of the next message."""
        if index == len(chat) - 1:
            return len(whole)
        # Text that is added to the next message shows where that message ends at the latest; no turn ends within it.
        after = {**chat[index + 1], "content": f"{(chat[index + 1]['content'] or '').rstrip()}A"}
        try:
            other = self.template.render([*chat[: index + 1], after, *chat[index + 2 :]], tools, False)
        except Exception:  # the template reads the content: what it says of the turn alone must do
            other = self._upto(chat, tools, index)
        return common_prefix(whole, other)

    def _answer(self, chat: list[dict[str, Any]], tools: list | None, index: int, prompt: str) -> str:
        """What the model writes after `prompt`: what the template writes of the turn, with its thinking."""
        text = self._upto(chat, tools, index)
        shared = common_prefix(prompt, text)
        cut = _CUT_TAG.search(text, 0, shared)
        if cut and _TAG.match(text, cut.start()):
            shared = cut.start()
        opened, answer = prompt[shared:], text[shared:]
        thought = _thinking(chat[index])
        if thought and "</think>" in opened and prompt.rfind("<think>") < shared:  # closed before any thinking
            return text[prompt.rfind("<think>") :]
        if thought and thought not in answer:
            content = chat[index]["content"]
            said = content.split("</think>")[-1]
            if not content.lstrip().startswith("<think>") or said.strip() not in answer:
                raise self._left_out(index + 1, chat[index], "its thinking")
            written = _THINK.sub("", content, count=1) if _THINK.fullmatch(opened) else content
            answer = written + answer[answer.index(said.strip()) + len(said.strip()) :]
        return answer

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _batch(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _assembled(self, plan: _Plan, text: _Text, fits: list[bool]) -> list[Rendered]:
        rows: list[tuple[int, Rendered]] = []
        supervised = [0] * len(text.ids)
        end = first = latest = 0
        for turn, fit in zip(plan.turns, fits, strict=True):
            last = text.end_before(turn.bound, turn.start, turn.ends, self.template.specials)
            if last is None:
                raise self._endless(turn.number)
            if not fit:  # the tokens of prompt and answer grow together
                answer = plan.whole[turn.start : text.char_after(last)]
                rows.append(
                    (turn.number, self._own(_Own(turn.number, plan.whole[: turn.start], answer, turn.ends), plan))
                )
                continue
            begin = text.place(turn.start)
            assert begin is not None
            for place in range(begin, last + 1):
                supervised[place] = int(plan.marks is None or place == last or text.is_marked(place, plan.marks))
            end = self._mark_space(text.ids, supervised, last)
            first, latest = first or turn.number, turn.number
        if first:
            kept = len(text.ids) if latest == plan.last else end + 1
            rows.append((first, Rendered(text.ids[:kept], supervised[:kept], plan.whole, latest == plan.last)))
        rows += [(own.number, self._own(own, plan)) for own in plan.own]
        return [row for _, row in sorted(rows, key=lambda pair: pair[0])]

    def _own(self, own: _Own, plan: _Plan) -> Rendered:
        """A row of the prompt's own ids and those of the answer, up to the token that ends the turn."""
        asked = self._ids(own.prompt)
        (text,) = _encode(self.tokenizer, [own.prompt + own.answer])
        ids = text.ids
        if ids[: len(asked)] != asked:
            # A special token before the answer keeps the tokenizer from treating it as the beginning of a text.
            guard = self.tokenizer.convert_ids_to_tokens(own.ends[0]) if own.ends else ""
            (tail,) = _encode(self.tokenizer, [guard + own.answer])
            ids = [*asked, *tail.ids[1 if own.ends else 0 :]]
        last = _last_of(self.tokenizer, ids, len(asked), len(ids), own.ends)
        if last is None:
            raise self._endless(own.number)
        supervised = [0] * len(asked) + [1] * (last + 1 - len(asked)) + [0] * (len(ids) - last - 1)
        end = self._mark_space(ids, supervised, last)
        return Rendered(ids[: end + 1], supervised[: end + 1], own.prompt + own.answer, own.number == plan.last)

    def _mark_space(self, ids: list[int], supervised: list[int], last: int) -> int:
        """Supervise the white space after the end of a turn where that is asked for; the last supervised place."""
        while self.supervise_after_end and last + 1 < len(ids) and not self.tokenizer.decode([ids[last + 1]]).strip():
            last += 1
            supervised[last] = 1
        return last

    def _endless(self, number: int) -> ConfigError:
        return ConfigError(
            f"turn {number} (assistant): {self.template.name} ends it with nothing, so no answer would stop; "
            "use another model.chat_template, or set model.eos to the token that ends a turn"
        )


def _is_trained(message: Mapping[str, Any]) -> bool:
    return all(message.get(key) is None or bool(message[key]) for key in ("weight", "train", "loss"))


def _thinking(message: Mapping[str, Any]) -> str:
    """The thinking of a prepared message."""
    for key in REASONING:
        if message.get(key):
            return message[key].strip()
    content = message["content"] or ""
    return content.split("</think>")[0].split("<think>")[-1].strip() if "</think>" in content else ""


def _mostly_in(content: str, whole: str) -> bool:
    """Whether a text stands in another one that escapes or respells some of it."""
    words = set(_WORDS.findall(content))
    return bool(words) and 2 * len(words & set(_WORDS.findall(whole))) > len(words)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _last_of(tokenizer: Any, ids: Sequence[int], begin: int, end: int, wanted: Sequence[int]) -> int | None:
    """The last place in [begin, end) of the first of the `wanted` ids that is there; the first of those that follow
    one another with nothing but white space between (Phi writes its end and then EOS)."""
    found = next((at for index in wanted for at in range(end - 1, begin - 1, -1) if ids[at] == index), None)
    if found is not None:
        for place in range(found - 1, begin - 1, -1):
            if ids[place] in wanted:
                found = place
            elif tokenizer.decode([ids[place]]).strip():
                break
    return found


class _Text:
    """A text and its ids; `starts` and `stops` are the characters of each, None for a tokenizer that does not tell."""

    def __init__(self, tokenizer: Any, text: str, ids: list[int], offsets: list[tuple[int, int]] | None):
        self.tokenizer, self.text, self.ids = tokenizer, text, ids
        self.starts = None if offsets is None else [first for first, _ in offsets]
        self.stops = None if offsets is None else [last for _, last in offsets]

    def place(self, char: int) -> int | None:
        """The id that begins at a character; None where one spans it."""
        if self.starts is None:
            ids = self.tokenizer(self.text[:char], add_special_tokens=False)["input_ids"]
            return len(ids) if self.ids[: len(ids)] == ids else None
        place = bisect_left(self.starts, char)
        assert self.stops is not None
        return None if place and self.stops[place - 1] > char else place

    def tail(self, place: int | None, char: int, specials: frozenset[int]) -> tuple[str, list[int]]:
        """The text from the last special token before `char` up to it, and the ids that stand there.

        Special tokens cut a text, so these ids are the prompt's if and only if the tail alone gives them.
        """
        if place is None or self.starts is None:
            return "", []
        begin = place
        while begin and self.ids[begin - 1] not in specials:
            begin -= 1
        begin = max(0, begin - 1)
        return self.text[self.starts[begin] if begin else 0 : char], self.ids[begin:place]

    def end_before(self, bound: int, start: int, wanted: Sequence[int], specials: frozenset[int]) -> int | None:
        """The place of the token that ends a turn of the characters [start, bound)."""
        if self.starts is None:
            first, end = (
                len(self.tokenizer(self.text[:at], add_special_tokens=False)["input_ids"]) for at in (start, bound)
            )
        else:
            first, end = bisect_left(self.starts, start), bisect_left(self.starts, bound)
        found = _last_of(self.tokenizer, self.ids, first, end, wanted)
        if found is None and end == len(self.ids):
            place = next((at for at in range(end - 1, first - 1, -1) if self.ids[at] in specials), None)
            if place is not None and not self.tokenizer.decode(self.ids[place + 1 :]).strip():
                found = place
        return found

    def char_after(self, place: int) -> int:
        return len(self.tokenizer.decode(self.ids[: place + 1])) if self.stops is None else self.stops[place]

    def is_marked(self, place: int, marks: Sequence[tuple[int, int]]) -> bool:
        if self.starts is None:
            return True
        return any(first <= self.starts[place] < last for first, last in marks)


def _encode(tokenizer: Any, texts: list[str]) -> list[_Text]:
    if not texts:
        return []
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=bool(tokenizer.is_fast))
    offsets = batch["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    return [_Text(tokenizer, *entry) for entry in zip(texts, batch["input_ids"], offsets, strict=True)]
