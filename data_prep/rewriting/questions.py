"""The questions of prepared chats: chats that ask the same together, with the answer that their demonstrations give."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.chat_template import TRAINED
from common.files import text_digest
from common.problems import turns
from data_prep.methods import Question
from data_prep.tables import BATCH_ROWS

SOLUTION = "####"  # of GSM8K: the solution, then this mark and the answer


@dataclass(frozen=True)
class Asked:
    """A question with the chats that ask it, by their places in the table. fixed: why its answers stay as they are,
    "" where they do not."""

    question: Question
    places: tuple[int, ...]
    tools: Any
    fixed: str = ""


class Chats:
    """The chats of a prepared file, which stay as they are in an Arrow table, and the questions that they ask.

    Args:
        path: sft_train.parquet. apart: every chat is a question of its own.
    """

    def __init__(self, path: Path, apart: bool):
        self.table = pq.read_table(path)
        self._groups: list[list[int]] = []
        known: dict[str, int] = {}
        for place, row in enumerate(self._rows()):
            key = str(place) if apart else _key(row)
            if key not in known:
                known[key] = len(self._groups)
                self._groups.append([])
            self._groups[known[key]].append(place)

    def __len__(self) -> int:
        """How many questions there are."""
        return len(self._groups)

    def _rows(self):
        columns = [name for name in ("messages", "tools") if name in self.table.column_names]
        for batch in self.table.select(columns).to_batches(BATCH_ROWS):
            yield from batch.to_pylist()

    def chat(self, place: int) -> dict[str, Any]:
        """A row as `TableWriter` takes it."""
        row = self.table.slice(place, 1).to_pylist()[0]
        tools = {} if row.get("tools") is None else {"tools": json.loads(row["tools"])}
        return {**row, **tools, "messages": turns(row["messages"])}

    def asked(self, start: int, end: int) -> list[Asked]:
        """The questions start to end; their answers are not looked for."""
        return [self._asked(places) for places in self._groups[start:end]]

    def _asked(self, places: Sequence[int]) -> Asked:
        rows = [self.chat(place) for place in places]
        *prompt, _ = rows[0]["messages"]
        answers = [row["messages"][-1] for row in rows]
        texts = tuple(str(answer["content"] or "") for answer in answers)
        return Asked(Question(tuple(prompt), texts, None), tuple(places), rows[0].get("tools"), _fixed(answers))


def _fixed(answers: Sequence[Mapping[str, Any]]) -> str:
    if any(answer.get("tool_calls") for answer in answers):
        return "calls a tool"
    if any(answer.get(key) is not None and not answer[key] for answer in answers for key in TRAINED):
        return "not trained on"
    return ""


def _key(row: Mapping[str, Any]) -> str:
    asked = [turns(row["messages"])[:-1], row.get("tools")]
    return text_digest(json.dumps(asked, sort_keys=True, ensure_ascii=False))


def stated(text: str) -> str | None:
    """The answer that a demonstration states: in a box or tags, announced, behind `####`, or alone as one word."""
    from evaluation.grading import extract_answer

    if SOLUTION in text:
        return text.rpartition(SOLUTION)[2].strip().replace(",", "") or None
    found = extract_answer(text)
    if found is None and len(text.split()) == 1:
        found = text.strip()
    return found or None


def with_answers(asked: Sequence[Asked], grader: str) -> list[Asked]:
    """The questions with the reference answers of their demonstrations.

    Of a question's demonstrations the first counts that states an answer under which the grader accepts it; one that
    it refuses or cannot read is no reference.
    """
    from evaluation.grading import default_pool

    pool, waiting = default_pool(), []
    for place, one in enumerate(asked):
        for text in dict.fromkeys(one.question.demonstrations):
            answer = None if one.fixed else stated(text)
            if answer is not None:
                waiting.append((place, answer, pool.submit_grade(text, answer, grader)))
    found: dict[int, str] = {}
    for place, answer, future in waiting:
        outcome = future.result()
        if place not in found and outcome.status == "ok" and outcome.value.get("correct"):
            found[place] = answer
    return [replace(one, question=replace(one.question, answer=found.get(place))) for place, one in enumerate(asked)]
