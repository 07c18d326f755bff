"""Stage `prepare`: chats for SFT, prompts for RL and held-out benchmarks, from the micro-world or one's own files.

Held-out problems are claimed first, then demonstrations, then RL prompts; a row whose problem an earlier part already
holds is a bad row. Nothing is read whole: JSON Lines and Parquet stream through in batches.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import microworld

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
BATCH_ROWS = 1024
VALIDATION_ONE_IN = 50
MICROWORLD_MAX_LENGTH = 256

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
CHAT_SCHEMA = pa.schema([("id", pa.string()), ("messages", _MESSAGES)])
SPANS_SCHEMA = CHAT_SCHEMA.append(pa.field("critical_spans", pa.list_(pa.list_(pa.int32()))))
PROMPT_SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _MESSAGES),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("id", pa.string())])),
    ]
)
BENCHMARK_SCHEMA = pa.schema(
    [("id", pa.string()), ("prompt", _MESSAGES), ("answer", pa.string()), ("grader", pa.string())]
)
PRETRAIN_SCHEMA = pa.schema(
    [*CHAT_SCHEMA, ("style", pa.string()), ("input_ids", pa.list_(pa.int32())), ("prompt_length", pa.int32())]
)


def run(settings: SimpleNamespace, inputs: dict[str, Path], output: Path, scratch: Path, report) -> None:
    """Write the prepared data.

    Args:
        settings: `data`, the recipe's Data section.
        inputs: for `data.source=files` the paths `sft_train`, `sft_val`, `rl_train`, `rl_val`, `benchmark_<name>`
            (those the recipe names), `model` (a Hugging Face directory, for its tokenizer) and `chat_template` (a
            Jinja file).
        output: empty directory; the layout is in docs/micro_world.md and docs/data.md.
        scratch: not used; the stage takes seconds and starts over.
        report: `report(done, total)` in rows (micro-world) or bytes (files).

    Raises:
        ValueError: a row, a file or the tokenizer is unusable; the message names it.
    """
    if settings.data.source == "microworld":
        summary = prepare_microworld(settings.data, output, report)
    else:
        summary = prepare_files(settings.data, inputs, output, report)
    text = json.dumps(summary, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    (output / "summary.json").write_text(text, encoding="utf-8")


class TableWriter:
    """Writes rows to a Parquet file in batches of fixed size, so that equal rows give equal bytes."""

    def __init__(self, path: Path, schema: pa.Schema):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=self._schema))
        self._pending.clear()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pending and error[0] is None:
            self._flush()
        self._writer.close()


def chat(system: str | None, question: str, answer: str | None = None) -> list[dict[str, str]]:
    """Messages of one exchange, or of a prompt when `answer` is None."""
    turns = [("system", system), ("user", question), ("assistant", answer)]
    return [{"role": role, "content": content} for role, content in turns if content is not None]


def prompt_row(source: str, split: str, index: int, name: str, prompt: list, answer: str) -> dict[str, Any]:
    """One row of the columns that verl's RL trainer reads."""
    return {
        "data_source": source,
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": index, "split": split, "id": name},
    }


# the micro-world


