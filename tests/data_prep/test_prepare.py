import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import ConfigError
from common.problems import problem_key
from data_prep.micro_world import world
from data_prep.micro_world.tokenizer import world_tokenizer
from data_prep.prepare import run
from data_prep.sources.feeds import Feed
from data_prep.sources.files import read_rows

SIZES = {
    "pretrain_examples": 300,
    "sft_examples": 60,
    "sft_val_examples": 10,
    "rl_prompts": 40,
    "rl_val_prompts": 10,
    "target_problems": 20,
    "skill_problems": 10,
}
PARTS = ["benchmark/target", "benchmark/reverse", "benchmark/sort", "benchmark/shift", "sft", "rl", "pretrain"]


def data_section(**options):
    defaults = {"seed": 0, "system_prompt": None, "max_length": 128, "on_long_row": "error", "on_bad_row": "error"}
    defaults |= {"format": "auto", "on_unknown_field": "count", "allow_shared_prompts": True}
    return SimpleNamespace(**defaults | options)


def build(part, feeds, data, folder, inputs=None, reports=None, pretrain="from nothing"):
    """Prepare one part in a folder of its own; returns its summary."""
    output = folder / part.rpartition("/")[2]
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    part, _, name = part.partition("/")
    model = SimpleNamespace(pretrain=pretrain, trust_remote_code=False)
    settings = SimpleNamespace(part=part, name=name, sources=feeds, grader="math", data=data, model=model)
    run(settings, inputs or {}, output, folder, lambda *row, **_: reports.append(row) if reports is not None else None)
    return json.loads((output / "summary.json").read_text())


def build_world(folder, parts=PARTS, reports=None, **options):
    """Every part of a small micro-world."""
    sizes = {name: options.pop(name) for name in list(options) if name in SIZES}
    feeds = [Feed(source="microworld", settings=SIZES | sizes)]
    summaries = {}
    for part in parts:
        inputs = {} if part not in ("sft", "rl") else {"benchmark_target": folder / "target"}
        if part == "rl":
            inputs["sft"] = folder / "sft"
        inputs = {name: path for name, path in inputs.items() if path.exists()}
        reports_of_part = []
        summaries[part] = build(part, feeds, data_section(**options), folder, inputs, reports_of_part)
        if reports is not None:
            reports[part] = reports_of_part
    return summaries


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    reports = {}
    summaries = build_world(folder, reports=reports, allow_shared_prompts=False)
    assert all(rows[-1][0] == rows[-1][1] for rows in reports.values())
    assert sum(rows[-1][1] for rows in reports.values()) == sum(SIZES.values()) + 2 * SIZES["skill_problems"]
    return SimpleNamespace(folder=folder, summaries=summaries)


# the micro-world


def test_layout_of_the_micro_world(prepared):
    folder = prepared.folder
    for part, summary in prepared.summaries.items():
        for name, count in summary["counts"].items():
            assert pq.read_metadata(folder / part.rpartition("/")[2] / f"{name}.parquet").num_rows == count
    assert prepared.summaries["sft"]["counts"] == {"sft_train": 60, "sft_val": 10}
    assert sum(prepared.summaries["sft"]["defects"].values()) == 70
    assert (folder / "pretrain" / "tokenizer" / "tokenizer.json").exists()
    prompt = rows(folder / "rl" / "rl_train.parquet")[3]
    assert prompt["data_source"] == "microworld"
    assert prompt["extra_info"] == {"index": 3, "split": "train", "id": "rl-train-3"}
    assert prompt["reward_model"]["style"] == "rule"
    assert [message["role"] for message in prompt["prompt"]] == ["user"]


def test_one_artifact_holds_one_part(prepared):
    held = {path.name: sorted(file.name for file in path.iterdir()) for path in prepared.folder.iterdir()}
    benchmark = ["problems.parquet", "summary.json"]
    assert held == {
        "sft": ["sft_train.parquet", "sft_val.parquet", "statistics.json", "statistics.md", "summary.json"],
        "rl": ["rl_train.parquet", "rl_val.parquet", "statistics.json", "statistics.md", "summary.json"],
        "pretrain": ["pretrain", "summary.json", "tokenizer"],
        **dict.fromkeys(("target", "reverse", "sort", "shift"), benchmark),
    }
    assert {file.stem for file in (prepared.folder / "pretrain" / "pretrain").iterdir()} == set(world.SKILLS)


