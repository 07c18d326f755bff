"""The gate between SFT and RL."""

import json
import logging

import pytest

from common.errors import ConfigError
from rl_stage import handoff


def test_a_complete_model_passes(model, cpu_settings):
    handoff.check_model(model, cpu_settings())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_a_missing_file_is_named(name, model, cpu_settings):
    (model / name).unlink()
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        handoff.check_model(model, cpu_settings())


def test_a_cut_weight_file_is_named(model, cpu_settings):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=r"model\.safetensors: cannot be read"):
        handoff.check_model(model, cpu_settings())


def test_a_missing_shard_is_named(model, cpu_settings):
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="model-00001-of-00002"):
        handoff.check_model(model, cpu_settings())


def test_tensors_of_another_name_or_shape_are_an_error(model, cpu_settings):
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    unmerged = {key.replace("up_proj", "up_proj.base_layer"): value for key, value in weights.items()}
    save_file(unmerged, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"2 missing tensors, {name} the first"):
        handoff.check_model(model, cpu_settings())
    save_file(weights | {"lora_A.weight": weights[name].clone()}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match="1 unexpected tensors, lora_A"):
        handoff.check_model(model, cpu_settings())
    save_file(weights | {name: weights[name][:-1].contiguous()}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"1 mismatched tensors, .*{name}"):
        handoff.check_model(model, cpu_settings())


def test_two_different_ends_are_an_error(model, cpu_settings, edit):
    edit(model / "generation_config.json", eos_token_id=0)
    with pytest.raises(ConfigError, match="stop at different tokens"):
        handoff.check_model(model, cpu_settings())


def test_no_chat_template_is_an_error(model, cpu_settings):
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        handoff.check_model(model, cpu_settings())


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
def test_a_tokenizer_without_eos_or_pad_is_an_error(name, model, cpu_settings, edit):
    edit(model / "tokenizer_config.json", **{name: None})
    with pytest.raises(ConfigError, match="must name an EOS and a PAD token"):
        handoff.check_model(model, cpu_settings())


def test_a_tokenizer_larger_than_the_embedding_is_an_error(model, cpu_settings, edit):
    edit(model / "config.json", vocab_size=5)
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens, the embedding 5 rows"):
        handoff.check_model(model, cpu_settings())


def test_the_ends_are_those_of_config_where_no_generation_settings_are(model, cpu_settings, edit):
    (model / "generation_config.json").unlink()
    handoff.check_model(model, cpu_settings())
    edit(model / "config.json", eos_token_id=0)
    with pytest.raises(ConfigError, match="stop at different tokens"):
        handoff.check_model(model, cpu_settings())


def test_no_dtype_is_an_error(model, cpu_settings, edit):
    edit(model / "config.json", dtype=..., torch_dtype=...)
    with pytest.raises(ConfigError, match="has no dtype"):
        handoff.check_model(model, cpu_settings())


def test_long_prompts_are_dropped_and_counted(model, cpu_settings, write_prompts, tmp_path):
    import pyarrow.parquet as pq

    data = write_prompts(tmp_path / "data", rows=20)
    rows = pq.read_table(data / "rl_train.parquet").to_pylist()
    rows[3]["prompt"][0]["content"] = "1+" * 200
    import pyarrow

    pq.write_table(pyarrow.Table.from_pylist(rows), data / "rl_train.parquet")
    found = handoff.check_prompts({"model": model, "data": data}, cpu_settings(), tmp_path)
    assert json.loads((tmp_path / "prompts.json").read_text()) == {"dropped": 1, "rl_train": 19, "rl_val": 4}
    kept = pq.read_table(found / "rl_train.parquet").to_pylist()
    assert kept == rows[:3] + rows[4:]


