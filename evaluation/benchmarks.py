"""Benchmark files: the problems of one benchmark, checked before anything is generated."""

import pathlib
from dataclasses import dataclass

import pyarrow.parquet as pq

from evaluation.grading.answers import check_grader

COLUMNS = ("id", "prompt", "answer", "grader")


@dataclass(frozen=True)
class Problem:
    """One problem: `prompt` is a chat ({role, content} dicts), `grader` a name of `evaluation.grading`."""

    id: str
    prompt: list[dict[str, str]]
    answer: str
    grader: str


def read_benchmark(data: pathlib.Path, name: str) -> list[Problem]:
    """Problems of benchmarks/<name>.parquet in the directory `data`.

    Raises ValueError, naming the file and the row, for a missing file or column, no rows, a repeated id, an empty
    prompt or answer, or an unknown grader.
    """
    path = pathlib.Path(data) / "benchmarks" / f"{name}.parquet"
    if not path.is_file():
        present = sorted(other.stem for other in path.parent.glob("*.parquet"))
        raise ValueError(
            f"eval.benchmarks: {name!r} is not in the prepared data; present: {', '.join(present) or 'none'}"
            f"{_remedy(name)}"
        )
    missing = set(COLUMNS) - set(pq.read_schema(path).names)
    if missing:
        raise ValueError(f"{path}: columns {', '.join(sorted(missing))} are missing; needed: {', '.join(COLUMNS)}")
    problems = [Problem(**row) for row in pq.read_table(path, columns=list(COLUMNS)).to_pylist()]
    if not problems:
        raise ValueError(f"{path}: no rows")
    seen: set[str] = set()
    for row, problem in enumerate(problems):
        where = f"{path}: row {row} (id {problem.id!r})"
        if problem.id in seen:
            raise ValueError(f"{where}: the id occurs twice")
        seen.add(problem.id)
        if not problem.prompt or not problem.answer:
            raise ValueError(f"{where}: empty prompt or answer")
        try:
            check_grader(problem.grader)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return problems


def _remedy(name: str) -> str:
    from evaluation.registry import BENCHMARKS, needed

    if name not in BENCHMARKS:
        return ""
    return f"; {needed(name)} to `python -m evaluation problems {name}`, then set data.files.benchmarks.{name}"
