"""A tiny random character model, and prepared data for it."""

import os
import pathlib

import pytest

from common.tiny_models import character_tokenizer, ends_of, random_model, save

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def write_model(directory: pathlib.Path, *, tied: bool, seed: int, hidden: int, context: int) -> pathlib.Path:
    tokenizer = character_tokenizer(context)
    model = random_model(
        "Llama",
        len(tokenizer),
        hidden=hidden,
        heads=1,
        seed=seed,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        **ends_of(tokenizer),
    )
    return save(directory, model, tokenizer)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    """Factory model_directory(tied=..., seed=...) of Hugging Face directories."""
    root = tmp_path_factory.mktemp("models")

    def build(*, tied: bool, seed: int, hidden: int = 32, context: int = 256) -> pathlib.Path:
        path = root / f"{'tied' if tied else 'untied'}-{seed}-{hidden}-{context}"
        known = path.exists()
        return path if known else write_model(path, tied=tied, seed=seed, hidden=hidden, context=context)

    return build


@pytest.fixture(scope="session")
def prepared_data(tmp_path_factory):
    """`prepare` artifacts, each in a directory of its name: the benchmarks `digits` (12 problems, two of them asked
    alike) and `letters`, and SFT chats, `sft`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("data")
    for name, count, grader in (("digits", 12, "math"), ("letters", 4, "exact")):
        rows = [
            {
                "id": f"{name}-{i}",
                "prompt": [{"role": "user", "content": f"{max(i, 1)}+1="}],
                "answer": str(i),
                "grader": grader,
            }
            for i in range(count)
        ]
        (root / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), root / name / "problems.parquet")
    chats = [
        {
            "id": str(i),
            "messages": [
                {"role": "user", "content": f"{i}+2="},
                {"role": "assistant", "content": rf"It is \boxed{{{i + 2}}}."},
            ],
        }
        for i in range(10)
    ]
    (root / "sft").mkdir()
    pq.write_table(pa.Table.from_pylist(chats), root / "sft" / "sft_val.parquet")
    return root


@pytest.fixture(scope="session")
def evaluate_all():
    """Factory evaluate_all(settings, inputs, data, directory, ...) of everything that `settings.eval` asks for."""

    def evaluate(settings, inputs, data, directory, report=lambda *_, **__: None, seen=None):
        """Generate and measure each benchmark, task and, where eval.held_out_chats is positive, the held-out chats.

        data: prepared data as of `prepared_data`. Returns the measure artifacts, in that order; what a thing was
        generated to is in `directory`/generated/<name>. seen: maps an input's name to a path for measuring.
        """
        from types import SimpleNamespace

        from evaluation import checks, generate, measure

        evaluation = settings.eval
        checks.check(evaluation)
        things = [("benchmark", one, one.name) for one in evaluation.benchmarks]
        things += [("task", one, one.name) for one in evaluation.tasks]
        things += [("held_out", True, "held_out")] if evaluation.held_out_chats else []
        measured = []
        for kind, what, name in things:
            folders = [directory / stage / name for stage in ("generated", "measured", "scratch")]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            own = SimpleNamespace(**vars(settings), **{kind: what})
            given = {**inputs, "data": data / "sft", "problems": data / name}
            generate.run(own, given, folders[0], folders[2], report)
            measure.run(own, {"generations": folders[0], **(seen or {})}, folders[1], folders[2], report)
            measured.append(folders[1])
        return measured

    return evaluate