def test_a_prompts_tools_are_shown_counted_and_handed_on_as_text(model, cpu_settings, write_prompts, tmp_path):
    import pyarrow
    import pyarrow.parquet as pq

    data = write_prompts(tmp_path / "data", rows=20)
    rows = pq.read_table(data / "rl_train.parquet").to_pylist()
    tools = json.dumps([{"type": "function", "function": {"name": "add", "parameters": {"x": "1" * 200}}}])
    rows = [{**row, "tools": tools if number == 3 else None} for number, row in enumerate(rows)]
    pq.write_table(pyarrow.Table.from_pylist(rows), data / "rl_train.parquet")
    with pytest.raises(ConfigError, match=r"rl_train\.parquet: row 3: turn 1 \(\w+\): .* leaves out the tools"):
        handoff.check_prompts({"model": model, "data": data}, cpu_settings(), tmp_path)
    path = model / "chat_template.jinja"
    template = path.read_text()
    path.write_text("{% if tools %}{{ tools | tojson }}{% endif %}" + template)
    found = handoff.check_prompts({"model": model, "data": data}, cpu_settings(), tmp_path)
    kept = pq.read_table(found / "rl_train.parquet").to_pylist()
    assert [row["tools"] for row in kept] == ["[]"] * 19
    rows[3]["tools"] = tools.replace("1" * 200, "1")
    pq.write_table(pyarrow.Table.from_pylist(rows), data / "rl_train.parquet")
    found = handoff.check_prompts({"model": model, "data": data}, cpu_settings(max_prompt_length=200), tmp_path)
    kept = pq.read_table(found / "rl_train.parquet").to_pylist()
    assert [row["tools"] for row in kept].count("[]") == 19 and kept[3]["tools"] == rows[3]["tools"]


def test_too_few_prompts_and_missing_answers_are_errors(model, cpu_settings, write_prompts, tmp_path):
    data = write_prompts(tmp_path / "data", rows=7)
    with pytest.raises(ConfigError, match=r"rl\.prompts: a step takes 8 prompts"):
        handoff.check_prompts({"model": model, "data": data}, cpu_settings(), tmp_path)
    import pyarrow
    import pyarrow.parquet as pq

    rows = pq.read_table(data / "rl_train.parquet").to_pylist()
    rows[2]["reward_model"]["ground_truth"] = ""
    pq.write_table(pyarrow.Table.from_pylist(rows), data / "rl_train.parquet")
    with pytest.raises(ConfigError, match=r"row 2 has no prompt or no reward_model\.ground_truth"):
        handoff.check_prompts({"model": model, "data": data}, cpu_settings(), tmp_path)


@pytest.mark.parametrize(("rates", "word"), [([0.0, 0.0], "no sample"), ([1.0, 1.0], "every sample")])
def test_an_unreachable_or_solved_task_is_said(rates, word, cpu_settings, caplog):
    with caplog.at_level(logging.WARNING):
        handoff.judge_probe(rates, cpu_settings(on_unreachable="warn"))
    assert word in caplog.text
    with pytest.raises(ConfigError, match=word):
        handoff.judge_probe(rates, cpu_settings(on_unreachable="stop"))


def test_a_reachable_task_is_silent(cpu_settings, caplog):
    handoff.judge_probe([0.0, 0.5], cpu_settings(on_unreachable="stop"))
    assert not caplog.text


def test_the_recipes_template_stands_for_the_models(model, cpu_settings, recipe_template, write_prompts, tmp_path):
    (model / "chat_template.jinja").unlink()
    settings = cpu_settings(model={"chat_template": str(recipe_template)})
    handoff.check_model(model, settings)
    data = write_prompts(tmp_path / "data")
    length = len("0123456789abcdef") + len("user\n0+0\nassistant\n") + 3
    for limit, fits in ((length, True), (length - 1, False)):
        settings = cpu_settings(model={"chat_template": str(recipe_template)}, max_prompt_length=limit)
        if fits:
            handoff.check_prompts({"model": model, "data": data}, settings, tmp_path)
            assert json.loads((tmp_path / "prompts.json").read_text())["dropped"] == 0
        else:
            with pytest.raises(ConfigError, match=r"has 0 of at most rl\.max_prompt_length"):
                handoff.check_prompts({"model": model, "data": data}, settings, tmp_path)
