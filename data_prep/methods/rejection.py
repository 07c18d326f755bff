"""Rejection sampling of reasoning: labels become responses with a chain of thought (TALR's ESCI with CoT)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from data_prep.methods.contract import Method, Question, Response, sampled

_THOUGHT = re.compile(r"\s*<think>\s*(.*?)\s*</think>\s*(.*?)\s*", re.DOTALL)
_BARE = re.compile(r"\s*(.*?)\s*(<answer>.*</answer>)\s*", re.DOTALL)


class Rejection(BaseModel):
    """Settings of method rejection."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    form: str = Field(
        r"<think>\n.+\n</think>\n<answer>[^<]+</answer>",
        description="regular expression of the whole response; its dot matches line ends",
    )
    wrap: bool = Field(True, description="put reasoning that stands bare before <answer> into <think> tags")

    @field_validator("form")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return value


class RejectionMethod(Method):
    """The first sampled response with the form and the demonstration's answer; other questions are dropped."""

    name = "rejection"
    section = Rejection
    reference = "TALR, C.1.2: rejection sampling from Qwen2.5-72B-Instruct leaves 34,176 of 49K"

    def accept(self, text: str, section: Rejection) -> str | None:
        if section.wrap:
            text = _wrapped(text)
        if text.count("<think>") > 1 or text.count("</think>") > 1:
            return None
        return text if re.fullmatch(section.form, text, re.DOTALL) else None

    def choose(self, question: Question, responses: Sequence[Response], section: Rejection) -> Sequence[Response]:
        return sampled(responses)[:1]


def _wrapped(text: str) -> str:
    """One thought between tags on lines of their own, then the answer."""
    found = _THOUGHT.fullmatch(text) or ("<think>" not in text and _BARE.fullmatch(text)) or None
    if found is None or not found[1]:
        return text
    return f"<think>\n{found[1]}\n</think>\n{found[2]}"


METHOD = RejectionMethod()
