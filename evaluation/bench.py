"""Figures of this room: `python -m evaluation.bench --model DIRECTORY [--json]`.

grade_10k_seconds: wall time to grade 10,000 math answers of which 1% hang. throughput_vs_vllm: requests per second of
`VllmEngine.run` over those of bare `vllm.LLM.generate` on the same engine, prompts, lengths and seeds (median of three
alternating pairs; engine start excluded on both sides).
"""

import argparse
import json
import pathlib
import random
import statistics
import time

from evaluation.generation.engine import EngineOptions, VllmEngine
from evaluation.generation.sampling import Request, Sampling, sample_seed
from evaluation.grading.pool import GradingPool

HANGING = r"\boxed{9^{9^{9^{9^{9}}}}}"


def grading_tasks(count: int) -> list[tuple[str, str, str]]:
    """`count` (response, answer, grader) triples: fractions, half of them wrong, and every hundredth hangs."""
    rng = random.Random(0)
    tasks = []
    for number in range(count):
        top, bottom = rng.randint(1, 99), rng.randint(1, 99)
        response = HANGING if number % 100 == 0 else rf"Hence the result is $\boxed{{\frac{{{top}}}{{{bottom}}}}}$."
        tasks.append((response, rf"\frac{{{top}}}{{{bottom + number % 2}}}", "math"))
    return tasks


def measure_grading(count: int) -> float:
    """Seconds to grade `count` answers, pool start excluded."""
    with GradingPool() as pool:
        pool.grade(r"\boxed{1}", "1")
        started = time.monotonic()
        grades = pool.grade_many(grading_tasks(count))
        seconds = time.monotonic() - started
    timeouts = sum(grade.status == "timeout" for grade in grades)
    if timeouts != count // 100:
        raise RuntimeError(f"{timeouts} answers timed out, {count // 100} should have")
    return seconds


def measure_throughput(model: pathlib.Path, platform: str, prompts: int, tokens: int, batch_size: int) -> float:
    """Ratio of our request rate to that of `LLM.generate`."""
    from vllm import SamplingParams, TokensPrompt

    options = EngineOptions(platform=platform, dtype="float32", max_length=tokens + 64, gpu_memory=0.8)
    engine = VllmEngine(model, options)
    rng = random.Random(0)
    sampling = Sampling(1, 1.0, 1.0, tokens)
    drawn = [tuple(rng.randrange(4, 64) for _ in range(rng.randint(8, 48))) for _ in range(prompts)]
    requests = [Request(prompt, sample_seed(0, prompt, 0), sampling) for prompt in drawn]
    shards = [(start, requests[start : start + batch_size]) for start in range(0, prompts, batch_size)]

    def ours() -> float:
        started = time.monotonic()
        if sum(len(samples) for _, samples in engine.run(shards)) != prompts:
            raise RuntimeError("responses are missing")
        return time.monotonic() - started

    def bare() -> float:
        started = time.monotonic()
        engine._llm.generate(
            [TokensPrompt(prompt_token_ids=list(request.prompt)) for request in requests],
            [SamplingParams(temperature=1.0, max_tokens=tokens, seed=request.seed) for request in requests],
            use_tqdm=False,
        )
        return time.monotonic() - started

    bare()
    ratios = []
    for _ in range(3):
        seconds = ours()
        ratios.append(bare() / seconds)
    engine.close()
    return statistics.median(ratios)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.bench", description=__doc__)
    parser.add_argument("--model", type=pathlib.Path, required=True, help="Hugging Face directory")
    parser.add_argument("--platform", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = {
        "grade_10k_seconds": measure_grading(arguments.answers) * 10_000 / arguments.answers,
        "throughput_vs_vllm": measure_throughput(
            arguments.model, arguments.platform, arguments.prompts, arguments.tokens, arguments.batch_size
        ),
    }
    print(json.dumps(figures) if arguments.json else "\n".join(f"{k}: {v:.3f}" for k, v in figures.items()))


if __name__ == "__main__":
    main()
