"""Rows as people have them: each kind of file and of row, and what becomes of it.

Every file holds good rows beside the odd ones, so that what is accepted, dropped or refused is one row's doing.
"""

import codecs
import json

import pytest

from common.errors import ConfigError
from common.problems import turns

LIMIT = 512  # data.max_length of `prepare`


def said(*texts, **last):
    """A chat of user and assistant in turn; `last` are fields of its last turn."""
    chat = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"messages": [*chat[:-1], {**chat[-1], **last}]}


GOOD = [{"id": f"ok{n}", **said(f"what is {n}+{n}?", f"it is {2 * n}")} for n in range(3, 9)]
PROMPTS = [{"prompt": f"what is {n}*{n}?", "answer": str(n * n)} for n in range(20, 40)]


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


# files


FILES = {
    "blank lines": b"\n" + lines(GOOD[0]) + b"\n  \n" + lines(*GOOD[1:]),
    "byte-order mark": codecs.BOM_UTF8 + lines(*GOOD),
    "carriage returns": lines(*GOOD).replace(b"\n", b"\r\n"),
    "array": json.dumps(GOOD, indent=1).encode(),
    "array with a mark": codecs.BOM_UTF8 + b"\n" + json.dumps(GOOD).encode(),
    "no last line end": lines(*GOOD).rstrip(),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_says_the_same_in_another_way_gives_the_same(kind, prepare):
    name = "rows.json" if kind == "array with a mark" else "rows.jsonl"
    summary, found = prepare("sft", FILES[kind], name)
    assert summary["dropped"] == summary["unknown_fields"] == {}
    assert summary["formats"] == {"sft_train": {"messages": 6}}
    assert {name: row["messages"] for name, row in found.items()} == {row["id"]: row["messages"] for row in GOOD}


REFUSED_FILES = {
    "utf-16": ("\ufeff".encode("utf-16-le") + lines(*GOOD).decode().encode("utf-16-le"), "is UTF-16; save it as UTF-8"),
    "utf-16 without a mark": (lines(*GOOD).decode().encode("utf-16-be"), "is UTF-16 or UTF-32; save it as UTF-8"),
    "utf-32": (lines(*GOOD).decode().encode("utf-32"), "is UTF-32; save it as UTF-8"),
    "empty": (b"", "no rows for sft_train"),
    "one row": (lines(GOOD[0]), "the only problem is held out for sft_val: give more, or a file of sft_val"),
    "trailing commas": (lines(*GOOD).replace(b"}\n", b"},\n"), "line 1: not JSON .* the line ends with a comma"),
}


@pytest.mark.parametrize("kind", REFUSED_FILES)
def test_a_file_that_cannot_be_read_is_one_line(kind, prepare):
    content, message = REFUSED_FILES[kind]
    with pytest.raises(ConfigError, match=message) as error:
        prepare("sft", content)
    assert "\n" not in str(error.value)


# chats

NUMBERED = {"id": "2", **said("first", "x")}
CALL = {"type": "function", "function": {"name": "search", "arguments": {"q": 1}}}
TOOL = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "b": 1, "a": 2}}}