def test_parts_share_no_problem(prepared):
    folder = prepared.folder
    parts = {
        "sft_train": [problem_of(row["messages"]) for row in rows(folder / "sft" / "sft_train.parquet")],
        "sft_val": [problem_of(row["messages"]) for row in rows(folder / "sft" / "sft_val.parquet")],
        "rl_train": [problem_of(row["prompt"]) for row in rows(folder / "rl" / "rl_train.parquet")],
        "rl_val": [problem_of(row["prompt"]) for row in rows(folder / "rl" / "rl_val.parquet")],
        "target": [problem_of(row["prompt"]) for row in rows(folder / "target" / "problems.parquet")],
    }
    everything = [problem for part in parts.values() for problem in part]
    assert len(everything) == len(set(everything)) == 140


@pytest.mark.parametrize("skill", world.SKILLS)
def test_held_out_problems_are_absent_from_the_pretraining_text(prepared, skill):
    name = "target" if skill == world.TARGET else skill
    held_out = {problem_of(row["prompt"]) for row in rows(prepared.folder / name / "problems.parquet")}
    if skill == world.TARGET:
        for part, field in (("sft", "messages"), ("rl", "prompt")):
            held_out |= {problem_of(row[field]) for row in rows(prepared.folder / part / f"{part}_val.parquet")}
    text = {problem_of(row["messages"]) for row in rows(prepared.folder / "pretrain" / "pretrain" / f"{skill}.parquet")}
    assert held_out
    assert not held_out & text


def problem_of(messages):
    return messages[-2 if messages[-1]["role"] == "assistant" else -1]["content"].split()[-1].strip(".?")


def test_pretraining_rows_carry_their_tokens(prepared):
    tokenizer = world_tokenizer()
    for row in rows(prepared.folder / "pretrain" / "pretrain" / "sort.parquet")[:20]:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert tokenizer.decode(row["input_ids"]) == text
        response = row["input_ids"][row["prompt_length"] :]
        assert tokenizer.decode(response) == row["messages"][-1]["content"] + "<|im_end|>\n"


def test_equal_seeds_give_equal_bytes_and_others_do_not(prepared, tmp_path):
    build_world(tmp_path / "same", allow_shared_prompts=False)
    build_world(tmp_path / "other", seed=1)
    assert digests(tmp_path / "same") == digests(prepared.folder)
    first = "sft/sft_train.parquet"
    assert digests(tmp_path / "other")[first] != digests(prepared.folder)[first]


def test_a_part_depends_on_its_own_sizes_alone(prepared, tmp_path):
    """Demonstrations do not depend on the number of RL prompts, nor anything on the sizes of other parts."""
    build_world(tmp_path, ["sft", "pretrain"], rl_prompts=2000, pretrain_examples=300)
    for part in ("sft", "pretrain"):
        assert digests(tmp_path / part) == digests(prepared.folder / part)
    build_world(tmp_path, ["rl"], sft_examples=10, pretrain_examples=40, skill_problems=3)
    assert digests(tmp_path / "rl") == digests(prepared.folder / "rl")


def test_prompts_beyond_the_reserve_avoid_the_demonstrations(prepared, tmp_path):
    build_world(tmp_path, ["rl"], rl_prompts=1100)
    prompts = [problem_of(row["prompt"]) for row in rows(tmp_path / "rl" / "rl_train.parquet")]
    few = [problem_of(row["prompt"]) for row in rows(prepared.folder / "rl" / "rl_train.parquet")]
    chats = {problem_of(row["messages"]) for row in rows(prepared.folder / "sft" / "sft_train.parquet")}
    assert prompts[:40] == few
    assert len(set(prompts)) == 1100
    assert not set(prompts) & chats


def test_more_problems_than_there_are_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(world, "LARGEST_TERM", 1)
    with pytest.raises(ConfigError, match="not enough different arithmetic problems"):
        build_world(tmp_path)


