import shutil

import pytest

from evaluation.generation import EngineOptions, Prompter, Sampling, close_engine, engine_for
from evaluation.generation.contract import Request

OPTIONS = EngineOptions(platform="cpu", dtype="float32", max_length=64, gpu_memory=0.5)
SAMPLED = Sampling(1, 1.0, 1.0, 16)


def requests(model, seeds):
    prompter = Prompter(model)
    prompts = [prompter.prompt([{"role": "user", "content": f"{i}+{i}="}]).ids for i in range(8)]
    return [Request(prompt, seed, SAMPLED) for seed in seeds for prompt in prompts]


def texts(engine, shard):
    return [sample.text for sample in next(iter(engine.run([(0, shard)])))[1]]


@pytest.mark.e2e
@pytest.mark.parametrize("tied", [True, False])
def test_reloaded_weights_answer_as_a_fresh_engine(model_directory, tied):
    first, second = model_directory(tied=tied, seed=0), model_directory(tied=tied, seed=1)
    shard = requests(first, [0, 1])
    engine = engine_for(first, OPTIONS)
    original = texts(engine, shard)
    assert engine_for(second, OPTIONS) is engine
    reloaded = texts(engine, shard)
    assert texts(engine_for(first, OPTIONS), shard) == original
    close_engine()
    assert texts(engine_for(second, OPTIONS), shard) == reloaded != original


@pytest.mark.e2e
def test_responses_depend_on_seed_and_prompt_and_not_on_their_company(model_directory):
    model = model_directory(tied=False, seed=0)
    shard = requests(model, [5, 6])
    engine = engine_for(model, OPTIONS)
    together = texts(engine, shard)
    assert [texts(engine, [request])[0] for request in shard[:4]] == together[:4]
    assert dict(engine.run([(0, shard[8:]), (1, shard[:8])]))[1] == dict(engine.run([(1, shard)]))[1][:8]
    assert together[:8] != together[8:]
    # more tokens of prompts at once than vLLM takes in one step: no prompt is cut in two
    long = [
        Request((*one.prompt, *one.prompt, *one.prompt)[:48], seed, SAMPLED) for seed in range(16) for one in shard[:8]
    ]
    assert len(long) * 48 > engine.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
    assert texts(engine, long)[:2] == [texts(engine, [request])[0] for request in long[:2]]


@pytest.mark.e2e
def test_another_architecture_gets_another_engine(model_directory, tmp_path):
    small, large = model_directory(tied=True, seed=0), model_directory(tied=True, seed=0, hidden=64)
    engine = engine_for(small, OPTIONS)
    with pytest.raises(ValueError, match="differ from those of"):
        engine.load(large)
    shutil.copytree(large, tmp_path / "copy")
    assert engine_for(tmp_path / "copy", OPTIONS) is not engine
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        engine_for(tmp_path, OPTIONS)