ACCEPTED = {
    "alpaca": (
        {"id": "x", "instruction": "add", "input": "2 2", "output": "4"},
        said("add\n2 2", "4")["messages"],
    ),
    "alpaca with history": (
        {"id": "x", "instruction": "c", "input": "", "output": "d", "system": "s", "history": [["a", "b"]]},
        [{"role": "system", "content": "s"}, *said("a", "b", "c", "d")["messages"]],
    ),
    "sharegpt": (
        {"id": "x", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        said("hi", "hello")["messages"],
    ),
    "sharegpt with calls": (
        {
            "id": "x",
            "system": "s",
            "conversations": json.dumps(
                [
                    {"from": "human", "value": "hi"},
                    {"from": "function_call", "value": json.dumps(CALL["function"])},
                    {"from": "observation", "value": "May"},
                    {"from": "gpt", "value": "hello"},
                ]
            ),
        },
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "May"},
            {"role": "assistant", "content": "hello"},
        ],
    ),
    "prompt and completion": ({"id": "x", "prompt": "hi", "completion": "hello"}, said("hi", "hello")["messages"]),
    "prompt and completion in turns": (
        {"id": "x", "prompt": said("hi", "a", "b")["messages"], "completion": said("", "hello")["messages"][1:]},
        said("hi", "a", "b", "hello")["messages"],
    ),
    "JSON text": (
        {"id": "x", "messages": json.dumps(said("hi", "hello")["messages"])},
        said("hi", "hello")["messages"],
    ),
    "developer": (
        {"id": "x", "messages": [{"role": "developer", "content": "s"}, *said("a", "b")["messages"]]},
        [{"role": "developer", "content": "s"}, *said("a", "b")["messages"]],
    ),
    "capital roles": (
        {"id": "x", "messages": [{"role": "User", "content": "a"}, {"role": "Assistant ", "content": "b"}]},
        said("a", "b")["messages"],
    ),
    "system after the user": (
        {
            "id": "x",
            "messages": [*said("a")["messages"], {"role": "system", "content": "s"}, said("a", "b")["messages"][1]],
        },
        [*said("a")["messages"], {"role": "system", "content": "s"}, said("a", "b")["messages"][1]],
    ),
    "two users": (
        {"id": "x", "messages": [*said("a")["messages"], *said("b", "c")["messages"]]},
        [*said("a")["messages"], *said("b", "c")["messages"]],
    ),
    "text parts": (
        {"id": "x", **said([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], ["c", "d"])},
        said("ab", "cd")["messages"],
    ),
    "thinking part": (
        {"id": "x", **said("a", [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}])},
        said("a", "b", reasoning_content="hm")["messages"],
    ),
    "reasoning": (
        {"id": "x", **said("a", "b", reasoning_content="hm")},
        said("a", "b", reasoning_content="hm")["messages"],
    ),
    "reasoning under other names": (
        {"id": "x", **said("a", "b", reasoning="hm", thinking="hm")},
        said("a", "b", reasoning_content="hm")["messages"],
    ),
    "weights": (
        {"id": "x", "messages": [*said("a", "b", weight=0)["messages"], *said("c", "d", weight=1)["messages"]]},
        [*said("a", "b", weight=0.0)["messages"], *said("c", "d", weight=1.0)["messages"]],
    ),
    "trained or not": (
        {"id": "x", "messages": [*said("a", "b", train=False)["messages"], *said("c", "d", loss=True)["messages"]]},
        [*said("a", "b", train=False)["messages"], *said("c", "d", train=True)["messages"]],
    ),
    "calls": (
        {
            "id": "x",
            "messages": [
                said("a")["messages"][0],
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **CALL}]},
                {"role": "tool", "tool_call_id": "c1", "name": "search", "content": ""},
                {"role": "assistant", "content": "b"},
            ],
        },
        [
            said("a")["messages"][0],
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]},
            {"role": "tool", "content": "", "name": "search", "tool_call_id": "c1"},
            {"role": "assistant", "content": "b"},
        ],
    ),
    "arguments as text": (
        {
            "id": "x",
            **said("a", "", tool_calls=[{"type": "function", "function": {"name": "search", "arguments": '{"q": 1}'}}]),
        },
        said("a", "", tool_calls=[CALL])["messages"],
    ),
    "white space": ({"id": "x", **said("hi \n", "\n  hello  \n")}, said("hi \n", "\n  hello  \n")["messages"]),
    "line separators": ({"id": "x", **said("a\u2028b\x85c", "d\x0be")}, said("a\u2028b\x85c", "d\x0be")["messages"]),
    "controls": ({"id": "x", **said("a\x00b\x07", "c\x00d")}, said("a\x00b\x07", "c\x00d")["messages"]),
    "emoji": (
        {"id": "x", **said("gr\xfc\xdf \U0001f469\u200d\U0001f467", "\U0001d518 \ufdfd")},
        said("gr\xfc\xdf \U0001f469\u200d\U0001f467", "\U0001d518 \ufdfd")["messages"],
    ),
    "id that is a number": ({"id": 7, **said("a", "b")}, said("a", "b")["messages"]),
    "id of a table": ({"id": 7.0, **said("a", "b")}, said("a", "b")["messages"]),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_chat_is_kept_whole(kind, prepare):
    row, expected = ACCEPTED[kind]
    summary, found = prepare("sft", lines(row, *GOOD))
    assert summary["dropped"] == summary["unknown_fields"] == {}
    assert turns(found["7" if kind.startswith("id ") else "x"]["messages"]) == expected
    assert len(found) == len(GOOD) + 1
    assert turns(found["ok3"]["messages"]) == GOOD[0]["messages"]


