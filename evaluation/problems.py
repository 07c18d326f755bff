"""The problems of one benchmark: `problems.parquet` of its prepared artifact, checked before anything is generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import ConfigError
from common.problems import turns
from evaluation import benchmarks
from evaluation.grading.answers import check_grader

FILE, TOOLS = "problems.parquet", "tools"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("answer", pa.string()),
        ("grader", pa.string()),
    ]
)


@dataclass(frozen=True)
class Problem:
    """One problem: `prompt` is a chat ({role, content} dicts), `grader` one of `evaluation.graders`, `tools` the JSON
    text of the functions that the prompt shows."""

    id: str
    prompt: list[dict[str, str]]
    answer: str
    grader: str
    tools: str | None = None


def read_problems(directory: Path, name: str) -> list[Problem]:
    """The problems of the benchmark `name`, whose prepared artifact is `directory`.

    Raises ConfigError, naming the file and the row, for a missing file or column, no rows, a repeated id, an empty
    prompt or answer, or an unknown grader.
    """
    path = directory / FILE
    if not path.is_file():
        present = sorted(other.name for other in directory.glob("*"))
        raise ConfigError(
            f"eval.benchmarks: {path}: {name!r} is not prepared; present: {', '.join(present) or 'none'}{_remedy(name)}"
        )
    present = set(pq.read_schema(path).names)
    missing = set(SCHEMA.names) - present
    if missing:
        raise ConfigError(
            f"{path}: columns {', '.join(sorted(missing))} are missing; needed: {', '.join(SCHEMA.names)}"
        )
    rows = pq.read_table(path, columns=[*SCHEMA.names, *({TOOLS} & present)]).to_pylist()
    problems = [Problem(**{**row, "prompt": turns(row["prompt"] or [])}) for row in rows]
    if not problems:
        raise ConfigError(f"{path}: no rows")
    seen: set[str] = set()
    for row, problem in enumerate(problems):
        where = f"{path}: row {row} (id {problem.id!r})"
        if problem.id in seen:
            raise ConfigError(f"{where}: the id occurs twice")
        seen.add(problem.id)
        if not problem.prompt or not problem.answer:
            raise ConfigError(f"{where}: empty prompt or answer")
        try:
            check_grader(problem.grader)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return problems


def write_problems(name: str, file: Path | None, output: Path) -> int:
    """Write the problems of the published benchmark `name` as Parquet and return their number.

    file: a local copy; None fetches it. Raises ConfigError for an unknown name, or where there is no copy and no
    network, saying which file is needed.
    """
    published = benchmarks.load(name)
    if file is None:
        file = published.fetch()
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; {published.needed()}")
    rows = list(published.read(file))
    output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), output)
    return len(rows)


def _remedy(name: str) -> str:
    if name not in benchmarks.names():
        return ""
    needed = benchmarks.load(name).needed()
    return f"; {needed} to `python -m evaluation problems {name}`, then set data.files.benchmarks.{name}"
