"""What the published data sets share: rows of the hub at a commit, or of a local copy, turned into chats or prompts.

A source of a paper's data set names its hub name, commit and files, the columns that it reads (and no other), about how
many rows and tokens it has, and how a row becomes a chat or a prompt.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from data_prep.sources.contract import Row, RowError, Source
from data_prep.sources.files import read_rows

COPY = "copy"  # the input that is a local copy
FIXTURES = Path(__file__).resolve().parent / "fixtures"
KINDS = (".parquet", ".jsonl")


class Copy(BaseModel):
    """The section of a published data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(None, description="local copy: a file, or a directory of files; null: the hub's")


class PublishedSource(Source):
    """A data set of the hub.

    hub: its name there. revision: the commit that is read; None where no public text at hand shows one, which
    run.pinned refuses. files: pattern of the training split's files in it. columns: the ones that are read, with the
    types of their values. part: what its rows are for, `sft` or `rl`. rows, tokens, response_share: about how many rows
    it has, tokens a row, and which share of them is the response's.
    """

    hub: str
    revision: str | None = None
    files: str
    columns: ClassVar[Mapping[str, Any]]
    part: str = "sft"
    rows: float
    tokens: float
    response_share: float = 0.7
    section: type[BaseModel] = Copy

    @abstractmethod
    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any] | None:
        """What the contract's `Row.value` is; None for a row that the section does not ask for. Raises ValueError."""

    def inputs(self, section: Any, part: str) -> dict[str, str]:
        if part != self.part:
            raise ConfigError(f"data source {self.name} has no part {part}; it has {self.part}")
        return {} if section.path is None else {COPY: section.path}

    def unpinned(self, section: Any) -> str:
        return self.hub if section.path is None and self.revision is None else ""

    def identity(self, section: Any, part: str) -> dict[str, Any]:
        kept = section.model_dump(mode="json", exclude={"path"})
        return kept if section.path is not None else {**kept, "hub": self.hub, "revision": self.revision}

    def parts(self, section: Any, inputs: Mapping[str, Path], seed: int) -> dict[str, Iterator[Row]]:
        return {f"{self.part}_train": self._rows(section, inputs.get(COPY))}

    def rough_rows(self, section: Any, part: str) -> float | None:
        if part != self.part:
            return None
        return self.rows if section.path is None else min(self.rows, rows_there(Path(section.path).expanduser()))

    def rough_tokens(self, section: Any, max_length: int | None = None) -> tuple[float, float, float] | None:
        length = self.tokens if max_length is None else min(self.tokens, max_length)
        rows = self.rough_rows(section, "sft") or 0.0
        return rows, rows * length, rows * length * self.response_share

    def fixture(self) -> Path:
        """A few rows of our own in the published schema, for tests and for `--scale tiny`."""
        return FIXTURES / f"{self.name}.jsonl"

    def _rows(self, section: Any, copy: Path | None) -> Iterator[Row]:
        before = 0
        for file in self._files(copy):
            for row in read_rows(file):
                value = row.value if isinstance(row.value, RowError) else self._value(row, section)
                if value is not None:
                    yield Row(row.where, value, before + row.position)
            before += file.stat().st_size

    def _value(self, row: Row, section: Any) -> Any:
        for column, kind in self.columns.items():
            if not isinstance(row.value, Mapping) or column not in row.value:
                there = ", ".join(map(str, row.value)) if isinstance(row.value, Mapping) else "none"
                return RowError("broken", f"{row.where}: no column {column!r} of {self.hub}; there are: {there}")
            if not isinstance(row.value[column], kind):
                return RowError("broken", f"{row.where}: {column} is {row.value[column]!r:.60}; published is {kind}")
        try:
            return self.convert(row.value, section)
        except (ValueError, LookupError, TypeError) as error:
            reason = str(error) if type(error) in (ValueError, ConfigError) else f"{type(error).__name__}: {error}"
            return RowError("broken", f"{row.where}: {reason}")

    def _files(self, copy: Path | None) -> list[Path]:
        if copy is not None and copy.is_file():
            return [copy]
        found = sorted((copy or self._download()).glob(self.files))
        if copy is not None and not found:
            found = sorted(file for file in copy.rglob("*") if file.suffix in KINDS)
        if not found:
            raise ConfigError(f"data source {self.name}: {copy or self.hub}: no files like {self.files}")
        return found

    def _download(self) -> Path:
        from huggingface_hub import snapshot_download

        try:
            return Path(
                snapshot_download(self.hub, repo_type="dataset", revision=self.revision, allow_patterns=[self.files])
            )
        except Exception as error:  # the client raises errors of several libraries
            at = f" --revision {self.revision}" if self.revision else ""
            raise ConfigError(
                f"data source {self.name}: {self.hub} is out of reach ({type(error).__name__}); where it is not: "
                f"hf download {self.hub} --repo-type dataset{at} --local-dir DIR, then data.{self.name}.path=DIR"
            ) from None


def rows_there(copy: Path) -> float:
    """About how many rows a local copy has: those that Parquet files say, of JSON Lines by the length of the first."""
    files = [copy] if copy.is_file() else sorted(file for file in copy.rglob("*") if file.suffix in KINDS)
    return float(max(1, sum(map(_rows_of, files))))


def _rows_of(file: Path) -> int:
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return pq.read_metadata(file).num_rows
        except (OSError, ValueError):  # prepare names what is wrong with it
            return 0
    with file.open("rb") as stream:
        lengths = [len(line) for line in islice(stream, 20)]
    return round(file.stat().st_size * len(lengths) / sum(lengths)) if lengths else 0


def chat(question: str, response: str, system: str | None = None) -> dict[str, Any]:
    """One exchange as a chat row. Raises ValueError for an empty side."""
    if not question.strip() or not response.strip():
        raise ValueError("an empty question or response")
    first = [] if system is None else [{"role": "system", "content": system}]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    return {"messages": [*first, *turns]}


def turns(messages: Any) -> list[dict[str, str]]:
    """The role and content of each message of a published list. Raises ValueError for another shape."""
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise ValueError("messages is no list of {role, content}")
    return [{"role": str(one["role"]), "content": str(one["content"])} for one in messages]


def boxed(solution: str) -> str:
    """The last boxed answer of a solution. Raises ValueError where there is none."""
    from evaluation.graders.extraction import extract_boxed

    found = extract_boxed(solution)
    if not found:
        raise ValueError("the solution has no boxed answer")
    return found[-1]
