"""The reader of rows as people have them: a recipe's format, its policy for bad and long rows, and what is counted."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

from common.errors import ConfigError
from common.problems import asked_keys, problem_key
from data_prep.formats import AUTO, Fields, recognised
from data_prep.formats.answers import reference_answer
from data_prep.formats.turns import check_text, check_tools, check_turns
from data_prep.lengths import ChatLengths, Measured
from data_prep.measure import Measure, Started
from data_prep.overlap import Overlap
from data_prep.sources import Row, RowError
from data_prep.tables import BATCH_ROWS

Parse = Callable[[Fields], dict[str, Any]]
Batch = list[tuple[str, dict, int]]
UNMEASURED = Measured([], [], 0, True)


def check_spans(where: str, spans: Any, messages: list[dict[str, Any]]) -> list[list[int]]:
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

    dropped: reasons counted by name of the rows. truncated: long chats that are kept, by name. unknown, formats:
    fields that were not understood and formats, counted by name of the rows. special: rows whose text holds special
    tokens, by name. long: ids of problems over data.max_length, which are kept. claims: what a problem that was read
    belongs to, by problem_key.

    Args:
        lengths: measures rows; None: their length is not checked.
        total: what the rows' extents add up to.
        benchmarks: problem_key -> name of prepared problems that no row may ask.
        overlap: counts runs of words that rows share with them.
        problems: the rows are a benchmark's: a bad one is always an error, a long one is kept.
        grader: of prompts that name none; "" where their answers are not for a grader of ours.
    """

    def __init__(
        self,
        data: Any,
        lengths: ChatLengths | None,
        report: Callable[..., None],
        total: int,
        benchmarks: Mapping[bytes, str] | None = None,
        overlap: Overlap | None = None,
        problems: bool = False,
        grader: str = "math",
    ):
        self.data, self.lengths, self.report, self.total = data, lengths, report, max(1, total)
        self.benchmarks, self.overlap = benchmarks or {}, overlap
        self.problems, self.grader = problems, grader
        self.dropped: dict[str, Counter[str]] = {}
        self.unknown: dict[str, Counter[str]] = {}
        self.formats: dict[str, Counter[str]] = {}
        self.truncated: Counter[str] = Counter()
        self.special: dict[str, dict[str, Any]] = {}
        self.long: list[str] = []
        self.claims: dict[bytes, str] = {}
        self._finished = 0
        self._format = AUTO if problems else data.format
        known = [] if lengths is None else lengths.renderer.tokenizer.all_special_tokens
        tokens = sorted(set(known) - {""}, key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, tokens))) if tokens else None

    def rows(
        self,
        name: str,
        drawn: Iterable[tuple[Row, int]],
        extent: int,
        parse: Parse,
        against: Collection[str] = (),
        prefix: str = "",
        claim: bool = True,
    ) -> Iterator[tuple[bytes, dict[str, Any], int, Measured]]:
        """Stream `(problem key, parsed row, copies, tokens)` of the good rows.

        Args:
            name: of these rows (`sft_train`). drawn: rows and the number of their copies. extent: the last row's
                position.
            parse: returns the row with `messages` or `prompt`, or raises RowError; `id` is added.
            against: names of earlier rows whose problems may not occur here. prefix: put before every id.
            claim: whether later rows may not ask these problems.

        Raises:
            ConfigError: a bad row that the policy does not drop; the same problem in a benchmark.
        """
        dropped = self.dropped.setdefault(name, Counter())
        measure: Measure | None = None
        waiting: tuple[Batch, Started, int] | None = None
        try:
            # One batch is measured while the next is read.
            for batch, position, error in self._batches(name, drawn, extent, parse, dropped, prefix):
                if batch and self.lengths is not None and measure is None:
                    measure = Measure(self.lengths)
                started = [] if measure is None else measure.start([row for _, row, _ in batch])
                if waiting is not None:
                    yield from self._settled(name, waiting, dropped, against, claim)
                waiting = (batch, started, position)
                if error is not None:
                    yield from self._settled(name, waiting, dropped, against, claim)
                    raise error
            if waiting is not None:
                yield from self._settled(name, waiting, dropped, against, claim)
        finally:
            if measure is not None:
                measure.close()
        self._finished += extent
        self.report(self._finished, self.total)

    def _batches(
        self,
        name: str,
        drawn: Iterable[tuple[Row, int]],
        extent: int,
        parse: Parse,
        dropped: Counter[str],
        prefix: str,
    ) -> Iterator[tuple[Batch, int, ConfigError | None]]:
        """Batches of parsed rows, each with the position it ends at; an error comes after the rows before it."""
        ids = _Identifiers()
        batch: Batch = []
        for raw, copies in drawn:
            try:
                row = self._parsed(name, raw, parse)
                row["id"] = f"{prefix}{ids.of(raw, row.pop('id'))}"
            except RowError as error:
                refused = self._refuse(dropped, error)
                if refused is not None:
                    yield batch, min(raw.position, extent), refused
                continue
            except ConfigError as error:
                yield batch, min(raw.position, extent), error
                continue
            batch.append((raw.where, row, copies))
            if len(batch) == BATCH_ROWS:
                yield batch, min(raw.position, extent), None
                batch = []
        yield batch, extent, None

    def _parsed(self, name: str, raw: Row, parse: Parse) -> dict[str, Any]:
        if isinstance(raw.value, RowError):
            raise raw.value
        if not isinstance(raw.value, dict):
            raise RowError("broken", f"{raw.where}: not an object with fields")
        fields = Fields(raw.where, raw.value)
        row = {**parse(fields), "id": fields.take("id")}
        if unknown := fields.unknown():
            if self.data.on_unknown_field == "error":
                raise ConfigError(
                    f"{raw.where}: fields that are not understood: {', '.join(unknown)}; remove them, name them as "
                    "docs/data.md does, or set data.on_unknown_field=count"
                )
            self.unknown.setdefault(name, Counter()).update(unknown)
        return row

    def _settled(
        self,
        name: str,
        waiting: tuple[Batch, Started, int],
        dropped: Counter[str],
        against: Collection[str],
        claim: bool,
    ) -> Iterator[tuple[bytes, dict[str, Any], int, Measured]]:
        batch, started, position = waiting
        found = Measure.finish(started) if started else repeat(UNMEASURED, len(batch))
        for (where, row, copies), measured in zip(batch, found, strict=True):
            turns, tools = row["messages"] if "messages" in row else row["prompt"], row.get("tools")
            # Chats that ask the same with other tools are held out together; a prompt is what it shows.
            key = problem_key(turns, None if "messages" in row else tools)
            try:
                counts = self._checked_length(name, where, row, measured)
                self._check_overlap(where, key, asked_keys(turns, tools) if self.benchmarks else set(), against)
            except RowError as error:
                refused = self._refuse(dropped, error)
                if refused is not None:
                    raise refused from None
                continue
            self.formats.setdefault(name, Counter())[row.pop("format")] += 1
            self._look_into(name, row["id"], turns)
            if claim:
                self.claims.setdefault(key, name)
            yield key, row, copies, counts
        self.report(self._finished + position, self.total)

    def _check_overlap(self, where: str, key: bytes, asked: set[bytes], against: Collection[str]) -> None:
        if found := asked & self.benchmarks.keys():
            owner = self.benchmarks[min(found)]
            raise ConfigError(f"{where}: the same problem is in {owner}; remove it from the training data")
        owner = self.claims.get(key)
        if owner is not None and owner in against:
            raise RowError("overlap", f"{where}: the same problem is in {owner}; remove it from one of them")

    def _look_into(self, name: str, identity: str, turns: list[dict[str, Any]]) -> None:
        if self.overlap is not None:
            self.overlap.add(name, identity, turns)
        if self._tokens is not None and any(self._tokens.search(turn["content"]) for turn in turns):
            found = self.special.setdefault(name, {"rows": 0, "first": identity})
            found["rows"] += 1

    def _refuse(self, dropped: Counter[str], error: RowError) -> ConfigError | None:
        """Counts a bad row, or returns the error that it is."""
        if self.problems:
            return ConfigError(f"{error} (a benchmark is never thinned: mend the problem)")
        setting = "on_long_row" if error.reason == "too long" else "on_bad_row"
        if getattr(self.data, setting) != "drop":
            return ConfigError(f"{error} (data.{setting}=drop leaves such rows out)")
        dropped[error.reason] += 1
        return None

    def _checked_length(self, name: str, where: str, row: dict, found: Measured | ConfigError) -> Measured:
        """What was measured; a chat gets it as columns. Raises RowError for a row that is refused or too long."""
        if isinstance(found, ConfigError):
            raise RowError("template", f"{where}: {found}")
        if "messages" in row:
            row.update(row_tokens=found.tokens, row_supervised=found.supervised)
        if self.lengths is None or found.longest <= self.data.max_length:
            return found
        if self.problems:
            self.long.append(row["id"])
            return found
        message = f"{where}: {found.longest} tokens, data.max_length={self.data.max_length}"
        if "messages" not in row or not self.data.on_long_row.startswith("truncate"):
            raise RowError("too long", message)
        if not found.answered:
            raise RowError("too long", f"{message}, and truncation would leave nothing of the last response")
        self.truncated[name] += 1
        return found

    # what a row is

    def parse_chat(self, fields: Fields) -> dict[str, Any]:
        """A chat row: `messages`, and `tools`, `critical_spans` and `defect` where given."""
        format = recognised(fields, "chat", self._format)
        messages = check_turns(fields, "messages", format.messages(fields, "chat"), ("assistant",))
        row: dict[str, Any] = {"format": format.name, "messages": self.with_system(messages)}
        if (tools := check_tools(fields)) is not None:
            row["tools"] = tools
        if (spans := fields.take("critical_spans")) is not None:
            row["critical_spans"] = check_spans(fields.where, fields.nested("critical_spans", spans), messages)
        if (defect := fields.take("defect")) is not None:
            row["defect"] = str(defect)
        return row

    def parse_prompt(self, fields: Fields) -> dict[str, Any]:
        """A prompt row: `prompt`, `answer`, `grader` and `data_source`, None where the row names none; `tools` if it
        has any."""
        from evaluation.grading import check_grader

        format = recognised(fields, "prompt", self._format)
        messages = check_turns(fields, "prompt", format.messages(fields, "prompt"), ("user", "tool"))
        grader = fields.take("grader")
        try:
            if grader is not None:
                check_grader(grader)
        except (ValueError, AttributeError) as error:
            raise RowError("broken", f"{fields.where}: {error}") from None
        source = fields.take("data_source")
        if source is not None and (not isinstance(source, str) or not source.strip()):
            raise RowError("broken", f"{fields.where}: data_source must be text, is {source!r}")
        answer = reference_answer(fields.where, format.answer(fields), grader or self.grader)
        turns = self.with_system(messages)
        row = {"format": format.name, "prompt": turns, "answer": answer, "grader": grader, "data_source": source}
        tools = check_tools(fields)
        return row if tools is None else {**row, "tools": tools}

    def parse_text(self, fields: Fields) -> dict[str, Any]:
        """A document of pretraining text: `messages` of one exchange or more, and its `style`."""
        format = recognised(fields, "chat")
        messages = check_turns(fields, "messages", format.messages(fields, "chat"), ("assistant",))
        return {"format": format.name, "messages": self.with_system(messages), "style": str(fields.take("style") or "")}

    def with_system(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.data.system_prompt is None or any(turn["role"] in ("system", "developer") for turn in messages):
            return messages
        return [{"role": "system", "content": self.data.system_prompt}, *messages]

    def shared(self) -> dict[str, int]:
        """Rows so far that share a run of words with each benchmark."""
        return {} if self.overlap is None else self.overlap.rows()

    def counted(self) -> dict[str, Any]:
        """What was dropped, truncated, not understood, recognised and found in the text; for summary.json."""
        found: dict[str, Any] = {
            "dropped": _plain(self.dropped),
            "truncated": dict(self.truncated),
            "unknown_fields": _plain(self.unknown),
            "formats": _plain(self.formats),
            "special_tokens": self.special,
        }
        return found if self.overlap is None else {**found, "benchmark_overlap": self.overlap.report()}


def _plain(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {name: dict(sorted(found.items())) for name, found in counts.items() if found}


class _Identifiers:
    """Names of rows: their own `id`, else the number at the end of their place; each name once."""

    def __init__(self) -> None:
        self._given: set[int] = set()  # 8 bytes of a hash: a million texts would take a tenth of a gigabyte
        self._numbers: set[int] = set()

    def of(self, raw: Row, value: Any) -> str:
        """The row's name. Raises RowError for an `id` that names nothing or was there before."""
        if value is None or (type(value) is float and value != value):  # a table's missing number
            number = raw.where.rsplit(" ", 1)[1]
            if number.isdecimal():
                self._numbers.add(int(number))
            return f"row {number}" if self._digest(number) in self._given else number
        if type(value) is float and value.is_integer():
            value = int(value)  # a table's column of whole numbers with gaps
        if type(value) not in (str, int, float) or value == "":
            raise RowError("broken", f"{raw.where}: id must be text or a number, is {value!r}")
        name = check_text(raw.where, "id", str(value))
        digest = self._digest(name)
        if digest in self._given:
            raise RowError("duplicate id", f"{raw.where}: id {name!r} occurs twice")
        self._given.add(digest)
        if name.isdecimal() and len(name) < 20 and name[0] != "0" and int(name) in self._numbers:
            return f"id {name}"  # a row without one took the number
        return name

    @staticmethod
    def _digest(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