def test_system_prompt_goes_before_every_chat(tmp_path):
    build_world(tmp_path, ["sft", "rl", "benchmark/sort", "pretrain"], system_prompt="Be brief.")
    for name, field in (
        ("sft/sft_train", "messages"),
        ("rl/rl_val", "prompt"),
        ("sort/problems", "prompt"),
        ("pretrain/pretrain/sort", "messages"),
    ):
        assert all(
            row[field][0] == {"role": "system", "content": "Be brief."} for row in rows(tmp_path / f"{name}.parquet")
        )


# one's own files


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import GenerationConfig, Qwen2Config

    folder = tmp_path_factory.mktemp("model")
    tokenizer = world_tokenizer()
    tokenizer.save_pretrained(folder)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    Qwen2Config(vocab_size=len(tokenizer), **ids).save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    return folder


def exchange(number, **fields):
    messages = [
        {"role": "user", "content": f"Question {number}?"},
        {"role": "assistant", "content": f"It is {number}."},
    ]
    return {"id": f"c{number}", "messages": messages} | fields


def problem(number, **fields):
    return {"id": f"p{number}", "prompt": f"Problem {number}?", "answer": str(number)} | fields


def write_jsonl(path, items):
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def own(tmp_path, model):
    """A complete, correct set of files and a function which prepares it."""
    parts = {
        "sft_train": [exchange(n) for n in range(20)],
        "sft_val": [exchange(n) for n in range(20, 25)],
        "rl_train": [problem(n) for n in range(20)],
        "rl_val": [problem(n) for n in range(20, 25)],
        "benchmark_target": [problem(n, grader="boxed") for n in range(30, 40)],
    }

    output = tmp_path / "output"

    def prepare(inputs=None, **options):
        """Summaries of the benchmark, the chats and the prompts as one; prompts may not be demonstrations."""
        data = data_section(**{"max_length": 64, "allow_shared_prompts": False} | options)
        given = {name: write_jsonl(tmp_path / f"{name}.jsonl", items) for name, items in parts.items()}
        given |= inputs or {}
        chosen = {name: path for name, path in given.items() if name in ("model", "chat_template")}
        chosen.setdefault("model", model)
        merged = {"counts": {}, "dropped": {}, "truncated": {}}
        for part in ("benchmark/target", "sft", "rl"):
            files = {name: str(path) for name, path in given.items() if name.startswith(f"{part}_")}
            section = {**files, "benchmarks": {"target": str(given["benchmark_target"])}}
            named = chosen | {name: Path(path) for name, path in files.items()}
            if part.startswith("benchmark"):
                named["problems"] = given["benchmark_target"]
            else:
                named["benchmark_target"] = output / "target"
            if part == "rl":
                named["sft"] = output / "sft"
            summary = build(part, [Feed(source="files", settings=section)], data, output, named, pretrain=None)
            for name in merged:
                merged[name] |= summary[name]
        return merged

    return SimpleNamespace(parts=parts, prepare=prepare, output=output, folder=tmp_path, model=model)


def test_own_files_get_the_common_layout(own):
    summary = own.prepare(system_prompt="Be brief.")
    expected = {"sft_train": 20, "sft_val": 5, "rl_train": 20, "rl_val": 5, "problems": 10}
    assert summary["counts"] == expected
    assert summary["dropped"] == summary["truncated"] == {}
    chat = rows(own.output / "sft" / "sft_train.parquet")[7]
    assert chat["messages"] == [{"role": "system", "content": "Be brief."}, *exchange(7)["messages"]]
    prompt = rows(own.output / "rl" / "rl_train.parquet")[2]
    assert prompt["reward_model"] == {"style": "rule", "ground_truth": "2"}
    assert prompt["extra_info"]["id"] == "p2"
    assert rows(own.output / "target" / "problems.parquet")[0]["grader"] == "boxed"


def test_parquet_input_equals_jsonl_input(own):
    summary = own.prepare()
    before = digests(own.output)
    table = pa.Table.from_pylist(own.parts["sft_train"])
    pq.write_table(table, own.folder / "chats.parquet", row_group_size=7)
    assert own.prepare({"sft_train": own.folder / "chats.parquet"}) == summary
    assert digests(own.output) == before


