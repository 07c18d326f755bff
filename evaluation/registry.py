"""The published benchmarks: where each lives, its columns, and how a row becomes a problem.

`python -m evaluation problems math500 --file test.jsonl --output problems/math500.parquet` turns a published file into
one that `data.files.benchmarks` reads; without --file it is fetched from the hub.
"""

import base64
import gzip
import io
import json
import pathlib
import pickle
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from evaluation.grading.answers import extract_boxed

Row = dict[str, Any]
Messages = list[dict[str, str]]

QWEN_MATH = "https://github.com/QwenLM/Qwen2.5-Math"
QWEN_MATH_REVISION = "a45202bd16f1ec06f433442dc1152d0074773465"
M1 = "https://github.com/UCSC-VLAA/m1"
M1_REVISION = "c65dfc6923abefbe2567f39996b182dbdce13562"
MEDCALC = "https://github.com/ncbi-nlp/MedCalc-Bench"
MEDCALC_REVISION = "20b10f9d66a8c3b0356ae3138533f5ec91666b6a"


@dataclass(frozen=True)
class Published:
    """A published benchmark.

    file: what to download, as an address or as `<data set of the hub>:<path in it>`. revision: the commit that is
    downloaded and whose schema `columns` is (name -> Python type of its values), or where it was read. problem: a row
    to (prompt, answer). grader: of every problem, or a function of the row. identity: a column that names the problem,
    or None. key: the entry of a JSON object of lists that holds the rows. where: rows that count; all by default.
    """

    file: str
    revision: str
    columns: Mapping[str, type | tuple[type, ...]]
    problem: Callable[[Row], tuple[Messages, str]]
    grader: str | Callable[[Row], str]
    identity: str | None = None
    key: str | None = None
    where: Callable[[Row], bool] = lambda row: True

    def read(self, path: pathlib.Path) -> Iterator[Row]:
        """The problems of a downloaded file (JSONL, JSON, CSV or Parquet, perhaps gzipped), in the benchmark layout.

        Raises ValueError, naming the file, the row and the column, where the file is not as published.
        """
        taken = 0
        for number, row in enumerate(_rows(path, self.key)):
            for column, kind in self.columns.items():
                if column not in row:
                    raise ValueError(f"{path}: row {number}: no column {column!r}; published are {list(self.columns)}")
                if not isinstance(row[column], kind):
                    raise ValueError(f"{path}: row {number}: {column} is {row[column]!r:.60}, published is {kind}")
            if not self.where(row):
                continue
            try:
                prompt, answer = self.problem(row)
                grader = self.grader if isinstance(self.grader, str) else self.grader(row)
            except (ValueError, LookupError, TypeError, pickle.UnpicklingError, zlib.error) as error:
                reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
                raise ValueError(f"{path}: row {number}: not as published ({reason}); download it again") from None
            name = str(row[self.identity]) if self.identity else str(number)
            yield {"id": name, "prompt": prompt, "answer": answer, "grader": grader}
            taken += 1
        if not taken:
            raise ValueError(f"{path}: no problems")


