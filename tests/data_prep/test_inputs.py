"""Files as people have brought them, byte for byte: what `prepare` makes of each.

Every file holds good rows beside the odd ones. A file whose rows are all good gives so many chats or prompts; any other
one is refused in a line that names it, and gives the rest where bad and long rows are dropped.
"""

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.problems import turns

INPUTS = Path(__file__).parent / "inputs"
DROP = {"on_bad_row": "drop", "on_long_row": "drop"}

ACCEPTED_CHATS = {  # file -> rows
    "alpaca": 7,
    "blank_lines": 6,
    "bom": 6,
    "crlf": 6,
    "developer_role": 7,
    "emoji_and_bytes": 7,
    "good": 6,
    "id_like_row_number": 8,
    "json_array": 6,
    "line_separator": 7,
    "messages_as_json_text": 7,
    "nul_and_controls": 7,
    "parts": 7,
    "reasoning_content": 7,
    "role_capital": 7,
    "same_greeting": 20,
    "sharegpt": 7,
    "system_first": 7,
    "system_last": 7,
    "think_earlier_turns": 9,
    "tool_calls": 7,
    "tool_role": 7,
    "trailing_space": 8,
    "two_users": 7,
    "weight": 8,
}
REFUSED_CHATS = {  # file -> the line that refuses it, what is dropped of it
    "duplicate_keys": ("line 1: the field 'messages' is there twice", {"duplicate field": 1}),
    "empty_answer": (r"line 1: messages 2 \(assistant\) is empty", {"empty response": 2}),
    "ends_with_user": ("line 1: roles of messages are user, assistant, user", {"roles": 1}),
    "half_written": ("line 7: not JSON", {"not JSON": 1}),
    "ids": ("line 2: id '1' occurs twice", {"broken": 2, "duplicate id": 2}),
    "latin1": ("line 7: not UTF-8", {"not UTF-8": 1}),
    "lone_surrogate": ("line 1: messages 1: content has half a character", {"not Unicode": 1}),
    "long_row": ("line 1: 718 tokens, data.max_length=512", {"too long": 3}),
    "null_content": (r"line 1: messages 2 \(assistant\) is empty", {"empty response": 1}),
    "special_tokens_in_text": (r"line 1: turn 1 \(user\): its text has <\|im_end\|>", {"template": 1}),
}
REFUSED_FILES = {
    "empty": "no rows for sft_train",
    "one_row": "no rows for sft_train; the only problem is held out for sft_val: give more, or a file of sft_val",
    "trailing_commas": "line 1: not JSON .* the line ends with a comma: one object a line, or a whole array",
    "utf16": "is UTF-16; save it as UTF-8",
}
ACCEPTED_PROMPTS = {
    "answer_solution_text": 21,
    "answers": 26,
    "few_shot": 30,
    "good": 20,
    "grader_per_row": 21,
    "overlap_by_case": 21,
    "overlap_by_unicode": 22,
    "verl_shape": 21,
}
REFUSED_PROMPTS = {
    "answer_bool": ("line 1: answer must be text or a number, is True", {"no answer": 1}),
    "answer_latex_only": (r"line 1: answer '\$\$' holds nothing to compare with", {"no answer": 2}),
    "answer_list": (r"line 1: answer must be text or a number, is \['1', '2'\]", {"no answer": 1}),
    "answer_nan": ("line 1: answer must be text or a number, is nan", {"no answer": 1}),
    "answer_null": ("line 1: answer must be text or a number, is missing", {"no answer": 1}),
    "grader_tolerance_bad": ("line 1: grader: 'numeric:abc'", {"broken": 3}),
    "grader_unknown": ("line 1: unknown grader 'llm_judge'; allowed: ", {"broken": 1}),
    "long_prompt": ("line 1: 1501 tokens, data.max_length=512", {"too long": 1}),
    "prompt_ends_with_assistant": ("line 1: roles of prompt are user, assistant", {"roles": 1}),
}


@pytest.fixture
def read(prepare):
    """The prepared rows of one of the files, under its own name."""

    def read(kind, name, part, **options):
        file = INPUTS / kind / f"{name}.jsonl"
        return prepare(part, file.read_bytes(), file.name, **options)

    return read