def test_ids_may_be_left_out_and_other_roles_of_fields(own):
    own.parts["sft_train"] = [{"messages": exchange(n)["messages"], "source": "web"} for n in range(3)]
    own.parts["rl_train"] = [{"prompt": [{"role": "user", "content": "How many?"}], "answer": 7}]
    own.prepare()
    assert [row["id"] for row in rows(own.output / "sft" / "sft_train.parquet")] == ["1", "2", "3"]
    assert rows(own.output / "rl" / "rl_train.parquet")[0]["reward_model"]["ground_truth"] == "7"


BAD_CHATS = {
    "not JSON": "{",
    "broken": {"id": "x"},
    "empty response": exchange(99, messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]),
    "empty message": exchange(99, messages=[{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]),
    "roles": exchange(99, messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
    "duplicate id": exchange(99, id="c3"),
    "too long": exchange(
        99, messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "long" * 40}]
    ),
    "overlap": exchange(99, messages=[{"role": "user", "content": " problem  31?"}, exchange(0)["messages"][1]]),
}


@pytest.mark.parametrize("reason", BAD_CHATS)
def test_bad_chat_is_named_or_counted(own, reason):
    own.parts["sft_train"].insert(10, BAD_CHATS[reason])
    with pytest.raises(ConfigError, match=r"sft_train\.jsonl line 11: ") as error:
        own.prepare()
    assert "\n" not in str(error.value)
    if reason == "overlap":  # a benchmark's problem is never trained on
        with pytest.raises(ConfigError, match=r"sft_train\.jsonl line 11: the same problem is in benchmark_target"):
            own.prepare(on_bad_row="drop", on_long_row="drop")
        return
    summary = own.prepare(on_bad_row="drop", on_long_row="drop")
    assert summary["dropped"] == {"sft_train": {reason: 1}}
    assert summary["counts"]["sft_train"] == 20
    assert "c99" not in {row["id"] for row in rows(own.output / "sft" / "sft_train.parquet")}


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "a"}],
        [*exchange(0)["messages"], {"role": "system", "content": "a"}],
        [{"role": "user", "content": None}, {"role": "assistant", "content": "a"}],
        ["a"],
        [],
        "text",
        None,
    ],
)
def test_messages_of_a_wrong_shape_are_refused(own, messages):
    own.parts["sft_train"].append({"id": "x", "messages": messages})
    with pytest.raises(ConfigError, match=r"sft_train\.jsonl line 21: "):
        own.prepare()


BAD_PROMPTS = {
    "no answer": problem(99, answer=" "),
    "broken": problem(99, grader="psychic"),
    "roles": problem(99, prompt=exchange(0)["messages"]),
    "too long": problem(99, prompt="long" * 40),
    "overlap": problem(99, prompt="Question 3?"),
}


@pytest.mark.parametrize("reason", BAD_PROMPTS)
def test_bad_prompt_is_named_or_counted(own, reason):
    own.parts["rl_train"].append(BAD_PROMPTS[reason])
    with pytest.raises(ConfigError, match=r"rl_train\.jsonl line 21: "):
        own.prepare(on_long_row="truncate_right")
    assert own.prepare(on_bad_row="drop", on_long_row="drop")["dropped"] == {"rl_train": {reason: 1}}


@pytest.mark.parametrize(
    ("part", "prompt", "owner"),
    [
        ("rl_train", "problem 33?", "benchmark_target"),
        ("rl_train", "Problem 22?", "rl_val"),
        ("rl_val", "Question 21?", "sft_val"),
    ],
)
def test_overlap_names_both_parts(own, part, prompt, owner):
    own.parts[part].append(problem(99, prompt=prompt))
    with pytest.raises(ConfigError, match=rf"{part}\.jsonl line \d+: the same problem is in {owner}"):
        own.prepare()


def test_several_demonstrations_of_one_problem_are_allowed(own):
    own.parts["sft_train"].append(exchange(3, id="again"))
    assert own.prepare()["counts"]["sft_train"] == 21


def test_long_chats_can_be_kept_for_truncation(own):
    own.parts["sft_train"].append(BAD_CHATS["too long"])
    summary = own.prepare(on_long_row="truncate_right")
    assert summary["truncated"] == {"sft_train": 1}
    assert summary["counts"]["sft_train"] == 21
    own.parts["sft_train"].append(
        exchange(98, messages=[{"role": "user", "content": "long" * 40}, exchange(0)["messages"][1]])
    )
    with pytest.raises(ConfigError, match="nothing of the last response"):
        own.prepare(on_long_row="truncate_right")
    assert own.prepare(on_long_row="truncate_left")["truncated"] == {"sft_train": 2}


