"""Programs: functions and contest problems, graded by their tests in the sandbox."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import zlib
from typing import Any

from evaluation.benchmarks._files import Row
from evaluation.benchmarks.contract import Messages, Published, user
from evaluation.sandbox.extraction import tested_function

FENCED = "Answer with a complete Python program in a fenced code block."


# EvalPlus' texts of its tests let an empty list be any number and a number be an empty list, as numpy broadcasts them.
LOOSE = re.compile(r"^( +)assert np\.allclose\(out, exp,", re.MULTILINE)


# HumanEval/32's text bounds the polynomial from above alone, and one release of it has the arguments in wrong places.
POLYNOMIAL = re.compile(r"assert _poly\(.*\) <= ")


def _typed(test: str) -> str:
    """EvalPlus' test text with what its own evaluator asks for besides: the same type, and of lists the same length."""
    test = POLYNOMIAL.sub("assert abs(_poly(*inp, candidate(*inp))) <= ", test)
    return LOOSE.sub(
        r"\1assert type(out) == type(exp)\n\1assert not isinstance(exp, (list, tuple)) or len(out) == len(exp)\n\g<0>",
        test,
    )


def _humaneval(row: Row) -> tuple[Messages, str]:
    test = f"{_typed(row['test'])}\ncheck({row['entry_point']})"
    answer = {"prefix": row["prompt"], "entry_point": row["entry_point"], "test": test}
    return user(f"Complete this function. {FENCED}\n```python\n{row['prompt']}```"), json.dumps(answer)


def _mbpp(row: Row) -> tuple[Messages, str]:
    entry = tested_function(row["test_list"][0])
    imports = row.get("test_imports") or ([row["test_setup_code"]] if row.get("test_setup_code") else [])
    # MBPP+ has its whole test program in a column of its own.
    test = _typed(row["test"]) if row.get("test") else ""
    test = test or "\n".join([*imports, *row["test_list"], *row.get("challenge_test_list", [])])
    text = row.get("prompt") or row["text"]
    prompt = f"{text}\nYour code must pass this test: {row['test_list'][0]}\n{FENCED}"
    return user(prompt), json.dumps({"prefix": "", "entry_point": entry, "test": test})


class _TextOnly(pickle.Unpickler):
    """LiveCodeBench packs its hidden tests as a pickled string; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a file of tests")


def _hidden_tests(packed: str) -> list[dict]:
    try:
        return json.loads(packed)
    except ValueError:
        unpacked = _TextOnly(io.BytesIO(zlib.decompress(base64.b64decode(packed)))).load()
        return json.loads(unpacked)


def _livecodebench(row: Row) -> tuple[Messages, str]:
    tests = [*json.loads(row["public_test_cases"]), *_hidden_tests(row["private_test_cases"])]
    prompt = f"{row['question_content']}\n"
    if row["starter_code"]:
        prompt += f"Complete this code. {FENCED}\n```python\n{row['starter_code']}\n```"
        cases = [
            [[json.loads(line) for line in test["input"].splitlines() if line.strip()], json.loads(test["output"])]
            for test in tests
        ]
        answer = {"function": json.loads(row["metadata"])["func_name"], "cases": cases}
    else:
        prompt += f"Read from standard input and write to standard output. {FENCED}"
        answer = {"cases": [[test["input"], test["output"]] for test in tests]}
    return user(prompt), json.dumps(answer)


LIVECODEBENCH_REVISION = "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"
PLUS_COLUMNS = {"prompt": str, "entry_point": str, "test": str}
LIVECODEBENCH_COLUMNS = {
    "question_content": str,
    "starter_code": str,
    "public_test_cases": str,
    "private_test_cases": str,
    "metadata": str,
}

humaneval = Published(
    "humaneval",
    "openai/openai_humaneval:openai_humaneval/test-00000-of-00001.parquet",
    "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    PLUS_COLUMNS,
    _humaneval,
    "code",
    "task_id",
)
humaneval_plus = Published(
    "humaneval_plus",
    "evalplus/humanevalplus:data/test-00000-of-00001-5973903632b82d40.parquet",
    "d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
    PLUS_COLUMNS,
    _humaneval,
    "code",
    "task_id",
    version=2,
)
mbpp = Published(
    "mbpp",
    "google-research-datasets/mbpp:full/test-00000-of-00001.parquet",
    "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
    {"text": str, "test_list": list, "test_setup_code": str},
    _mbpp,
    "code",
    "task_id",
    version=2,
)
mbpp_plus = Published(
    "mbpp_plus",
    "evalplus/mbppplus:data/test-00000-of-00001-d5781c9c51e02795.parquet",
    "b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
    {"prompt": str, "test_imports": list, "test_list": list, "test": str},
    _mbpp,
    "code",
    "task_id",
    version=2,
)
livecodebench_v5 = Published(
    "livecodebench_v5",
    "livecodebench/code_generation_lite:test5.jsonl",
    LIVECODEBENCH_REVISION,
    LIVECODEBENCH_COLUMNS,
    _livecodebench,
    "code",
    "question_id",
)
livecodebench_v6 = Published(
    "livecodebench_v6",
    "livecodebench/code_generation_lite:test6.jsonl",
    LIVECODEBENCH_REVISION,
    LIVECODEBENCH_COLUMNS,
    _livecodebench,
    "code",
    "question_id",
)
