"""Responses to the questions of the training chats: sampled, graded and kept block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.chats import template_arguments
from common.errors import ConfigError
from common.files import read_json, write_json
from common.templates import template_file
from data_prep.methods import Method
from data_prep.rewriting.questions import Asked, Chats, with_answers

BLOCK = 2048  # questions that are in memory with their responses
OPENED = "<think>"  # what the prompt has opened belongs to the answer


@dataclass
class Drawn:
    """One sampled response: as it came, as it would be trained on (`text`), and what became of it.

    verdict: right, wrong, ungraded, or why it cannot be used. asked: the round.
    """

    response: str
    finish_reason: str
    tokens: int
    seed: int
    asked: int
    text: str = ""
    verdict: str = "ungraded"
    log_p: float | None = None
    chosen: bool = False

    @property
    def usable(self) -> bool:
        return self.verdict in ("right", "ungraded")


@dataclass
class Answered:
    """A question with what was sampled for it. why: the reason why nothing was asked, "" where something was."""

    asked: Asked
    drawn: list[Drawn] = field(default_factory=list)
    why: str = ""


class Answers:
    """Samples and grades what is not in the scratch directory yet.

    Args:
        settings, inputs, scratch: of the stage (`data_prep.rewriting.stage`). section: the method's settings.
        report: `report(share)`, from 0 to 1.
    """

    def __init__(
        self,
        settings: Any,
        inputs: Mapping[str, Path],
        scratch: Path,
        chats: Chats,
        method: Method,
        section: Any,
        report: Callable[[float], None],
    ):
        self.settings, self.inputs, self.chats, self.report = settings, inputs, chats, report
        self.method, self.section, self.given = method, section, settings.rewrite
        self.samples, self.folder = scratch / "samples", scratch / "answers"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.starts = range(0, len(chats), BLOCK)

    def draw(self) -> None:
        """Everything, so that `block` finds it."""
        missing = [start for start in self.starts if read_json(self._file(start)) is None]
        rounds = self.method.rounds if self.given.samples else 0
        if missing and rounds:
            prompter, engine = self._prompter(), engine_of(self.settings, self.inputs["model"])
        else:
            prompter = engine = None
        for start in missing:
            block = self.chats.asked(start, start + BLOCK)
            if self.method.verdict != "none":
                block = with_answers(block, self.given.grader)
            found = [self._unasked(one) for one in block]
            for number in range(rounds):
                self._round(found, number, prompter, engine, start)
            write_json(self._file(start), [_plain(one) for one in found])

    def block(self, start: int) -> list[Answered]:
        """The answered questions from `start` on."""
        found = []
        for one, row in zip(self.chats.asked(start, start + BLOCK), read_json(self._file(start)), strict=True):
            asked = replace(one, question=replace(one.question, answer=row["answer"]))
            found.append(Answered(asked, [Drawn(**drawn) for drawn in row["drawn"]], row["why"]))
        return found

    def _file(self, start: int) -> Path:
        return self.folder / f"{start:09d}.json"

    def _unasked(self, one: Asked) -> Answered:
        if one.fixed:
            return Answered(one, why=one.fixed)
        if self.method.verdict == "required" and one.question.answer is None:
            return Answered(one, why="no reference answer")
        return Answered(one)

    def _round(self, block: Sequence[Answered], number: int, prompter: Any, engine: Any, start: int) -> None:
        from evaluation.generation import Sampling, sample

        context, wanted = engine.options.max_length, []
        for one in block:
            if one.why:
                continue
            solved = any(drawn.verdict == "right" for drawn in one.drawn)
            turns = self.method.ask(one.asked.question, number, solved, self.section)
            if turns is None:
                continue
            try:
                prompt = prompter.prompt(turns, tools=one.asked.tools)
            except ConfigError:
                one.why = "" if one.drawn else "template"
                continue
            if len(prompt.ids) >= context:
                one.why = "" if one.drawn else "prompt too long"
                continue
            wanted.append((one, prompt))
        if not wanted:
            return
        given, steps = self.given, self.method.rounds * len(self.chats)
        before = self.method.rounds * start + len(block) * number
        found = sample(
            engine,
            [prompt.ids for _, prompt in wanted],
            Sampling(given.samples, given.temperature, given.top_p, given.max_tokens, tuple(given.stop)),
            seed=given.seed,
            directory=self.samples,
            batch_size=given.batch_size,
            progress=lambda done, total: self.report((before + len(block) * done / max(1, total)) / steps),
            context=context,
        )
        new = []
        for (one, prompt), samples in zip(wanted, found, strict=True):
            opened = f"{OPENED}\n" if prompt.text.rstrip().endswith(OPENED) else ""
            for drawn in samples:
                text = opened + drawn.text
                row = Drawn(text, drawn.finish_reason, drawn.tokens, drawn.seed, number)
                one.drawn.append(row)
                self._accept(row)
                new.append((one.asked.question.answer, row))
        self._grade([(answer, row) for answer, row in new if answer is not None and row.usable])

    def _accept(self, row: Drawn) -> None:
        """Sets the text that would be trained on, or why there is none."""
        if row.finish_reason != "stop":
            row.verdict = "unfinished"
        elif not row.response.strip():
            row.verdict = "empty"
        else:
            text = self.method.accept(row.response, self.section)
            row.text, row.verdict = ("", "form") if text is None else (text, "ungraded")

    def _grade(self, rows: Sequence[tuple[str, Drawn]]) -> None:
        from evaluation.grading import default_pool

        grades = default_pool().grade_many([(row.text, answer, self.given.grader) for answer, row in rows])
        for (_, row), grade in zip(rows, grades, strict=True):
            row.verdict = "grading failed" if grade.failed else "right" if grade.correct else "wrong"

    def _prompter(self) -> Any:
        """Prompts of the model that answers: the recipe's template is its base model's, another has its own."""
        from evaluation.generation.prompts import Prompter

        model, own = self.settings.model, "base" in self.inputs
        template = None if own or model.chat_template is None else template_file(model.chat_template)
        arguments = {} if own else template_arguments(model)
        return Prompter(self.inputs["model"], template, model.trust_remote_code, arguments)


def _plain(one: Answered) -> dict[str, Any]:
    return {"answer": one.asked.question.answer, "why": one.why, "drawn": [vars(drawn) for drawn in one.drawn]}


def engine_of(settings: Any, model: Path) -> Any:
    """This process's engine with the weights of `model`."""
    from evaluation.generation import EngineOptions
    from evaluation.generation import engine as engines
    from evaluation.generation.context import context_length

    given, own = settings.rewrite, context_length(model)
    options = EngineOptions(
        platform=settings.platform.name,
        dtype=given.dtype,
        max_length=given.max_length if own is None else min(own, given.max_length),
        gpu_memory=given.gpu_memory,
        tensor_parallel=given.tensor_parallel,
        trust_remote_code=settings.model.trust_remote_code,
        eager=given.eager,
    )
    return engines.engine_for(model, options, given.replicas)
