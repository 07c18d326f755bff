"""Memory, time and disk of the cache's data path by the number of chats: `python -m data_prep.bench_cache [--json]`.

Each size runs in two processes of its own: stage `cache`, whose model's place is taken by rows from a table (a model
needs the same memory however many chats there are), and one rank of training, which opens the chats and the cache and
reads some in random order. What a chat costs beyond the first size is what a million chats will.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from common.files import read_json, write_json
from common.registry import ROOT
from data_prep.bench_rows import ASKED, MILLION, make_model, vocabulary

SENTENCES, SENTENCE_WORDS = 4000, 50  # what chats are made of
ROWS_TABLE, ROWS_AT_ONCE = 1 << 14, 128  # rows of which the stand-in of a model gives some
LOOKS_PER_SECOND = 20
READS = 2000


def write_chats(path: Path, chats: int, tokens: int, tokenizer: Any) -> None:
    """A prepared file of chats of about `tokens` tokens each."""
    from data_prep.tables import CHAT_SCHEMA, TableWriter

    rng, words = Random(0), vocabulary()
    sentences = [" ".join(rng.choices(words, k=SENTENCE_WORDS)) for _ in range(SENTENCES)]
    ids = tokenizer(sentences, add_special_tokens=False).input_ids
    length = round(tokens * SENTENCES / sum(map(len, ids)))
    asked = round(ASKED * length)
    with TableWriter(path, CHAT_SCHEMA) as writer:
        for number in range(chats):
            said = rng.choices(sentences, k=length)
            question, answer = f"{number} {' '.join(said[:asked])}", " ".join(said[asked:])
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            row = {"id": str(number), "messages": turns, "critical_spans": None}
            writer.add({**row, "row_tokens": [tokens], "row_supervised": [tokens]})


def settings_of(options: argparse.Namespace) -> Any:
    """Settings of stage `cache`."""
    return SimpleNamespace(
        role="base",
        cache=SimpleNamespace(
            top_k=options.top_k,
            encoding="compact",
            dtype="float32",
            producer="forward",
            workers=1,
            processes=1,
            tokens_per_batch=8192,
            sample_sequences=100,
            tokens_per_shard=262_144,
        ),
        data=SimpleNamespace(
            seed=0,
            system_prompt=None,
            max_length=2 * options.tokens,
            on_long_row="error",
            turns="all",
            prompt_mismatch="as_inferred",
            supervise_after_end=False,
        ),
        model=SimpleNamespace(
            attention="sdpa", chat_template=None, trust_remote_code=False, template_arguments={}, path=None
        ),
        platform=SimpleNamespace(name="cpu", threads=1, env={}),
    )


class TableProducer:
    """Stands in for a model: the statistics of a position are some row of a table."""

    def __init__(self, vocab_size: int, top_k: int):
        import torch

        from data_prep.reference.statistics import statistics

        generator = torch.Generator().manual_seed(0)
        self.vocab_size, parts = vocab_size, []
        for _ in range(ROWS_TABLE // ROWS_AT_ONCE):
            logits = torch.randn(ROWS_AT_ONCE, vocab_size, generator=generator)
            labels = torch.randint(0, vocab_size, (ROWS_AT_ONCE,), generator=generator)
            parts.append(statistics(logits, labels, top_k))
        self.table = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], top_k: int, heartbeat: Any
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        import torch

        for index, (ids, kept) in enumerate(zip(chats, positions, strict=True)):
            places = torch.from_numpy((ids[kept].astype(np.int64) * 2654435761 + kept) % ROWS_TABLE)
            found = {name: rows[places] for name, rows in self.table.items()}
            yield [index], {name: rows[:, :top_k] if rows.ndim == 2 else rows for name, rows in found.items()}
            heartbeat(len(kept))


def produce(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run stage `cache`."""
    from common.models import vocabulary_size
    from data_prep.reference import stage, workers

    model, output, scratch = directory / "model", directory / "cache", directory / "scratch"
    for folder in (output, scratch):
        folder.mkdir()
    producer = TableProducer(vocabulary_size(model), options.top_k)
    tokenised = began = time.monotonic()

    def report(done: int, total: int, **_: float) -> None:
        nonlocal tokenised
        if total == 1:
            tokenised = time.monotonic()

    with (
        mock.patch.object(workers, "make_producer", lambda *_: producer),
        mock.patch.object(stage, "weights_digest", lambda _: "none"),
    ):
        stage.run(settings_of(options), {"model": model, "data": directory}, output, scratch, report)
    ended = time.monotonic()
    header = json.loads((output / "header.json").read_text())
    size = sum(path.stat().st_size for path in output.iterdir())
    return {
        "chats": header["sequences"],
        "tokens": (scratch / "ids.bin").stat().st_size / 4,
        "supervised": header["tokens"],
        "cache_gb": size / 1e9,
        "tokenise_s": tokenised - began,
        "write_s": ended - tokenised,
    }


