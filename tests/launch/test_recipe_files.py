"""Recipe files as people write them: what each means, or the one line that says what to mend."""

from __future__ import annotations

import warnings

import pytest

from launch.graph.builder import make_plan
from launch.recipe.compose import RecipeError, branches
from launch.recipe.library import RecipeWarning

START = "defaults: [base, {model: microworld}, {data: microworld}, {objective: sft}, {platform: cpu}, _self_]\n"
GROUPS = "{model: microworld}, {data: microworld}, {objective: sft}, {sft: microworld}, {platform: cpu}"


def written(tmp_path, text, name="own.yaml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(tmp_path, text, name="own.yaml"):
    (branch,) = branches(written(tmp_path, text, name), [])
    return branch.recipe


def test_numbers_in_an_environment_are_text_as_they_are_written(tmp_path):
    env = read(tmp_path, START + "platform: {env: {A: 2, B: true, C: 022, D: 1e5, E: 'x', 1: no}}\n").platform.env
    assert {name: env[name] for name in "ABCDE1"} == {
        "A": "2", "B": "true", "C": "022", "D": "1e5", "E": "x", "1": "no",
    }  # fmt: skip


def test_a_commit_is_text_whatever_number_it_looks_like(tmp_path):
    for commit in ("5e10235", "1234567", "0123456", "12:30:45", "1_000"):
        text = START.replace("{model: microworld}, ", "") + f"model: {{path: org/name, revision: {commit}}}\n"
        assert read(tmp_path, text).model.revision == commit
    swept = (
        START.replace("{model: microworld}, ", "") + "model: {path: o/n}\nsweep: [{model.revision: [5e10235, 7e1]}]\n"
    )
    found = branches(written(tmp_path, swept), [])
    assert [branch.recipe.model.revision for branch in found] == ["5e10235", "7e1"]


def test_words_that_yaml_takes_for_truth_values_are_what_the_field_wants(tmp_path):
    assert read(tmp_path, START + "sft: {fused: off}\n").sft.fused == "off"
    assert read(tmp_path, START + "sft: {fused: on}\nrl: {enabled: no}\n").rl.enabled is False
    with pytest.raises(RecipeError, match=r"data\.system_prompt=true: .*valid string"):
        read(tmp_path, START + "data: {system_prompt: true}\n")


def test_numbers_are_decimal_and_powers_of_ten_are_numbers(tmp_path):
    recipe = read(tmp_path, START + "sft: {lr: 1e-5, steps: 010}\nseed: 1_000\n")
    assert (recipe.sft.lr, recipe.sft.steps, recipe.seed) == (1e-5, 10, 1000)
    marks = [set(make_plan(written(tmp_path, START + f"sft: {{lr: {lr}}}\n"), []).stages) for lr in ("1e-5", "1.0e-05")]
    assert marks[0] == marks[1]


def test_interpolations_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    assert read(tmp_path, START + 'run: {root: "${oc.env:NOT_SET_ANYWHERE,/tmp}/runs"}\n').run.root == "/tmp/runs"
    with pytest.raises(RecipeError, match=r"run\.root: .*NOT_SET_ANYWHERE"):
        read(tmp_path, START + 'run: {root: "${oc.env:NOT_SET_ANYWHERE}/runs"}\n')


def test_a_files_own_values_come_last_where_it_does_not_say(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path, f"defaults: [base, {GROUPS}]\nsft: {{batch_size: 8}}\n").sft.batch_size == 8


def test_values_that_a_group_replaces_are_not_lost_in_silence(tmp_path):
    with pytest.warns(RecipeWarning, match=r"sft\.batch_size: the value of a group replaces .*_self_ is not the last"):
        recipe = read(tmp_path, f"defaults: [_self_, base, {GROUPS}]\nsft: {{batch_size: 7}}\n")
    assert recipe.sft.batch_size != 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (START + "sft: {lr: 1e-5}\nsft: {batch_size: 8}\n", r"line 3: sft is given on line 2 already; give each"),
        (START + "sft:\n  lr: 1\n  steps: 2\n  lr: 3\n", r"line 5: lr is given on line 3 already"),
        (START + "sft:\n\tlr: 1e-5\n", r"line 3: .*YAML takes no tab for indentation, write spaces"),
        (START + "sft: {lr: 1e-5\n", r"own\.yaml: line \d+: "),
        ("- base\n", r"holds no mapping"),
        (b"\xff\xfe\x00a", r"not UTF-8 .*; save it as UTF-8 text"),
        (START + "sft.lr: 1e-5\n", r"sft\.lr: unknown field; write it as sft: \{lr: \.\.\.\}"),
        (START + "sft:\n", r"sft=null: "),
        (START + "objective: {x: '???'}\n", r"objective\.x has no value; give objective\.x=\.\.\."),
        (START + "? [a, b]\n: 1\n", r"a key is a plain word"),
        ("defaults: [own, _self_]\n", r"defaults lead to itself|own"),
        ("defaults: [base, nothing, _self_]\n", r"nothing"),
        (START + "sft: {lr: .inf}\n", r"sft\.lr=inf: give a finite number"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_a_recipes_name_is_its_files(tmp_path):
    for name, message in (
        ("base.yaml", r"base is the file of defaults that recipes start from; rename yours"),
        ("own.yml", r"ends in \.yaml; rename it"),
    ):
        with pytest.raises(RecipeError, match=message):
            read(tmp_path, START, name)
        (tmp_path / name).unlink()
    with pytest.raises(RecipeError, match=r"a directory, not a file"):
        (tmp_path / "folder.yaml").mkdir()
        list(branches(str(tmp_path / "folder.yaml"), []))
    for name in ("v1.2.yaml", "with space.yaml", "a=b,(c).yaml", "größe.yaml"):
        assert read(tmp_path, START, name).name == name.removesuffix(".yaml")
    folder = tmp_path / "a b=(c)"
    folder.mkdir()
    assert read(folder, START).sft.batch_size


def test_a_byte_order_mark_and_anchors_are_fine(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbf" + START.encode()).name == "own"
    anchors = START + "sft: &common {lr: 3.0e-5}\nrl: {<<: *common}\n"
    assert read(tmp_path, anchors).rl.lr == 3e-5


def test_a_group_of_ones_own_lies_beside_the_recipe(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "mine.yaml").write_text("lr: 7.0e-5\n")
    path = written(tmp_path, START.replace("{platform", "{sft: mine}, {platform"))
    assert [b.recipe.sft.lr for b in branches(path, [])] == [7e-5]
    other = written(tmp_path, START.replace("{platform", "{sft: microworld}, {platform"))
    mine, ours = branches(other, ["sft=mine,microworld"])
    assert mine.recipe.sft.lr == 7e-5 != ours.recipe.sft.lr


def test_lists_in_an_entry_of_a_sweep_are_axes(tmp_path):
    def swept(rows):
        found = branches(written(tmp_path, START + f"sweep: {rows}\n"), [])
        return [(b.recipe.objective["name"], b.recipe.sft.lr, b.recipe.sft.betas, b.recipe.seed) for b in found]

    base = (1e-5, (0.9, 0.999), 0)
    assert swept("[{objective: sft, sft.lr: [1e-4, 2e-4], seed: [1, 2]}, {objective: dft}]") == [
        *[("sft", lr, base[1], seed) for lr in (1e-4, 2e-4) for seed in (1, 2)], ("dft", *base),
    ]  # fmt: skip
    assert swept("[{objective: [sft, dft]}]") == [("sft", *base), ("dft", *base)]
    assert swept("[{sft: {lr: [1e-4, 2e-4]}}]") == [("sft", lr, *base[1:]) for lr in (1e-4, 2e-4)]
    assert swept("[{sft.betas: [0.9, 0.95]}]") == [("sft", 1e-5, (0.9, 0.95), 0)]
    assert swept("[{sft.betas: [[0.9, 0.95], [0.8, 0.9]]}]") == [
        ("sft", 1e-5, betas, 0) for betas in ((0.9, 0.95), (0.8, 0.9))
    ]
    with pytest.raises(RecipeError, match="give a list of mappings"):
        swept("[{}]")