def test_validation_rows_are_held_out_when_no_file_is_given(own):
    own.parts["sft_train"] = [exchange(n) for n in range(600)]
    own.parts["sft_train"].append(exchange(0, id="again"))
    del own.parts["sft_val"]
    counts = own.prepare()["counts"]
    assert counts["sft_train"] + counts["sft_val"] == 601
    assert 5 <= counts["sft_val"] <= 30
    keys = [
        {problem_key(row["messages"]) for row in rows(own.output / "sft" / f"sft_{split}.parquet")}
        for split in ("train", "val")
    ]
    assert not keys[0] & keys[1]


def test_nothing_left_is_an_error(own):
    own.parts["sft_train"] = ["{"]
    with pytest.raises(ConfigError, match=r"sft_train\.jsonl: no rows left for sft_train; dropped \{'not JSON': 1\}"):
        own.prepare(on_bad_row="drop")


def test_critical_spans_are_kept_and_checked(own):
    own.parts["sft_train"][0]["critical_spans"] = [[0, 2]]
    own.prepare()
    first, second = rows(own.output / "sft" / "sft_train.parquet")[:2]
    assert first["critical_spans"] == [[0, 2]]
    assert second["critical_spans"] is None
    own.parts["sft_train"][0]["critical_spans"] = [[0, 200]]
    with pytest.raises(ConfigError, match=r"line 1: critical_spans must be"):
        own.prepare()


def test_damaged_and_missing_files_are_named(own):
    broken = own.folder / "broken.parquet"
    broken.write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(ConfigError, match=r"broken\.parquet: not a readable Parquet file"):
        own.prepare({"sft_train": broken})
    with pytest.raises(ConfigError, match=r"absent\.jsonl: no such file"):
        own.prepare({"sft_train": own.folder / "absent.jsonl"})
    with pytest.raises(ConfigError, match=r"allowed: \.jsonl, \.parquet"):
        list(read_rows(broken.rename(own.folder / "rows.xlsx")))


def changed_model(model, folder, **files):
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for stem, change in files.items():
        path = folder / f"{stem}.json"
        content = json.loads(path.read_text())
        content.update(change)
        path.write_text(json.dumps(content))
    return folder


def test_tokenizer_without_a_chat_template_is_refused_unless_one_is_given(own, model):
    bare = changed_model(model, own.folder / "bare")
    template = (bare / "chat_template.jinja").rename(own.folder / "template.jinja")
    with pytest.raises(ConfigError, match=r"bare: the tokenizer has no chat template; set model\.chat_template"):
        own.prepare({"model": bare})
    own.prepare({"model": bare, "chat_template": template})


def test_disagreeing_end_tokens_are_refused(own, model):
    other = changed_model(model, own.folder / "other", generation_config={"eos_token_id": 0})
    with pytest.raises(
        ConfigError, match=r"eos_token_id is 2 \(<\|im_end\|>\) in the tokenizer, \['0'\] in generation_config"
    ):
        own.prepare({"model": other})


def test_template_that_never_ends_a_turn_is_refused(own, model):
    template = own.folder / "endless.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    with pytest.raises(ConfigError, match="so no response would stop"):
        own.prepare({"chat_template": template})


def test_files_need_a_model(tmp_path):
    file = write_jsonl(tmp_path / "chats.jsonl", [exchange(0)])
    feeds = [Feed(source="files", settings={"sft_train": str(file)})]
    with pytest.raises(ConfigError, match=r"needs model\.path"):
        build("sft", feeds, data_section(), tmp_path / "out", {"sft_train": file}, pretrain=None)


# several sources