BAD = {
    "roles": [
        {"id": "x", **said("a", "b", "c")},
        {"id": "x", "messages": [{"role": "narrator", "content": "a"}, *said("a", "b")["messages"]]},
    ],
    "empty response": [
        {"id": "x", **said("a", "")},
        {"id": "x", **said("a", " \n", "c", "d")},
        {"id": "x", **said("a", None, tool_calls=[])},
    ],
    "content": [{"id": "x", **said([{"type": "image_url", "image_url": {"url": "a"}}], "b")}],
    "not Unicode": [{"id": "x", **said("cut \ud83d here", "b")}, {"id": "\ud83d", **said("a", "b")}],
    "not JSON": ['{"id": "h", "messages": [{"role": "user", "content": "hi"}, {"role": "assis'],
    "duplicate field": [
        '{"id": "x", "messages": [], "messages": []}',
        '{"messages": [{"role": "user", "role": "user"}]}',
    ],
    "duplicate id": [{"id": "ok5", **said("a", "b")}],
    "nothing to train on": [{"id": "x", **said("a", "b", weight=0)}, {"id": "x", **said("a", "b", train=False)}],
    "too long": [{"id": "x", **said("a", "long " * LIMIT)}],
    "broken": [
        {"id": True, **said("a", "b")},
        {"id": "", **said("a", "b")},
        {"id": "x", **said("a", "b", weight=0.5)},
        {"id": "x", **said("a", "b", reasoning="hm", thinking="so")},
        {"id": "x", **said("a", "b", weight=1, train=False)},
        {"id": "x", "messages": "not JSON"},
        {"id": "x", "tools": [{"type": "function"}], **said("a", "b")},
        {"id": "x", "instruction": "add"},
    ],
}


@pytest.mark.parametrize(("reason", "row"), [(reason, row) for reason, rows in BAD.items() for row in rows])
def test_a_bad_chat_is_named_or_counted(reason, row, prepare):
    content = lines(*GOOD, row)
    with pytest.raises(ConfigError, match=r"rows\.jsonl line 7: ") as error:
        prepare("sft", content)
    assert "\n" not in str(error.value)
    summary, found = prepare("sft", content, on_bad_row="drop", on_long_row="drop")
    assert summary["dropped"] == {"sft_train": {reason: 1}}
    assert sorted(found) == [row["id"] for row in GOOD]


def test_a_line_that_is_not_utf_8_is_a_bad_row(prepare):
    content = lines(*GOOD) + '{"id": "x", "messages": "caf\xe9"}\n'.encode("latin-1")
    with pytest.raises(ConfigError, match=r"line 7: not UTF-8 \(byte 0xe9 at 28\); save as UTF-8"):
        prepare("sft", content)
    assert prepare("sft", content, on_bad_row="drop")[0]["dropped"] == {"sft_train": {"not UTF-8": 1}}


