"""GRAPE: of several responses to a question, the one that the base model finds likeliest."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from data_prep.methods.contract import Method, Question, Response


class Grape(BaseModel):
    """Settings of method grape."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_token: bool = Field(True, description="compare mean log-probabilities of a token, not sums over the response")
    demonstrations: bool = Field(True, description="the demonstrations of a question are candidates too")


class GrapeMethod(Method):
    """The candidate of the largest log-probability under the base model; of equal ones the first.

    Candidates are the responses that rewrite.model gave, and the demonstrations of all chats that ask the same.
    """

    name = "grape"
    section = Grape
    verdict = "none"
    scored = True
    otherwise = "demonstration"
    reference = "TARGET-SFT, table 5: argmax over responses of pi_base(response | question)"

    def choose(self, question: Question, responses: Sequence[Response], section: Grape) -> Sequence[Response]:
        scored = [
            (one.log_p / one.tokens if section.per_token else one.log_p, one)
            for one in responses
            if one.log_p is not None and (section.demonstrations or one.demonstration is None)
        ]
        return [max(scored, key=lambda pair: pair[0])[1]] if scored else []


METHOD = GrapeMethod()
