"""What is trained on of the sampled responses and the demonstrations: measured, scored and chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.chats import Renderer, template_arguments
from common.errors import ConfigError
from common.templates import template_file
from data_prep.lengths import ChatLengths, Measured
from data_prep.methods import Method, Response
from data_prep.rewriting.answers import Answered, engine_of
from data_prep.rewriting.questions import Asked, Chats


class Counts:
    """What became of questions, responses and chats, and the tokens of the chats that are trained on."""

    def __init__(self) -> None:
        self.questions: Counter[str] = Counter()
        self.responses: Counter[str] = Counter()
        self.chats = Counter(sampled=0, demonstrations=0, dropped=0)
        self.tokens = Counter(chats=0, rows=0, tokens=0, response_tokens=0)

    def add(self, chat: Mapping[str, Any]) -> None:
        """A chat that is trained on."""
        tokens, responses = sum(chat["row_tokens"]), sum(chat["row_supervised"])
        self.tokens.update(chats=1, rows=len(chat["row_tokens"]), tokens=tokens, response_tokens=responses)

    def named(self) -> dict[str, int]:
        """Questions and responses by what became of them."""
        found = {f"questions, {name}": count for name, count in sorted(self.questions.items())}
        return found | {f"responses, {name}": count for name, count in sorted(self.responses.items())}


class Choices:
    """Chooses from answered questions.

    Args:
        settings: of the stage. base: directory of the model that is trained, whose template and tokenizer count.
        scratch: keeps scores of a killed run.
    """

    def __init__(
        self,
        settings: Any,
        base: Path,
        scratch: Path,
        chats: Chats,
        method: Method,
        section: Any,
        heartbeat: Callable[[], None],
    ):
        self.settings, self.chats, self.method, self.section = settings, chats, method, section
        self.heartbeat = heartbeat
        self.stays = (settings.rewrite.unanswered or method.otherwise) == "demonstration"
        self.counts = Counts()
        self.lengths = ChatLengths.of_model(base, settings.model, settings.data, _template(settings.model))
        self.engine: Any = None
        if method.scored:
            from evaluation.generation.kept import KeptEngine

            self.engine = KeptEngine(engine_of(settings, base), scratch / "scores")

    def of(self, block: Sequence[Answered]) -> Iterator[dict[str, Any]]:
        """The chats that a block of questions becomes; what was drawn is marked with its verdict, score and choice."""
        self._measure(block)
        candidates = [self._candidates(one) for one in block]
        if self.engine is not None:
            candidates = self._scored(block, candidates)
        for one, given in zip(block, candidates, strict=True):
            for chat in self._chats(one, given):
                self.counts.add(chat)
                yield chat

    def _measure(self, block: Sequence[Answered]) -> None:
        """Takes out the responses that the base model's template refuses or that are over data.max_length."""
        rows = [(one, drawn) for one in block for drawn in one.drawn if drawn.usable]
        if not rows:
            return
        texts = [_turns(one.asked, drawn.text) for one, drawn in rows]
        measured = self.lengths.chats(texts, [one.asked.tools for one, _ in rows])
        for (_, drawn), found in zip(rows, measured, strict=True):
            if isinstance(found, ConfigError):
                drawn.verdict = "template"
            elif found.longest > self.settings.data.max_length:
                drawn.verdict = "too long"

    def _candidates(self, one: Answered) -> list[Response]:
        if one.asked.fixed:
            return []
        found = [
            Response(drawn.text, True if drawn.verdict == "right" else None, drawn.asked, place)
            for place, drawn in enumerate(one.drawn)
            if drawn.usable
        ]
        shown = one.asked.question.demonstrations
        return [*found, *(Response(text, demonstration=place) for place, text in enumerate(shown))]

    def _scored(self, block: Sequence[Answered], candidates: Sequence[Sequence[Response]]) -> list[list[Response]]:
        """The candidates with their log-probabilities under the base model."""
        renderer = Renderer(
            self.lengths.renderer.tokenizer, template_arguments=template_arguments(self.settings.model), turns="last"
        )
        rows: list[tuple[list[int], int]] = []
        places: dict[tuple[int, int], int] = {}
        for number, (one, given) in enumerate(zip(block, candidates, strict=True)):
            for place, response in enumerate(given):
                found = _answer_ids(renderer, self._whole(one, response), one.asked.tools)
                if found is not None and len(found[0]) < self.engine.engine.options.max_length:
                    places[number, place] = len(rows)
                    rows.append(found)
        scores = self.engine.score(rows, self.heartbeat) if rows else []

        def scored(one: Answered, response: Response, at: int | None) -> Response:
            if at is None:
                return response
            log_p, tokens = scores[at][0], len(rows[at][0]) - rows[at][1]
            if response.sample is not None:
                one.drawn[response.sample].log_p = log_p
            return replace(response, log_p=log_p, tokens=tokens)

        return [
            [scored(one, response, places.get((number, place))) for place, response in enumerate(given)]
            for number, (one, given) in enumerate(zip(block, candidates, strict=True))
        ]

    def _whole(self, one: Answered, response: Response) -> list[dict[str, Any]]:
        if response.demonstration is not None:
            return self.chats.chat(one.asked.places[response.demonstration])["messages"]
        return _turns(one.asked, response.text)

    def _chats(self, one: Answered, candidates: Sequence[Response]) -> Iterator[dict[str, Any]]:
        """The chats that a question becomes."""
        originals = [self.chats.chat(place) for place in one.asked.places]
        chosen = list(self.method.choose(one.asked.question, candidates, self.section)) if candidates else []
        for response in chosen:
            if response.sample is not None:
                one.drawn[response.sample].chosen = True
        for drawn in one.drawn:
            self.counts.responses["chosen" if drawn.chosen else "not chosen" if drawn.usable else drawn.verdict] += 1
        if not chosen:
            yield from self._unanswered(one, originals)
            return
        self.counts.questions["answered"] += 1
        shown = {response.demonstration for response in chosen} - {None}
        self.counts.chats["dropped"] += max(0, len(originals) - len(chosen))
        for number, response in enumerate((one for one in chosen if one.sample is not None), 1):
            self.counts.chats["sampled"] += 1
            name = originals[0]["id"]
            # A demonstration that stays keeps its own name.
            plain = number == 1 and 0 not in shown
            yield self._chat(one.asked, response.text, name if plain else f"{name}~{number}")
        for place in sorted(place for place in shown if place is not None):
            self.counts.chats["demonstrations"] += 1
            yield originals[place]

    def _unanswered(self, one: Answered, originals: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if one.asked.fixed:
            self.counts.questions[f"kept as it is: {one.asked.fixed}"] += 1
        else:
            what = "demonstration stays" if self.stays else "dropped"
            self.counts.questions[f"{what}: {_reason(one)}"] += 1
        stays = self.stays or bool(one.asked.fixed)
        self.counts.chats["demonstrations" if stays else "dropped"] += len(originals)
        if stays:
            yield from originals

    def _chat(self, asked: Asked, text: str, name: str) -> dict[str, Any]:
        turns = _turns(asked, text)
        (measured,) = self.lengths.chats([turns], [asked.tools])
        assert isinstance(measured, Measured)
        tools = {} if asked.tools is None else {"tools": asked.tools}
        lengths = {"row_tokens": measured.tokens, "row_supervised": measured.supervised}
        return {"id": name, "messages": turns, "critical_spans": None, **lengths, **tools}


def _template(model: Any) -> Path | None:
    return None if model.chat_template is None else template_file(model.chat_template)


def _turns(asked: Asked, text: str) -> list[dict[str, Any]]:
    return [*(dict(turn) for turn in asked.question.prompt), {"role": "assistant", "content": text}]


def _reason(one: Answered) -> str:
    if one.why:
        return one.why
    if any(drawn.verdict == "wrong" for drawn in one.drawn):
        return "no right response"
    return "no usable response"


def _answer_ids(renderer: Renderer, turns: list[dict[str, Any]], tools: Any) -> tuple[list[int], int] | None:
    """The ids up to the end of the last answer, and where that begins; None where the template refuses the chat."""
    try:
        row = next(row for row in renderer.rows(turns, tools) if row.last)
    except ConfigError:
        return None
    end = len(row.ids) - row.supervised[::-1].index(1)
    start = end - 1
    while start and row.supervised[start - 1]:
        start -= 1
    return row.ids[:end], start
