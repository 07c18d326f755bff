import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.problems import read_problems

ROW = {"id": "a", "prompt": [{"role": "user", "content": "1+1="}], "answer": "2", "grader": "math"}


def write(root, rows):
    pq.write_table(pa.Table.from_pylist(rows), root / "problems.parquet")


def test_a_benchmark_is_read(tmp_path):
    write(tmp_path, [ROW, {**ROW, "id": "b"}])
    problems = read_problems(tmp_path, "sums")
    assert [problem.id for problem in problems] == ["a", "b"]
    assert problems[0].prompt == ROW["prompt"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, ROW], r"row 1 \(id 'a'\): the id occurs twice"),
        ([{**ROW, "answer": ""}], "empty prompt or answer"),
        ([{**ROW, "grader": "magic"}], "problems.parquet: row 0 .*magic"),
        ([{key: ROW[key] for key in ("id", "prompt")}], "columns answer, grader are missing"),
    ],
)
def test_bad_files_name_the_place(tmp_path, rows, message):
    write(tmp_path, rows)
    with pytest.raises(ValueError, match=message):
        read_problems(tmp_path, "sums")


def test_a_missing_file_names_those_present(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"'products' is not prepared; present: summary\.json"):
        read_problems(tmp_path, "products")
    with pytest.raises(ValueError, match=r"math500 needs HuggingFaceH4/MATH-500:test\.jsonl .* problems math500`"):
        read_problems(tmp_path, "math500")
