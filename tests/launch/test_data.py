"""What of the data section a plan refuses and tells apart."""

import pytest

from launch.graph.builder import make_plan
from launch.recipe.compose import RecipeError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def parts(*overrides):
    """Part of the data -> fingerprint of its artifact, of the micro-world with some overrides."""
    plan = make_plan("microworld", ["objective=sft", *overrides])
    return {stage.label: mark for mark, stage in plan.stages.items() if stage.kind == "prepare"}


def changed(*overrides):
    before, after = parts(), parts(*overrides)
    return {label for label in before if before[label] != after[label]}


def hub(**settings):
    entry = {"source": "hub", **settings}
    return "data.sft=[{" + ", ".join(f"{name}: {value}" for name, value in entry.items()) + "}]"


def test_how_rows_are_read_is_part_of_what_they_are():
    everything = set(parts())
    assert changed("data.format=messages") == changed("data.on_unknown_field=error") == everything


def test_prompts_depend_on_the_grader_that_reads_their_answers():
    assert changed("rl.reward.name=exact") == {"rl"}
    assert changed("rl.reward.correct=2.0") == set()
    own = parts("rl.reward.name=common.problems.plain")["rl"]
    assert own not in (parts()["rl"], parts("rl.reward.name=exact")["rl"])
    assert own == parts("rl.reward.name=common.problems.dump")["rl"]  # a function reads answers as they are


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.format=shargpt",
            "data.format=shargpt: allowed: auto, alpaca, messages, prompt_completion, sharegpt, verl",
        ),
        ("data.on_unknown_field=drop", "data.on_unknown_field=drop: .*'count' or 'error'"),
        (hub(path="org/name"), "org/name: revision=None: pin a commit .*datasets/org/name/commits/main"),
        (hub(path="/nowhere/data"), "path=/nowhere/data: no such directory"),
        (hub(split="train"), "data source hub: path is missing"),
        (
            hub(path="org/name", colums="{a: b}"),
            r"data\.sft\.0\.colums: source hub has no such setting; allowed: .*columns",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(override, message):
    with pytest.raises(RecipeError, match=message) as error:
        parts(override)
    assert "\n" not in str(error.value)


def test_a_data_set_of_the_hub_is_identified_by_its_commit_or_its_files(tmp_path):
    one = hub(path="org/name", revision=f"'{COMMIT}'")
    other = hub(path="org/name", revision=f"'{COMMIT[::-1]}'")
    assert parts(one)["sft"] != parts(other)["sft"]
    copies = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text('{"messages": []}\n')
        copies.append(hub(path=tmp_path / name))
    assert parts(copies[0])["sft"] == parts(copies[1])["sft"]
    (tmp_path / "b" / "train.jsonl").write_text('{"messages": [1]}\n')
    assert parts(copies[0])["sft"] != parts(copies[1])["sft"]