def prepare_microworld(data: SimpleNamespace, output: Path, report) -> dict[str, Any]:
    """Generate the embedded world from `data.seed` and return its summary."""
    from data_prep.tokenizer import build_tokenizer

    sizes, seed, system = data.microworld, data.seed, data.system_prompt
    tokenizer = build_tokenizer(microworld.WORDS, MICROWORLD_MAX_LENGTH)
    tokenizer.save_pretrained(output / "tokenizer")
    taken: set[tuple[str, str]] = set()
    counts: dict[str, int] = {}
    total = (
        sizes.pretrain_examples
        + sizes.sft_examples
        + sizes.sft_val_examples
        + sizes.rl_prompts
        + sizes.rl_val_prompts
        + sizes.target_problems
        + sizes.skill_problems * (len(microworld.SKILLS) - 1)
    )
    done = 0

    def draw(
        skill: str, part: str, count: int, unique: bool = True
    ) -> Iterator[tuple[int, microworld.Problem, Random]]:
        nonlocal done
        problems = microworld.draw_problems(skill, f"{part} {seed}", taken, unique)
        rng = Random(f"wording {skill} {part} {seed}")
        for index in range(count):
            yield index, next(problems), rng
            done += 1
            if done % BATCH_ROWS == 0 or done == total:
                report(done, total)

    for name, skill in microworld.BENCHMARKS.items():
        family = microworld.SKILLS[skill]
        size = sizes.target_problems if skill == microworld.TARGET else sizes.skill_problems
        with TableWriter(output / "benchmarks" / f"{name}.parquet", BENCHMARK_SCHEMA) as writer:
            for index, problem, rng in draw(skill, "benchmark", size):
                prompt = chat(system, microworld.question(problem, rng))
                row = {"id": f"{name}-{index}", "prompt": prompt, "answer": problem.answer, "grader": family.grader}
                writer.add(row)
        counts[f"benchmarks/{name}"] = writer.rows

    noise: Counter[str] = Counter()

    def write_split(split: str, prompts: int, demonstrations: int) -> None:
        with TableWriter(output / f"rl_{split}.parquet", PROMPT_SCHEMA) as writer:
            for index, problem, rng in draw(microworld.TARGET, f"rl_{split}", prompts):
                prompt = chat(system, microworld.question(problem, rng))
                writer.add(prompt_row("microworld", split, index, f"rl-{split}-{index}", prompt, problem.answer))
        counts[f"rl_{split}"] = writer.rows
        with TableWriter(output / f"sft_{split}.parquet", SPANS_SCHEMA) as writer:
            for index, problem, rng in draw(microworld.TARGET, f"sft_{split}", demonstrations):
                asked = microworld.question(problem, rng)
                text, defect = microworld.demonstration(problem, rng)
                noise[f"{split}/{defect}"] += 1
                spans = microworld.critical_spans(text)
                messages = chat(system, asked, text)
                writer.add({"id": f"sft-{split}-{index}", "messages": messages, "critical_spans": spans})
        counts[f"sft_{split}"] = writer.rows

    write_split("val", sizes.rl_val_prompts, sizes.sft_val_examples)
    held_out = set(taken)
    write_split("train", sizes.rl_prompts, sizes.sft_examples)

    # The base may have met a training problem, as real ones have, but never a held-out one.
    taken = held_out
    styles: dict[str, dict[str, int]] = {}
    general = len(microworld.SKILLS) - 1
    each = round(sizes.pretrain_examples * (1 - microworld.TARGET_SHARE) / general)
    for skill in microworld.SKILLS:
        size = sizes.pretrain_examples - each * general if skill == microworld.TARGET else each
        seen: Counter[str] = Counter()
        with TableWriter(output / "pretrain" / f"{skill}.parquet", PRETRAIN_SCHEMA) as writer:
            for rows in batched(draw(skill, "pretrain", size, unique=False), BATCH_ROWS):
                chats, names = [], []
                for _, problem, rng in rows:
                    asked = microworld.question(problem, rng)
                    text, style = microworld.solution(problem, rng)
                    chats.append(chat(system, asked, text))
                    names.append(style)
                full = encode_chats(tokenizer, chats)
                prompts = encode_chats(tokenizer, [messages[:-1] for messages in chats], prompt=True)
                for messages, style, ids, prompt in zip(chats, names, full, prompts, strict=True):
                    row = {"id": f"{skill}-{writer.rows}", "messages": messages, "style": style}
                    writer.add({**row, "input_ids": ids, "prompt_length": len(prompt)})
                seen.update(names)
        counts[f"pretrain/{skill}"] = writer.rows
        styles[skill] = dict(seen)
    return {
        "counts": counts,
        "defects": dict(noise),
        "dropped": {},
        "source": "microworld",
        "styles": styles,
        "tokens": count_splits(tokenizer, output, data, lambda: report(total, total)),
    }


