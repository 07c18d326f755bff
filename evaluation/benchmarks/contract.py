"""What a benchmark is: where its file is, its columns, and how a row becomes a problem."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from evaluation.benchmarks._files import Row, read_rows

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Published:
    """A benchmark as it was published, or one of one's own.

    file: what to download, as an address or as `<data set of the hub>:<path in it>`; the path of a local file is read
    in place. revision: the commit that is downloaded, or where its schema was read. columns: those that are read (name
    -> Python type of its values); a file may have others, or lack them. problem: a row to (prompt, answer). grader: of
    every problem, or a function of the row. identity: a column that names the problem; a file without it has them by
    number. key: the entry of a JSON object of lists that holds the rows.
    where: rows that count; all by default. version: to be raised with every change of what a row becomes.
    """

    name: str
    file: str
    revision: str
    columns: Mapping[str, type | tuple[type, ...]]
    problem: Callable[[Row], tuple[Messages, str]]
    grader: str | Callable[[Row], str]
    identity: str | None = None
    key: str | None = None
    where: Callable[[Row], bool] = lambda row: True
    version: int = 1

    def read(self, path: Path) -> Iterator[Row]:
        """The problems of a downloaded file (JSONL, JSON, CSV or Parquet, perhaps gzipped), in the benchmark layout.

        Raises ConfigError, naming the file, the row and the column, where the file is not as published.
        """
        taken = 0
        named = False
        for number, row in enumerate(read_rows(path, self.key)):
            if number == 0:
                named = self.identity is not None and self.identity in row
            for column, kind in self.columns.items():
                if column not in row:
                    raise ConfigError(f"{path}: row {number}: no column {column!r}; needed are {list(self.columns)}")
                if not isinstance(row[column], kind):
                    raise ConfigError(f"{path}: row {number}: {column} is {row[column]!r:.60}, published is {kind}")
            if not self.where(row):
                continue
            try:
                prompt, answer = self.problem(row)
                grader = self.grader if isinstance(self.grader, str) else self.grader(row)
            except (ValueError, LookupError, TypeError, pickle.UnpicklingError, zlib.error) as error:
                reason = str(error) if type(error) in (ValueError, ConfigError) else f"{type(error).__name__}: {error}"
                raise ConfigError(f"{path}: row {number}: not as published ({reason}); download it again") from None
            name = self._name(path, number, row) if named else str(number)
            yield {"id": name, "prompt": prompt, "answer": answer, "grader": grader}
            taken += 1
        if not taken:
            raise ConfigError(f"{path}: no problems")

    def _name(self, path: Path, number: int, row: Row) -> str:
        value = row.get(str(self.identity))
        if type(value) not in (str, int) or value == "":
            raise ConfigError(f"{path}: row {number}: {self.identity} is {value!r:.60}, and names other problems")
        return str(value)

    def graders(self) -> set[str]:
        """The graders that its problems name; where each row names its own, those of a file that is here.

        One that cannot be read names none, and is refused when it is prepared.
        """
        if isinstance(self.grader, str):
            return {self.grader}
        path = Path(self.file).expanduser()
        if not path.is_file():
            return set()
        try:
            return {row["grader"] for row in self.read(path)}
        except (ConfigError, OSError):
            return set()

    def needed(self) -> str:
        """Which file it needs, in one line."""
        return f"{self.name} needs {self.file} (revision {self.revision}); download it and pass --file"

    def fetch(self) -> Path:
        """Its file: the local one, or a copy in the hub's cache, downloaded if need be. Raises ConfigError offline."""
        local = Path(self.file).expanduser()
        if local.is_file():
            return local
        if self.file.startswith("https://") or ":" not in self.file:
            raise ConfigError(f"{self.name} is not on the hub: {self.needed()}")
        from huggingface_hub import hf_hub_download

        repository, _, path = self.file.partition(":")
        try:
            return Path(hf_hub_download(repository, path, repo_type="dataset", revision=self.revision))
        except Exception as error:  # the client raises errors of several libraries
            raise ConfigError(f"{self.needed()} ({type(error).__name__})") from None


def user(text: str, system: str | None = None) -> Messages:
    """A chat of one question, perhaps after a system message."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def options(question: str, choices: Mapping[str, str], answer: str) -> tuple[Messages, str]:
    """A question with lettered `choices` as a problem whose answer is a letter in a box."""
    listed = "\n".join(f"{letter}. {text}" for letter, text in choices.items())
    return user(f"{question}\n{listed}\nReturn the letter of your final answer within \\boxed{{}}."), answer


def letter(column: str, place: int) -> str:
    """The letter of one of four choices. Raises ValueError for another place: the unlabelled test split of MedMCQA
    says -1."""
    if not 0 <= place < 4:
        raise ValueError(f"{column} is {place}, allowed are 0 to 3; take a split that has its answers")
    return "ABCD"[place]


# Of tasks that are answered in tags.
THINK = "You are a helpful assistant. Reason first, then give the user the answer."
TAGGED = "Give your final answer within <answer> </answer> tags"
