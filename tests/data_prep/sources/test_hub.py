"""Data sets of the hub: local copies, commits, the cache, and what the hub's refusals say."""

import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import errors

from common.errors import ConfigError
from common.hub import refusal
from data_prep import sources
from data_prep.sources import feeds, hub
from data_prep.sources.feeds import Feed
from data_prep.sources.hub import Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tmp_path):
    """A repository as it is downloaded: two shards to train on, a file to test on, a card."""
    folder = tmp_path / "copy"
    (folder / "data").mkdir(parents=True)
    for name, numbers in (("train-00000", range(3)), ("train-00001", range(3, 5)), ("test-00000", range(9, 10))):
        rows = [{"question": f"what is {n}?", "info": {"answer": str(n)}, "level": 1} for n in numbers]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing is remembered between tests, and the hub is out of reach."""
    import datasets

    hub._listed.cache_clear()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)


def values(section, name="rl_train"):
    source = sources.load("hub")
    inputs = {key: Path(path) for key, path in source.inputs(section, "rl").items()}
    return [row.value for row in source.parts(section, inputs, 0)[name]]


def test_a_local_copy_is_read_by_its_splits(copy):
    section = Hub(path=str(copy), val_split="test")
    assert [row["question"] for row in values(section)] == [f"what is {n}?" for n in range(5)]
    assert [row["level"] for row in values(section, "rl_val")] == [1]
    source = sources.load("hub")
    inputs = {"copy": copy}
    rows = list(source.parts(section, inputs, 0)["rl_train"])
    positions = [row.position for row in rows]
    assert positions == sorted(positions)
    assert positions[-1] == source.extent(section, inputs, "rl_train")
    assert set(source.parts(Hub(path=str(copy)), inputs, 0)) == {"sft_train", "rl_train"}
    one = values(Hub(path=str(copy / "data" / "test-00000.jsonl")))
    assert one == values(section, "rl_val")


def test_columns_are_named(copy):
    section = Hub(path=str(copy), columns={"prompt": "question", "answer": "info.answer"})
    assert values(section)[0] == {"prompt": "what is 0?", "answer": "0"}
    bad = values(Hub(path=str(copy), columns={"prompt": "problem"}))[0]
    assert "no column 'problem' (data.*.columns.prompt); there are: question, info, level" in str(bad)


def test_subsets_and_splits_are_those_of_the_card(copy):
    (copy / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: data/train-00001.jsonl}\n"
        "- config_name: large\n  data_files: data/train-*.jsonl\n---\n"
    )
    assert len(values(Hub(path=str(copy), subset="small"))) == 2
    with pytest.raises(ConfigError, match=r"subset=None: .*small.*large") as error:
        values(Hub(path=str(copy)))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"no split 'dev'; allowed: train \(split, val_split\)"):
        values(Hub(path=str(copy), subset="small", split="dev"))


def test_a_directory_without_data_is_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError, match="holds no data files"):
        values(Hub(path=str(tmp_path / "nothing")))


def test_a_name_is_pinned_to_a_commit():
    source = sources.load("hub")
    for revision in (None, "main", "v1.0", COMMIT[:7]):
        with pytest.raises(ConfigError, match=r"pin a commit .*huggingface\.co/datasets/org/name/commits/main"):
            source.identity(Hub(path="org/name", revision=revision), "sft")
    with pytest.raises(ConfigError, match="path is missing"):
        source.inputs(Hub(), "sft")
    with pytest.raises(ConfigError, match="no such directory, and no name like org/name"):
        source.inputs(Hub(path="/data/gone"), "sft")
    with pytest.raises(ConfigError, match="no part pretrain; allowed: sft, rl"):
        source.inputs(Hub(path="org/name", revision=COMMIT), "pretrain")


def test_a_name_is_identified_by_its_commit_and_a_copy_by_its_files(copy):
    pinned = feeds.identity([Feed(source="hub", settings={"path": "org/name", "revision": COMMIT})], "sft")[0]
    assert (pinned["settings"]["path"], pinned["settings"]["revision"]) == ("org/name", COMMIT)
    local = [Feed(source="hub", settings={"path": str(copy), "split": "test"})]
    assert "path" not in feeds.identity(local, "sft")[0]["settings"]
    assert feeds.inputs(local, "sft") == {"copy": str(copy)}


def test_files_are_listed_once_and_come_from_the_cache(copy, monkeypatch):
    import datasets

    asked = []
    listed = [f"hf://datasets/org/name@{COMMIT}/data/train-0000{n}.jsonl" for n in range(2)]
    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": listed}))

    def load(path, subset, revision):
        asked.append((path, subset, revision))
        return builder

    def download(path, file, repo_type, revision):
        assert (path, repo_type, revision) == ("org/name", "dataset", COMMIT)
        return str(copy / file)

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    section = Hub(path="org/name", revision=COMMIT)
    assert len(values(section)) == 5
    hub._listed.cache_clear()  # another process
    assert len(values(section)) == 5
    assert asked == [("org/name", None, COMMIT)]


def test_without_a_network_the_files_are_named(monkeypatch):
    import datasets

    listed = [f"hf://datasets/org/name@{COMMIT}/data/train-00000.jsonl"]
    section = Hub(path="org/name", revision=COMMIT)

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach 'org/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", offline)
    with pytest.raises(
        ConfigError, match=rf"no network, and the files of its split were never read; .*{COMMIT}.*path: DIR"
    ):
        values(section)
    builder = SimpleNamespace(config=SimpleNamespace(data_files={"train": listed}))
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: builder)
    with pytest.raises(
        ConfigError, match=r"not in the cache: data/train-00000\.jsonl; .*hf download org/name data/train"
    ) as error:
        values(section)
    assert "\n" not in str(error.value)


def response(status=403):
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/org/name"))


def test_what_the_hub_refuses_names_the_page_and_the_token(monkeypatch):
    import datasets

    gated = errors.GatedRepoError("403", response=response())

    def refuse(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("not accessible") from gated

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    with pytest.raises(
        ConfigError, match=r"this dataset is gated; .*huggingface\.co/datasets/org/name and set HF_TOKEN"
    ):
        values(Hub(path="org/name", revision=COMMIT))
    found = refusal(gated, "org/name", "model")
    assert "licence on https://huggingface.co/org/name and set HF_TOKEN" in str(found)
    absent = errors.RepositoryNotFoundError("404", response=response(404))
    assert "no such model on the hub, or a private one" in str(refusal(absent, "org/name", "model"))
    wrong = errors.RevisionNotFoundError("404", response=response(404))
    assert "has no revision abc" in str(refusal(wrong, "org/name", "dataset", "abc"))
    assert refusal(ConnectionError("reset"), "org/name", "model") is None


def test_a_gated_model_is_a_wrong_configuration(tmp_path, monkeypatch):
    from common.models import model_directory

    def refuse(*_, **__):
        raise errors.GatedRepoError("403", response=response())

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"org/name: this model is gated; accept its licence"):
        model_directory("org/name", COMMIT, None, tmp_path / "view")