def test_ids_are_names_and_row_numbers_take_none(prepare):
    ids = [1, "1", 1.0, True, "", 2.5, None]
    rows = [{"id": value, **said(f"a {place}", "b")} for place, value in enumerate(ids)]
    summary, found = prepare("sft", lines(*rows, *GOOD), on_bad_row="drop")
    assert summary["dropped"] == {"sft_train": {"duplicate id": 2, "broken": 2}}
    assert set(found) == {"1", "2.5", "7", *(row["id"] for row in GOOD)}
    nameless = said("second", "y")
    _, found = prepare("sft", lines(NUMBERED, nameless, {"id": "3", **said("third", "z")}, *GOOD))
    assert found["2"]["messages"] == NUMBERED["messages"]
    assert found["row 2"]["messages"] == nameless["messages"]
    assert found["3"]["messages"] == said("third", "z")["messages"]
    _, found = prepare("sft", lines(nameless, {"id": "1", **said("third", "z")}, *GOOD))
    assert found["1"]["messages"] == nameless["messages"]
    assert found["id 1"]["messages"] == said("third", "z")["messages"]


def test_tools_are_kept_as_text_in_their_order(prepare):
    _, found = prepare("sft", lines({"id": "x", "tools": [TOOL], **said("a", "b")}, *GOOD))
    assert json.dumps(json.loads(found["x"]["tools"])) == json.dumps([TOOL])
    assert found["ok3"].get("tools") is None
    older = {"id": "x", "functions": json.dumps([TOOL["function"]]), **said("a", "b")}
    assert json.loads(prepare("sft", lines(older, *GOOD))[1]["x"]["tools"]) == [TOOL]


def asks(text, **more):
    return {"id": text, "prompt": text, "answer": "1", **more}


@pytest.mark.parametrize("part", ["rl", "benchmark/weather"])
def test_tools_of_prompts_are_kept_and_measured(prepare, part):
    rows = [asks(f"a {n}") for n in range(3)]
    _, bare = prepare(part, lines(*rows, asks("which?")))
    summary, found = prepare(part, lines(*rows, asks("which?", tools=[TOOL])))
    assert summary["unknown_fields"] == {}
    assert json.loads(found["which?"]["tools"]) == [TOOL] and found["a 1"].get("tools") is None
    assert "tools" not in bare["which?"]
    if part == "rl":
        prepare(part, lines(*rows, asks("which?")), max_length=60)
        with pytest.raises(ConfigError, match=r"\d+ tokens, data\.max_length=60"):
            prepare(part, lines(*rows, asks("which?", tools=[TOOL])), max_length=60)


def test_what_is_asked_with_other_tools_is_another_problem(prepare, tmp_path):
    other = {**TOOL, "function": {**TOOL["function"], "name": "another"}}
    rows = [asks(f"a {n}") for n in range(3)]
    prepare("benchmark/weather", lines(asks("which?", tools=[TOOL])))
    given = {"inputs": {"benchmark_weather": tmp_path / "weather"}}
    prepare("rl", lines(*rows, asks("which?", tools=[other])), **given)
    prepare("rl", lines(*rows, asks("which?")), **given)
    for part, leak in (
        ("rl", asks("which?", tools=[TOOL])),
        ("sft", {"id": "leak", "tools": [TOOL], **said("which?", "this")}),
    ):
        with pytest.raises(ConfigError, match="the same problem is in benchmark_weather"):
            prepare(part, lines(*(rows if part == "rl" else GOOD), leak), **given)


def test_what_few_rows_have_may_come_late(prepare, monkeypatch):
    """Columns are there from the first row on; rows written before them are written again."""
    monkeypatch.setattr("data_prep.tables.BATCH_ROWS", 4)
    rows = [{"id": f"r{n}", **said(f"a {n}", "b")} for n in range(400)]
    rows[300]["messages"][1]["reasoning_content"] = "hm"
    rows[350]["tools"] = [TOOL]
    summary, found = prepare("sft", lines(*rows))
    assert summary["counts"]["sft_train"] + summary["counts"]["sft_val"] == len(found) == 400
    assert [name for name, row in found.items() if row.get("tools")] == ["r350"]
    thoughts = [name for name, row in found.items() if row["messages"][1].get("reasoning_content")]
    assert thoughts == ["r300"]
    assert all(turns(found[row["id"]]["messages"]) == row["messages"] for row in rows)


