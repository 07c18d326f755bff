import hashlib
import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import microworld
from data_prep.prepare import problem_key, read_rows, run
from data_prep.tokenizer import build_tokenizer

SIZES = {
    "pretrain_examples": 300,
    "sft_examples": 60,
    "sft_val_examples": 10,
    "rl_prompts": 40,
    "rl_val_prompts": 10,
    "target_problems": 20,
    "skill_problems": 10,
}


def world(seed=0, **sizes):
    options = SimpleNamespace(**SIZES | sizes)
    data = {"source": "microworld", "seed": seed, "system_prompt": None, "max_length": 128, "on_long_row": "error"}
    return SimpleNamespace(data=SimpleNamespace(**data, microworld=options))


def build(settings, folder, inputs=None, reports=None):
    folder.mkdir(parents=True, exist_ok=True)
    run(settings, inputs or {}, folder, folder, lambda *row, **_: reports.append(row) if reports is not None else None)
    return json.loads((folder / "summary.json").read_text())


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    reports = []
    build(world(), folder, reports=reports)
    assert reports[-1][0] == reports[-1][1] == sum(SIZES.values()) + 2 * SIZES["skill_problems"]
    return folder


# the micro-world


def test_layout_of_the_micro_world(prepared):
    summary = json.loads((prepared / "summary.json").read_text())
    for name, count in summary["counts"].items():
        assert pq.read_metadata(prepared / f"{name}.parquet").num_rows == count
    assert summary["counts"]["sft_train"] == 60
    assert {path.stem for path in (prepared / "benchmarks").iterdir()} == {"target", "reverse", "sort", "shift"}
    assert (prepared / "tokenizer" / "tokenizer.json").exists()
    prompt = rows(prepared / "rl_train.parquet")[3]
    assert prompt["extra_info"] == {"index": 3, "split": "train", "id": "rl-train-3"}
    assert prompt["reward_model"]["style"] == "rule"
    assert [message["role"] for message in prompt["prompt"]] == ["user"]


def test_parts_share_no_problem(prepared):
    parts = {
        "sft_train": [problem_of(row["messages"]) for row in rows(prepared / "sft_train.parquet")],
        "sft_val": [problem_of(row["messages"]) for row in rows(prepared / "sft_val.parquet")],
        "rl_train": [problem_of(row["prompt"]) for row in rows(prepared / "rl_train.parquet")],
        "rl_val": [problem_of(row["prompt"]) for row in rows(prepared / "rl_val.parquet")],
        "target": [problem_of(row["prompt"]) for row in rows(prepared / "benchmarks" / "target.parquet")],
    }
    everything = [problem for part in parts.values() for problem in part]
    assert len(everything) == len(set(everything)) == 140


@pytest.mark.parametrize("skill", microworld.SKILLS)
def test_held_out_problems_are_absent_from_the_pretraining_text(prepared, skill):
    name = "target" if skill == microworld.TARGET else skill
    held_out = {problem_of(row["prompt"]) for row in rows(prepared / "benchmarks" / f"{name}.parquet")}
    text = {problem_of(row["messages"]) for row in rows(prepared / "pretrain" / f"{skill}.parquet")}
    assert held_out
    assert not held_out & text


def problem_of(messages):
    return messages[-2 if messages[-1]["role"] == "assistant" else -1]["content"].split()[-1].strip(".?")


def test_pretraining_rows_carry_their_tokens(prepared):
    tokenizer = build_tokenizer(microworld.WORDS, 256)
    for row in rows(prepared / "pretrain" / "sort.parquet")[:20]:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert tokenizer.decode(row["input_ids"]) == text
        response = row["input_ids"][row["prompt_length"] :]
        assert tokenizer.decode(response) == row["messages"][-1]["content"] + "<|im_end|>\n"


def test_equal_seeds_give_equal_bytes_and_others_do_not(prepared, tmp_path):
    build(world(), tmp_path / "same")
    build(world(seed=1), tmp_path / "other")
    assert digests(tmp_path / "same") == digests(prepared)
    assert digests(tmp_path / "other")["sft_train.parquet"] != digests(prepared)["sft_train.parquet"]


def test_more_problems_than_there_are_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(microworld, "LARGEST_TERM", 1)
    with pytest.raises(ValueError, match="not enough different arithmetic problems"):
        build(world(), tmp_path)


def test_system_prompt_goes_before_every_chat(tmp_path):
    settings = world()
    settings.data.system_prompt = "Be brief."
    build(settings, tmp_path)
    for name, field in (("sft_train", "messages"), ("rl_val", "prompt"), ("benchmarks/sort", "prompt")):
        assert all(
            row[field][0] == {"role": "system", "content": "Be brief."} for row in rows(tmp_path / f"{name}.parquet")
        )