def write_problems(name: str, file: pathlib.Path | None, output: pathlib.Path) -> int:
    """Write the problems of the benchmark `name` as Parquet and return their number.

    file: a local copy; None fetches it. Raises ValueError for an unknown name, or where there is no copy and no
    network, saying which file is needed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name not in BENCHMARKS:
        raise ValueError(f"{name!r} is not one of {', '.join(sorted(BENCHMARKS))}")
    published = BENCHMARKS[name]
    if file is None:
        file = fetch(name)
    if not file.is_file():
        raise ValueError(f"{file}: no such file; {needed(name)}")
    rows = list(published.read(file))
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [("id", pa.string()), ("prompt", pa.list_(message)), ("answer", pa.string()), ("grader", pa.string())]
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), output)
    return len(rows)


def needed(name: str) -> str:
    """Which file the benchmark needs, in one line."""
    published = BENCHMARKS[name]
    return f"{name} needs {published.file} (revision {published.revision}); download it and pass --file"


def fetch(name: str) -> pathlib.Path:
    """A downloaded copy of the benchmark's file, from the hub's cache if it is there. Raises ValueError offline."""
    published = BENCHMARKS[name]
    if published.file.startswith("https://") or ":" not in published.file:
        raise ValueError(f"{name} is not on the hub: {needed(name)}")
    from huggingface_hub import hf_hub_download

    repository, _, path = published.file.partition(":")
    try:
        return pathlib.Path(hf_hub_download(repository, path, repo_type="dataset", revision=published.revision))
    except Exception as error:  # the client raises errors of several libraries
        raise ValueError(f"{needed(name)} ({type(error).__name__})") from None


def _rows(path: pathlib.Path, key: str | None) -> Iterator[Row]:
    names = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = names[-1] if names else ""
    if kind == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(path).to_pylist()
        return
    with _open(path) as stream:
        if kind == ".csv":
            import csv

            csv.field_size_limit(1 << 30)
            yield from csv.DictReader(stream)
        elif kind == ".jsonl":
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _parsed(line, f"{path}: line {number}")
        elif kind == ".json":
            content = _parsed(stream.read(), str(path))
            if key is not None:
                if not isinstance(content, dict) or key not in content:
                    raise ValueError(f"{path}: no entry {key!r}")
                content = content[key]
            yield from content
        else:
            raise ValueError(f"{path}: not .jsonl, .json, .csv or .parquet, with or without .gz")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); download it again") from None


def _open(path: pathlib.Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def _user(text: str, system: str | None = None) -> Messages:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def _math(question: str, answer: Callable[[Row], str]) -> Callable[[Row], tuple[Messages, str]]:
    return lambda row: (_user(f"{row[question]}\n{BOXED}"), answer(row))


def _minerva(row: Row) -> tuple[Messages, str]:
    boxed = extract_boxed(row["solution"])
    if not boxed:
        raise ValueError("the solution has no boxed answer")
    return _user(f"{row['problem']}\n{BOXED}"), boxed[-1]


def _olympiad(row: Row) -> tuple[Messages, str]:
    # Several answers are one list; the comparison takes them in any order.
    answers = [answer.replace("$", "").strip() for answer in row["final_answer"]]
    return _user(f"{row['question']}\n{BOXED}"), ", ".join(answers)


def _whole_number(value: Any) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _options(question: str, options: dict[str, str], answer: str) -> tuple[Messages, str]:
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return _user(f"{question}\n{listed}\nReturn the letter of your final answer within \\boxed{{}}."), answer


def _m23k(row: Row) -> tuple[Messages, str]:
    return _options(row["question"], row["options"], row["answer_idx"])


def _medmcqa(row: Row) -> tuple[Messages, str]:
    letters = dict(zip("ABCD", (row["opa"], row["opb"], row["opc"], row["opd"]), strict=True))
    return _options(row["question"], letters, _letter("cop", row["cop"]))


def _mmlu(row: Row) -> tuple[Messages, str]:
    return _options(row["question"], dict(zip("ABCD", row["choices"], strict=True)), _letter("answer", row["answer"]))


def _letter(column: str, place: int) -> str:
    # The unlabelled test split of MedMCQA says -1.
    if not 0 <= place < 4:
        raise ValueError(f"{column} is {place}, allowed are 0 to 3; take a split that has its answers")
    return "ABCD"[place]


MMLU_MEDICAL = {
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
}
THINK = "You are a helpful assistant. Reason first, then give the user the answer."
TAGGED = "Give your final answer within <answer> </answer> tags"


def _medcalc(row: Row) -> tuple[Messages, str]:
    text = (
        "Compute a score or value for a patient. Think step by step.\n"
        f"Patient note:\n{row['Patient Note']}\nTask:\n{row['Question']}\n"
        f'{TAGGED}, as JSON: <answer>{{"answer": "short answer"}}</answer>.'
    )
    kind, truth = row["Output Type"], row["Ground Truth Answer"]
    if "week" in truth:
        weeks, days = re.findall(r"[0-9]+", truth)
        truth = f"{weeks} weeks, {days} days"
    elif kind == "decimal":
        truth = f"[{row['Lower Limit']}, {row['Upper Limit']}]"
    elif kind == "integer":
        # An integer is right if it rounds to the truth.
        truth = f"[{float(truth) - 0.5}, {float(truth) + 0.5}]"
    return _user(text, THINK), truth


def _medcalc_grader(row: Row) -> str:
    numeric = row["Output Type"] in ("decimal", "integer") and "week" not in row["Ground Truth Answer"]
    return "range" if numeric else "date"


def _esci(row: Row) -> tuple[Messages, str]:
    labels = {"E": "0", "S": "1", "C": "2", "I": "3"}
    product = "\n".join(str(row[name]) for name in ("product_title", "product_description") if row.get(name))
    text = (
        "Classify how a product matches a query: 0 = Exact, 1 = Substitute, 2 = Complement, 3 = Irrelevant.\n"
        f"Query:\n{row['query']}\nProduct:\n{product}\nThink step by step. {TAGGED}: <answer>0, 1, 2 or 3</answer>."
    )
    return _user(text, THINK), labels[row["esci_label"][0].upper()]


FENCED = "Answer with a complete Python program in a fenced code block."


def _humaneval(row: Row) -> tuple[Messages, str]:
    test = f"{row['test']}\ncheck({row['entry_point']})"
    answer = {"prefix": row["prompt"], "entry_point": row["entry_point"], "test": test}
    return _user(f"Complete this function. {FENCED}\n```python\n{row['prompt']}```"), json.dumps(answer)


def _mbpp(row: Row) -> tuple[Messages, str]:
    name = row["test_list"][0].split("assert", 1)[1].replace("(", " ").split()
    entry = next((word for word in name if word.isidentifier() and word not in ("not", "set", "sorted", "abs")), "")
    imports = row.get("test_imports") or ([row["test_setup_code"]] if row.get("test_setup_code") else [])
    # MBPP+ has its whole test program in a column of its own.
    test = row.get("test") or "\n".join([*imports, *row["test_list"], *row.get("challenge_test_list", [])])
    text = row.get("prompt") or row["text"]
    prompt = f"{text}\nYour code must pass this test: {row['test_list'][0]}\n{FENCED}"
    return _user(prompt), json.dumps({"prefix": "", "entry_point": entry, "test": test})


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
    return _user(prompt), json.dumps(answer)


def _qwen(name: str, columns: dict, problem, identity: str | None = None) -> Published:
    address = f"{QWEN_MATH}/blob/main/evaluation/data/{name}/test.jsonl"
    return Published(address, QWEN_MATH_REVISION, columns, problem, "math", identity)


def _m1(key: str) -> Published:
    columns = {"question": str, "options": dict, "answer": str, "answer_idx": str}
    address = f"{M1}: m1_eval_data.json, written by src/collect_eval_data/collect_eval_data.py"
    return Published(address, M1_REVISION, columns, _m23k, "choice", key=key)


LIVECODEBENCH_REVISION = "0fe84c3912ea0c4d4a78037083943e8f0c4dd505"
PLUS_COLUMNS = {"task_id": str, "prompt": str, "canonical_solution": str, "entry_point": str, "test": str}
LIVECODEBENCH_COLUMNS = {
    "question_title": str,
    "question_content": str,
    "platform": str,
    "question_id": str,
    "contest_date": str,
    "starter_code": str,
    "difficulty": str,
    "public_test_cases": str,
    "private_test_cases": str,
    "metadata": str,
}

BENCHMARKS: dict[str, Published] = {
    "math500": Published(
        "HuggingFaceH4/MATH-500:test.jsonl",
        "ff5b20257d8185524591543f8ff5993951537bb8",
        {"problem": str, "solution": str, "answer": str, "subject": str, "level": int, "unique_id": str},
        _math("problem", lambda row: row["answer"]),
        "math",
        "unique_id",
    ),
    "minerva_math": _qwen("minerva_math", {"problem": str, "solution": str, "type": str, "idx": int}, _minerva, "idx"),
    "olympiadbench": _qwen(
        "olympiadbench",
        {"id": int, "question": str, "solution": list, "final_answer": list, "answer_type": str},
        _olympiad,
        "id",
    ),
    "aime24": _qwen(
        "aime24",
        {"id": int, "problem": str, "solution": str, "answer": str, "url": str},
        _math("problem", lambda row: row["answer"]),
        "id",
    ),
    "aime25": Published(
        "math-ai/aime25:test.jsonl",
        "563bb8404243c5f09de6ec262f2db674fe5bce9b",
        {"problem": str, "answer": str, "id": str},
        _math("problem", lambda row: row["answer"]),
        "math",
        "id",
    ),
    # A collection of one's own: the competitions of 2023 to 2026, two of 15 problems a year.
    "aime23_26": Published(
        "your own aime23_26.jsonl: the 120 problems of AIME I and II, 2023 to 2026",
        "columns as in aime25",
        {"id": str, "problem": str, "answer": str},
        _math("problem", lambda row: row["answer"]),
        "math",
        "id",
    ),
    "amc23": _qwen(
        "amc23",
        {"id": int, "problem": str, "answer": (float, int), "url": str},
        _math("problem", lambda row: _whole_number(row["answer"])),
        "id",
    ),
    "gsm8k": _qwen(
        "gsm8k",
        {"question": str, "answer": str, "idx": int},
        _math("question", lambda row: row["answer"].rpartition("####")[2].strip().replace(",", "")),
        "idx",
    ),
    "gaokao2023en": _qwen(
        "gaokao2023en",
        {"source": str, "question": str, "lang": str, "answer": str},
        _math("question", lambda row: row["answer"]),
    ),
    "college_math": _qwen(
        "college_math",
        {"data_source": str, "question_number": str, "question": str, "answer": str, "data_topic": str},
        _math("question", lambda row: row["answer"]),
    ),
    "medmcqa": Published(
        "openlifescienceai/medmcqa:data/validation-00000-of-00001.parquet",
        "91c6572c454088bf71b679ad90aa8dffcd0d5868",
        {"id": str, "question": str, "opa": str, "opb": str, "opc": str, "opd": str, "cop": int},
        _medmcqa,
        "choice",
        "id",
    ),
    "mmlu_medical": Published(
        "cais/mmlu:all/test-00000-of-00001.parquet",
        "c30699e8356da336a370243923dbaf21066bb9fe",
        {"question": str, "subject": str, "choices": list, "answer": int},
        _mmlu,
        "choice",
        where=lambda row: row["subject"] in MMLU_MEDICAL,
    ),
    "m23k_medmcqa": _m1("MedMCQA_validation"),
    "m23k_medqa": _m1("MedQA_USLME_test"),
    "m23k_pubmedqa": _m1("PubMedQA_test"),
    "m23k_mmlu_pro": _m1("MMLU-Pro_Medical_test"),
    "m23k_gpqa": _m1("GPQA_Medical_test"),
    "m23k_lancet": _m1("Lancet"),
    "m23k_nejm": _m1("NEJM"),
    "m23k_medbullets4": _m1("MedBullets_op4"),
    "m23k_medbullets5": _m1("MedBullets_op5"),
    "m23k_medxpertqa": _m1("MedXpertQA"),
    "medcalc": Published(
        f"{MEDCALC}/blob/main/datasets/test_data.csv",
        MEDCALC_REVISION,
        {
            "Row Number": str,
            "Calculator ID": str,
            "Output Type": str,
            "Patient Note": str,
            "Question": str,
            "Ground Truth Answer": str,
            "Lower Limit": str,
            "Upper Limit": str,
        },
        _medcalc,
        _medcalc_grader,
        "Row Number",
    ),
    "esci": Published(
        "your own esci.parquet: 10,000 rows sampled from the test split of the Shopping Queries data set, joined with "
        "its products",
        "arXiv:2206.06588, https://github.com/amazon-science/esci-data",
        {"example_id": int, "query": str, "product_title": str, "esci_label": str},
        _esci,
        "exact",
        "example_id",
    ),
    "humaneval": Published(
        "openai/openai_humaneval:openai_humaneval/test-00000-of-00001.parquet",
        "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
        PLUS_COLUMNS,
        _humaneval,
        "code",
        "task_id",
    ),
    "humaneval_plus": Published(
        "evalplus/humanevalplus:data/test-00000-of-00001-5973903632b82d40.parquet",
        "d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
        PLUS_COLUMNS,
        _humaneval,
        "code",
        "task_id",
    ),
    "mbpp": Published(
        "google-research-datasets/mbpp:full/test-00000-of-00001.parquet",
        "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        {"task_id": int, "text": str, "code": str, "test_list": list, "test_setup_code": str},
        _mbpp,
        "code",
        "task_id",
    ),
    "mbpp_plus": Published(
        "evalplus/mbppplus:data/test-00000-of-00001-d5781c9c51e02795.parquet",
        "b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
        {"task_id": int, "code": str, "prompt": str, "test_imports": list, "test_list": list, "test": str},
        _mbpp,
        "code",
        "task_id",
    ),
    "livecodebench_v5": Published(
        "livecodebench/code_generation_lite:test5.jsonl",
        LIVECODEBENCH_REVISION,
        LIVECODEBENCH_COLUMNS,
        _livecodebench,
        "code",
        "question_id",
    ),
    "livecodebench_v6": Published(
        "livecodebench/code_generation_lite:test6.jsonl",
        LIVECODEBENCH_REVISION,
        LIVECODEBENCH_COLUMNS,
        _livecodebench,
        "code",
        "question_id",
    ),
}
