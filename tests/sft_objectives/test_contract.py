import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sft_objectives
from sft_objectives import BatchConstants, BatchNeeds, Ema, Needs, OldPolicy, ReferenceNeeds, load


def test_names_are_the_specified_ones():
    specified = """
        sft dft profit talr eaft idft prift_prob prift_mass token_selection critical_token iw_sft flow beyond_log
        sed_sft psft label_smoothing kd kd_decomposed sft_kl sft_k3 asft gem lp_sft target_sft q_target
    """
    assert set(sft_objectives.names()) >= set(specified.split())
    assert load("distill") == load("kd")


def test_settings_and_needs_are_readable_without_torch():
    code = (
        "import sys, sft_objectives as s\n"
        "[load.needs for load in map(s.load, s.names())]\n"
        "assert not {'torch', 'numpy', 'verl', 'vllm', 'ray'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("eeft", {}, ["'eeft'", "eaft", "package.module:Class"]),
        ("weighted", {}, ["'weighted'", "allowed: asft"]),
        ("eaft", {"topk": 3}, ["no setting 'topk'", "top_k", "objective.topk"]),
        ("eaft", {"top_k": 1}, ["top_k=1", "int >= 2", "objective.top_k"]),
        ("eaft", {"top_k": 2.5}, ["top_k=2.5"]),
        ("eaft", {"top_k": True}, ["top_k=True"]),
        ("eaft", {"source": "basis"}, ["source='basis'", "online, base, teacher, checkpoint, ema"]),
        ("kd", {"source": "online"}, ["source='online'", "base, teacher, checkpoint, ema"]),
        ("kd", {"weight": 1.1}, ["weight=1.1", "float >= 0 and <= 1"]),
        ("talr", {"temperature": 0}, ["temperature=0", "null", "> 0"]),
        ("target_sft", {"residual_weight": "adaptiv"}, ["residual_weight='adaptiv'", "adaptive, float >= 0"]),
        ("target_sft", {"exponent": 2.0}, ["exponent=2.0", "residual_form=product"]),
        ("beyond_log", {"normalizer": "kept"}, ["objective.threshold"]),
        ("q_target", {"rule": "lp_sft"}, ["token weight"]),
        ("q_target", {"residual_settings": {"eta": 1}}, ["eta", "exponent"]),
        ("q_target", {"rule": "iw_sft"}, ["adaptive", "below 1"]),
        ("q_target", {"rule_settings": "dft"}, ["rule_settings", "mapping"]),
    ],
)
def test_wrong_settings_are_one_line_errors(name, settings, words):
    with pytest.raises(ValueError) as error:
        load(name, **settings)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_integers_stand_for_floats():
    assert load("lp_sft", weight=1) == load("lp_sft")


@pytest.mark.parametrize("name", ["dft", "profit", "talr", "eaft", "idft", "prift_mass", "token_selection", "iw_sft"])
@pytest.mark.parametrize("source", ["base", "teacher", "checkpoint", "ema"])
def test_a_weight_rule_takes_any_source(name, source):
    needs = load(name, source=source).needs
    assert set(needs.references) == {source}
    assert needs.state == (Ema(0.999) if source == "ema" else None)


def test_needs_follow_the_settings():
    assert load("prift_prob").needs == load("dft", source="base").needs
    support = frozenset({"support_ids", "support_logprobs"})
    assert load("eaft").needs == Needs()
    assert load("eaft", source="base").needs.references == {"base": ReferenceNeeds(support, 20)}
    assert load("lp_sft", top_k=1).needs.references["base"].top_k == 3
    assert load("lp_sft", schedule="fixed").needs.references["base"].fields == support
    assert load("lp_sft", scope="full").needs.references == {"base": ReferenceNeeds(frozenset({"logits"}))}
    assert load("lp_sft", scope="full").needs.live == ["base"] and load("lp_sft").needs.live == []
    assert load("talr").needs.batch == BatchNeeds(student=True, sequences=True)
    assert load("talr", temperature=1.0).needs.batch is None
    assert load("talr", source="base").needs.batch == BatchNeeds(student=False, sequences=True)
    assert load("flow").needs.dataset == ReferenceNeeds(frozenset({"label_logprob"}))
    assert load("flow").needs.batch == BatchNeeds(student=False, sequences=True)
    assert load("sed_sft").needs.dataset == ReferenceNeeds(frozenset({"support_logprobs"}), 2)
    assert load("sed_sft", threshold=0.9).needs.dataset is None
    assert load("psft").needs.state == OldPolicy(4) and set(load("psft", inner_updates=0).needs.references) == {"base"}
    two = load("q_target", rule="eaft", rule_settings={"source": "base"}).needs
    assert {source: wanted.top_k for source, wanted in two.references.items()} == {"base": 20, "teacher": 1}


def test_two_states_cannot_be_kept():
    with pytest.raises(ValueError, match="two states"):
        _ = Needs(state=Ema(0.9)) | Needs(state=Ema(0.99))


def test_constants_are_sliced_merged_and_named():
    constants = BatchConstants(values={"a": 1.0}, tokens={"t": torch.arange(4)}, normalizer=3.0)
    rows = constants.rows(slice(1, 3)).merged({"a": 5.0, "b": 2.0})
    assert rows.get("a") == 1.0 and rows.get("b") == 2.0 and rows.get("t").tolist() == [1, 2] and rows.normalizer == 3.0
    with pytest.raises(ValueError, match="threshold"):
        rows.get("threshold")
    with pytest.raises(ValueError, match="selected"):
        rows.get("selected")


def test_a_file_in_the_folder_is_an_objective(tmp_path):
    """A new objective is one Python file: nothing else of the package names it."""
    package = tmp_path / "sft_objectives"
    shutil.copytree(Path(sft_objectives.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "objectives" / "focal.py").write_text(EXTERNAL)
    code = (
        "import sys, sft_objectives as s\n"
        "assert 'focal' in s.names() and 'weighted' not in s.names()\n"
        "assert s.load('focal', exponent=1).exponent == 1.0\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(sft_objectives.__file__).parents[1])]),
    }
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment, cwd=tmp_path)


EXTERNAL = '''
from dataclasses import dataclass
from typing import ClassVar
from sft_objectives import Objective, setting

@dataclass(frozen=True, kw_only=True)
class Focal(Objective):
    """-(1 - p_y)^exponent log p_y."""

    name: ClassVar[str] = "focal"
    exponent: float = setting(2.0, low=0.0)

    def loss(self, step):
        p = step.student.log_p_label.detach().exp()
        return -((1 - p) ** self.exponent) * step.student.log_p_label

class NotOne: ...
'''


def test_an_objective_of_ones_own_by_path(tmp_path, monkeypatch, batch):
    (tmp_path / "my_objectives.py").write_text(EXTERNAL)
    monkeypatch.syspath_prepend(tmp_path)
    torch.testing.assert_close(batch.losses(load("my_objectives:Focal", exponent=0)), batch.losses(load("sft")))
    assert load("my_objectives.Focal").needs == Needs()
    for path, settings, word in [
        ("my_objectives:Fokal", {}, "Fokal"),
        ("no_such_module:Focal", {}, "no_such_module"),
        ("my_objectives:NotOne", {}, "not a dataclass"),
        ("my_objectives:Focal", {"exponent": -1}, "exponent=-1"),
        ("my_objectives:Focal", {"power": 1}, "no setting 'power'"),
    ]:
        with pytest.raises(ValueError, match=word) as error:
            load(path, **settings)
        assert "\n" not in str(error.value)