# one's own files


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from transformers import GenerationConfig, Qwen2Config

    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(microworld.WORDS, 256)
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

    def prepare(inputs=None, **options):
        defaults = {"seed": 0, "system_prompt": None, "max_length": 64, "on_long_row": "error", "on_bad_row": "error"}
        data = SimpleNamespace(source="files", **defaults | options)
        files = {name: write_jsonl(tmp_path / f"{name}.jsonl", items) for name, items in parts.items()}
        return build(SimpleNamespace(data=data), tmp_path / "output", {"model": model, **files, **(inputs or {})})

    return SimpleNamespace(parts=parts, prepare=prepare, output=tmp_path / "output", folder=tmp_path)


def test_own_files_get_the_common_layout(own):
    summary = own.prepare(system_prompt="Be brief.")
    expected = {"sft_train": 20, "sft_val": 5, "rl_train": 20, "rl_val": 5, "benchmarks/target": 10}
    assert summary["counts"] == expected
    assert summary["dropped"] == summary["truncated"] == {}
    chat = rows(own.output / "sft_train.parquet")[7]
    assert chat["messages"] == [{"role": "system", "content": "Be brief."}, *exchange(7)["messages"]]
    prompt = rows(own.output / "rl_train.parquet")[2]
    assert prompt["reward_model"] == {"style": "rule", "ground_truth": "2"}
    assert prompt["extra_info"]["id"] == "p2"
    assert rows(own.output / "benchmarks" / "target.parquet")[0]["grader"] == "boxed"


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
    assert [row["id"] for row in rows(own.output / "sft_train.parquet")] == ["1", "2", "3"]
    assert rows(own.output / "rl_train.parquet")[0]["reward_model"]["ground_truth"] == "7"


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
    with pytest.raises(ValueError, match=r"sft_train\.jsonl line 11: ") as error:
        own.prepare()
    assert "\n" not in str(error.value)
    summary = own.prepare(on_bad_row="drop", on_long_row="drop")
    assert summary["dropped"] == {"sft_train": {reason: 1}}
    assert summary["counts"]["sft_train"] == 20
    assert "c99" not in {row["id"] for row in rows(own.output / "sft_train.parquet")}


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
    with pytest.raises(ValueError, match=r"sft_train\.jsonl line 21: "):
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
    with pytest.raises(ValueError, match=r"rl_train\.jsonl line 21: "):
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
    with pytest.raises(ValueError, match=rf"{part}\.jsonl line \d+: the same problem is in {owner}"):
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
    with pytest.raises(ValueError, match="nothing of the last response"):
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
        {problem_key(row["messages"]) for row in rows(own.output / f"sft_{split}.parquet")}
        for split in ("train", "val")
    ]
    assert not keys[0] & keys[1]


def test_nothing_left_is_an_error(own):
    own.parts["sft_train"] = ["{"]
    with pytest.raises(ValueError, match=r"sft_train\.jsonl: no rows left for sft_train; dropped \{'not JSON': 1\}"):
        own.prepare(on_bad_row="drop")


def test_critical_spans_are_kept_and_checked(own):
    own.parts["sft_train"][0]["critical_spans"] = [[0, 2]]
    own.prepare()
    first, second = rows(own.output / "sft_train.parquet")[:2]
    assert first["critical_spans"] == [[0, 2]]
    assert second["critical_spans"] is None
    own.parts["sft_train"][0]["critical_spans"] = [[0, 200]]
    with pytest.raises(ValueError, match=r"line 1: critical_spans must be"):
        own.prepare()


def test_damaged_and_missing_files_are_named(own):
    broken = own.folder / "broken.parquet"
    broken.write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(ValueError, match=r"broken\.parquet: not a readable Parquet file"):
        own.prepare({"sft_train": broken})
    with pytest.raises(ValueError, match=r"absent\.jsonl: no such file"):
        own.prepare({"sft_train": own.folder / "absent.jsonl"})
    with pytest.raises(ValueError, match=r"allowed: \.jsonl, \.parquet"):
        list(read_rows(broken.rename(own.folder / "rows.csv")))


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
    with pytest.raises(ValueError, match=r"bare: the tokenizer has no chat template; set model\.chat_template"):
        own.prepare({"model": bare})
    own.prepare({"model": bare, "chat_template": template})


def test_disagreeing_end_tokens_are_refused(own, model):
    other = changed_model(model, own.folder / "other", generation_config={"eos_token_id": 0})
    with pytest.raises(
        ValueError, match=r"eos_token_id is 2 \(<\|im_end\|>\) in the tokenizer, \['0'\] in generation_config"
    ):
        own.prepare({"model": other})


def test_template_that_never_ends_a_turn_is_refused(own, model):
    template = own.folder / "endless.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    with pytest.raises(ValueError, match="so no response would stop"):
        own.prepare({"chat_template": template})


def test_files_need_a_model(tmp_path):
    data = SimpleNamespace(source="files", seed=0, system_prompt=None, max_length=8)
    with pytest.raises(ValueError, match=r"needs model\.path"):
        build(SimpleNamespace(data=data), tmp_path)
