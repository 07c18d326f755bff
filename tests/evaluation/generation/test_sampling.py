import pytest

from evaluation.generation import Sample, Sampling, sample, sample_seed


class Echo:
    """Answers with what it was asked, so that tests see which requests were made."""

    def __init__(self):
        self.description = {"engine": "echo"}
        self.asked = []

    def run(self, shards, heartbeat):
        for number, requests in shards:
            self.asked.append(number)
            yield number, [Sample(f"{request.prompt}", "stop", 1, request.seed) for request in requests]


def draw(directory, backend, prompts, num_samples=2, seed=0):
    seen = []
    results = sample(
        backend,
        prompts,
        Sampling(num_samples, 1.0, 1.0, 8),
        seed=seed,
        directory=directory,
        batch_size=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    return results, seen


def test_equal_prompts_are_drawn_once_and_seeds_depend_on_content_only(tmp_path):
    backend = Echo()
    results, seen = draw(tmp_path, backend, [[1, 2], [3], [1, 2]])
    assert results[0] == results[2] and seen[-1] == (4, 4)
    assert [drawn.text for drawn in results[1]] == ["(3,)", "(3,)"]
    reordered, _ = draw(tmp_path, Echo(), [[3], [1, 2]])
    assert reordered == [results[1], results[0]]
    assert results[0][1].seed == sample_seed(0, [1, 2], 1)
    seeds = {sample_seed(s, prompt, i) for s in (0, 1) for prompt in ([1, 2], [12], [2, 1]) for i in (0, 1)}
    assert len(seeds) == 12 and all(0 <= seed < 2**63 for seed in seeds)


def test_finished_shards_are_read_back_and_only_missing_ones_drawn(tmp_path):
    results, _ = draw(tmp_path, Echo(), [[i] for i in range(6)])
    shards = sorted(tmp_path.glob("*/*.parquet"))
    assert len(shards) == 4
    shards[2].unlink()
    backend = Echo()
    assert draw(tmp_path, backend, [[i] for i in range(6)])[0] == results
    assert backend.asked == [2]


def test_other_requests_never_reuse_shards(tmp_path):
    draw(tmp_path, Echo(), [[1]])
    for change in ({"seed": 1}, {"num_samples": 3}):
        backend = Echo()
        draw(tmp_path, backend, [[1]], **change)
        assert backend.asked == [0]
    other = Echo()
    other.description = {"engine": "another"}
    draw(tmp_path, other, [[1]])
    assert other.asked == [0]


@pytest.mark.parametrize(
    "values", [(0, 1.0, 1.0, 1), (1, -1.0, 1.0, 1), (1, 1.0, 0.0, 1), (1, 1.0, 1.0, 0), (2, 0.0, 1.0, 1)]
)
def test_impossible_sampling_is_refused(values):
    with pytest.raises(ValueError, match="sampling"):
        Sampling(*values)


def test_a_context_leaves_a_long_prompt_fewer_tokens(tmp_path):
    asked = []

    class Counting(Echo):
        def run(self, shards, heartbeat):
            asked.extend(request for _, requests in shards for request in requests)
            return super().run(shards, heartbeat)

    sampling = Sampling(2, 1.0, 1.0, 8, stop=("\n",))
    options = {"seed": 0, "directory": tmp_path, "batch_size": 3, "progress": lambda *_: None}
    sample(Counting(), [[1], [1, 2, 3, 4]], sampling, context=10, **options)
    assert [(len(one.prompt), one.sampling.max_tokens, one.sampling.stop) for one in asked] == [
        (1, 8, ("\n",)),
        (1, 8, ("\n",)),
        (4, 6, ("\n",)),
        (4, 6, ("\n",)),
    ]
    with pytest.raises(ValueError, match="stop: an empty text"):
        Sampling(1, 1.0, 1.0, 8, stop=("",))
