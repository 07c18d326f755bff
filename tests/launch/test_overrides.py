"""Overrides as people type them: what each means, or the one line that says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.recipe.compose import RecipeError, branches


def value_of(recipe, key):
    found = recipe
    for part in key.split("."):
        if isinstance(found, dict):
            found = found[part]
        else:
            found = found[int(part)] if isinstance(found, list) else getattr(found, "start" if part == "from" else part)
    return found


def given(*overrides, recipe="microworld"):
    """The values of the last override's field in every branch."""
    key = overrides[-1].lstrip("+").partition("=")[0]
    return [value_of(branch.recipe, key) for branch in branches(recipe, overrides)]


HOME = str(Path.home())


@pytest.mark.parametrize(
    ("override", "value"),
    [
        # the shell takes the quotes that a page shows; both ways are the same text
        ("model.eos=<|im_end|>", "<|im_end|>"),
        ("model.eos='<|im_end|>'", "<|im_end|>"),
        ('model.eos="<|im_end|>"', "<|im_end|>"),
        ("model.eos=[PAD]", None),
        ("run.root=~/runs", f"{HOME}/runs"),
        ("run.root='~/runs'", f"{HOME}/runs"),
        ("run.root=~", HOME),
        ("data.files.sft_train='~/train.jsonl'", f"{HOME}/train.jsonl"),
        ("data.files.benchmarks={own: ~/b.jsonl}", {"own": f"{HOME}/b.jsonl"}),
        ("data.files.benchmarks={own: /a(1).jsonl, x: 'b, (c.jsonl'}", {"own": "/a(1).jsonl", "x": "b, (c.jsonl"}),
        ("data.system_prompt=~/keep", "~/keep"),
        ("data.files.sft_train=/x/epoch=1", "/x/epoch=1"),
        ("data.files.sft_train='/x/epoch=1'", "/x/epoch=1"),
        ("run.root=/tmp/a b/runs", "/tmp/a b/runs"),
        ("run.root='/tmp/a b/runs'", "/tmp/a b/runs"),
        ("data.files.sft_train=/data/a(1).jsonl", "/data/a(1).jsonl"),
        ("data.files.sft_train=/data/(a, b).jsonl", "/data/(a, b).jsonl"),
        ("data.files.sft_train=/data/[x]/a.jsonl", "/data/[x]/a.jsonl"),
        ("data.files.sft_train=/data/ü.jsonl", "/data/ü.jsonl"),
        ("data.files.sft_train=/data/日本.jsonl", "/data/日本.jsonl"),
        ("data.files.sft_train=/data/a#b.jsonl", "/data/a#b.jsonl"),
        ("data.files.sft_train=/data/a&b;c.jsonl", "/data/a&b;c.jsonl"),
        ("data.files.sft_train=C:\\data\\a.jsonl", "C:\\data\\a.jsonl"),
        ("data.system_prompt=Solve it!", "Solve it!"),
        ("data.system_prompt=Don't guess", "Don't guess"),
        ("data.system_prompt=50%", "50%"),
        ("data.system_prompt='a\\nb'", "a\\nb"),
        ("data.system_prompt=a\nb", "a\nb"),
        ("data.system_prompt='You are brief, and kind.'", "You are brief, and kind."),
        ("data.system_prompt='null'", "null"),
        ("data.system_prompt=null", None),
        ("data.system_prompt=''", ""),
        ("data.system_prompt=<b>a(1), b", None),
        ("sft.lr=1e-5", 1e-5),
        ("sft.lr=1.e-5", 1e-5),
        ("sft.lr= 1e-5", 1e-5),
        ("sft.lr=\t1e-5", 1e-5),
        ("model.revision=5e10235", "5e10235"),
        ("model.revision=1234567", "1234567"),
        ("model.revision=0123456", "0123456"),
        ("model.revision=1_000", "1_000"),
        ("model.revision=none", "none"),
        ("model.teacher.revision=7e5", "7e5"),
        ("platform.env={A: 1, B: 1e5, C: true, D: 007}", {"A": "1", "B": "1e5", "C": "true", "D": "007"}),
        ("platform.env.A=1", "1"),
        ("platform.env.A=True", "True"),
        ("+platform.env.A='1'", "1"),
        ("++platform.env.A=x", "x"),
        ("data.files.benchmarks={a: x.jsonl, b: y z.jsonl}", {"a": "x.jsonl", "b": "y z.jsonl"}),
        ("data.files.benchmarks.my-bench=x.jsonl", "x.jsonl"),
        ("sft.betas=[0.9,0.95]", (0.9, 0.95)),
        ("sft.steps=1e3", 1000),
        ("seed=01", 1),
        ("sft.fused=off", "off"),
        ("rl.enabled=no", False),
        ("rl.from=10", None),
        ("objective.name=focal:Focal", "focal:Focal"),
        ("eval.benchmarks.0.num_samples=4", 4),
        ("eval.benchmarks.0={num_samples: 4}", None),
        ("data.sft=[{source: hub, path: a/b, revision: 5e10235}]", "5e10235"),
    ],
)  # fmt: skip
def test_what_is_typed_is_what_is_read(override, value):
    special = {
        "model.eos=[PAD]": r"model\.eos=\[PAD\]: Input should be a valid string",
        "rl.from=10": r"rl\.from=10: .*allowed: base, final, best, all",
    }
    if override in special:
        with pytest.raises(RecipeError, match=special[override]):
            given(override)
        return
    if override == "data.system_prompt=<b>a(1), b":
        assert given(override) == ["<b>a(1)", "b"]
        return
    found = given(override)
    assert len(found) == 1
    if override.startswith("eval.benchmarks.0={"):
        assert (found[0].num_samples, found[0].name) == (4, "target")
    elif override.startswith("data.sft="):
        assert found[0][0]["revision"] == value
    elif override.startswith("platform.env={"):
        assert {name: found[0][name] for name in value} == value and found[0]["VERL_PLATFORM"] == "cpu"
    else:
        assert found[0] == value and type(found[0]) is type(value)


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("sft.lr=1e-5,5e-5", [1e-5, 5e-5]),
        ("data.files.sft_train=/data/a,b.jsonl", ["/data/a", "b.jsonl"]),
        ("data.system_prompt=You are brief, and kind.", ["You are brief", "and kind."]),
        ("model.eos=<|im_end|>,<|endoftext|>", ["<|im_end|>", "<|endoftext|>"]),
        ("model.revision=5e10235,7", ["5e10235", "7"]),
        ("model.revision=choice(5e10235,7)", ["5e10235", "7"]),
        ("data.seed=range(0,3)", [0, 1, 2]),
        ("eval.k=[1,2],[1,4]", [[1, 2], [1, 4]]),
        ("rl.from=final,best", ["final", "best"]),
    ],
)
def test_a_comma_is_a_sweep(override, values):
    assert given(override) == values


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.system_prompt="], r"there is no value; write data\.system_prompt=null for none"),
        (["data.system_prompt=true"], r"data\.system_prompt=true: .*quote it twice: data\.system_prompt=\"'true'\""),
        (["sft.lr", "=", "1e-5"], r"override 'sft\.lr': write key=value, without spaces around the ="),
        (["=1"], r"names no field; write key=value"),
        (["sft lr=1"], r"'sft lr' names no field"),
        (["--sft.lr=1e-5"], r"'--sft\.lr' names no field; write key=value"),
        (["~sft.lora"], r"set sft\.lora=null"),
        (["~sft.lora=x"], r"set sft\.lora=null"),
        (["run.root=${oc.env:NOT_SET_ANYWHERE}/runs"], r"run\.root: .*NOT_SET_ANYWHERE"),
        (["rl.samples=${eval.k}"], r"rl\.samples=\[1,2,4,8,16\]: Input should be a valid integer"),
        (["rl.lr=${sft.learning}"], r"rl\.lr: .*sft\.learning"),
        (["data.files.benchmarks.gsm8k.v2=x.jsonl"], r"names in data\.files\.benchmarks hold no dot"),
        (["platform.env.A.B=x"], r"names in platform\.env hold no dot"),
        (["eval.k=1,2,4"], r"a comma makes a sweep; for a list write eval\.k=\[1,2,4\]"),
        (["eval.k=4"], r"eval\.k=4: .*; write eval\.k=\[4\]"),
        (["sft.steps=1.5"], r"sft\.steps=1\.5"),
        (["sft.steps=0"], r"sft\.steps=0: .*greater than 0"),
        (["run.timeout=inf"], r"run\.timeout=inf: give a finite number"),
        (["objective.threshold=nan"], r"objective\.threshold=nan: give a finite number"),
        (["sft.lr=1e-5", "sft.lr=2e-5"], r"give each field once"),
        (["eval.benchmarks=[]", "eval.benchmarks.0.num_samples=4"], r"overlap; give each field once"),
        (["sft.learning_rate=1e-5"], r"sft\.learning_rate: unknown field; did you mean lr\? write sft\.lr"),
        (["learning_rate=1"], r"learning_rate: unknown field"),
        (["lr=1"], r"lr: unknown field; did you mean sft\.lr or rl\.lr\?"),
        (["eval.benchmarks.9.num_samples=4"], r"eval\.benchmarks has no entry 9; allowed: 0 to "),
        (["eval.tasks.0.name=mmlu"], r"eval\.tasks has no entry 0; allowed: none yet: give the list as eval\.tasks="),
        (["eval.benchmarks.first.num_samples=4"], r"eval\.benchmarks has no entry first"),
        (["sft.lr=interval(1e-5,1e-4)"], r"an interval has no values to try; list them, e\.g\. sft\.lr=1e-5,3e-5"),
        (["seed=range(1,x)"], r"seed=range\(1,x\).*write key=value"),
        (["seed=range(3,1)"], r"the range is empty"),
        (["sft.betas=[0.9,0.95"], r"write key=value, key=a,b for a sweep, or quote"),
        (["objective=dtf"], r"did you mean dft\? allowed: "),
        (["objective=glob(zzz*)"], r"no choice of a config group fits"),
        (["run.root=~nobody_of_that_name/x"], r"there is no such home directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line_that_says_what_to_write(overrides, message):
    with pytest.raises(RecipeError, match=message) as error:
        list(branches("microworld", overrides))
    assert "\n" not in str(error.value)


def test_a_group_and_its_pattern_are_chosen():
    assert [b.recipe.objective["name"] for b in branches("microworld", ["objective=glob(lp_sft*)"])] == ["lp_sft"] * 2
    assert [b.recipe.objective["name"] for b in branches("microworld", ["objective='dft'"])] == ["dft"]


def test_settings_and_patterns_reach_their_grader():
    (recipe,) = [b.recipe for b in branches("microworld", ["rl.reward.settings={tolerance: 0.05}"])]
    assert recipe.rl.reward.settings == {"tolerance": 0.05}
    assert given("rl.reward.settings.pattern=<think>.*</think>.*") == ["<think>.*</think>.*"]
    assert given("rl.reward.settings.pattern='<think>.*</think>.*'") == ["<think>.*</think>.*"]


def test_interpolations_mean_on_the_command_line_what_they_mean_in_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("STORE", "/a/b")
    assert given("run.root=${oc.env:STORE}/runs") == given("run.root='${oc.env:STORE}/runs'") == ["/a/b/runs"]
    assert given("run.root=${oc.env:NOT_SET_ANYWHERE,/tmp}/runs") == ["/tmp/runs"]
    assert given("sft.lr=3e-4", "rl.lr=${sft.lr}") == [3e-4]
    assert given("sft.lr=3e-4,1e-4", "rl.lr=${sft.lr}") == [3e-4, 1e-4]
    path = tmp_path / "own.yaml"
    path.write_text("defaults: [microworld, _self_]\nrl: {lr: '${sft.lr}'}\n")
    assert [b.recipe.rl.lr for b in branches(str(path), ["sft.lr=2e-4"])] == [2e-4]


def test_equal_numbers_written_otherwise_are_one_recipe():
    one, other = (next(iter(branches("microworld", [f"sft.lr={text}"]))).recipe for text in ("1e-5", "1.0e-05"))
    assert one == other
