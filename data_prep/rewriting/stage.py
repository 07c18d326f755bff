"""The stage `rewrite`: questions of the training chats are answered anew, a method chooses, chats are written.

First all responses are sampled and graded, block by block, and kept in the scratch directory; then they are measured,
scored where the method asks for it, and chosen from. A killed run goes on with its last shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import ConfigError
from common.files import read_json, write_json
from data_prep import methods
from data_prep.methods.contract import section_of
from data_prep.rewriting.answers import Answered, Answers
from data_prep.rewriting.choices import Choices, Counts
from data_prep.rewriting.questions import Chats
from data_prep.tables import CHAT_SCHEMA, TableWriter

TRAIN, VAL, SUMMARY = "sft_train.parquet", "sft_val.parquet", "summary.json"
RESPONSES = pa.schema(
    [
        ("id", pa.string()),
        ("asked", pa.int32()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("seed", pa.int64()),
        ("verdict", pa.string()),
        ("log_p", pa.float64()),
        ("chosen", pa.bool_()),
    ]
)


def run(settings: Any, inputs: Mapping[str, Path], output: Path, scratch: Path, report: Callable[..., None]) -> None:
    """Answer the questions of the training chats anew and write chats in the layout of `prepare`.

    Args:
        settings: `rewrite`, `data`, `model` and `platform` of a recipe.
        inputs: `data` (prepared chats), `model` (who answers, a Hugging Face directory) and, where that is another
            model, `base` (whose template and tokenizer the chats are trained with, and which scores them).
        output: gets sft_train.parquet, sft_val.parquet (as it was), responses.parquet (everything that was sampled,
            with its verdict), summary.json and rewrite.json (a table).
        scratch: shards of responses and blocks of answered questions, found again by the next attempt.
        report: `report(done, total)`, in questions, each counted twice.

    Raises:
        ConfigError: the settings do not fit, or no chat is left.
    """
    inputs = {name: Path(path) for name, path in inputs.items()}
    method = methods.load(settings.rewrite.method)
    section = section_of(method, settings.rewrite.settings)
    chats = Chats(inputs["data"] / TRAIN, method.apart)
    count = len(chats)
    answers = Answers(
        settings, inputs, scratch, chats, method, section, lambda share: report(round(share * count), 2 * count)
    )
    answers.draw()
    base = inputs.get("base", inputs["model"])
    done = 0
    choices = Choices(settings, base, scratch, chats, method, section, lambda: report(count + done, 2 * count))
    with (
        TableWriter(output / TRAIN, CHAT_SCHEMA) as train,
        pq.ParquetWriter(output / "responses.parquet", RESPONSES, compression="zstd") as log,
    ):
        for start in answers.starts:
            block = answers.block(start)
            for chat in choices.of(block):
                train.add(chat)
            log.write_table(_responses(chats, block))
            done = start + len(block)
            report(count + done, 2 * count)
    if not train.rows:
        raise ConfigError(
            f"rewrite.method={method.name}: no chat is left ({_said(choices.counts)}); set "
            "rewrite.unanswered=demonstration, more rewrite.samples, or another rewrite.model"
        )
    shutil.copy(inputs["data"] / VAL, output / VAL)
    _summary(output, read_json(inputs["data"] / SUMMARY), chats, choices.counts, settings.rewrite.method)


def _responses(chats: Chats, block: list[Answered]) -> pa.Table:
    rows = []
    for one in block:
        name = chats.chat(one.asked.places[0])["id"] if one.drawn else ""
        rows += [{"id": name, **{key: vars(drawn)[key] for key in RESPONSES.names[1:]}} for drawn in one.drawn]
    return pa.Table.from_pylist(rows, RESPONSES)


def _said(counts: Counts) -> str:
    return "; ".join(f"{name}: {count}" for name, count in counts.named().items())


def _summary(output: Path, before: Mapping[str, Any], chats: Chats, counts: Counts, method: str) -> None:
    found = {"before": chats.table.num_rows, "after": counts.tokens["chats"], **counts.chats}
    table = {
        "title": f"Chats under {method}",
        "columns": ["what", "count"],
        "rows": [
            ["questions", len(chats)],
            *([name, count] for name, count in counts.named().items()),
            *([f"chats, {name}", count] for name, count in found.items()),
        ],
    }
    write_json(output / "rewrite.json", table)
    summary = {
        "part": "sft",
        "method": method,
        "counts": {"sft_train": counts.tokens["chats"], "sft_val": before["counts"]["sft_val"]},
        "tokens": {"sft_train": dict(counts.tokens), "sft_val": before["tokens"]["sft_val"]},
        "questions": dict(counts.questions),
        "responses": dict(counts.responses),
        "chats": found,
    }
    write_json(output / SUMMARY, summary)
