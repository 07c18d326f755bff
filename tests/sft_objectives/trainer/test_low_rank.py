"""Low-rank updates: the penalty on their product, experts, what is exported, and the base that they leave in place."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from sft_objectives.trainer import side_weights
from sft_objectives.trainer.export import export_huggingface
from sft_objectives.trainer.low_rank import Product, products, untrained_experts

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A tiny mixture-of-experts model with a chat template, as a Hugging Face directory."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    from data_prep.micro_world.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(["\\boxed{"], max_length=256)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None, initializer_range=0.2,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("experts")
    Qwen3MoeForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def with_update(directory, **settings):
    """The model with a low-rank update whose factors are both random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    settings = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", "bias": "none", **settings}
    lora = LoraConfig(task_type="CAUSAL_LM", **settings)
    wrapped = get_peft_model(model, lora)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return wrapped


def test_the_penalty_is_on_the_product_and_so_is_its_gradient():
    a, b = (torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 7), (5, 3)))
    wanted = torch.autograd.grad(0.25 * (2.0 * b @ a).square().sum(), [a, b])
    for factor in (a, b):
        factor.grad = torch.ones_like(factor)
    value = Product(a, b, 2.0).penalty(0.25)
    assert value.item() == pytest.approx((2.0 * b @ a).square().sum().item(), rel=1e-12)
    for factor, gradient in zip((a, b), wanted, strict=True):
        torch.testing.assert_close(factor.grad, 1 + gradient, rtol=1e-12, atol=1e-12)


def test_l2_to_init_penalises_what_a_low_rank_update_changes(experts, monkeypatch):
    """Not |A|^2 + |B|^2, nor |A - A_0|^2 + |B - B_0|^2: the change of the merged weights."""
    monkeypatch.setattr(side_weights.dist, "all_reduce", lambda total, group: None)
    monkeypatch.setattr(side_weights, "get_device_id", lambda: "cpu")
    wrapped = with_update(experts)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    weights = side_weights.Weights(wrapped, torch.optim.SGD(trained, lr=1.0))
    penalty = side_weights.L2ToInit(0.5, weights, SimpleNamespace(ndim=1))
    assert len(products(wrapped)) == len(trained) / 2 > 0
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    penalty.add_gradient()
    before = {name: parameter.detach().clone() for name, parameter in wrapped.get_base_model().named_parameters()}
    before = {name.replace(".base_layer", ""): value for name, value in before.items()}
    merged = dict(wrapped.merge_and_unload().named_parameters())
    changed = sum((merged[name] - before[name]).double().square().sum().item() for name in merged)
    assert penalty.value == pytest.approx(0.5 * changed, rel=1e-4) and penalty.value > 0
    assert all(parameter.grad.abs().max() > 0 for parameter in trained)


def test_experts_that_no_update_reaches_are_named(experts):
    attention = ["q_proj", "v_proj"]
    named = [f"model.layers.*.{name}" for name in sorted(EXPERTS)]
    assert untrained_experts(with_update(experts, target_modules=attention)) == named
    half = with_update(experts, target_modules=attention, target_parameters=EXPERTS[1:])
    assert untrained_experts(half) == named[1:]
    assert untrained_experts(with_update(experts, target_modules=attention, target_parameters=EXPERTS)) == []
    assert untrained_experts(with_update(experts)) == [], "peft knows where this model keeps its experts"
    assert untrained_experts(half.get_base_model().model.embed_tokens) == [], "no update, nothing to name"


def test_updates_of_experts_are_exported(experts, tmp_path):
    """The exported model computes what was trained, experts included."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(experts)
    attention = ["q_proj", "v_proj"]
    wrapped = with_update(experts, target_modules=attention, target_parameters=EXPERTS)
    config = SimpleNamespace(
        tokenizer=tokenizer, trust_remote_code=False, hf_config=AutoConfig.from_pretrained(experts), lora_rank=3,
        lora_alpha=6, target_modules=attention, target_parameters=EXPERTS, exclude_modules=None,
        local_path=str(experts),
    )  # fmt: skip
    ids = torch.arange(5, 25)
    row = {"input_ids": ids, "loss_mask": torch.ones_like(ids)}
    state = {name: tensor.detach().clone() for name, tensor in wrapped.state_dict().items()}
    export_huggingface(state, config, row, torch.float32, tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(experts, dtype=torch.float32)
    with torch.no_grad():
        wanted, found, plain = (model(ids[None]).logits for model in (wrapped, exported, base))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 1e-2
    config.target_parameters = None  # as if the export did not know of them
    with pytest.raises(RuntimeError, match="export: the low-rank state does not fit"):
        export_huggingface(state, config, row, torch.float32, tmp_path / "without")


def curve(output):
    return [json.loads(line) for line in (output / "curve.jsonl").read_text().splitlines()]


def train(settings, inputs, root):
    from sft_objectives.trainer import stage

    output = root / "output"
    output.mkdir(parents=True)
    stage.run(settings, inputs, output, root / "scratch", lambda *_, **__: None)
    return output


LORA = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_model_without_its_update_is_the_live_base(tiny_world, settings_of, tmp_path):
    """ASFT needs no second model, nor reads one: its KL is 0 at first."""
    inputs = {**tiny_world, "model": tiny_world["untied"], "base": tmp_path / "nowhere"}
    changes = {"objective": {"name": "asft", "weight": 0.5}, "sft__lora": LORA, "sft__steps": 3, "sft__lr": 3e-2}
    regular = {"sft__regularizer": {"name": "l2_to_init", "weight": 0.01}}
    rows = curve(train(settings_of(**changes, **regular), inputs, tmp_path / "update"))
    assert rows[0]["kl_from_base"] == pytest.approx(0, abs=1e-6) and rows[-1]["kl_from_base"] > 1e-3
    assert rows[0]["penalty"] == 0 < min(rows[1]["penalty"], rows[2]["penalty"])


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_experts_and_their_router_are_trained_and_exported(experts, tiny_world, settings_of, tmp_path):
    from transformers import AutoModelForCausalLM

    inputs = {**tiny_world, "model": experts}
    lora = {**LORA, "target_modules": ["q_proj", "v_proj"], "target_parameters": EXPERTS}
    changes = {"sft__lora": lora, "sft__steps": 3, "sft__router_aux_loss": 0.5, "sft__validate_every": 1}
    output = train(settings_of(**changes), inputs, tmp_path)
    rows = curve(output)
    assert all(math.isfinite(row["router_aux_loss"]) and row["router_aux_loss"] > 0 for row in rows)
    paths = (experts, output / "checkpoints" / "step_3")
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in paths)
    for name in EXPERTS:
        moved = [key for key in before if key.endswith(name) and not torch.equal(before[key], after[key])]
        assert len(moved) == 2, name


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_the_text_of_a_model_with_a_tower_is_trained_and_the_tower_is_not(tiny_world, settings_of, tmp_path):
    from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tiny_world["model"])
    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256,
        "sliding_window": 64, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    changes = {"sft__steps": 3, "sft__regularizer": {"name": "l2_to_init", "weight": 0.01}}
    output = train(settings_of(**changes), {**tiny_world, "model": tmp_path / "model"}, tmp_path)
    paths = (tmp_path / "model", output / "checkpoints" / "step_3")
    before, after = (Gemma3ForConditionalGeneration.from_pretrained(path).state_dict() for path in paths)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert any("language_model" in name for name in moved) and not any("vision" in name for name in moved)
