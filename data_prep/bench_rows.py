"""Memory and time of `prepare` by the number of rows: `python -m data_prep.bench_rows [--rows 100000 300000] [--json]`.

Each size is prepared in a process of its own, from one JSONL file of chats in random words, beside a benchmark whose
problems they are compared with. What a row costs beyond the first size is what a million rows will.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from common.files import write_json
from common.registry import ROOT

MILLION = 1_000_000
VOCABULARY = 16_000
PROBLEMS = 1000
PROBLEM_WORDS = 40
ASKED = 0.2  # of a chat's words that are its question
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts() -> list[str]:
    """The text of our own packages and documents."""
    return [path.read_text() for kind in ("*/*.py", "*/*/*.py", "docs/*.md") for path in sorted(ROOT.glob(kind))]


def make_model(directory: Path) -> Any:
    """A byte-level tokenizer trained on our own text, with a configuration beside it, as `prepare` reads a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    ends: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    Qwen2Config(vocab_size=len(tokenizer), **ends).save_pretrained(directory)
    GenerationConfig(**ends).save_pretrained(directory)
    return tokenizer


def write_chats(path: Path, rows: int, tokens: int, tokenizer: Any) -> None:
    """`rows` chats of about `tokens` tokens each."""
    rng, words = Random(0), " ".join(texts()).split()
    sample = " ".join(rng.choices(words, k=10_000))
    length = round(tokens * 10_000 / len(tokenizer(sample, add_special_tokens=False).input_ids))
    asked = round(ASKED * length)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            said = rng.choices(words, k=length)
            turns = [("user", " ".join(said[:asked])), ("assistant", " ".join(said[asked:]))]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"id": f"chat-{number:08d}", "messages": messages}, ensure_ascii=False) + "\n")


def write_benchmark(directory: Path) -> None:
    """A prepared benchmark of problems in random words."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_prep.tables import BENCHMARK_SCHEMA

    rng, words = Random(1), " ".join(texts()).split()
    rows = [
        {
            "id": str(number),
            "prompt": [{"role": "user", "content": " ".join(rng.choices(words, k=PROBLEM_WORDS))}],
            "answer": "1",
            "grader": "math",
        }
        for number in range(PROBLEMS)
    ]
    directory.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, BENCHMARK_SCHEMA), directory / "problems.parquet")


def prepare(chats: Path, model: Path, benchmark: Path, output: Path, max_length: int) -> dict[str, float]:
    """Prepare the chats in this process; seconds of its own and of the work, and its peak of memory in MB."""
    from data_prep.prepare import run
    from data_prep.sources.feeds import Feed

    settings = SimpleNamespace(
        part="sft",
        name="",
        sources=[Feed.model_validate({"source": "files", "settings": {"sft_train": str(chats)}})],
        grader="math",
        data=SimpleNamespace(
            seed=0,
            system_prompt=None,
            max_length=max_length,
            on_long_row="drop",
            on_bad_row="error",
            format="auto",
            on_unknown_field="error",
            allow_shared_prompts=True,
        ),
        model=SimpleNamespace(pretrain=None, trust_remote_code=False),
    )
    shown = time.monotonic()
    reports = 0

    def report(done: int, total: int, **_: float) -> None:
        nonlocal shown, reports
        reports += 1
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{done / total:.0%}", end=" ", file=sys.stderr, flush=True)

    began = time.monotonic()
    inputs = {"model": model, "sft_train": chats, "benchmark_random": benchmark}
    run(settings, inputs, output, output, report)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    tokens = json.loads((output / "summary.json").read_text())["tokens"]
    return {
        "rows": sum(split["chats"] for split in tokens.values()),
        "tokens": sum(split["tokens"] for split in tokens.values()),
        "seconds": time.monotonic() - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
        "reports": reports,
    }


def measure(sizes: list[int], tokens: int) -> dict[str, Any]:
    """Figures of each size, and of a million rows by the growth between the first and the last."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tokenizer = make_model(directory / "model")
        write_benchmark(directory / "benchmark")
        for size in sizes:
            chats, output = directory / "chats.jsonl", directory / f"output{size}"
            write_chats(chats, size, tokens, tokenizer)
            output.mkdir()
            given = [chats, directory / "model", directory / "benchmark", output, 2 * tokens]
            command = [sys.executable, "-m", "data_prep.bench_rows", "--one", *map(str, given)]
            subprocess.run(command, cwd=ROOT, check=True)
            found.append(json.loads((output / "figures.json").read_text()))
            chats.unlink()
    first, last = found[0], found[-1]
    figures: dict[str, Any] = {"sizes": found}
    if len(found) > 1:
        more = last["rows"] - first["rows"]
        for key in ("peak_mb", "seconds", "processor_seconds"):
            growth = (last[key] - first[key]) / more
            figures[f"{key}_per_100k_rows"] = growth * 100_000
            figures[f"{key}_at_a_million_rows"] = last[key] + growth * (MILLION - last["rows"])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_prep.bench_rows", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000], help="sizes, ascending")
    parser.add_argument("--tokens", type=int, default=1200, help="tokens of a chat, about")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--one", nargs=5, metavar="PATH", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        *paths, limit = options.one
        chats, model, benchmark, output = map(Path, paths)
        write_json(output / "figures.json", prepare(chats, model, benchmark, output, int(limit)))
        return
    figures = measure(options.rows, options.tokens)
    if options.json:
        print(json.dumps(figures, sort_keys=True))
        return
    columns = ("rows", "tokens", "seconds", "processor_seconds", "peak_mb")
    print(" ".join(f"{name:>18}" for name in columns))
    for row in figures.pop("sizes"):
        print(" ".join(f"{row[name]:18,.0f}" for name in columns))
    for name, value in figures.items():
        print(f"{name:42} {value:12,.1f}")


if __name__ == "__main__":
    main()
