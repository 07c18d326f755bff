"""The stage `rewrite` with a scripted engine: what is asked, kept and counted, and what a second start finds."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from common.errors import ConfigError
from data_prep.lengths import ChatLengths
from data_prep.micro_world.tokenizer import world_tokenizer
from data_prep.rewriting import answers, stage
from data_prep.rewriting.questions import Chats, stated
from data_prep.tables import CHAT_SCHEMA, TableWriter
from evaluation.generation import Sample
from launch.recipe.model import Model
from launch.recipe.recipe import Recipe


def ask(question, answer, **fields):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **fields}]
    return turns if not question.startswith("!") else [{"role": "system", "content": "Be brief."}, *turns]


CHATS = [
    ask("1+1", "so \\boxed{2}"),
    ask("2+2", "so \\boxed{4}"),
    ask("3+3", "I do not know"),  # states no answer
    ask("1+1", "well, \\boxed{2}"),  # the first question again
    ask("4+4", "so \\boxed{8}"),
    ask("!5+5", "so \\boxed{10}"),
    ask("6+6", "not trained on \\boxed{12}", weight=0.0),
]
LAST = ask("7+7", "so \\boxed{14}")


class Scripted:
    """An engine without vLLM. script: (last turn's text, index of the sample) -> text, or (text, finish reason)."""

    def __init__(self, prompter, script):
        self.count, self.description, self.usable = 1, {"vllm": "none"}, True
        self.options = SimpleNamespace(max_length=200)
        self.prompter, self.script, self.asked, self.drawn, self.scored = prompter, script, [], {}, 0

    def run(self, shards, heartbeat):
        for number, requests in shards:
            samples = []
            for request in requests:
                turns = self.prompter.seen[request.prompt[0]]
                place = self.drawn[request.prompt] = self.drawn.get(request.prompt, -1) + 1
                self.asked.append(turns[-1]["content"])
                said = self.script(turns[-1]["content"], place)
                text, finish = (said, "stop") if isinstance(said, str) else said
                samples.append(Sample(text, finish, len(text), request.seed))
            yield number, samples

    def score(self, rows, heartbeat):
        """A nat a token, and half of it where the answer says "likely"."""
        tokenizer, found = world_tokenizer(), []
        for ids, start in rows:
            self.scored += 1
            text = tokenizer.decode(ids[start:])
            assert text.endswith("<|im_end|>") and "assistant" not in text
            found.append((-(len(ids) - start) * (0.5 if "likely" in text else 1.0), False))
        return found


class Prompts:
    """Numbers prompts by their turns; "too long" is a prompt of a thousand tokens."""

    def __init__(self, *_):
        self.seen: list[Any] = []

    def prompt(self, turns, tools=None):
        if list(turns) not in self.seen:
            self.seen.append(list(turns))
        ids = [self.seen.index(list(turns))] * (1000 if "too long" in turns[-1]["content"] else 1)
        return SimpleNamespace(ids=tuple(ids), text="header\n")


@pytest.fixture
def rewrite(tmp_path, monkeypatch):
    """Run the stage with a script and settings; gives its rows, its summary and the engine."""
    model = Model(path="unused")
    monkeypatch.setattr(
        ChatLengths, "of_model", lambda directory, model, data, template: ChatLengths(world_tokenizer(), model, data)
    )

    def run(script, chats=CHATS, output="out", max_length=128, scratch="scratch", **settings):
        prompter = Prompts()
        engine = Scripted(prompter, script)
        monkeypatch.setattr("evaluation.generation.prompts.Prompter", lambda *_: prompter)
        monkeypatch.setattr("evaluation.generation.engine.engine_for", lambda *_: engine)
        write(tmp_path / "data", chats)
        (tmp_path / output).mkdir()
        (tmp_path / scratch).mkdir(exist_ok=True)
        recipe = Recipe.model_validate(
            {
                "model": model,
                "rewrite": {"samples": 2, "max_tokens": 32, **settings},
                "data": {"max_length": max_length},
            }
        )
        inputs = {"data": tmp_path / "data", "model": tmp_path / "model"}
        shares: list[float] = []
        stage.run(
            recipe, inputs, tmp_path / output, tmp_path / scratch, lambda done, total: shares.append(done / total)
        )
        assert shares == sorted(shares) and (not shares or shares[-1] == 1)
        rows = pq.read_table(tmp_path / output / "sft_train.parquet").to_pylist()
        return rows, json.loads((tmp_path / output / "summary.json").read_text()), engine

    return run


def write(directory, chats):
    directory.mkdir(exist_ok=True)
    for name, rows in (("sft_train", chats), ("sft_val", [LAST])):
        with TableWriter(directory / f"{name}.parquet", CHAT_SCHEMA) as table:
            for place, turns in enumerate(rows):
                spans = {"critical_spans": None, "row_tokens": [10], "row_supervised": [5]}
                table.add({"id": f"c{place}", "messages": turns, **spans})
    tokens = {"chats": 1, "rows": 1, "tokens": 10, "response_tokens": 5}
    summary = {"counts": {"sft_train": len(chats), "sft_val": 1}, "tokens": {"sft_train": tokens, "sft_val": tokens}}
    (directory / "summary.json").write_text(json.dumps(summary))


def texts(rows):
    return [(row["id"], row["messages"][-1]["content"]) for row in rows]


def right(text, place):
    """The sum, in other words for each sample; wrong for 2+2."""
    first, _, second = text.strip("!").split(" ")[0].partition("+")
    return f"way {place}: \\boxed{{{0 if first == '2' else int(first) + int(second)}}}"


def test_rft_keeps_what_is_right_and_counts_the_rest(rewrite, tmp_path):
    rows, summary, engine = rewrite(right, method="rft")
    assert texts(rows) == [
        ("c0", "way 0: \\boxed{2}"), ("c0~2", "way 1: \\boxed{2}"), ("c4", "way 0: \\boxed{8}"),
        ("c4~2", "way 1: \\boxed{8}"), ("c5", "way 0: \\boxed{10}"), ("c5~2", "way 1: \\boxed{10}"),
        ("c6", "not trained on \\boxed{12}"),
    ]  # fmt: skip
    assert rows[4]["messages"][0] == {"role": "system", "content": "Be brief.", "weight": None}
    assert summary["questions"] == {
        "answered": 3,
        "dropped: no right response": 1,
        "dropped: no reference answer": 1,
        "kept as it is: not trained on": 1,
    }
    assert summary["responses"] == {"chosen": 6, "wrong": 2}
    assert summary["chats"] == {"before": 7, "after": 7, "sampled": 6, "demonstrations": 1, "dropped": 2}
    assert sorted(set(engine.asked)) == ["!5+5", "1+1", "2+2", "4+4"]  # nothing is asked without need
    assert summary["counts"] == {"sft_train": 7, "sft_val": 1}
    # The lengths are those of the world's tokenizer.
    (measured,) = ChatLengths(world_tokenizer(), Model(path="-"), Recipe(model=Model(path="-")).data).chats(
        [[{key: value for key, value in turn.items() if value is not None} for turn in rows[0]["messages"]]]
    )
    assert (rows[0]["row_tokens"], rows[0]["row_supervised"]) == (measured.tokens, measured.supervised)
    assert summary["tokens"]["sft_train"]["tokens"] == sum(sum(row["row_tokens"]) for row in rows)
    log = pq.read_table(tmp_path / "out" / "responses.parquet").to_pylist()
    assert len(log) == 8 and {row["verdict"] for row in log} == {"right", "wrong"}
    assert [row["id"] for row in log if row["chosen"]] == ["c0", "c0", "c4", "c4", "c5", "c5"]
    table = json.loads((tmp_path / "out" / "rewrite.json").read_text())
    assert ["chats, after", 7] in table["rows"] and table["columns"] == ["what", "count"]


def test_what_is_not_answered_stays_where_it_is_told_to(rewrite):
    rows, summary, _ = rewrite(right, method="rft", unanswered="demonstration", settings={"keep": 1})
    assert ("c1", "so \\boxed{4}") in texts(rows) and ("c2", "I do not know") in texts(rows)
    assert summary["chats"] == {"before": 7, "after": 6, "sampled": 3, "demonstrations": 3, "dropped": 1}
    assert summary["responses"] == {"chosen": 3, "not chosen": 3, "wrong": 2}


def test_unusable_responses_are_counted_by_reason(rewrite):
    said = {
        "1+1": ("cut \\boxed{2}", "length"),
        "2+2": " \n",
        "4+4": "says <|im_end|> itself \\boxed{8}",
        "!5+5": "long " * 30 + "\\boxed{10}",
    }
    rows, summary, _ = rewrite(lambda text, place: said[text], method="rft", unanswered="demonstration", max_length=100)
    assert summary["responses"] == {"unfinished": 2, "empty": 2, "template": 2, "too long": 2}
    assert summary["questions"]["demonstration stays: no usable response"] == 4
    assert len(rows) == 7 and summary["chats"]["sampled"] == 0
    with pytest.raises(ConfigError, match=r"no chat is left \(questions, dropped: no usable response: 1; responses, "):
        rewrite(lambda text, place: said[text], CHATS[:1], "none", scratch="none", method="rft")


def test_star_asks_again_with_the_answer_and_trains_without_it(rewrite):
    def script(text, place):
        return "seen \\boxed{4}" if "(The answer is 4.)" in text else right(text, place)

    rows, summary, engine = rewrite(script, method="star", samples=1, temperature=0.0)
    assert ("c1", "seen \\boxed{4}") in texts(rows)
    assert next(row for row in rows if row["id"] == "c1")["messages"][0]["content"] == "2+2"
    assert [text for text in engine.asked if "The answer" in text] == ["2+2\n\n(The answer is 4.)"]
    assert summary["questions"]["answered"] == 4


def test_grape_takes_the_likeliest_of_samples_and_demonstrations(rewrite):
    def script(text, place):
        return "likely so" if text == "2+2" and place == 1 else f"it is {place}"

    rows, summary, engine = rewrite(script, method="grape")
    assert ("c1", "likely so") in texts(rows)  # whatever is right
    assert [name for name, _ in texts(rows)] == ["c0", "c1", "c2", "c4", "c5", "c6"]
    assert summary["responses"]["chosen"] >= 1 and summary["questions"]["answered"] == 5
    assert engine.scored == 5 * 2 + 6  # two samples of each question, and six demonstrations
    # Among demonstrations alone nothing is sampled.
    rows, _, engine = rewrite(
        script, [*CHATS[:1], ask("1+1", "likely")], "shown", scratch="shown", method="grape", samples=0
    )
    assert (texts(rows), engine.asked) == ([("c1", "likely")], [])


def test_self_distillation_keeps_the_demonstration_where_the_answer_is_lost(rewrite):
    def script(text, place):
        return "mine: \\boxed{2}" if "boxed{2}" in text else "mine: nothing"

    settings = {"instruction": "{question} {response}"}
    rows, summary, engine = rewrite(script, method="self_distillation", samples=1, settings=settings)
    assert texts(rows)[:4] == [
        ("c0", "mine: \\boxed{2}"), ("c1", "so \\boxed{4}"), ("c2", "mine: nothing"), ("c3", "mine: \\boxed{2}"),
    ]  # fmt: skip
    assert "1+1 well, \\boxed{2}" in engine.asked  # each chat is a question of its own
    assert summary["questions"]["demonstration stays: no right response"] == 3
    assert summary["chats"]["before"] == summary["chats"]["after"] == 7


def test_rejection_makes_reasoning_of_labels(rewrite):
    labels = [ask("is a pen ink?", "<answer>2</answer>"), ask("is a pen a pen?", "<answer>0</answer>")]

    def script(text, place):
        return "A pen is a pen. <answer>0</answer>" if place else "<answer>0</answer>"

    rows, summary, _ = rewrite(script, labels, method="rejection", grader="exact")
    assert texts(rows) == [("c1", "<think>\nA pen is a pen.\n</think>\n<answer>0</answer>")]
    assert summary["responses"] == {"chosen": 1, "form": 2, "wrong": 1}
    assert summary["questions"] == {"answered": 1, "dropped: no right response": 1}


def test_a_prompt_that_leaves_no_room_is_counted(rewrite):
    chats = [*CHATS[:1], ask("too long", "so \\boxed{1}")]
    _, summary, engine = rewrite(right, chats, method="rft")
    assert summary["questions"] == {"answered": 1, "dropped: prompt too long": 1} and set(engine.asked) == {"1+1"}


def test_a_second_start_finds_what_was_sampled(rewrite, monkeypatch):
    monkeypatch.setattr(answers, "BLOCK", 2)
    first, summary, _ = rewrite(right, method="rft")
    again, other, engine = rewrite(right, output="again", method="rft")
    assert (again, other, engine.asked) == (first, summary, [])


def test_blocks_change_nothing(rewrite, monkeypatch):
    whole, summary, _ = rewrite(right, method="star")
    monkeypatch.setattr(answers, "BLOCK", 1)
    parts, other, _ = rewrite(right, output="parts", scratch="parts-scratch", method="star")
    assert (parts, other) == (whole, summary)


def test_an_answer_in_the_prompt_opens_thinking(rewrite, monkeypatch):
    monkeypatch.setattr(
        Prompts, "prompt", lambda self, turns, tools=None: (self.seen.append(turns), SimpleNamespace(
            ids=(len(self.seen) - 1,), text="header\n<think>\n"))[1]
    )  # fmt: skip
    rows, _, _ = rewrite(lambda text, place: "sum</think>\\boxed{2}", CHATS[:1], method="rft", samples=1)
    assert rows[0]["messages"][-1]["content"] == "<think>\nsum</think>\\boxed{2}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so \\boxed{2}", "2"), ("a <answer>1</answer>", "1"), ("2 + 2 = 4\n#### 1,234", "1234"), ("B", "B"),
        ("The answer is 7.", "7"), ("I do not know", None), ("", None), ("####", None),
    ],
)  # fmt: skip
def test_the_answer_that_a_demonstration_states(text, found):
    assert stated(text) == found


def test_chats_ask_the_same_where_their_instructions_are_equal(tmp_path):
    write(tmp_path, [ask("1+1", "2"), ask("1+1", "two"), [{"role": "system", "content": "x"}, *ask("1+1", "2")]])
    assert [one.places for one in Chats(tmp_path / "sft_train.parquet", apart=False).asked(0, 9)] == [(0, 1), (2,)]
    assert len(Chats(tmp_path / "sft_train.parquet", apart=True)) == 3