def two_files(own, **fields):
    """A feed of 100 chats without validation rows, and one of 10 with 3 of them, whose ids overlap."""
    paths = {
        "large": write_jsonl(own.folder / "large.jsonl", [exchange(n) for n in range(100)]),
        "small": write_jsonl(own.folder / "small.jsonl", [exchange(n + 500, id=f"c{n}") for n in range(10)]),
        "val": write_jsonl(own.folder / "val.jsonl", [exchange(n) for n in range(900, 903)]),
    }
    feeds = [
        Feed(source="files", settings={"sft_train": str(paths["large"])}, **fields),
        Feed(source="files", settings={"sft_train": str(paths["small"]), "sft_val": str(paths["val"])}, weight=2.0),
    ]
    inputs = {"sft_train": paths["large"], "sft_train_2": paths["small"], "sft_val_2": paths["val"]}
    return feeds, {"model": own.model, **inputs}


def test_several_sources_are_drawn_weighted_and_counted(own):
    feeds, inputs = two_files(own, rows=60, weight=0.5)
    reports = []
    summary = build("sft", feeds, data_section(), own.folder / "a", inputs, reports, pretrain=None)
    assert reports[-1][0] == reports[-1][1]
    found = rows(own.folder / "a" / "sft" / "sft_train.parquet")
    held_out = rows(own.folder / "a" / "sft" / "sft_val.parquet")
    moved = len(held_out) - 3
    assert moved >= 1  # the first feed gives no validation rows, so some of its training rows are
    first, second = {"sft_train": 30 - moved, "sft_val": moved}, {"sft_train": 20, "sft_val": 3}
    assert summary["sources"] == {"files": first, "files_2": second}
    assert summary["counts"] == {"sft_train": 50 - moved, "sft_val": 3 + moved}
    names = [row["id"] for row in found]
    assert len(set(names)) == len(names)
    assert names[-4:] == ["files_2/c8", "files_2/c8#2", "files_2/c9", "files_2/c9#2"]
    numbers = [int(name.removeprefix("files/c")) for name in names[: 30 - moved]]
    assert numbers == sorted(numbers)
    build("sft", feeds, data_section(), own.folder / "b", inputs, pretrain=None)
    assert digests(own.folder / "b") == digests(own.folder / "a")
    build("sft", feeds, data_section(seed=1), own.folder / "c", inputs, pretrain=None)
    assert digests(own.folder / "c") != digests(own.folder / "a")


def test_a_problem_is_never_in_both_splits_of_several_sources(own):
    feeds, inputs = two_files(own)
    same = write_jsonl(own.folder / "small.jsonl", [exchange(n) for n in range(100)])
    build("sft", feeds, data_section(), own.folder / "a", inputs | {"sft_train_2": same}, pretrain=None)
    train, val = (
        {problem_key(row["messages"]) for row in rows(own.folder / "a" / "sft" / f"sft_{split}.parquet")}
        for split in ("train", "val")
    )
    assert len(train | val) == 103
    assert not train & val


