"""Stage `prepare`: one part of the data as one artifact, from the sources that feed it.

The parts are the SFT chats, the RL prompts, one benchmark and the pretraining text. No row may ask a problem of a
benchmark. Nothing is read whole: rows stream through in batches.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from common.chats import Renderer
from common.errors import ConfigError
from common.files import write_json
from common.parquet import streamed
from common.problems import INSTRUCTIONS, problem_key, turns
from data_prep.lengths import ChatLengths, Measured, encode_chats
from data_prep.overlap import Overlap
from data_prep.rows import Parse, RowReader
from data_prep.sources import Row
from data_prep.sources.feeds import OpenFeed, open_feeds
from data_prep.statistics import RowStatistics
from data_prep.tables import (
    BATCH_ROWS,
    BENCHMARK_SCHEMA,
    CHAT_SCHEMA,
    PRETRAIN_SCHEMA,
    PROMPT_SCHEMA,
    TableWriter,
    prompt_row,
)

T = TypeVar("T")
VALIDATION_ONE_IN = 50
BENCHMARK_INPUT = "benchmark_"
BENCHMARK_FILE = "file"
LISTED = 20  # ids of long problems in summary.json

# id, turns, and the tools as JSON text
Asked = tuple[str, list[dict[str, Any]], str | None]
# feed's label, split, number, row -> what is written
Shape = Callable[[str, str, int, dict[str, Any]], dict[str, Any]]


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report) -> None:
    """Write one part of the prepared data.

    Args:
        settings: `part` (sft, rl, pretrain or benchmark), `name` (of the benchmark), `sources` (feeds, see
            data_prep.sources.feeds; none for a benchmark: the published one of that name), `grader` (of prompts that
            name none), `data` and `model`.
        inputs: what the sources asked for; `model` (a Hugging Face directory, for its tokenizer; absent when the base
            is trained from nothing: the micro-world's tokenizer) and `chat_template` (a Jinja file); for sft and rl
            `benchmark_<name>` (prepared benchmarks, which may only cause a refusal); for rl `sft` (prepared chats) when
            data.allow_shared_prompts is false; for a published benchmark `file`, a local copy of it.
        output: empty directory; the layout is in docs/data.md.
        scratch: not used; the stage takes seconds and starts over.
        report: `report(done, total)` in what the sources count, rows or bytes.

    Raises:
        ConfigError: a row, a file or the tokenizer is unusable; the message names it.
    """
    inputs = {name: Path(path) for name, path in inputs.items()}
    part = f"benchmark/{settings.name}" if settings.part == "benchmark" else settings.part
    feeds = open_feeds(settings.sources, part, inputs, settings.data.seed)
    if not feeds and settings.part != "benchmark":
        raise ConfigError(f"data.{settings.part}: no source; name at least one")
    write = {"sft": _write_chats, "rl": _write_prompts, "pretrain": _write_text, "benchmark": _write_benchmark}
    summary = write[settings.part](settings, feeds, inputs, output, report)
    write_json(output / "summary.json", {"part": part, **summary})


def _lengths(settings: Any, inputs: Mapping[str, Path]) -> ChatLengths:
    """What measures the rows."""
    if "model" in inputs:
        return ChatLengths.of_model(inputs["model"], settings.model, settings.data, inputs.get("chat_template"))
    if settings.model.pretrain is None:
        raise ConfigError("data: needs model.path, whose tokenizer measures the rows, or model.pretrain")
    from data_prep.micro_world.tokenizer import world_tokenizer

    tokenizer = world_tokenizer()
    if "chat_template" in inputs:
        tokenizer.chat_template = inputs["chat_template"].read_text(encoding="utf-8")
    return ChatLengths(tokenizer, settings.model, settings.data)


def _write_chats(settings: Any, feeds: list[OpenFeed], inputs: Mapping[str, Path], output: Path, report) -> dict:
    defects: Counter[str] = Counter()

    def shape(source: str, split: str, index: int, row: dict[str, Any]) -> dict[str, Any]:
        defect = row.pop("defect", None)
        if defect is not None:
            defects[f"{split}/{defect}"] += 1
        return {"critical_spans": None, **row}

    split = _Split("sft", settings.data, feeds, lambda reader: reader.parse_chat, shape, CHAT_SCHEMA)
    summary = split.write(_reader(settings, split.total, inputs, report), {}, output)
    return {**summary, "defects": dict(defects), "tokens": {name: dict(found) for name, found in split.tokens.items()}}


def _write_prompts(settings: Any, feeds: list[OpenFeed], inputs: Mapping[str, Path], output: Path, report) -> dict:
    claims = {} if settings.data.allow_shared_prompts else _demonstrated(inputs)
    graders: Counter[str] = Counter()
    origins: Counter[str] = Counter()

    def shape(source: str, split: str, index: int, row: dict[str, Any]) -> dict[str, Any]:
        origin, grader = row["data_source"] or source, row["grader"]
        graders[grader or "rl.reward"] += 1
        origins[f"{split}/{origin}"] += 1
        return prompt_row(origin, split, index, row["id"], row["prompt"], row["answer"], grader, row.get("tools"))

    split = _Split("rl", settings.data, feeds, lambda reader: reader.parse_prompt, shape, PROMPT_SCHEMA)
    summary = split.write(_reader(settings, split.total, inputs, report), claims, output)
    return {**summary, "graders": dict(graders), "data_sources": dict(origins)}


def _reader(settings: Any, total: int, inputs: Mapping[str, Path], report) -> RowReader:
    """The reader of training rows, which no benchmark may share a problem with."""
    benchmarks = _problems_of(inputs)
    return RowReader(
        settings.data,
        _lengths(settings, inputs),
        report,
        total,
        {problem_key(prompt, tools): name for name, found in benchmarks.items() for _, prompt, tools in found},
        Overlap(
            {name: ((identity, _text(prompt)) for identity, prompt, _ in found) for name, found in benchmarks.items()}
        ),
        grader=settings.grader,
    )


def _text(prompt: list[dict[str, Any]]) -> str:
    return "\n".join(turn["content"] for turn in prompt if turn["role"] not in INSTRUCTIONS)


def _demonstrated(inputs: Mapping[str, Path]) -> dict[bytes, str]:
    """problem_key -> part of the prepared chats."""
    if "sft" not in inputs:
        raise ConfigError("data.allow_shared_prompts=false: needs the prepared chats (input sft)")
    claims: dict[bytes, str] = {}
    for name in ("sft_val", "sft_train"):
        for _, messages, tools in _columns(inputs["sft"] / f"{name}.parquet", "id", "messages"):
            claims.setdefault(problem_key(messages, tools), name)
    return claims


def _problems_of(inputs: Mapping[str, Path]) -> dict[str, list[Asked]]:
    """Name of a prepared benchmark (`benchmark_<name>`) -> its problems as (id, prompt, tools)."""
    return {
        name: list(_columns(directory / "problems.parquet", "id", "prompt"))
        for name, directory in sorted(inputs.items())
        if name.startswith(BENCHMARK_INPUT)
    }


def _columns(path: Path, identity: str, chat: str) -> Iterator[Asked]:
    file = streamed(path)
    columns = [identity, chat, *({"tools"} & set(file.schema_arrow.names))]
    for batch in file.iter_batches(BATCH_ROWS, columns=columns):
        for row in batch.to_pylist():
            yield row[identity], turns(row[chat]), row.get("tools")


class _Split:
    """A part with a training and a validation half, written from its feeds in order."""

    def __init__(
        self,
        kind: str,
        data: Any,
        feeds: list[OpenFeed],
        parse: Callable[[RowReader], Parse],
        shape: Shape,
        schema: pa.Schema,
    ):
        self.train, self.val = f"{kind}_train", f"{kind}_val"
        self.data, self.feeds, self.parse, self.shape, self.schema = data, feeds, parse, shape, schema
        self.counts = {feed.label: Counter({self.train: 0, self.val: 0}) for feed in feeds}
        self.tokens = {name: Counter(chats=0, rows=0, tokens=0, response_tokens=0) for name in (self.train, self.val)}
        self.statistics = RowStatistics()
        self.gives_val: dict[str, bool] = {}
        for feed in feeds:
            names = feed.names()
            if self.train not in names:
                raise ConfigError(f"data source {feed.label} has no {self.train}")
            self.gives_val[feed.label] = self.val in names
        read = [(feed, self.val) for feed in feeds if self.gives_val[feed.label]] + [(f, self.train) for f in feeds]
        self.total = sum(feed.extent(name) for feed, name in read)

    def write(self, reader: RowReader, claims: Mapping[bytes, str], output: Path) -> dict[str, Any]:
        """Write both files and return the summary.

        Where a feed gives no validation rows, its first problem and one in fifty of the others (by a hash of the
        problem and `data.seed`) are moved there from its training rows, each once.

        Args:
            claims: problem_key -> part whose problems may not occur here.
        """
        reader.claims.update(claims)
        forbidden = set(claims.values())
        with (
            TableWriter(output / f"{self.val}.parquet", self.schema) as val,
            TableWriter(output / f"{self.train}.parquet", self.schema) as train,
        ):
            for feed in self.feeds:
                if self.gives_val[feed.label]:
                    rows = ((row, 1) for row in feed.rows(self.val))
                    for _, row, _, measured in self._read(reader, feed, self.val, rows, forbidden):
                        self._add(val, feed, "val", row, measured)
            moved: set[bytes] = set()
            trained: set[bytes] = set()
            for feed in self.feeds:
                first: bytes | None = None
                drawn = feed.drawn(self.train)
                for key, row, copies, measured in self._read(reader, feed, self.train, drawn, {*forbidden, self.val}):
                    if first is None and key not in trained:
                        first = key
                    ours = not self.gives_val[feed.label] and key not in trained
                    if key in moved or (ours and (key == first or self._is_held_out(key))):
                        moved.add(key)
                        self._add(val, feed, "val", row, measured)
                        continue
                    if len(self.feeds) > 1:
                        trained.add(key)  # what one feed trains on, another may not hold out
                    for copy in range(1, copies + 1):
                        numbered = row if copy == 1 else {**row, "id": f"{row['id']}#{copy}"}
                        self._add(train, feed, "train", numbered, measured)
        summary = self._summary(reader, {self.train: train.rows, self.val: val.rows})
        self.statistics.write(output)
        return summary

    def _read(
        self, reader: RowReader, feed: OpenFeed, name: str, drawn: Iterable[tuple[Row, int]], against: set[str]
    ) -> Iterator[tuple[bytes, dict[str, Any], int, Measured]]:
        prefix = f"{feed.label}/" if len(self.feeds) > 1 else ""
        extent, parse = feed.extent(name), self.parse(reader)
        dropped, shared = Counter(reader.dropped.get(name)), reader.shared()
        for item in reader.rows(name, drawn, extent, parse, against, prefix, claim=name == self.val):
            key, row, _, measured = item
            self.statistics.add(feed.label, name, key, row, measured)
            yield item
        overlap = {benchmark: rows - shared.get(benchmark, 0) for benchmark, rows in reader.shared().items()}
        self.statistics.ended(feed.label, name, reader.dropped[name] - dropped, overlap)

    def _is_held_out(self, key: bytes) -> bool:
        digest = hashlib.sha256(key + str(self.data.seed).encode()).digest()
        return int.from_bytes(digest[:4], "big") % VALIDATION_ONE_IN == 0

    def _add(self, writer: TableWriter, feed: OpenFeed, split: str, row: dict[str, Any], measured: Measured) -> None:
        writer.add(self.shape(feed.label, split, writer.rows, dict(row)))
        name = self.val if split == "val" else self.train
        self.counts[feed.label][name] += 1
        tokens, responses = sum(measured.tokens), sum(measured.supervised)
        self.tokens[name].update(chats=1, rows=len(measured.tokens), tokens=tokens, response_tokens=responses)

    def _summary(self, reader: RowReader, counts: dict[str, int]) -> dict[str, Any]:
        for name, rows in counts.items():
            if not rows:
                feed = self.feeds[0]
                place = feed.inputs.get(name, feed.inputs.get(self.train, feed.label))
                dropped = dict(reader.dropped.get(name, {}))
                lost = f"no rows left for {name}; dropped {dropped}" if dropped else f"no rows for {name}"
                held_out = f"; the only problem is held out for {self.val}: give more, or a file of {self.val}"
                why = held_out if counts[self.val] and not any(self.gives_val.values()) else ""
                raise ConfigError(f"{place}: {lost}{why}")
        return {"counts": counts, **reader.counted(), "sources": {k: dict(v) for k, v in self.counts.items()}}


def _write_benchmark(settings: Any, feeds: list[OpenFeed], inputs: Mapping[str, Path], output: Path, report) -> dict:
    """Problems of one benchmark, all of them; their lengths are looked at only where a model is given."""
    lengths = _lengths(settings, inputs) if "model" in inputs else None
    name = f"benchmark/{settings.name}"
    streams = [(feed.label, feed.drawn(name), feed.extent(name)) for feed in feeds if _has(feed, name)]
    if not feeds:
        streams = [("published", _published(settings.name, inputs), 0)]
    total = sum(extent for _, _, extent in streams)
    reader = RowReader(settings.data, lengths, report, total, problems=True)
    counts: Counter[str] = Counter()
    with TableWriter(output / "problems.parquet", BENCHMARK_SCHEMA) as writer:
        for label, drawn, extent in streams:
            prefix = f"{label}/" if len(streams) > 1 else ""
            for _, row, copies, _ in reader.rows(name, drawn, extent, reader.parse_prompt, prefix=prefix):
                if copies > 1:
                    raise ConfigError(
                        f"benchmark {settings.name}: a weight above 1 counts problems twice; leave it out"
                    )
                writer.add({**row, "grader": row["grader"] or reader.grader})
                counts[label] += 1
    if not writer.rows:
        raise ConfigError(f"benchmark {settings.name}: no problems in {', '.join(label for label, _, _ in streams)}")
    long = {"problems": len(reader.long), "ids": reader.long[:LISTED], "over": settings.data.max_length}
    return {
        "counts": {"problems": writer.rows},
        **reader.counted(),
        **({"long": long} if reader.long else {}),
        "sources": dict(counts),
    }


def _has(feed: OpenFeed, name: str) -> bool:
    if name not in feed.names():
        known = ", ".join(feed.source.benchmarks(feed.section)) or "none"
        raise ConfigError(f"data source {feed.label} has no {name}; its benchmarks: {known}")
    return True


def _published(name: str, inputs: Mapping[str, Path]) -> Iterator[tuple[Row, int]]:
    """Problems of a published benchmark, from the input `file` or fetched."""
    from evaluation import benchmarks

    entry = benchmarks.load(name)
    path = inputs[BENCHMARK_FILE] if BENCHMARK_FILE in inputs else entry.fetch()
    for number, row in enumerate(entry.read(path), 1):
        yield Row(f"{path} row {number}", row), 1


def _write_text(settings: Any, feeds: list[OpenFeed], inputs: Mapping[str, Path], output: Path, report) -> dict:
    """Pretraining text with its token ids; the tokenizer is the micro-world's own."""
    from data_prep.micro_world.tokenizer import world_tokenizer

    tokenizer = world_tokenizer()
    tokenizer.save_pretrained(output / "tokenizer")
    renderer = Renderer(tokenizer)
    skills: dict[str, list[OpenFeed]] = {}
    for feed in feeds:
        for name in feed.names():
            if name.startswith("pretrain/"):
                skills.setdefault(name.removeprefix("pretrain/"), []).append(feed)
    total = sum(feed.extent(f"pretrain/{skill}") for skill, users in skills.items() for feed in users)
    reader = RowReader(settings.data, None, report, total)
    counts: dict[str, int] = {}
    styles: dict[str, dict[str, int]] = {}
    sources = {feed.label: Counter() for feed in feeds}
    for skill, users in skills.items():
        name, seen = f"pretrain/{skill}", Counter()
        with TableWriter(output / f"{name}.parquet", PRETRAIN_SCHEMA) as writer:
            for feed in users:
                rows = reader.rows(name, feed.drawn(name), feed.extent(name), reader.parse_text)
                copied = (row for _, row, copies, _ in rows for _ in range(copies))
                for batch in _batched(copied, BATCH_ROWS):
                    full = encode_chats(renderer, [row["messages"] for row in batch])
                    asked = encode_chats(renderer, [row["messages"][:-1] for row in batch], prompt=True)
                    for row, ids, prompt in zip(batch, full, asked, strict=True):
                        numbered = {**row, "id": f"{skill}-{writer.rows}"}
                        writer.add({**numbered, "input_ids": ids, "prompt_length": len(prompt)})
                        seen[row["style"]] += 1
                    sources[feed.label][name] += len(batch)
        counts[name], styles[skill] = writer.rows, dict(seen)
    return {
        "counts": counts,
        **reader.counted(),
        "sources": {label: dict(rows) for label, rows in sources.items()},
        "styles": styles,
    }


def _batched(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` rows; the last may be shorter."""
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch
