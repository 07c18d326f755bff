"""Figures of the reference cache beside other ways to store the same: `python -m data_prep.bench [--json]`.

Producer and bare forward pass alternate on the same model and batches, and the median of the paired ratios is reported.
Without `--model` the model is SmolLM2-135M-Instruct from its package (extra `smollm2`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError
from common.models import load_tokenizer
from data_prep import smollm2
from data_prep.chat_dataset import AlignedReference
from data_prep.chats import render
from data_prep.reference.codec import decode, encode
from data_prep.reference.layout import TOKEN_FIELDS, Layout, shard_name
from data_prep.reference.producers.forward import ForwardProducer
from data_prep.reference.reader import ReferenceCache, label_checksum
from data_prep.reference.statistics import statistics
from data_prep.reference.tokens import Job, Tokens, length_batches, split_shards
from data_prep.reference.workers import fill_shard, filled_shards, write_shards
from data_prep.reference.writer import publish, write_shard

TOP_K = 64
TOKENS_PER_SHARD = 131_072
LP_TOP_K = 10  # K_max of LP-SFT
TARGET_EXPONENT = 0.5
CHAT_TOKENS = 500
READER_CHATS = 400
OTHER_CHATS = 40  # JSONL needs a kilobyte a token
READS = 2000
READ_PASSES = 5
CHATS = [
    ("What is the capital of France?", "The capital of France is Paris, a city on the river Seine."),
    ("Add 17 and 25.", "17 + 25 = 42. First add the tens, 10 + 20 = 30, then the ones, 7 + 5 = 12; the sum is 42."),
    (
        "Why is the sky blue?",
        "Air scatters short wavelengths of sunlight more strongly than long ones, so we see blue.",
    ),
    ("Write a haiku about rain.", "Rain on the tin roof,\na slow song without an end.\nThe garden listens."),
    ("Solve 3x + 4 = 19.", "Subtract 4 from both sides: 3x = 15. Divide by 3: x = 5."),
    ("Name three primes.", "Three prime numbers are 2, 3 and 5: each has no divisor but one and itself."),
]


def producer_settings(threads: int, tokens_per_batch: int) -> tuple[Any, Any]:
    torch.set_num_threads(threads)
    section = SimpleNamespace(dtype="float32", tokens_per_batch=tokens_per_batch)
    return section, SimpleNamespace(attention="sdpa", trust_remote_code=False)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of `work`: of the processor where all of it runs there, so that other processes do not count."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    work()
    return clock() - started


def random_chats(producer: ForwardProducer, tokens: int) -> tuple[list[Job], Tokens]:
    """Random chats of 64 to 511 tokens in shards of TOKENS_PER_SHARD; all that has a predecessor is supervised."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(64, 512, max(2, tokens // 288))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = generator.integers(0, producer.vocab_size, offsets[-1], dtype=np.int32)
    mask = np.ones(len(ids), np.uint8)
    mask[offsets[:-1]] = 0
    return split_shards(lengths - 1, TOKENS_PER_SHARD), Tokens(ids, mask, offsets, {})


def synchronize(producer: ForwardProducer) -> None:
    if producer.device.type == "cuda":
        torch.cuda.synchronize()


def make_rows(producer: ForwardProducer, jobs: Sequence[Job], stored: Tokens) -> None:
    """All that the producer computes, which stays on its device and is thrown away."""
    for job in jobs:
        chats = [stored.chat(chat) for chat in job.chats]
        positions = [job.positions(mask) for _, mask in chats]
        for _ in producer.rows([ids for ids, _ in chats], positions, TOP_K, lambda _: None):
            pass
    synchronize(producer)


