import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sft_objectives import average


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("average")
    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    paths = {}
    for seed, (name, dtype, size) in enumerate(
        [("base", "float32", "1GB"), ("tuned/step_7", "float32", "5KB"), ("half/step_7", "bfloat16", "1GB")]
    ):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(getattr(torch, dtype))
        model.save_pretrained(root / name, max_shard_size=size)
        (root / name / "chat_template.jinja").write_text(name)
        paths[name.split("/")[0]] = root / name
    LlamaForCausalLM(LlamaConfig(**{**shape, "vocab_size": 41})).save_pretrained(root / "wider")
    return {**paths, "wider": root / "wider"}


def weights(directory):
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def run(tmp_path, base, tuned, weight):
    settings = SimpleNamespace(average=SimpleNamespace(weight=weight))
    tmp_path.mkdir(exist_ok=True)
    calls = []
    average.run(
        settings, {"base": base, "sft": tuned}, tmp_path, tmp_path, lambda done, total: calls.append((done, total))
    )
    assert calls[-1][0] == calls[-1][1] > 0
    assert json.loads((tmp_path / "checkpoints.json").read_text()) == {"best": 7, "final": 7, "steps": [7]}
    return tmp_path / "checkpoints" / "step_7"


def test_weights_are_interpolated_in_float32(models, tmp_path):
    base, tuned = weights(models["base"]), weights(models["tuned"])
    found = weights(run(tmp_path, models["base"], models["tuned"], 0.3))
    assert found.keys() == tuned.keys()
    for name, value in found.items():
        exact = 0.7 * base[name].double() + 0.3 * tuned[name].double()
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("weight", "same"), [(0.0, "base"), (1.0, "tuned")])
def test_ends_are_the_models_themselves(models, tmp_path, weight, same):
    found, wanted = weights(run(tmp_path, models["base"], models["tuned"], weight)), weights(models[same])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_dtype_shards_and_other_files_are_the_tuned_models(models, tmp_path):
    half = run(tmp_path / "half", models["base"], models["half"], 0.5)
    assert {value.dtype for value in weights(half).values()} == {torch.bfloat16}
    sharded = run(tmp_path / "sharded", models["base"], models["tuned"], 0.5)
    assert sorted(p.name for p in sharded.iterdir()) == sorted(p.name for p in models["tuned"].iterdir())
    assert (sharded / "chat_template.jinja").read_text() == "tuned/step_7"


def test_same_bytes_twice(models, tmp_path):
    first, second = (run(tmp_path / name, models["base"], models["tuned"], 0.5) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_different_architectures_are_refused(models, tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 41"):
        run(tmp_path, models["wider"], models["tuned"], 0.5)


@pytest.mark.parametrize("weight", [None, -0.1, 1.5])
def test_bad_weight_is_refused(models, tmp_path, weight):
    with pytest.raises(ValueError, match=r"average\.weight"):
        run(tmp_path, models["base"], models["tuned"], weight)