def test_every_file_has_its_outcome():
    chats, prompts = ({path.stem for path in (INPUTS / kind).iterdir()} for kind in ("chats", "prompts"))
    assert chats == {*ACCEPTED_CHATS, *REFUSED_CHATS, *REFUSED_FILES}
    assert prompts == {*ACCEPTED_PROMPTS, *REFUSED_PROMPTS}


@pytest.mark.parametrize("name", ACCEPTED_CHATS)
def test_all_chats_of_a_file_are_rows(name, read):
    summary, found = read("chats", name, "sft")
    assert len(found) == ACCEPTED_CHATS[name]
    assert summary["dropped"] == summary["unknown_fields"] == {}
    assert all(row["row_tokens"] and min(row["row_supervised"]) > 0 for row in found.values())


@pytest.mark.parametrize("name", REFUSED_CHATS)
def test_a_chat_that_cannot_be_a_row_is_named_or_dropped_and_counted(name, read):
    line, dropped = REFUSED_CHATS[name]
    with pytest.raises(ConfigError, match=rf"{name}\.jsonl {line}") as error:
        read("chats", name, "sft")
    assert "\n" not in str(error.value)
    summary, found = read("chats", name, "sft", **DROP)
    assert summary["dropped"] == {"sft_train": dropped}
    assert len(found) == (7 if name == "ids" else 6)


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_a_file_that_gives_no_rows_is_named(name, read):
    with pytest.raises(ConfigError, match=rf"{name}\.jsonl:? {REFUSED_FILES[name]}") as error:
        read("chats", name, "sft")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ACCEPTED_PROMPTS)
def test_all_prompts_of_a_file_are_rows_and_problems(name, read):
    summary, found = read("prompts", name, "rl")
    assert len(found) == ACCEPTED_PROMPTS[name]
    assert summary["dropped"] == summary["unknown_fields"] == {}
    assert len(read("prompts", name, "benchmark/mine")[1]) == ACCEPTED_PROMPTS[name]


@pytest.mark.parametrize("name", REFUSED_PROMPTS)
def test_a_prompt_that_cannot_be_a_row_is_dropped_from_training_and_never_from_a_benchmark(name, read):
    line, dropped = REFUSED_PROMPTS[name]
    with pytest.raises(ConfigError, match=rf"{name}\.jsonl {line}") as error:
        read("prompts", name, "rl")
    assert "\n" not in str(error.value)
    summary, found = read("prompts", name, "rl", **DROP)
    assert summary["dropped"] == {"rl_train": dropped}
    assert len(found) == 20
    if name == "long_prompt":
        summary, found = read("prompts", name, "benchmark/mine", **DROP)
        assert (len(found), summary["long"]["ids"]) == (21, ["1"])
        return
    with pytest.raises(ConfigError, match=r"a benchmark is never thinned"):
        read("prompts", name, "benchmark/mine", **DROP)


@pytest.mark.parametrize("name", ["bom", "crlf", "blank_lines", "json_array"])
def test_the_same_rows_in_other_bytes_are_the_same(name, read):
    def said(file):
        return sorted((number, turns(row["messages"])) for number, row in read("chats", file, "sft")[1].items())

    assert said(name) == said("good")


def test_what_is_not_trained_on_is_not_supervised(read):
    """In weight.jsonl two chats have a first answer that does not count: their last answer alone does, with its end."""
    _, found = read("chats", "weight", "sft")
    for name, answer in (("w", "good answer"), ("w2", "good")):
        (supervised,) = found[name]["row_supervised"]
        assert supervised == len(answer) + 1  # one token a byte in these words, and the end of the turn


@pytest.mark.parametrize("name", ["overlap_by_case", "overlap_by_unicode"])
def test_the_same_problem_in_another_spelling_is_a_leak(name, read, tmp_path):
    read("prompts", name, "benchmark/mine")
    with pytest.raises(ConfigError, match=r"good\.jsonl line 1: the same problem is in benchmark_mine"):
        read("chats", "good", "sft", inputs={"benchmark_mine": tmp_path / "mine"})