def producer_figures(producer: ForwardProducer, directory: Path, tokens: int, repeats: int) -> dict[str, float]:
    """Throughput of the producer (all fields, encoded and on disk) over that of bare forward passes.

    producer_vs_forward compares with the model's own forward; producer_vs_chunked_head with the same decoder and the
    output head in the producer's own chunks, whose logits are thrown away. forward_s, chunked_head_s and producer_s are
    the seconds of these; statistics_s is what the rows take beyond chunked_head_s (whose head also sees the padding),
    store_s what the whole takes beyond the rows. shard_write_s: of the first shard alone, most of it hidden behind the
    next.
    """
    jobs, stored = random_chats(producer, tokens)
    lengths = np.diff(stored.offsets)
    layout = Layout("compact", TOP_K, 18, producer.vocab_size, tuple(TOKEN_FIELDS))
    batches = []
    for job in jobs:
        chats = [stored.chat(chat)[0] for chat in job.chats]
        for batch in length_batches([len(ids) for ids in chats], producer.tokens_per_batch):
            padded = np.zeros((len(batch), max(len(chats[index]) for index in batch)), np.int64)
            for row, index in enumerate(batch):
                padded[row, : len(chats[index])] = chats[index]
            batches.append(torch.from_numpy(padded).to(producer.device))

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches:
            producer.model(input_ids=batch, use_cache=False)
        synchronize(producer)

    @torch.inference_mode()
    def chunked_head() -> None:
        for batch in batches:
            for part in producer.hidden(batch).flatten(0, 1).split(producer.chunk):
                producer.head(part)
        synchronize(producer)

    def produce() -> None:
        filled = filled_shards(jobs, stored, producer, lambda _: layout)
        list(write_shards(directory, ((job.file, layout, arrays) for job, arrays in filled)))

    seconds: dict[str, list[float]] = {"forward": [], "chunked_head": [], "producer": [], "rows": []}
    ratios: dict[str, list[float]] = {"producer_vs_forward": [], "producer_vs_chunked_head": []}
    produce()
    for _ in range(repeats):
        for name, rival in (("forward", forward), ("chunked_head", chunked_head)):
            bare, own = timed(rival), timed(produce)
            seconds[name].append(bare)
            seconds["producer"].append(own)
            ratios[f"producer_vs_{name}"].append(bare / own)
        seconds["rows"].append(timed(lambda: make_rows(producer, jobs, stored)))
    took = {name: median(values) for name, values in seconds.items()}
    first = fill_shard(jobs[0], stored, producer, layout)
    padding = sum(batch.numel() for batch in batches) / sum(lengths) - 1
    return {name: median(values) for name, values in ratios.items()} | {
        "producer_tokens_per_s": float(sum(lengths - 1)) / took["producer"],
        "padding_share": float(padding),
        "forward_s": took["forward"],
        "chunked_head_s": took["chunked_head"],
        "producer_s": took["producer"],
        "statistics_s": took["rows"] - took["chunked_head"],
        "store_s": took["producer"] - took["rows"],
        "shard_write_s": timed(lambda: write_shard(directory, jobs[0].file, layout, first)),
    }


@torch.inference_mode()
def sample_logits(producer: ForwardProducer, directory: Path) -> tuple[Tensor, Tensor]:
    """Logits (n, V) and labels (n,) of the model over the built-in chats' answers."""
    tokenizer = load_tokenizer(directory)
    logits, labels = [], []
    for question, answer in CHATS:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        (row,) = render(tokenizer, messages)
        ids, answer = (torch.tensor(values, device=producer.device) for values in (row.ids, row.supervised))
        places = answer.nonzero().squeeze(1)
        logits.append(producer.head(producer.hidden(ids.unsqueeze(0))[0, places - 1]).float())
        labels.append(ids[places])
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def lp_sft_gradient(student: Tensor, labels: Tensor, ids: Tensor, logprobs: Tensor, ceil_n1: Tensor) -> Tensor:
    """(n, V) gradient of LP-SFT at mu = 1 (eq. 13-18): p - e_y + scatter over A of (p_A - q_A)."""
    rank = torch.arange(ids.shape[1])
    inside = (rank < ceil_n1.clamp(max=LP_TOP_K).unsqueeze(1)) & (ids != labels.unsqueeze(1))
    alone = inside.sum(1, keepdim=True) == 1
    more = (~inside & (ids != labels.unsqueeze(1)) & alone).int().argmax(1, keepdim=True)
    inside = inside | (alone & (rank == more))
    kept = inside.any(1, keepdim=True)

    def renormalised(values: Tensor) -> Tensor:
        return values.masked_fill(~inside, -1e30).softmax(1) * kept

    gradient = student.softmax(1)
    gradient.scatter_add_(1, labels.unsqueeze(1), -torch.ones_like(gradient[:, :1]))
    return gradient.scatter_add(1, ids, renormalised(student.gather(1, ids)) - renormalised(logprobs))


