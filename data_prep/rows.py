"""Checks of rows as people have them, and the reader that applies a recipe's policy for bad and long ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from common.errors import ConfigError
from common.problems import problem_key
from data_prep.lengths import ChatLengths, Measured
from data_prep.sources import Row, RowError
from data_prep.tables import BATCH_ROWS

Parse = Callable[[str, dict], dict[str, Any]]


def check_messages(where: str, field: str, messages: Any, last: str) -> list[dict[str, str]]:
    """Return `messages` reduced to role and content.

    Raises:
        RowError: not a list of {role, content}; roles do not alternate user, assistant (after an optional system);
            the last role is not `last`; or a content is empty.
    """
    if not isinstance(messages, list) or not messages:
        raise RowError("broken", f"{where}: {field} must be a non-empty list of {{role, content}}")
    clean = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError("broken", f"{where}: {field} {number} has no role; give {{role, content}}")
        content = message.get("content")
        if not isinstance(content, str):
            raise RowError("broken", f"{where}: {field} {number} has no text content")
        if not content.strip():
            kind = "empty response" if message["role"] == "assistant" else "empty message"
            raise RowError(kind, f"{where}: {field} {number} ({message['role']}) is empty")
        clean.append({"role": message["role"], "content": content})
    roles = [message["role"] for message in clean]
    turns = roles[1:] if roles[0] == "system" else roles
    expected = ["user", "assistant"] * (len(turns) // 2 + 1)
    if not turns or turns != expected[: len(turns)] or turns[-1] != last:
        raise RowError(
            "roles", f"{where}: roles of {field} are {', '.join(roles)}; must be an optional system, then user and "
            f"assistant in turn, ending with {last}"
        )  # fmt: skip
    return clean


def check_spans(where: str, spans: Any, messages: list[dict[str, str]]) -> list[list[int]]:
    """Return `critical_spans`: [start, end) character pairs in the last response.

    Raises:
        RowError: not pairs of integers inside the last response.
    """
    length = len(messages[-1]["content"])
    valid = isinstance(spans, list) and all(
        isinstance(span, list)
        and len(span) == 2
        and all(type(at) is int for at in span)
        and 0 <= span[0] < span[1] <= length
        for span in spans
    )
    if not valid:
        raise RowError("broken", f"{where}: critical_spans must be [start, end) pairs within the last response")
    return spans


class RowReader:
    """Validates rows and keeps count; the policy for bad and long rows comes from the recipe's data section.

    dropped: reasons counted by name of the rows. truncated: long chats that are kept, by name. claims: what a problem
    that was read belongs to, by problem_key.

    Args:
        lengths: measures rows; None: their length is not checked.
        benchmarks: problem_key -> name of prepared problems that no row may ask.
        total: what the rows' extents add up to.
    """

    def __init__(
        self,
        data: Any,
        lengths: ChatLengths | None,
        report: Callable[..., None],
        total: int,
        benchmarks: Mapping[bytes, str] | None = None,
    ):
        self.data, self.lengths, self.report, self.total = data, lengths, report, max(1, total)
        self.benchmarks = benchmarks or {}
        self.dropped: dict[str, Counter[str]] = {}
        self.truncated: Counter[str] = Counter()
        self.claims: dict[bytes, str] = {}
        self._finished = 0

    def rows(
        self,
        name: str,
        drawn: Iterable[tuple[Row, int]],
        extent: int,
        parse: Parse,
        against: Collection[str] = (),
        prefix: str = "",
    ) -> Iterator[tuple[bytes, dict[str, Any], int]]:
        """Stream `(problem key, parsed row, copies)` of the good rows.

        Args:
            name: of these rows (`sft_train`); their problems are claimed under it.
            drawn: rows and the number of their copies. extent: the last row's position.
            parse: returns the row with `messages` or `prompt`, or raises RowError; `id` is added.
            against: names of earlier rows whose problems may not occur here.
            prefix: put before every id.

        Raises:
            ConfigError: a bad row that the policy does not drop; the same problem in a benchmark.
        """
        ids: set[str] = set()
        dropped = self.dropped.setdefault(name, Counter())
        batch: list[tuple[str, dict, int]] = []
        for raw, copies in drawn:
            try:
                row = self._parsed(raw, parse)
                if row["id"] in ids:
                    raise RowError("duplicate id", f"{raw.where}: id {row['id']!r} occurs twice")
                ids.add(row["id"])
            except RowError as error:
                self._refuse(dropped, error)
                continue
            row["id"] = f"{prefix}{row['id']}"
            batch.append((raw.where, row, copies))
            if len(batch) == BATCH_ROWS:
                yield from self._settled(name, batch, dropped, against)
                batch.clear()
                self.report(self._finished + min(raw.position, extent), self.total)
        yield from self._settled(name, batch, dropped, against)
        self._finished += extent
        self.report(self._finished, self.total)

    def _parsed(self, raw: Row, parse: Parse) -> dict[str, Any]:
        if isinstance(raw.value, RowError):
            raise raw.value
        if not isinstance(raw.value, dict):
            raise RowError("broken", f"{raw.where}: not an object with fields")
        return {**parse(raw.where, raw.value), "id": self._identifier(raw.where, raw.value)}

    def _settled(
        self, name: str, batch: list[tuple[str, dict, int]], dropped: Counter[str], against: Collection[str]
    ) -> Iterator[tuple[bytes, dict[str, Any], int]]:
        field = "messages" if batch and "messages" in batch[0][1] else "prompt"
        found = self._measured([row for _, row, _ in batch], field)
        for (where, row, copies), measured in zip(batch, found, strict=True):
            key = problem_key(row[field])
            try:
                self._check_length(name, where, row, measured)
                self._check_overlap(where, key, against)
            except RowError as error:
                self._refuse(dropped, error)
                continue
            self.claims.setdefault(key, name)
            yield key, row, copies

    def _measured(self, rows: list[dict[str, Any]], field: str) -> Sequence[Measured | int | ConfigError]:
        if self.lengths is None:
            return [0] * len(rows)
        chats = [row[field] for row in rows]
        if field == "prompt":
            return self.lengths.prompts(chats)
        return self.lengths.chats(chats, [row.get("tools") for row in rows])

    def _check_overlap(self, where: str, key: bytes, against: Collection[str]) -> None:
        if key in self.benchmarks:
            raise ConfigError(
                f"{where}: the same problem is in {self.benchmarks[key]}; remove it from the training data"
            )
        owner = self.claims.get(key)
        if owner is not None and owner in against:
            raise RowError("overlap", f"{where}: the same problem is in {owner}; remove it from one of them")

    @staticmethod
    def _identifier(where: str, raw: dict) -> str:
        value = raw.get("id")
        if value is None:
            return where.rsplit(" ", 1)[1]
        if type(value) not in (str, int) or value == "":
            raise RowError("broken", f"{where}: id must be text or an integer")
        return str(value)

    def _refuse(self, dropped: Counter[str], error: RowError) -> None:
        setting = "on_long_row" if error.reason == "too long" else "on_bad_row"
        if getattr(self.data, setting) != "drop":
            raise ConfigError(f"{error} (data.{setting}=drop leaves such rows out)") from None
        dropped[error.reason] += 1

    def _check_length(self, name: str, where: str, row: dict, measured: Measured | int | ConfigError) -> None:
        if isinstance(measured, ConfigError):
            raise RowError("template", f"{where}: {measured}")
        length = measured if isinstance(measured, int) else measured.longest
        if not isinstance(measured, int):
            row.update(row_tokens=measured.tokens, row_supervised=measured.supervised)
        if length <= self.data.max_length:
            return
        limit = self.data.max_length
        message = f"{where}: {length} tokens, data.max_length={limit}"
        if "messages" not in row or not self.data.on_long_row.startswith("truncate"):
            raise RowError("too long", message)
        if not isinstance(measured, int) and not measured.answered:
            raise RowError("too long", f"{message}, and truncation would leave nothing of the last response")
        self.truncated[name] += 1

    def parse_chat(self, where: str, raw: dict) -> dict[str, Any]:
        """A chat row: `messages`, and `critical_spans` and `defect` where given."""
        messages = check_messages(where, "messages", raw.get("messages"), last="assistant")
        row: dict[str, Any] = {"messages": self.with_system(messages)}
        if raw.get("critical_spans") is not None:
            row["critical_spans"] = check_spans(where, raw["critical_spans"], messages)
        if raw.get("defect") is not None:
            row["defect"] = str(raw["defect"])
        return row

    def parse_prompt(self, where: str, raw: dict) -> dict[str, Any]:
        """A prompt row: `prompt` (text or messages), `answer`, and `grader` (default math)."""
        from evaluation.grading import check_grader

        prompt = raw.get("prompt")
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        messages = check_messages(where, "prompt", prompt, last="user")
        answer = raw.get("answer")
        if type(answer) in (int, float):
            answer = str(answer)
        if not isinstance(answer, str) or not answer.strip():
            raise RowError("no answer", f"{where}: answer must be text or a number")
        grader = "math" if raw.get("grader") is None else raw["grader"]
        try:
            check_grader(grader)
        except (ValueError, AttributeError) as error:
            raise RowError("broken", f"{where}: {error}") from None
        return {"prompt": self.with_system(messages), "answer": answer, "grader": grader}

    def parse_text(self, where: str, raw: dict) -> dict[str, Any]:
        """A document of pretraining text: `messages` of one exchange or more, and its `style`."""
        messages = check_messages(where, "messages", raw.get("messages"), last="assistant")
        return {"messages": self.with_system(messages), "style": str(raw.get("style", ""))}

    def with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        if self.data.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.data.system_prompt}, *messages]