def train(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    """Open the training set with its cache, as a rank does, and read some rows in random order."""
    from common.models import load_tokenizer
    from data_prep.chat_dataset import ChatDataset, dataset_config

    settings = settings_of(options)
    tokenizer, file = load_tokenizer(directory / "model"), str(directory / "sft_train.parquet")
    fields = ["support_ids", "support_logprobs", "label_logprob", "ceil_n1"]
    cache = directory / "cache"
    config = dataset_config(settings.data, settings.model) | {
        "mapped": str(directory / "scratch"),
        "train_files": file,
        "references": {"base": {"path": str(cache), "fields": fields, "top_k": None}},
    }
    began = time.monotonic()
    dataset = ChatDataset(file, tokenizer, config)
    opened = time.monotonic()
    for part in dataset.references["base"].cache.scalar_parts(["label_logprob"]):
        part["label_logprob"].mean()
    constants = time.monotonic()
    for index in np.random.default_rng(0).integers(0, len(dataset), READS).tolist():
        dataset[index]
    ended = time.monotonic()
    return {
        "open_s": opened - began,
        "constants_s": constants - opened,
        "read_ms": 1000 * (ended - constants) / READS,
    }


PHASES = {"produce": produce, "train": train}


def anonymous_mb(process: int) -> float:
    """Memory of a process that no file backs, in MB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def run_phase(phase: str, directory: Path, arguments: Sequence[str]) -> dict[str, float]:
    """Figures of a phase in a process of its own, with the peak of its anonymous memory."""
    command = [sys.executable, "-m", "data_prep.bench_cache", "--phase", phase, str(directory), *arguments]
    process = subprocess.Popen(command, cwd=ROOT)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, anonymous_mb(process.pid))
        time.sleep(1 / LOOKS_PER_SECOND)
    if process.returncode:
        raise RuntimeError(f"{phase} ended with status {process.returncode}")
    return read_json(directory / f"{phase}.json") | {f"{phase}_mb": peak}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of each size, and of a million chats by the growth between the first and the last."""
    given = ["--tokens", str(options.tokens), "--top-k", str(options.top_k)]
    found = []
    for chats in options.chats:
        with tempfile.TemporaryDirectory(dir=options.directory) as name:
            directory = Path(name)
            write_chats(directory / "sft_train.parquet", chats, options.tokens, make_model(directory / "model"))
            found.append(run_phase("produce", directory, given) | run_phase("train", directory, given))
    figures: dict[str, Any] = {"sizes": found}
    first, last = found[0], found[-1]
    if last["chats"] > first["chats"]:
        figures["million"] = {
            name: last[name] + (last[name] - first[name]) * (MILLION - last["chats"]) / (last["chats"] - first["chats"])
            for name in last
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.bench_cache", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--chats", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="sizes, ascending")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of a chat, about")
    parser.add_argument("--top-k", type=int, default=8, help="ids stored for each token")
    parser.add_argument("--directory", help="where the files are made and removed (default: the system's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--phase", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        phase, directory = options.phase
        write_json(Path(directory) / f"{phase}.json", PHASES[phase](Path(directory), options))
        return
    figures = measure(options)
    if options.json:
        print(json.dumps(figures, sort_keys=True))
        return
    rows = [*figures["sizes"], *([figures["million"]] if "million" in figures else [])]
    print(" ".join(f"{name:>13}" for name in rows[0]))
    for row in rows:
        print(" ".join(f"{value:13,.0f}" if value >= 100 else f"{value:13.2f}" for value in row.values()))


if __name__ == "__main__":
    main()
