"""RFT: fine-tuning on the model's own right responses."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from data_prep.methods.contract import Method, Question, Response, distinct, sampled


class Rft(BaseModel):
    """Settings of method rft."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: int | None = Field(None, description="right responses that differ, of each question; null: all", gt=0)
    demonstrations: bool = Field(False, description="the demonstrations are trained on as well")


class RftMethod(Method):
    """The right responses to a question that differ, in the order in which they were sampled."""

    name = "rft"
    section = Rft
    reference = "TARGET-SFT, table 5: the label is sampled from the correct responses of a generator"

    def choose(self, question: Question, responses: Sequence[Response], section: Rft) -> Sequence[Response]:
        chosen = distinct(sampled(responses))[: section.keep]
        shown = [one for one in responses if one.demonstration is not None]
        return [*chosen, *shown] if chosen and section.demonstrations else chosen


METHOD = RftMethod()
