"""STaR: where the model does not solve a problem, it is told the answer and asked for the way."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from data_prep.methods._texts import filled, with_last
from data_prep.methods.contract import Method, Question, Response, Turn, distinct, sampled


class Star(BaseModel):
    """Settings of method star."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: int = Field(1, description="right responses that differ, of each question", gt=0)
    hint: str = Field(
        "{question}\n\n(The answer is {answer}.)", description="what is asked where no response was right"
    )

    @field_validator("hint")
    @classmethod
    def _names_both(cls, value: str) -> str:
        return filled(value, "question", "answer")


class StarMethod(Method):
    """One round of STaR: right responses, and where there is none, right responses to the question with its answer.

    What is trained on is the question as it was, without the hint. The paper repeats the round with the trained model:
    name its checkpoint as rewrite.model.
    """

    name = "star"
    section = Star
    rounds = 2
    reference = "TARGET-SFT, table 5: the label is sampled from the correct responses of a generator"

    def ask(self, question: Question, round: int, solved: bool, section: Star) -> Sequence[Turn] | None:
        if round == 0:
            return question.prompt
        return None if solved else with_last(question.prompt, section.hint, answer=str(question.answer))

    def choose(self, question: Question, responses: Sequence[Response], section: Star) -> Sequence[Response]:
        return distinct(sampled(responses))[: section.keep]


METHOD = StarMethod()