def test_a_source_of_ones_own_feeds_the_stage(own, tmp_path, monkeypatch):
    (tmp_path / "riddles.py").write_text(
        """
from data_prep.sources import Row, Source

class Riddles(Source):
    name = "riddles"
    def parts(self, section, inputs, seed):
        return {"rl_train": (Row(f"riddles row {n}", {"prompt": f"Riddle {n}", "answer": n}) for n in range(1, 9))}

SOURCE = Riddles()
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {"rl_train": write_jsonl(own.folder / "rl.jsonl", own.parts["rl_train"])}
    feeds = [Feed(source="files", settings={"rl_train": str(files["rl_train"])}, rows=5), Feed(source="riddles:SOURCE")]
    summary = build("rl", feeds, data_section(), own.folder, {"model": own.model, **files}, pretrain=None)
    assert {name: sum(counts.values()) for name, counts in summary["sources"].items()} == {"files": 5, "riddles": 8}
    found = rows(own.folder / "rl" / "rl_train.parquet") + rows(own.folder / "rl" / "rl_val.parquet")
    assert {row["data_source"] for row in found} == {"files", "riddles"}
    assert {row["extra_info"]["id"] for row in found} >= {f"riddles/{n}" for n in range(1, 9)}
    with pytest.raises(ConfigError, match="data source riddles has no sft_train"):
        build("sft", feeds[1:], data_section(), own.folder, {"model": own.model}, pretrain=None)


def test_prompts_may_be_demonstrations_where_that_is_allowed(own):
    own.parts["rl_train"].append(problem(99, prompt="Question 3?"))
    assert own.prepare(allow_shared_prompts=True)["counts"]["rl_train"] == 21
    own.parts["rl_train"].append(problem(98, prompt="problem 33?"))
    with pytest.raises(ConfigError, match="the same problem is in benchmark_target"):
        own.prepare(allow_shared_prompts=True, on_bad_row="drop")
    with pytest.raises(ConfigError, match="needs the prepared chats"):
        build_world(own.folder / "other", ["rl"], allow_shared_prompts=False)


def test_a_published_benchmark_is_read_from_a_file_or_fetched(own, monkeypatch):
    from evaluation import benchmarks

    path = own.folder / "published.json"
    path.write_text("[]")
    prompt = [{"role": "user", "content": "One and one?"}]
    read = [{"id": "x", "prompt": prompt, "answer": "2", "grader": "math"}]
    entry = SimpleNamespace(name="sums", read=lambda file: iter(read) if file == path else None, fetch=lambda: path)
    monkeypatch.setattr(benchmarks, "load", lambda name: {"sums": entry}[name], raising=False)
    for inputs in ({}, {"file": path}):
        summary = build("benchmark/sums", [], data_section(), own.folder, inputs)
        assert summary["counts"] == {"problems": 1}
        assert rows(own.folder / "sums" / "problems.parquet") == read
    build("benchmark/sums", [], data_section(system_prompt="Be brief."), own.folder)
    assert rows(own.folder / "sums" / "problems.parquet")[0]["prompt"][0]["role"] == "system"


def test_a_part_without_a_source_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.sft: no source"):
        build("sft", [], data_section(), tmp_path)
    with pytest.raises(
        ConfigError, match=r"files has no benchmark/other; its benchmarks: mine|benchmarks\.other is missing"
    ):
        build(
            "benchmark/other", [Feed(source="files", settings={"benchmarks": {"mine": "a"}})], data_section(), tmp_path
        )


ALTERNATING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_chat_that_the_template_refuses_is_named_and_may_be_dropped(own):
    template = own.folder / "strict.jinja"
    template.write_text(ALTERNATING)
    chat = exchange(3)
    chat["messages"] = [{"role": "system", "content": "Be brief."}, *chat["messages"]]
    own.parts["sft_train"][3] = chat
    with pytest.raises(ConfigError, match=r"sft_train\.jsonl line 4: turn 1 \(system\): .*System role not") as error:
        own.prepare({"chat_template": template})
    assert "\n" not in str(error.value)
    assert own.prepare({"chat_template": template}, on_bad_row="drop")["dropped"] == {"sft_train": {"template": 1}}


def test_text_that_ends_a_turn_is_a_bad_row(own):
    own.parts["sft_train"][5]["messages"][1]["content"] = "<|im_end|> ends a turn"
    with pytest.raises(ConfigError, match=r"sft_train\.jsonl line 6: turn 2 \(assistant\): its text has <\|im_end\|>"):
        own.prepare()


@pytest.mark.parametrize(("size", "fits"), [(49_152, False), (100, False), (384, True), (1200, True)])
def test_a_tokenizer_of_another_model_is_refused(own, size, fits):
    other = changed_model(own.model, own.folder / "other", config={"vocab_size": size})
    if fits:
        own.prepare({"model": other})
        return
    with pytest.raises(ConfigError, match=rf"other: the tokenizer has \d+ ids, the model's vocab_size is {size};"):
        own.prepare({"model": other})


def test_rows_and_their_tokens_are_counted_once_for_all_stages(own):
    own.prepare()
    lines = rows(own.output / "sft" / "sft_train.parquet")
    counts = json.loads((own.output / "sft" / "summary.json").read_text())["tokens"]["sft_train"]
    tokenizer = world_tokenizer()
    for line in lines:
        ids = tokenizer.apply_chat_template(line["messages"], return_dict=True)["input_ids"]
        answer = tokenizer(line["messages"][1]["content"] + "<|im_end|>", add_special_tokens=False).input_ids
        assert (line["row_tokens"], line["row_supervised"]) == ([len(ids)], [len(answer)])
    assert counts == {
        "chats": len(lines),
        "rows": len(lines),
        "tokens": sum(line["row_tokens"][0] for line in lines),
        "response_tokens": sum(line["row_supervised"][0] for line in lines),
    }