def batched(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` rows; the last may be shorter."""
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]], prompt: bool = False
) -> list[list[int]]:
    """Token ids of each chat under the tokenizer's template, ending in the assistant's header when `prompt`."""
    texts = [str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)) for chat in chats]
    return tokenizer(texts, add_special_tokens=False).input_ids


def count_splits(
    tokenizer: PreTrainedTokenizerBase, output: Path, data: SimpleNamespace, beat: Callable[[], None]
) -> dict[str, dict[str, int]]:
    """For sft_train and sft_val: `chats`, their `tokens` after truncation, and of these the `response_tokens`.

    Response tokens are what training supervises: every token of an assistant turn after its header.
    """
    splits = {}
    for split in ("sft_train", "sft_val"):
        counts: Counter[str] = Counter()
        for batch in pq.ParquetFile(output / f"{split}.parquet").iter_batches(BATCH_ROWS, columns=["messages"]):
            counts.update(count_tokens(tokenizer, batch.column("messages").to_pylist(), data))
            beat()
        splits[split] = dict(counts)
    return splits


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, chats: list[list[dict[str, str]]], data: SimpleNamespace
) -> dict[str, int]:
    """`chats`, `tokens` and `response_tokens` of some chats; see `count_splits`."""
    turns = [(row, at) for row, chat in enumerate(chats) for at, turn in enumerate(chat) if turn["role"] == "assistant"]
    headers = encode_chats(tokenizer, [chats[row][:at] for row, at in turns], prompt=True)
    answers = encode_chats(tokenizer, [chats[row][: at + 1] for row, at in turns])
    lengths = {row: len(ids) for (row, _), ids in zip(turns, answers, strict=True)}  # the last turn is an answer
    responses = 0
    for (row, _), header, answer in zip(turns, headers, answers, strict=True):
        first = max(0, lengths[row] - data.max_length) if data.on_long_row == "truncate_left" else 0
        start, end = max(len(header), first + 1), min(len(answer), first + data.max_length)  # never token 0
        responses += max(0, end - start)
    tokens = sum(min(length, data.max_length) for length in lengths.values())
    return {"chats": len(chats), "tokens": tokens, "response_tokens": responses}


# one's own files


class RowError(ValueError):
    """A bad row; `reason` is the word under which dropped rows are counted."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def read_rows(path: Path) -> Iterator[tuple[str, Any, int]]:
    """Stream `(where, row, bytes read)` of a JSONL or Parquet file; for a line that is not JSON, row is the RowError.

    Raises:
        ValueError: the file is missing, has another suffix, or is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".jsonl":
        position = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                position += len(line)
                if not line.strip():
                    continue
                where = f"{path} line {number}"
                try:
                    yield where, json.loads(line), position
                except (json.JSONDecodeError, UnicodeDecodeError) as error:
                    yield where, RowError("not JSON", f"{where}: not JSON ({error})"), position
    elif path.suffix == ".parquet":
        size = path.stat().st_size
        try:
            file = pq.ParquetFile(path)
            rows, number = file.metadata.num_rows, 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row, size * number // rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error
    else:
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}; allowed: .jsonl, .parquet")


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


def problem_key(messages: list[dict[str, str]]) -> bytes:
    """What the row asks: a digest of the first user message, blind to case and white space."""
    text = next(message["content"] for message in messages if message["role"] == "user")
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).digest()[:16]


def load_tokenizer(inputs: dict[str, Path]) -> PreTrainedTokenizerBase:
    """The model's tokenizer, after checking that its template and end-of-sequence token agree with the model.

    Raises:
        ValueError: no model, no chat template, or the token that ends a turn is not one that stops generation.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    if "model" not in inputs:
        raise ValueError("data.source=files: needs model.path, whose tokenizer measures the rows")
    path = inputs["model"]
    tokenizer = AutoTokenizer.from_pretrained(path)
    if "chat_template" in inputs:
        tokenizer.chat_template = inputs["chat_template"].read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ValueError(f"{path}: the tokenizer has no chat template; set model.chat_template to a Jinja file")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: the tokenizer has no eos_token; set it in tokenizer_config.json")
    if (Path(path) / "generation_config.json").is_file():
        stops, file = GenerationConfig.from_pretrained(path).eos_token_id, "generation_config.json"
    else:
        stops, file = AutoConfig.from_pretrained(path).eos_token_id, "config.json"
    stops = set(stops if isinstance(stops, list) else [stops])
    if tokenizer.eos_token_id not in stops:
        raise ValueError(
            f"{path}: eos_token_id is {tokenizer.eos_token_id} ({tokenizer.eos_token}) in the tokenizer, "
            f"{sorted(map(str, stops))} in {file}; make them agree"
        )
    ids = encode_chats(tokenizer, [chat(None, "question", "answer")])[0]
    if not stops & set(ids[-3:]):
        raise ValueError(
            f"{path}: the chat template ends a turn with {tokenizer.decode(ids[-3:])!r}, without an eos_token_id of "
            f"{file}, so no response would stop; set model.eos to the token that ends a turn, or model.chat_template"
        )
    return tokenizer


class FileReader:
    """Validates rows and keeps count; the policy for bad and long rows comes from the recipe's Data section."""

    def __init__(self, data: SimpleNamespace, tokenizer: PreTrainedTokenizerBase, report, total: int):
        self.data, self.tokenizer, self.report, self.total = data, tokenizer, report, total
        self.dropped: dict[str, Counter[str]] = {}
        self.truncated: Counter[str] = Counter()
        self.claims: dict[bytes, str] = {}
        self.finished_bytes = 0

    def rows(
        self, name: str, path: Path, parse: Callable[[str, dict], dict], against: set[str]
    ) -> Iterator[tuple[bytes, dict]]:
        """Stream `(problem key, parsed row)` of the good rows of `path`.

        Args:
            name: the part this file belongs to; its problems are claimed under that name.
            parse: returns the row with `id` and `messages` or `prompt`, or raises RowError.
            against: names of earlier parts whose problems may not occur here.
        """
        ids: set[str] = set()
        dropped = self.dropped.setdefault(name, Counter())
        batch: list[tuple[str, dict]] = []

        def settle(position: int) -> Iterator[tuple[bytes, dict]]:
            field = "messages" if batch and "messages" in batch[0][1] else "prompt"
            tokens = encode_chats(self.tokenizer, [row[field] for _, row in batch], prompt=field == "prompt")
            for (where, row), encoded in zip(batch, tokens, strict=True):
                try:
                    self._check_length(name, where, row, len(encoded))
                    key = problem_key(row[field])
                    owner = self.claims.get(key)
                    if owner is not None and owner in against:
                        raise RowError(
                            "overlap", f"{where}: the same problem is in {owner}; remove it from one of them"
                        )
                except RowError as error:
                    self._refuse(dropped, error)
                    continue
                self.claims.setdefault(key, name)
                yield key, row
            batch.clear()
            self.report(self.finished_bytes + position, self.total)

        for where, raw, position in read_rows(path):
            try:
                if isinstance(raw, RowError):
                    raise raw
                if not isinstance(raw, dict):
                    raise RowError("broken", f"{where}: not an object with fields")
                row = parse(where, raw)
                row["id"] = self._identifier(where, raw)
                if row["id"] in ids:
                    raise RowError("duplicate id", f"{where}: id {row['id']!r} occurs twice")
                ids.add(row["id"])
            except RowError as error:
                self._refuse(dropped, error)
                continue
            batch.append((where, row))
            if len(batch) == BATCH_ROWS:
                yield from settle(position)
        if batch:
            yield from settle(path.stat().st_size)
        self.finished_bytes += path.stat().st_size
        self.report(self.finished_bytes, self.total)

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
            raise ValueError(f"{error} (data.{setting}=drop leaves such rows out)") from None
        dropped[error.reason] += 1

    def _check_length(self, name: str, where: str, row: dict, length: int) -> None:
        limit = self.data.max_length
        if length <= limit:
            return
        message = f"{where}: {length} tokens, data.max_length={limit}"
        if "messages" not in row or not self.data.on_long_row.startswith("truncate"):
            raise RowError("too long", message)
        asked = len(encode_chats(self.tokenizer, [row["messages"][:-1]], prompt=True)[0])
        if self.data.on_long_row == "truncate_right" and asked >= limit:
            raise RowError("too long", f"{message}, and truncation would leave nothing of the last response")
        self.truncated[name] += 1

    def parse_chat(self, where: str, raw: dict) -> dict[str, Any]:
        """A chat row: `messages`, and `critical_spans` where given."""
        messages = check_messages(where, "messages", raw.get("messages"), last="assistant")
        row: dict[str, Any] = {"messages": self._with_system(messages)}
        if raw.get("critical_spans") is not None:
            row["critical_spans"] = check_spans(where, raw["critical_spans"], messages)
        return row

    def parse_prompt(self, where: str, raw: dict) -> dict[str, Any]:
        """A prompt row: `prompt` (text or messages), `answer`, and `grader` (default math)."""
        from evaluation.grading import check_grader

        prompt = raw.get("prompt")
        if isinstance(prompt, str):
            prompt = chat(None, prompt)
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
        return {"prompt": self._with_system(messages), "answer": answer, "grader": grader}

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        if self.data.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.data.system_prompt}, *messages]


def prepare_files(data: SimpleNamespace, inputs: dict[str, Path], output: Path, report) -> dict[str, Any]:
    """Validate one's own files, write them in the common layout and return the summary.

    Where `sft_val` or `rl_val` is not given, the first problem and one in fifty of the others (by a hash of the problem
    and `data.seed`) are moved there from the training file.
    """
    inputs = {name: Path(path) for name, path in inputs.items()}
    tokenizer = load_tokenizer(inputs)
    benchmarks = sorted(name for name in inputs if name.startswith("benchmark_"))
    files = [*benchmarks, *(name for name in ("sft_val", "sft_train", "rl_val", "rl_train") if name in inputs)]
    missing = [str(inputs[name]) for name in files if not inputs[name].is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: no such file")
    reader = FileReader(data, tokenizer, report, sum(inputs[name].stat().st_size for name in files))
    counts: dict[str, int] = {}
    held_out = set(benchmarks)
    for name in benchmarks:
        label = name.removeprefix("benchmark_")
        with TableWriter(output / "benchmarks" / f"{label}.parquet", BENCHMARK_SCHEMA) as writer:
            for _, row in reader.rows(name, inputs[name], reader.parse_prompt, set()):
                writer.add(row)
        counts[f"benchmarks/{label}"] = writer.rows

    def write_split(
        kind: str, parse, schema: pa.Schema, forbidden: set[str], shape: Callable[[str, int, dict], dict]
    ) -> None:
        train, val = f"{kind}_train", f"{kind}_val"
        given = val in inputs
        with (
            TableWriter(output / f"{val}.parquet", schema) as val_writer,
            TableWriter(output / f"{train}.parquet", schema) as train_writer,
        ):
            if given:
                for _, row in reader.rows(val, inputs[val], parse, forbidden):
                    val_writer.add(shape("val", val_writer.rows, row))
            first: bytes | None = None
            for key, row in reader.rows(train, inputs[train], parse, {*forbidden, val}):
                first = first or key
                digest = hashlib.sha256(key + str(data.seed).encode()).digest()
                moved = not given and (key == first or int.from_bytes(digest[:4], "big") % VALIDATION_ONE_IN == 0)
                writer, split = (val_writer, "val") if moved else (train_writer, "train")
                writer.add(shape(split, writer.rows, row))
        counts[train], counts[val] = train_writer.rows, val_writer.rows
        for name, rows in ((train, train_writer.rows), (val, val_writer.rows)):
            if not rows:
                raise ValueError(
                    f"{inputs.get(name, inputs[train])}: no rows left for {name}; dropped {dict(reader.dropped[train])}"
                )

    def shape_prompt(split: str, index: int, row: dict) -> dict[str, Any]:
        return prompt_row("files", split, index, row["id"], row["prompt"], row["answer"])

    write_split(
        "sft", reader.parse_chat, SPANS_SCHEMA, held_out, lambda split, index, row: {"critical_spans": None, **row}
    )
    if "rl_train" in inputs:
        write_split("rl", reader.parse_prompt, PROMPT_SCHEMA, {*held_out, "sft_train", "sft_val"}, shape_prompt)
    dropped = {name: dict(reasons) for name, reasons in reader.dropped.items() if reasons}
    return {
        "counts": counts,
        "dropped": dropped,
        "source": "files",
        "tokens": count_splits(tokenizer, output, data, lambda: report(reader.total, reader.total)),
        "truncated": dict(reader.truncated),
    }
