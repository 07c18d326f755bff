import json
import sys
from types import SimpleNamespace

import pytest

from evaluation.generation import EngineOptions, Prompter, close_engine, engine_for
from evaluation.harness import run_task

OPTIONS = EngineOptions(platform="cpu", dtype="float32", max_length=64, gpu_memory=0.5)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{more}
metadata: {{version: 1.0}}
"""
CHOICE = """doc_to_choice: ["1", "2", "3"]
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]"""
GENERATE = """doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]"""


@pytest.fixture
def task_files(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{i}+{i}=", "answer": i % 3}) + "\n" for i in range(9)))
    for name, kind, more in (("pick", "multiple_choice", CHOICE), ("write", "generate_until", GENERATE)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows, kind=kind, more=more))
    return tmp_path


def run(name, engine, model, task_files, **options):
    task = SimpleNamespace(name=name, num_fewshot=None, limit=None, chat=False)
    return run_task(
        task,
        engine,
        Prompter(model).tokenizer,
        max_length=64,
        task_files=str(task_files),
        seed=0,
        resamples=50,
        heartbeat=lambda: None,
        **{"directory": task_files / "kept", **options},
    )


def reference_choices(model, count):
    """Which of the continuations 1, 2, 3 Hugging Face's model finds likeliest after each question."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, network = Prompter(model).tokenizer, AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    choices = []
    for i in range(count):
        ids = torch.tensor([tokenizer(f"{i}+{i}=", add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            scores = network(ids).logits[0, -1].log_softmax(-1)
        choices.append(max(range(3), key=lambda k: float(scores[tokenizer.convert_tokens_to_ids(str(k + 1))])))
    return choices


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_a_local_task_is_scored_as_by_hugging_face_and_another_is_generated(model_directory, task_files):
    model = model_directory(tied=True, seed=0)
    engine = engine_for(model, OPTIONS)
    found = run("pick", engine, model, task_files)
    expected = [choice == i % 3 for i, choice in enumerate(reference_choices(model, 9))]
    accuracy = found["metrics"]["acc,none"]
    assert [json.loads(row["scores"]) for row in found["rows"]] == [{"acc": [float(right), 1.0]} for right in expected]
    assert all("+" in row["requests"] and row["responses"] for row in found["rows"])
    assert accuracy.value == pytest.approx(sum(expected) / 9) and accuracy.n == found["problems"] == 9
    assert accuracy.low <= accuracy.value <= accuracy.high
    written = run("write", engine, model, task_files)["metrics"]["exact_match,none"]
    assert 0.0 <= written.value <= 1.0 and written.n == 9
    # A run that starts over asks the engine nothing.
    facts = SimpleNamespace(description=engine.description, count=1)
    assert run("pick", facts, model, task_files) == found
    close_engine()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_two_replicas_score_and_write_as_one_engine_does(model_directory, task_files, monkeypatch):
    for module in ("kept", "replicas"):
        monkeypatch.setattr(f"evaluation.generation.{module}.GENERATE_AT_ONCE", 4)
    model = model_directory(tied=True, seed=0)
    found = []
    for count in (1, 2):
        engine = engine_for(model, OPTIONS, count)
        directory = task_files / str(count)
        found.append([run(name, engine, model, task_files, directory=directory) for name in ("pick", "write")])
        assert len(list(directory.glob("*.json"))) == 7 + 3
    assert found[0] == found[1]
    close_engine()


def test_a_missing_harness_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.evaluator", raising=False)
    with pytest.raises(ValueError, match=r"lm_eval.* is not installed; pip install 'sft-then-rl\[harness\]'"):
        run_task(
            SimpleNamespace(name="mmlu", num_fewshot=None, limit=None, chat=False),
            None,
            None,
            max_length=64,
            task_files=None,
            seed=0,
            resamples=10,
            heartbeat=lambda: None,
            directory=tmp_path,
        )


@pytest.mark.e2e
def test_unknown_tasks_missing_data_and_unsafe_tasks_are_refused(model_directory, task_files):
    model = model_directory(tied=True, seed=0)
    with pytest.raises(ValueError, match="is no task of"):
        run("no_such_task", None, model, task_files)
    (task_files / "rows.jsonl").unlink()
    with pytest.raises(ValueError, match="out of reach"):
        run("pick", None, model, task_files)
