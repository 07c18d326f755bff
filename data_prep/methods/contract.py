"""What a data-level method decides: what is asked, which texts are usable, and what is trained on in the end.

The stage `rewrite` does the rest: it samples, grades, measures, scores, counts and writes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import ConfigError

Turn = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """Chats that ask the same, down to the instruction.

    prompt: the turns before the answer. demonstrations: the chats' last answers. answer: the reference, None where no
    demonstration holds one that the grader can read.
    """

    prompt: tuple[Turn, ...]
    demonstrations: tuple[str, ...]
    answer: str | None


@dataclass(frozen=True)
class Response:
    """A text that may be trained on: whole, renderable, within data.max_length, and right where it was graded.

    correct: None where it was not graded. asked: the round in which it was sampled. sample, demonstration: its place
    among the sampled ones or among the question's demonstrations; the other is None. tokens, log_p: of the response
    with its end under the base model, where the method is `scored`; log_p is a sum in nats, None where the chat does
    not fit rewrite.max_length.
    """

    text: str
    correct: bool | None = None
    asked: int = 0
    sample: int | None = None
    demonstration: int | None = None
    tokens: int = 0
    log_p: float | None = None


class NoSettings(BaseModel):
    """The section of a method without settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Method(ABC):
    """One data-level method; its file's name is its name.

    version: raise it when it chooses otherwise under equal settings. section: its own settings, frozen and without
    unknown keys. rounds: how often a question may be asked. verdict: `required` (only responses that are right are
    usable, and a question without a reference answer has none), `known` (the same where there is a reference), `none`.
    scored: it reads `Response.log_p`. apart: every chat is a question of its own, even where two ask the same.
    otherwise: what becomes of the chats of a question that nothing is chosen for, where rewrite.unanswered is null.
    reference: paper, table.
    """

    name: str
    version: int = 1
    section: type[BaseModel] = NoSettings
    rounds: int = 1
    verdict: Literal["required", "known", "none"] = "required"
    scored: bool = False
    apart: bool = False
    otherwise: Literal["drop", "demonstration"] = "drop"
    reference: str = ""

    def ask(self, question: Question, round: int, solved: bool, section: Any) -> Sequence[Turn] | None:
        """The prompt of a round, counted from 0; None to ask no more. solved: an earlier round has a right response."""
        return question.prompt if round == 0 else None

    def accept(self, text: str, section: Any) -> str | None:
        """What would be trained on of a sampled text; None where it has not the form."""
        return text

    @abstractmethod
    def choose(self, question: Question, responses: Sequence[Response], section: Any) -> Sequence[Response]:
        """Of the usable responses, sampled ones in their order and then the demonstrations, those that are trained on.

        None of them: the question is unanswered.
        """


def section_of(method: Method, settings: Mapping[str, Any]) -> Any:
    """`rewrite.settings` as the method's section. Raises ConfigError (one line) for what does not fit."""
    try:
        return method.section.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        allowed = ", ".join(method.section.model_fields) or "none"
        raise ConfigError(
            f"rewrite.settings.{field}: {first['msg']}; rewrite.method={method.name} has {allowed}"
        ) from None


def sampled(responses: Sequence[Response]) -> list[Response]:
    """Those that are no demonstration."""
    return [one for one in responses if one.sample is not None]


def distinct(responses: Sequence[Response]) -> list[Response]:
    """The first of all that say the same but for white space."""
    found: dict[str, Response] = {}
    for one in responses:
        found.setdefault(" ".join(one.text.split()), one)
    return list(found.values())
