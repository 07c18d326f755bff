"""What a grader is. It may be slow or hang on a response: the pool of `evaluation.grading` bounds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from common.errors import ConfigError

Status = Literal["ok", "no_answer", "timeout", "error", "crash"]


@dataclass(frozen=True)
class Grade:
    """The verdict on one response.

    status: `ok` (judged), `no_answer` (the response holds no answer to judge), `timeout`, `error` (the grader raised)
    or `crash` (the grading process died). The last three are failures of grading: count them, never average them away.
    """

    correct: bool
    status: Status

    @property
    def failed(self) -> bool:
        """True where no verdict was reached."""
        return self.status in ("timeout", "error", "crash")


def no_argument(argument: str) -> None:
    """The check of a grader that takes none."""
    if argument:
        raise ConfigError(f"takes no argument, found {argument!r}")


@dataclass(frozen=True)
class Grader:
    """Judges a response against a reference answer.

    name: as rows name it, perhaps with an argument after a colon, `numeric:0.01`. judge: (response, answer, argument)
    to the verdict; raises ConfigError for a reference that it cannot read, never for a response. version: to be raised
    with every change of verdicts. timeout: seconds that one response may take; None: the pool's own. check: raises
    ValueError for an argument that is not allowed. runs_code: runs programs that a model wrote, only with leave.
    """

    name: str
    judge: Callable[[str, str, str], Grade]
    version: int = 1
    timeout: float | None = None
    check: Callable[[str], object] = no_argument
    runs_code: bool = False

    def grade(self, response: str, answer: str, argument: str = "", *, run_generated_code: bool = False) -> Grade:
        """The verdict, in this process and without a time limit.

        Raises ConfigError for a reference that the grader cannot read, and for one that runs programs without leave.
        """
        if self.runs_code and not run_generated_code:
            raise ConfigError(
                f"grader: {self.name} runs programs that the model wrote; set eval.run_generated_code=true to allow it"
            )
        return self.judge(response, answer, argument)