def test_fields_that_are_not_understood_are_counted_or_refused(prepare):
    odd = {"id": "x", "source": "web", "quality": None, **said("a", "b", mood="glad")}
    summary, _ = prepare("sft", lines(odd, {**GOOD[0], "source": "web"}, *GOOD[1:]))
    assert summary["unknown_fields"] == {"sft_train": {"messages.mood": 1, "source": 2}}
    with pytest.raises(ConfigError, match=r"line 1: fields that are not understood: messages\.mood, source; .*count"):
        prepare("sft", lines(odd, *GOOD), on_unknown_field="error", on_bad_row="drop")
    call = {"id": "x", **said("a", "b", tool_calls=[{**CALL, "index": 0}])}
    assert prepare("sft", lines(call, *GOOD))[0]["unknown_fields"] == {"sft_train": {"messages.tool_calls.index": 1}}


def test_a_format_may_be_chosen(prepare):
    shared = {"id": "x", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    last = shared["conversations"][1]
    others = [{"id": f"y{n}", "conversations": [{"from": "human", "value": f"a {n}"}, last]} for n in range(5)]
    summary, _ = prepare("sft", lines(shared, *others), format="sharegpt")
    assert summary["formats"] == {"sft_train": {"sharegpt": 6}}
    with pytest.raises(ConfigError, match=r"line 1: the fields \(id, conversations\) are not those of a chat \(data\."):
        prepare("sft", lines(shared), format="messages")
    both = {"id": "x", "prompt": "an extract", **said("a", "b")}
    assert prepare("sft", lines(both, *GOOD))[0]["unknown_fields"] == {"sft_train": {"prompt": 1}}


def test_special_tokens_in_the_text_are_counted(prepare):
    summary, _ = prepare("sft", lines({"id": "x", **said("what does <|im_start|> mean?", "a turn begins")}, *GOOD))
    assert summary["special_tokens"] == {"sft_train": {"rows": 1, "first": "x"}}
    ending = lines(*GOOD, {"id": "x", **said("what does <|im_end|> mean?", "a turn ends")})
    with pytest.raises(ConfigError, match=r"line 7: turn 1 \(user\): its text has <\|im_end\|>"):
        prepare("sft", ending)
    assert prepare("sft", ending, on_bad_row="drop")[0]["dropped"] == {"sft_train": {"template": 1}}


def test_dialogues_that_open_alike_are_split_one_by_one(prepare):
    rows = [{"id": f"g{n}", **said("Hi!", "Hello, what can I do?", f"what is {n}+1?", str(n + 1))} for n in range(200)]
    counts = prepare("sft", lines(*rows))[0]["counts"]
    assert counts["sft_train"] + counts["sft_val"] == 200
    assert 1 <= counts["sft_val"] <= 15


# prompts

ANSWERS = {
    "integer": (4, "4"),
    "decimal": (0.5, "0.5"),
    "large": (1e16, "10000000000000000"),
    "small": (1e-7, "0.0000001"),
    "larger than a float": (10**25, "1" + "0" * 25),
    "negative zero": (-0.0, "0.0"),
    "solution": ("Half of 48 is 24. 48 + 24 = <<48+24=72>>72\n#### 1,072", "1072"),
    "text": (" \\frac{1}{2}", " \\frac{1}{2}"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_is_what_its_grader_reads(kind, prepare):
    given, expected = ANSWERS[kind]
    _, found = prepare("rl", lines({"id": "x", "prompt": "q", "answer": given}, *PROMPTS))
    assert found["x"]["reward_model"]["ground_truth"] == expected
    _, found = prepare("benchmark/mine", lines({"id": "x", "prompt": "q", "answer": given}))
    assert (found["x"]["answer"], found["x"]["grader"]) == (expected, "math")


def test_a_solution_stays_whole_for_a_reward_that_may_read_it(prepare):
    row = {"id": "x", "prompt": "q", "answer": "so\n#### 72"}
    for grader in ("exact", ""):
        found = prepare("rl", lines(row, *PROMPTS), grader=grader)[1]
        assert found["x"]["reward_model"]["ground_truth"] == row["answer"]


BAD_PROMPTS = [
    ({"prompt": "q", "answer": True}, "no answer"),
    ({"prompt": "q", "answer": ["1", "2"]}, "no answer"),
    ({"prompt": "q", "answer": float("nan")}, "no answer"),
    ({"prompt": "q", "answer": float("inf")}, "no answer"),
    ({"prompt": "q", "answer": None}, "no answer"),
    ({"prompt": "q"}, "no answer"),
    ({"prompt": "q", "answer": "$$"}, "no answer"),
    ({"prompt": "q", "answer": "\\boxed{ }"}, "no answer"),
    ({"prompt": "q", "answer": "nan"}, "no answer"),
    ({"prompt": "q", "answer": "work\n####"}, "no answer"),
    ({"prompt": "q", "answer": "about four", "grader": "numeric"}, "no answer"),
    ({"prompt": "q", "answer": "1", "grader": "numeric:abc"}, "broken"),
    ({"prompt": "q", "answer": "1", "grader": "numeric:-1"}, "broken"),
    ({"prompt": "q", "answer": "1", "grader": "numeric:nan"}, "broken"),
    ({"prompt": "q", "answer": "1", "grader": "llm_judge"}, "broken"),
    ({"prompt": "q", "answer": "1", "grader": 3}, "broken"),
    ({"prompt": "q", "answer": "1", "data_source": 3}, "broken"),
    ({"prompt": said("what is 1+1?", "<think>\n")["messages"], "answer": "2"}, "roles"),
    ({"prompt": "q", "reward_model": {"style": "model", "ground_truth": "2"}}, "broken"),
    ({"prompt": "read " * LIMIT, "answer": "2"}, "too long"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_PROMPTS)
def test_a_bad_prompt_is_named_or_counted_and_a_bad_problem_is_an_error(row, reason, prepare):
    content = lines(*PROMPTS, row)
    with pytest.raises(ConfigError, match=r"rows\.jsonl line 21: ") as error:
        prepare("rl", content)
    assert "\n" not in str(error.value)
    policy = {"on_bad_row": "drop", "on_long_row": "drop"}
    assert prepare("rl", content, **policy)[0]["dropped"] == {"rl_train": {reason: 1}}
    if reason == "too long":
        summary, found = prepare("benchmark/mine", content, **policy)
        assert len(found) == 21
        assert summary["long"] == {"problems": 1, "ids": ["21"], "over": LIMIT}
        return
    with pytest.raises(ConfigError, match=r"rows\.jsonl line 21: .*a benchmark is never thinned"):
        prepare("benchmark/mine", content, **policy)


def test_rows_keep_their_grader_and_their_source(prepare):
    rows = [
        {"id": "a", "prompt": "A) 1 B) 2. What is 1+1?", "answer": "B", "grader": "choice", "data_source": "letters"},
        {
            "id": "b",
            "data_source": "gsm8k",
            "prompt": said("what is 1+1?")["messages"],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"split": "train", "index": 0, "question": "what is 1+1?"},
        },
        *PROMPTS,
    ]
    summary, found = prepare("rl", lines(*rows))
    assert found["a"]["extra_info"]["grader"] == "choice"
    assert found["b"]["extra_info"].get("grader") is None
    assert found["b"]["reward_model"] == {"style": "rule", "ground_truth": "2"}
    assert [found[name]["data_source"] for name in ("a", "b", "3")] == ["letters", "gsm8k", "files"]
    assert summary["formats"] == {"rl_train": {"messages": 21, "verl": 1}}
    assert summary["graders"] == {"choice": 1, "rl.reward": 21}
    assert summary["unknown_fields"] == {"rl_train": {"extra_info.question": 1}}
    assert "grader" not in prepare("rl", lines(*PROMPTS))[1]["1"]["extra_info"]


def test_few_shot_prompts_are_problems_of_their_own(prepare):
    shots = ("what is 1+1?", "2", "what is 2+2?", "4")
    rows = [{"prompt": said(*shots, f"what is {n}+{n}?")["messages"], "answer": 2 * n} for n in range(50, 80)]
    counts = prepare("rl", lines(*rows))[0]["counts"]
    assert counts["rl_train"] + counts["rl_val"] == 30
    assert counts["rl_train"] >= 25


@pytest.mark.parametrize("prompt", ["WHAT  is 3+3?", "what is 3\uff0b3?", "what is 3+3\u200b?"])
def test_the_same_problem_in_other_letters_is_the_same(prompt, prepare, tmp_path):
    prepare("sft", lines(*GOOD))
    rows = lines({"prompt": prompt, "answer": "6"}, *PROMPTS)
    with pytest.raises(ConfigError, match=r"line 1: the same problem is in sft_(train|val)"):
        prepare("rl", rows, allow_shared_prompts=False, inputs={"sft": tmp_path / "sft"})
    prepare("benchmark/mine", rows)
    with pytest.raises(
        ConfigError, match=r"line 1: the same problem is in benchmark_mine; remove it from the training"
    ):
        prepare("sft", lines(*GOOD), inputs={"benchmark_mine": tmp_path / "mine"}, on_bad_row="drop")


def test_a_problem_that_is_answered_within_a_dialogue_is_a_leak(prepare, tmp_path):
    prepare("benchmark/mine", lines({"prompt": "what is 50+50?", "answer": "100"}))
    chat = {"id": "x", **said("Hi!", "Hello.", "What is 50+50?", "100", "Thanks!", "Bye.")}
    with pytest.raises(ConfigError, match=r"line 7: the same problem is in benchmark_mine"):
        prepare("sft", lines(*GOOD, chat), inputs={"benchmark_mine": tmp_path / "mine"})


def test_runs_of_words_shared_with_a_benchmark_are_reported(prepare, tmp_path):
    problem = "a train leaves the station at noon and travels north at sixty miles an hour for three hours how far"
    rows = [
        {"id": "t", "prompt": problem, "answer": "180"},
        {"id": "s", "prompt": "what is one and one", "answer": "2"},
    ]
    prepare("benchmark/mine", lines(*rows))
    near = {"id": "x", **said(f"In 1950, {problem.title()} does it go?", "180 miles")}
    summary, found = prepare("sft", lines(*GOOD, near), inputs={"benchmark_mine": tmp_path / "mine"})
    assert len(found) == 7
    report = summary["benchmark_overlap"]["benchmark_mine"]
    assert {name: report[name] for name in ("of", "too_short", "problems", "rows", "run")} == {
        "of": 2, "too_short": 1, "problems": 1, "rows": 1, "run": 13,
    }  # fmt: skip
    (example,) = report["examples"]
    assert (example["row"], example["problem"]) == ("x", "t")
    assert example["words"] == " ".join(problem.split()[:13])
    assert prepare("sft", lines(*GOOD), inputs={"benchmark_mine": tmp_path / "mine"})[0]["benchmark_overlap"] == {}


def test_a_chat_that_the_template_refuses_is_a_bad_row(prepare, tmp_path):
    template = tmp_path / "strict.jinja"
    template.write_text(
        "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tool = {
        "id": "x",
        "messages": [*said("a")["messages"], {"role": "tool", "content": "c"}, said("a", "b")["messages"][1]],
    }
    inputs = {"chat_template": template}
    with pytest.raises(
        ConfigError, match=r"line 7: turn 2 \(tool\): the tokenizer's chat template refuses it: .*no to"
    ):
        prepare("sft", lines(*GOOD, tool), inputs=inputs)
    summary, _ = prepare("sft", lines(*GOOD, tool), inputs=inputs, on_bad_row="drop")
    assert summary["dropped"] == {"sft_train": {"template": 1}}
