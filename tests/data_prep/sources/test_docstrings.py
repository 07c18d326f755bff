from __future__ import annotations

import sys

import pytest

from common.errors import ConfigError
from data_prep.sources import load
from data_prep.sources.docstrings import Docstrings, documented

LONG = "Says a lot about what it does, line after line.\n" * 6


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a module, a class, a method, a compiled function, a test and a broken file."""
    root = tmp_path / "manual_of_it"
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text(f'"""{LONG}"""\nraise RuntimeError("nothing runs it")\n')
    (root / "things.py").write_text(
        f'"""Short."""\nclass Thing:\n    """Thing. {LONG}"""\n    def use(self):\n        r"""Use. {LONG}"""\n'
        f'        return 1\ndef same():\n    """Use. {LONG}"""\n'
        f'add_newdoc("manual_of_it.core", "ufunc", """Compiled. {LONG}""")\nadd_newdoc(where, "x", "{"y" * 300}")\n'
    )
    (root / "tests" / "test_it.py").write_text(f'"""Of a test. {LONG}"""\n')
    (root / "broken.py").write_text("def (:\n")
    (tmp_path / "manual_of_it-1.5.dist-info").mkdir()
    (tmp_path / "manual_of_it-1.5.dist-info" / "METADATA").write_text("Name: manual-of-it\nVersion: 1.5\n")
    (tmp_path / "manual_of_it-1.5.dist-info" / "top_level.txt").write_text("manual_of_it\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "manual_of_it"


def test_what_a_package_says_of_itself_is_read_and_not_run(package):
    found = documented(Docstrings(package=package))
    assert set(found) == {
        package,
        f"{package}.things.Thing",
        f"{package}.things.Thing.use",  # `same` says the same
        f"{package}.core.ufunc",
    }
    assert found[f"{package}.core.ufunc"].startswith("Compiled.") and package not in sys.modules
    assert documented(Docstrings(package=package, longest=120, shortest=50))[package] == LONG[:95]


def test_held_out_chats_are_others_and_a_version_is_another_identity(package, tmp_path):
    source = load("docstrings")
    section = Docstrings(package=package, sft_examples=3, sft_val_examples=1)
    parts = source.parts(section, {}, 0)
    train, held_out = ({row.value["id"] for row in parts[name]} for name in ("sft_train", "sft_val"))
    assert len(train) == 3 and len(held_out) == 1 and not train & held_out
    again = source.parts(section, {}, 0)
    assert {row.value["id"] for row in again["sft_val"]} == held_out
    (row,) = source.parts(section, {}, 0)["sft_val"]
    assert [turn["role"] for turn in row.value["messages"]] == ["user", "assistant"]
    assert source.identity(section, "sft")["installed"] == "1.5"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"package": "no_such_package"}, "is no installed package"),
        ({"package": "this.that"}, "is no installed package"),
        ({"sft_examples": 400}, "4 docstrings of at least 200 characters, 528 are asked for"),
    ],
)
def test_what_is_not_there_is_refused(package, changes, said):
    section = Docstrings(**{"package": package, **changes})
    with pytest.raises(ConfigError, match=said):
        list(load("docstrings").parts(section, {}, 0)["sft_train"])


def test_the_recipe_asks_for_plateaus_of_a_model_as_it_is(tmp_path):
    from common.tiny_models import character_tokenizer, random_model, save
    from launch.graph.builder import make_plan

    tokenizer = character_tokenizer(256)
    model = save(tmp_path, random_model("Qwen2", len(tokenizer)), tokenizer)
    kinds = [stage.kind for stage in make_plan("plateaus", [f"model.path={model}"]).stages.values()]
    assert sorted(set(kinds)) == ["analyse", "generate", "measure", "prepare"]
