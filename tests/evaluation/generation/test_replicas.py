import pytest

from evaluation.generation import EngineOptions, Prompter, Replicas, Sampling, engine_for, sample


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_two_replicas_draw_what_one_engine_draws(model_directory, tmp_path):
    model = model_directory(tied=True, seed=0)
    options = EngineOptions(platform="cpu", dtype="float32", max_length=64, gpu_memory=0.5)
    prompter = Prompter(model)
    prompts = [prompter.prompt([{"role": "user", "content": f"{i}+{i}="}]).ids for i in range(9)]

    def draw(backend, name):
        seen = []
        results = sample(
            backend,
            prompts,
            Sampling(3, 1.0, 1.0, 12),
            seed=0,
            directory=tmp_path / name,
            batch_size=4,
            progress=lambda done, total: seen.append((done, total)),
        )
        return results, seen[-1]

    single = draw(engine_for(model, options), "one")
    with Replicas(model, options, 2) as replicas:
        assert draw(replicas, "two") == single
        assert replicas.reproducible
