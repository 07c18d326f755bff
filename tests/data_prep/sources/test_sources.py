"""The data sets: found by name or dotted path, what they ask for and what identifies them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import pytest

from common.errors import ConfigError
from common.registry import ROOT
from data_prep import sources
from data_prep.sources import feeds
from data_prep.sources.feeds import Feed
from data_prep.sources.files import Files
from data_prep.sources.microworld import RESERVE, Microworld

OWN = """
from pydantic import BaseModel, ConfigDict
from data_prep.sources import Row, Source

class Numbers(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    count: int = 30

class NumbersSource(Source):
    name, version, section, reference = "numbers", 7, Numbers, "a paper, table 1"

    def parts(self, section, inputs, seed):
        return {"sft_train": self._chats(section.count)}

    @staticmethod
    def _chats(count):
        for number in range(count):
            turns = [{"role": "user", "content": f"Say {number}."}, {"role": "assistant", "content": f"{number}"}]
            yield Row(f"numbers row {number + 1}", {"messages": turns})

SOURCE = NumbersSource()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The dotted path of a source in a file outside the package."""
    (tmp_path / "my_numbers.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_numbers", raising=False)
    return "my_numbers:SOURCE"


def test_sources_are_found_by_their_names():
    assert {"files", "hub", "microworld", "numina_math_cot"} <= set(sources.names())
    for name in sources.names():
        source = sources.load(name)
        assert source.name == name
        assert source.section.model_config["extra"] == "forbid"
        assert source.section.model_config["frozen"]
        assert all(field.description for field in source.section.model_fields.values())
    with pytest.raises(ConfigError, match="unknown data source 'microwold'; did you mean microworld"):
        sources.load("microwold")


def test_looking_at_sources_imports_nothing_heavy():
    program = """
import sys
from data_prep import sources
from data_prep.sources import feeds
from data_prep.reference.layout import PRODUCER_FIELDS, SAMPLE_TOP_K, predict_bytes
for name in sources.names():
    sources.load(name)
heavy = ("torch", "transformers", "pyarrow", "datasets", "huggingface_hub", "verl", "ray", "pandas")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_a_source_of_ones_own_is_a_dotted_path(own):
    source = sources.load(own)
    assert (source.name, source.version, source.reference) == ("numbers", 7, "a paper, table 1")
    found = source.parts(source.section(count=3), {}, seed=0)
    assert [row.value["messages"][1]["content"] for row in found["sft_train"]] == ["0", "1", "2"]
    mark = feeds.identity([Feed(source=own, settings={"count": 5})], "sft")[0]
    assert (mark["source"], mark["version"], mark["settings"]) == ("numbers", 7, {"count": 5})
    assert len(mark["code"]) == 64  # a user's code is part of what identifies the rows
    assert feeds.identity([Feed(source="microworld")], "sft")[0]["code"] is None
    with pytest.raises(ConfigError, match=r"data source my_numbers:SOURCE: colour: Extra inputs"):
        feeds.identity([Feed(source=own, settings={"colour": "red"})], "sft")


def test_own_files_are_asked_for_by_part():
    source = sources.load("files")
    section = Files(sft_train="a.jsonl", rl_val="c.jsonl", benchmarks={"mine": "d.jsonl"})
    assert source.inputs(section, "sft") == {"sft_train": "a.jsonl"}
    assert source.inputs(section, "benchmark/mine") == {"problems": "d.jsonl"}
    assert source.benchmarks(section) == ["mine"]
    with pytest.raises(ConfigError, match=r"^data\.files\.rl_train is missing; name a file \(docs/data\.md\)$"):
        source.inputs(section, "rl")
    with pytest.raises(ConfigError, match=r"data\.files\.benchmarks\.other is missing"):
        source.inputs(section, "benchmark/other")
    with pytest.raises(ConfigError, match="no part pretrain"):
        source.inputs(section, "pretrain")
    assert source.identity(section, "sft") == {}  # files are identified by what is in them


def test_rough_sizes_come_from_sizes_and_files(tmp_path):
    files, world = sources.load("files"), sources.load("microworld")
    (tmp_path / "a.jsonl").write_text("x" * 5000)
    section = Files(sft_train=str(tmp_path / "a.jsonl"))
    assert files.rough_rows(section, "sft") == 10
    assert files.rough_rows(section, "rl") is None
    assert files.rough_tokens(section) is None
    assert files.rough_tokens(section, 500) == (5.0, 1250.0, 875.0)
    assert world.rough_rows(Microworld(), "rl") == 1024
    assert world.rough_rows(Microworld(), "benchmark/target") == 256
    assert world.rough_tokens(Microworld(sft_examples=10)) == (10, 320, 160)


def test_rough_sizes_of_several_feeds_add_up(tmp_path):
    (tmp_path / "a.jsonl").write_text("x" * 5000)
    pair = [
        Feed(source="microworld", rows=100, weight=2.0, settings={"sft_examples": 200}),
        Feed(source="files", settings={"sft_train": str(tmp_path / "a.jsonl")}),
    ]
    assert feeds.rough_rows(pair, "sft") == 210
    assert feeds.rough_tokens(pair, 500) == (205.0, 6400.0 + 1250.0, 3200.0 + 875.0)
    pair.append(Feed(source="files"))
    assert feeds.rough_rows(pair, "sft") is None
    assert feeds.rough_tokens(pair, 500) is None


def test_several_feeds_ask_for_files_of_their_own():
    pair = [Feed(source="files", settings={"sft_train": name}) for name in ("a.jsonl", "b.jsonl")]
    assert feeds.inputs(pair, "sft") == {"sft_train": "a.jsonl", "sft_train_2": "b.jsonl"}


CHANGES = {
    "pretrain_examples": {"pretrain"},
    "sft_examples": {"sft"},
    "rl_prompts": {"rl"},
    "sft_val_examples": {"sft", "rl", "pretrain"},
    "rl_val_prompts": {"sft", "rl", "pretrain"},
    "target_problems": {"sft", "rl", "pretrain", "benchmark/target"},
    "skill_problems": {"pretrain", "benchmark/sort", "benchmark/reverse", "benchmark/shift"},
}


@pytest.mark.parametrize("size", CHANGES)
def test_a_part_of_the_world_is_identified_by_what_it_is_drawn_from(size):
    """A size that is not in a part's identity changes none of its rows."""
    source = sources.load("microworld")
    small = dict.fromkeys(CHANGES, 20)
    before, after = Microworld(**small), Microworld(**{**small, size: 24})
    for part in ("sft", "rl", "pretrain", *(f"benchmark/{name}" for name in source.benchmarks(before))):
        same = source.identity(before, part) == source.identity(after, part)
        assert same == (part not in CHANGES[size]), part
        if same:
            names = [name for name in source.parts(before, {}, 0) if name.split("_")[0].startswith(part)]
            assert names
            for name in names:
                assert list(source.parts(before, {}, 0)[name]) == list(source.parts(after, {}, 0)[name])


def test_prompts_beyond_the_reserve_depend_on_the_demonstrations():
    source = sources.load("microworld")
    assert "sft_examples" not in source.identity(Microworld(rl_prompts=RESERVE), "rl")
    assert "sft_examples" in source.identity(Microworld(rl_prompts=RESERVE + 1), "rl")


def test_the_world_has_no_other_benchmark():
    with pytest.raises(ConfigError, match="microworld has no benchmark latin; allowed: target, reverse, sort, shift"):
        feeds.inputs([Feed(source="microworld")], "benchmark/latin")


def test_a_part_is_computed_alone(monkeypatch):
    from data_prep.micro_world import world

    drawn = []
    draw = world.draw_problems
    monkeypatch.setattr(world, "draw_problems", lambda skill, *rest: drawn.append(skill) or draw(skill, *rest))
    parts = sources.load("microworld").parts(Microworld(), {}, seed=0)
    assert drawn == []
    assert len(list(islice(parts["benchmark/sort"], 3))) == 3
    assert drawn == ["sort"]


@pytest.mark.parametrize("name", ["sft_train", "rl_val", "benchmark/shift", "pretrain/sort"])
def test_positions_end_at_the_extent(name):
    source, section = sources.load("microworld"), Microworld(pretrain_examples=50)
    rows = list(source.parts(section, {}, seed=0)[name])
    assert rows[-1].position == source.extent(section, {}, name) == len(rows)


def open_one(feed, seed=0):
    return feeds.open_feeds([feed], "sft", {}, seed)[0]


def places(feed, seed=0):
    return [(row.position, copies) for row, copies in open_one(feed, seed).drawn("sft_train")]


def test_rows_are_drawn_without_replacement_in_order():
    settings = {"sft_examples": 60}
    found = places(Feed(source="microworld", rows=20, settings=settings))
    numbers = [place for place, _ in found]
    assert len(set(numbers)) == 20
    assert numbers == sorted(numbers)
    assert {copies for _, copies in found} == {1}
    assert found == places(Feed(source="microworld", rows=20, settings=settings))
    assert found != places(Feed(source="microworld", rows=20, settings=settings), seed=1)
    with pytest.raises(ConfigError, match="microworld: 60 rows in sft_train, rows=61 asked"):
        places(Feed(source="microworld", rows=61, settings=settings))


@pytest.mark.parametrize(("weight", "counts"), [(1.0, {1: 60}), (3.0, {3: 60}), (0.5, {1: 30}), (1.25, {1: 45, 2: 15})])
def test_a_weight_is_a_number_of_copies(weight, counts):
    found = places(Feed(source="microworld", weight=weight, settings={"sft_examples": 60}))
    seen = [copies for _, copies in found]
    assert {copies: seen.count(copies) for copies in seen} == counts
    assert [place for place, _ in found] == sorted(place for place, _ in found)


def test_a_feed_needs_no_class_of_ours():
    feed = SimpleNamespace(source="microworld", rows=None, weight=1.0, settings={"sft_examples": 4})
    assert len(places(feed)) == 4
    assert json.dumps(feeds.identity([feed], "sft"))
