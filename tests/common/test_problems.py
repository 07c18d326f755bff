"""What makes two rows ask the same problem."""

import hashlib

import pytest

from common.errors import ConfigError
from common.problems import asked_keys, plain, problem_key, turns


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def test_a_single_question_is_its_plain_text():
    expected = hashlib.sha256(b"what is 3+3?").digest()[:16]
    for messages in (
        [user("What is  3+3?")],
        [user("what is 3+3?\n"), answer("6")],
        [user("what is 3\N{FULLWIDTH PLUS SIGN}3?")],
        [user("what is 3+3\N{ZERO WIDTH SPACE}?")],
        [{"role": "system", "content": "Be brief."}, user("what is 3+3?"), answer("six")],
        [{"role": "developer", "content": "Be brief."}, user("what is 3+3?"), answer("six")],
    ):
        assert problem_key(messages) == expected


def test_dialogues_that_open_alike_are_different_problems():
    opening = [user("Hi!"), answer("Hello.")]
    keys = {problem_key([*opening, user(f"what is {n}+1?"), answer(str(n + 1))]) for n in range(200)}
    assert len(keys) == 200
    assert problem_key(opening) not in keys
    shot = [user("what is 1+1?"), answer("2")]
    assert problem_key([*shot, user("what is 5+5?")]) == problem_key([*shot, user("what is 5+5?"), answer("10")])
    assert problem_key([*shot, user("what is 5+5?")]) != problem_key([user("what is 5+5?")])


def test_what_tools_said_is_part_of_the_problem():
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    keys = {
        problem_key([user("find it"), call, {"role": "tool", "content": found}, answer("done")])
        for found in ("May", "June")
    }
    assert len(keys) == 2


def test_every_answered_question_of_a_chat_can_be_a_leak():
    chat = [user("Hi!"), answer("Hello."), user("what is 5+5?"), answer("10"), user("thanks"), answer("Bye.")]
    found = asked_keys(chat)
    assert problem_key([user("what is 5+5?")]) in found
    assert problem_key(chat[:3]) in found
    assert problem_key(chat) in found
    assert problem_key([user("what is 6+6?")]) not in found


def test_nothing_is_asked_without_a_user():
    for messages in ([answer("a")], [{"role": "system", "content": "a"}]):
        with pytest.raises(ConfigError, match="no user message"):
            problem_key(messages)


def test_plain_text_keeps_what_carries_meaning():
    assert plain("A  b\n") == "a b"
    assert plain("Stra\N{LATIN SMALL LETTER SHARP S}e") == "strasse"
    assert plain("x > 1") != plain("x < 1")


def test_turns_of_a_table_are_as_templates_take_them():
    row = {"role": "assistant", "content": "", "tool_calls": '[{"function":{"name":"f"}}]', "name": None}
    assert turns([row]) == [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}]


def test_the_tools_of_a_prompt_are_part_of_its_problem():
    asked = [user("What is the weather in Rome?")]
    rain, snow = ([{"type": "function", "function": {"name": name}}] for name in ("rain", "snow"))
    keys = {problem_key(asked), problem_key(asked, rain), problem_key(asked, snow)}
    assert len(keys) == 3
    assert problem_key(asked, []) == problem_key(asked, "[]") == problem_key(asked, None) == problem_key(asked)
    spaced = '[{"function": {"name": "rain"}, "type":  "function"}]'
    assert problem_key(asked, spaced) == problem_key(asked, rain)


def test_a_row_with_tools_asks_the_problem_with_and_without_them():
    chat = [user("1+1="), answer("2"), user("What is the weather in Rome?"), answer("Rain.")]
    tools = [{"type": "function", "function": {"name": "rain"}}]
    question = [user("What is the weather in Rome?")]
    assert asked_keys(chat) < asked_keys(chat, tools)
    assert {problem_key(chat, tools), problem_key(question, tools), problem_key(question)} < asked_keys(chat, tools)
    assert problem_key(question, tools) not in asked_keys(chat)