def target_sft_gradient(student: Tensor, labels: Tensor, ids: Tensor, logprobs: Tensor) -> Tensor:
    """(n, V) gradient of TARGET-SFT (eq. 7-8): p - p_y e_y - (1 - p_y) R on the cached support."""
    p = student.softmax(1)
    p_label = p.gather(1, labels.unsqueeze(1))
    eta = TARGET_EXPONENT
    residual = ((1 - eta) * student.gather(1, ids) + eta * logprobs).softmax(1)
    return p.scatter_add(1, labels.unsqueeze(1), -p_label).scatter_add(1, ids, -(1 - p_label) * residual)


def gradient_errors(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Relative error (Frobenius norm) of two objectives' gradients when the cache is compact instead of exact.

    Args:
        logits: (n, V) of the model that fills the cache; the student is a perturbed copy.
        labels: (n,) int64.
    """
    generator = torch.Generator().manual_seed(0)
    student = 0.9 * logits.double() + 0.3 * torch.randn(logits.shape, generator=generator).double()
    found = statistics(logits.clone(), labels, TOP_K)
    exact = found["support_logprobs"].double()
    packed = encode(found["support_ids"], found["support_logprobs"], encoding="compact", id_bits=18)
    ids, logprobs = decode(packed.flatten(), TOP_K)
    gradients = {
        "lp_sft_grad_error": lambda q: lp_sft_gradient(student, labels, ids, q, found["ceil_n1"]),
        "target_sft_grad_error": lambda q: target_sft_gradient(student, labels, ids, q),
    }
    return {
        name: float((gradient(logprobs.double()) - gradient(exact)).norm() / gradient(exact).norm())
        for name, gradient in gradients.items()
    }


def synthetic_cache(directory: Path, chats: int) -> ReferenceCache:
    """A cache of random entries, of the size of a real one."""
    layout = Layout("compact", TOP_K, 18, 49_152, tuple(TOKEN_FIELDS))
    generator = np.random.default_rng(0)
    arrays = layout.allocate(chats * CHAT_TOKENS, chats)
    arrays["packed"][:] = generator.integers(-(2**31), 2**31, arrays["packed"].shape, dtype=np.int32)
    arrays["offsets"][:] = np.arange(chats + 1) * CHAT_TOKENS
    arrays["label_checksum"][:] = label_checksum(np.ones(CHAT_TOKENS, np.int32))
    record = write_shard(directory, shard_name(0), layout, arrays)
    output = directory / "cache"
    output.mkdir()
    publish(directory, output, layout, {"producer": "forward"}, [record], None)
    return ReferenceCache(output)


def reads_per_second(read: Callable[[int], Any], chats: int, reads: int) -> float:
    """Tokens a second of reading random chats, warm: the median of some passes after a first one."""
    order = np.random.default_rng(1).integers(0, chats, reads).tolist()

    def read_all() -> None:
        for chat in order:
            read(chat)

    read_all()
    return reads * CHAT_TOKENS / median(timed(read_all) for _ in range(READ_PASSES))


def reader_figures(directory: Path) -> dict[str, Any]:
    """Speed of aligned reads (what a training step needs for LP-SFT) and the same rows in other formats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = synthetic_cache(directory, READER_CHATS)
    fields = ["support_ids", "support_logprobs", "label_logprob", "ceil_n1"]
    reference = {"path": stored.directory, "fields": fields, "top_k": None}
    aligned = AlignedReference("base", reference, {}, READER_CHATS)
    prompt = 100
    ids = np.ones(prompt + CHAT_TOKENS, np.int64)
    mask = np.repeat([0, 1], [prompt, CHAT_TOKENS])
    size = (stored.directory / shard_name(0)).stat().st_size
    rows = {
        "reference cache": (
            size / stored.tokens,
            reads_per_second(lambda chat: aligned.rows(chat, ids, mask), READER_CHATS, READS),
        )
    }

    table = []
    for chat in range(OTHER_CHATS):
        packed = torch.from_numpy(stored.read(chat)["packed"].copy()).flatten()
        found, logprobs = decode(packed, TOP_K)
        table.append((found.numpy().astype(np.int32), logprobs.numpy()))
    tokens = OTHER_CHATS * CHAT_TOKENS

    lines, starts = directory / "rows.jsonl", [0]
    with lines.open("wb") as file:
        for found, logprobs in table:
            row = {"ids": found.tolist(), "logprobs": [[round(float(x), 4) for x in line] for line in logprobs]}
            file.write(json.dumps(row).encode() + b"\n")
            starts.append(file.tell())

    def read_line(chat: int) -> tuple[np.ndarray, np.ndarray]:
        with lines.open("rb") as file:
            file.seek(starts[chat])
            row = json.loads(file.readline())
        return np.asarray(row["ids"], np.int32), np.asarray(row["logprobs"], np.float32)

    rows["JSONL"] = (starts[-1] / tokens, reads_per_second(read_line, OTHER_CHATS, OTHER_CHATS))

    parquet = directory / "rows.parquet"
    columns = {"ids": [a.ravel() for a, _ in table], "logprobs": [b.ravel() for _, b in table]}
    pq.write_table(pa.table(columns), parquet, row_group_size=1, compression="zstd")
    file = pq.ParquetFile(parquet)

    def read_group(chat: int) -> list[np.ndarray]:
        group = file.read_row_group(chat)
        return [group[name].combine_chunks().values.to_numpy().reshape(-1, TOP_K) for name in ("ids", "logprobs")]

    rows["Parquet (zstd)"] = (
        parquet.stat().st_size / tokens,
        reads_per_second(read_group, OTHER_CHATS, 5 * OTHER_CHATS),
    )

    np.save(directory / "ids.npy", np.concatenate([a for a, _ in table]))
    np.save(directory / "logprobs.npy", np.concatenate([b for _, b in table]).astype(np.float16))
    maps = [np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("ids", "logprobs")]

    def read_arrays(chat: int) -> list[np.ndarray]:
        return [np.array(values[chat * CHAT_TOKENS : (chat + 1) * CHAT_TOKENS]) for values in maps]

    rows["fp16 + int32 arrays"] = (6.0 * TOP_K, reads_per_second(read_arrays, OTHER_CHATS, READS))
    return {
        "reader_tokens_per_s": rows["reference cache"][1],
        "bytes_per_token_k64": rows["reference cache"][0],
        "formats": {name: {"bytes_per_token": a, "tokens_per_s": b} for name, (a, b) in rows.items()},
    }


def measure(model: Path, threads: int, tokens: int, repeats: int, tokens_per_batch: int) -> dict[str, Any]:
    """All figures, by name."""
    producer = ForwardProducer(model, *producer_settings(threads, tokens_per_batch), None)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        figures = producer_figures(producer, directory, tokens, repeats)
        figures |= gradient_errors(*sample_logits(producer, model))
        torch.set_num_threads(1)
        figures |= reader_figures(directory)
    # a training step costs about three forward passes
    figures["reader_share_of_step"] = figures["producer_tokens_per_s"] / 3 / figures["reader_tokens_per_s"]
    return figures | {"device": producer.device.type, "threads": threads, "vocab_size": producer.vocab_size}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.bench", description="Figures of the reference cache.")
    parser.add_argument("--model", type=Path, help="Hugging Face directory (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of one forward measurement")
    parser.add_argument("--tokens-per-batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        try:
            model = options.model or smollm2.export(Path(directory))
        except ConfigError as error:
            sys.exit(str(error))
        figures = measure(model, options.threads, options.tokens, options.repeats, options.tokens_per_batch)
    if options.json:
        print(json.dumps(figures, sort_keys=True))
        return
    formats = figures.pop("formats")
    for name, value in figures.items():
        print(f"{name:28} {value if isinstance(value, str) else format(value, '.4g')}")
    print(f"\n{'format (k = 64)':24} {'bytes/token':>12} {'tokens/s':>12}")
    for name, row in formats.items():
        print(f"{name:24} {row['bytes_per_token']:12.0f} {row['tokens_per_s']:12.3g}")


if __name__ == "__main__":
    main()
