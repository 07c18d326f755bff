"""Self-distillation: the base model writes each demonstration anew, in its own words."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.errors import ConfigError
from data_prep.methods._texts import filled, with_last
from data_prep.methods.contract import Method, Question, Response, Turn, sampled

INSTRUCTION = (
    "{question}\n\nA solution to learn from:\n{response}\n\n"
    "Now answer the question above in your own words and do not mention that solution."
)


class SelfDistillation(BaseModel):
    """Settings of method self_distillation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instruction: str = Field(INSTRUCTION, description="what is asked, with {question} and its {response}")

    @field_validator("instruction")
    @classmethod
    def _names_both(cls, value: str) -> str:
        return filled(value, "question", "response")


class SelfDistillationMethod(Method):
    """The first rewritten response, right where the demonstration holds an answer; else the demonstration stays."""

    name = "self_distillation"
    section = SelfDistillation
    verdict = "known"
    apart = True
    otherwise = "demonstration"
    reference = "TARGET-SFT, table 5: the label is a rewriting of the demonstration by the base model"

    def ask(self, question: Question, round: int, solved: bool, section: SelfDistillation) -> Sequence[Turn] | None:
        if round:
            return None
        if len(question.demonstrations) != 1:
            raise ConfigError("self_distillation rewrites one demonstration at a time")
        return with_last(question.prompt, section.instruction, response=question.demonstrations[0])

    def choose(
        self, question: Question, responses: Sequence[Response], section: SelfDistillation
    ) -> Sequence[Response]:
        return sampled(responses)[:1]


METHOD = SelfDistillationMethod()
