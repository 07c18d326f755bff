"""The one way from messages to token ids and to what of them is supervised.

A chat is rendered once, whole. A turn's supervised span begins where the prompt that inference would show ends, token
for token, and goes up to the token that ends the turn. Where a template writes the past differently from the prompt
(DeepSeek-R1 opens its thinking in the prompt alone, Qwen3.5 drops it from earlier turns), no span of the whole chat is
what the model would see; that turn becomes a row of its own: the prompt as inference shows it, then the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from common import chat_checks as checks
from common.chat_template import TRAINED, ChatTemplate, common_prefix, prepared_tools, thinking
from common.chat_tokens import TokenText, encode, last_of
from common.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Literal["all", "last"]
PromptMismatch = Literal["as_inferred", "error"]
POLICY = ("turns", "prompt_mismatch", "supervise_after_end")  # settings of `data` that decide what is supervised
_THINK = re.compile(r"\s*<think>\n?")
_CUT_TAG = re.compile(r"[<\[][^<>\[\]\s]*$")
_TAG = re.compile(r"[<\[][^<>\[\]\s]*[>\]]")


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

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: list | str | None = None) -> tuple[str, list[int]]:
        """What inference shows the model: the chat so far and the assistant's header, as text and ids.

        Raises ConfigError where the template refuses the chat.
        """
        text = self._asked(messages, tools, shown=False)
        return text, self._batch([text])[0]

    def prompts(
        self, chats: Sequence[Sequence[Mapping[str, Any]]], tools: Sequence[list | str | None] | None = None
    ) -> list[list[int] | ConfigError]:
        """The ids of `prompt` for several chats, tokenised together; the error in the place of one that is refused,
        such as one whose tools the template does not show.

        tools: of each chat; left out, no chat has any.
        """
        texts: list[str | ConfigError] = []
        for messages, of_chat in zip(chats, tools or [None] * len(chats), strict=True):
            try:
                texts.append(self._asked(messages, of_chat, shown=True))
            except ConfigError as error:
                texts.append(error)
        found = iter(self._batch([text for text in texts if isinstance(text, str)]))
        return [text if isinstance(text, ConfigError) else next(found) for text in texts]

    def _asked(self, messages: Sequence[Mapping[str, Any]], tools: list | str | None, *, shown: bool) -> str:
        """The text of a prompt; `shown`: in which the template must show the tools."""
        chat, schemas = self.template.prepared(messages), prepared_tools(tools)
        text = self._prompt_text(chat, schemas, len(chat) + 1)
        if shown:
            checks.tools_shown(self.template, chat, schemas, text, prompt=True)
        return text

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
        encoded = encode(self.tokenizer, [plan.whole for plan in good])
        fits = self._fits([(text, turn) for plan, text in zip(good, encoded, strict=True) for turn in plan.turns])
        taken = iter(encoded)
        return [plan if isinstance(plan, ConfigError) else self._assembled(plan, next(taken), fits) for plan in plans]

    def _fits(self, turns: list[tuple[TokenText, _Turn]]) -> Iterator[bool]:
        """Whether the ids of a turn's prompt are those that the whole text begins with, in the order of `turns`."""
        places = [text.place(turn.start) for text, turn in turns]
        tails = [
            text.tail(place, turn.start, self.template.specials)
            for (text, turn), place in zip(turns, places, strict=True)
        ]
        found = self._batch([tail for tail, _ in tails])
        return (
            place is not None and ids == expected
            for place, (_, expected), ids in zip(places, tails, found, strict=True)
        )

    def _plan(self, messages: Sequence[Mapping[str, Any]], tools: list | None) -> _Plan:
        """What of a chat is supervised, as text."""
        chat, tools = self.template.prepared(messages), prepared_tools(tools)
        answers = [index for index, message in enumerate(chat) if message["role"] == "assistant"]
        wanted = [index for index in answers if _is_trained(messages[index])]
        if not wanted:
            raise ConfigError("no assistant turn is trained on; a chat needs one")
        if self.turns == "last":
            wanted = wanted[-1:]
        checks.no_end_in_text(self.template, chat)
        whole, marks = self._whole(chat, tools)
        checks.nothing_left_out(self.template, chat, tools, whole)
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
        """Whether the last turn's thinking stands in the whole text; templates drop that of earlier turns."""
        thought = thinking(chat[index])
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
        order.append(self.template.eos)
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
        header = self._header_behind(chat[:index], tools, prompt, shared)
        thought = thinking(chat[index])
        if header is not None:
            answer = text.rpartition(header)[2] if header in text else ""
            if not answer or thought not in answer:
                raise checks.left_out(self.template, index + 1, chat[index], "its header or its thinking")
            return answer
        cut = _CUT_TAG.search(text, 0, shared)
        if cut and _TAG.match(text, cut.start()):
            shared = cut.start()
        opened, answer = prompt[shared:], text[shared:]
        if thought and "</think>" in opened and prompt.rfind("<think>") < shared:  # closed before any thinking
            return text[prompt.rfind("<think>") :]
        if thought and thought not in answer:
            content = chat[index]["content"]
            said = content.split("</think>")[-1]
            if not content.lstrip().startswith("<think>") or said.strip() not in answer:
                raise checks.left_out(self.template, index + 1, chat[index], "its thinking")
            written = _THINK.sub("", content, count=1) if _THINK.fullmatch(opened) else content
            answer = written + answer[answer.index(said.strip()) + len(said.strip()) :]
        return answer

    def _header_behind(self, before: list[dict[str, Any]], tools: list | None, prompt: str, shared: int) -> str | None:
        """The header that ends `prompt`, where what is `shared` with the answered chat ends within its past already.

        Qwen3 opens the thinking of an answer that another answer follows; most families write the past alike: None.
        """
        try:
            past = self.template.render(before, tools, False)
        except Exception:  # the family takes no such chat: there is nothing to compare with
            return None
        header = prompt[len(past) :]
        return header if shared < len(past) and prompt.startswith(past) and header.strip() else None

    def _batch(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def _assembled(self, plan: _Plan, text: TokenText, fits: Iterator[bool]) -> list[Rendered] | ConfigError:
        """The rows of a chat; `fits` has an entry for each of its turns. An error where a turn has no end."""
        fitting = [next(fits) for _ in plan.turns]
        rows: list[tuple[int, Rendered]] = []
        supervised = [0] * len(text.ids)
        first = latest = end = 0
        try:
            for turn, fit in zip(plan.turns, fitting, strict=True):
                last = text.end_before(turn.bound, turn.start, turn.ends, self.template.specials)
                if last is None:
                    raise self._endless(turn.number)
                if not fit:  # tokens of the prompt and of the answer grow together
                    answer = plan.whole[turn.start : text.char_after(last)]
                    own = _Own(turn.number, plan.whole[: turn.start], answer, turn.ends)
                    rows.append((turn.number, self._own(own, plan)))
                    continue
                for place in range(text.place(turn.start) or 0, last + 1):
                    supervised[place] = int(plan.marks is None or place == last or text.is_marked(place, plan.marks))
                end = self._mark_space(text.ids, supervised, last)
                first, latest = first or turn.number, turn.number
            rows += [(own.number, self._own(own, plan)) for own in plan.own]
        except ConfigError as error:
            return error
        if first:  # without what follows the last supervised turn, where that is not the chat's last
            kept = len(text.ids) if latest == plan.last else end + 1
            rows.append((first, Rendered(text.ids[:kept], supervised[:kept], plan.whole, latest == plan.last)))
        return [row for _, row in sorted(rows, key=lambda pair: pair[0])]

    def _own(self, own: _Own, plan: _Plan) -> Rendered:
        """A row of the prompt's own ids and those of the answer, up to the token that ends the turn."""
        asked = self._batch([own.prompt])[0]
        (text,) = encode(self.tokenizer, [own.prompt + own.answer])
        ids = text.ids
        if ids[: len(asked)] != asked:
            # A special token before the answer keeps the tokenizer from treating it as the beginning of a text.
            guard = self.template.token(own.ends[0]) if own.ends else ""
            (tail,) = encode(self.tokenizer, [guard + own.answer])
            ids = [*asked, *tail.ids[1 if own.ends else 0 :]]
        last = last_of(self.tokenizer, ids, len(asked), len(ids), own.ends)
        if last is None:
            raise self._endless(own.number)
        supervised = [0] * len(asked) + [1] * (last + 1 - len(asked)) + [0] * (len(ids) - last - 1)
        end = self._mark_space(ids, supervised, last)
        return Rendered(ids[: end + 1], supervised[: end + 1], own.prompt + own.answer, own.number == plan.last)

    def _mark_space(self, ids: list[int], supervised: list[int], last: int) -> int:
        """Supervise the white space after the end of a turn where that is asked for; the last supervised place."""
        while (
            self.supervise_after_end and last + 1 < len(ids) and not str(self.tokenizer.decode([ids[last + 1]])).strip()
        ):
            last += 1
            supervised[last] = 1
        return last

    def _endless(self, number: int) -> ConfigError:
        return ConfigError(
            f"turn {number} (assistant): {self.template.name} ends it with nothing, so no answer would stop; "
            "use another model.chat_template, or set model.eos to the token that ends a turn"
        )


def template_arguments(model: Any) -> dict[str, Any]:
    """`model.template_arguments` of a recipe's model section; none where a caller leaves them out."""
    return dict(getattr(model, "template_arguments", None) or {})


def renderer_for(tokenizer: PreTrainedTokenizerBase, model: Any, data: Any = None) -> Renderer:
    """The renderer of a recipe's `model` and `data` sections."""
    given = {name: getattr(data, name) for name in POLICY if hasattr(data, name)}
    path = getattr(model, "chat_template", None)
    name = "the tokenizer's chat template" if path is None else f"the chat template {path}"
    return Renderer(tokenizer, template_arguments=template_arguments(model), name=name, **given)


def _is_trained(message: Mapping[str, Any]) -> bool:
    return all(message.get(key) is None or bool(message[key]) for key in TRAINED)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
