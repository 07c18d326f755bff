"""What RL publishes of verl's checkpoints."""

import json
import shutil

import pytest

from rl_stage import export
from rl_stage.handoff import check_weights


def test_an_export_has_the_tokenizer_of_its_start_and_the_dtype_of_its_weights(model, tmp_path, edit):
    exported = shutil.copytree(model, tmp_path / "verl")
    edit(exported / "config.json", dtype="bfloat16")  # as verl writes it, beside fp32 weights
    edit(exported / "generation_config.json", temperature=0.3)
    target = tmp_path / "published"
    export.finish_export(exported, model, target)
    assert json.loads((target / "config.json").read_text())["dtype"] == "float32"
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (target / name).read_bytes() == (model / name).read_bytes()
    check_weights(target)


@pytest.mark.parametrize("fixture", ["tiny_model", "untied_model"])
def test_a_low_rank_update_is_merged_into_the_export(fixture, request, tmp_path):
    """verl saves the wrapped module's state dict through the bare architecture, names and all."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    start = request.getfixturevalue(fixture)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(start), lora)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(generator=generator)
    exported = tmp_path / "verl"
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(start)).save_pretrained(
        exported, state_dict=wrapped.state_dict()
    )
    (exported / "lora_train_meta.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}))
    target = tmp_path / "published"
    export.finish_export(exported, start, target)
    published = AutoModelForCausalLM.from_pretrained(target)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(published(ids).logits, wrapped(ids).logits, rtol=1e-4, atol=1e-4)
    assert not (target / "lora_train_meta.json").exists()


def test_an_export_with_other_tensors_is_refused(model, tmp_path):
    from safetensors.torch import load_file, save_file

    exported = shutil.copytree(model, tmp_path / "verl")
    weights = load_file(exported / "model.safetensors")
    weights["wrapped.norm.weight"] = weights.pop("model.norm.weight")
    save_file(weights, exported / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"2 tensors differ .* first model\.norm\.weight"):
        export.finish_export(exported, model, tmp_path / "published")


def test_an_export_carries_the_recipes_template(model, recipe_template, tmp_path):
    from common.models import load_tokenizer

    exported = shutil.copytree(model, tmp_path / "verl")
    target = tmp_path / "published"
    export.finish_export(exported, model, target, chat_template=str(recipe_template))
    assert load_tokenizer(target).chat_template == recipe_template.read_text()
