"""How fast generation and grading are: `python -m evaluation.bench [--json]`.

throughput_vs_vllm: tokens a second of `generation.sample`, which seeds, shards, saves and hands every response to the
grading pool, over those of a bare `vllm.LLM.generate` with the same requests on the same engine; the median of paired
rounds. On a machine without a GPU, seconds are the CPU time of this process on one thread, so that other programs do
not count; throughput_wall_ratio goes by the clock. grade_10k_seconds: by the clock, 10,000 math answers through the
grading pool, of which every hundredth hangs; grade_cpu_seconds: their CPU time, with that of the start.

With --code FILE, HumanEval+ as EvalPlus publishes it (HumanEvalPlus-OriginFmt.jsonl.gz of its release, or the Parquet
file of the hub): code_seconds, by the clock, of every problem's published solution against all of its cases in the
sandbox, code_right of them, and empty_right of as many functions that return an empty list.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

from common.errors import ConfigError

REQUESTS = 512
BATCH_SIZE = 512  # the default of eval.batch_size
ROUNDS = 5
MAX_TOKENS = 64
ANSWERS = 10_000
# A sum that keeps sympy busy for hours.
HANGING = r"\sum_{k=1}^{10^9} \frac{1}{k^3+k+1}"


def answers(count: int) -> list[tuple[str, str, str]]:
    """`count` (response, answer, grader) triples, 16 a problem, in the order an evaluation grades them.

    Of ten problems three have an integer, one each a decimal, a fraction, a radical, a polynomial, a list; the rest
    pairs, sets, intervals and matrices. A third of the responses is wrong, in ever new ways; one in eight has no box;
    one in a hundred hangs, all of them against a number.
    """
    triples = []
    for i in range(count):
        p, off = i // 16, i % 16 if i % 3 == 0 else 0
        kinds = (
            (f"{p + off}", f"{p}"),
            (rf"\frac{{{p + off}}}{{{p % 97 + 2}}}", rf"\frac{{{p}}}{{{p % 97 + 2}}}"),
            (f"{100 + p + off}", f"{100 + p}"),
            (rf"{p + 2 + off}\sqrt{{3}}", rf"\sqrt{{{3 * (p + 2) ** 2}}}"),
            (f"x = {p + off}", f"{p}"),
            (f"x^2+{2 * p + off}x+{p * p}", f"(x+{p})^2"),
            (f"{p + off},{p % 900 + 100}", f"{p},{p % 900 + 100}"),
            (rf"\left({p + off}, \frac{{\pi}}{{3}}\right)", rf"({p}, \frac{{\pi}}{{3}})")
            if p % 20 < 10
            else (rf"\{{{p + 1}, {p + off}\}}", rf"\{{{p}, {p + 1}\}}"),
            (f"{p + off}.0", f"{p}"),
            (f"[{p}, {p + 5 + off})", f"[{p}, {p + 5})")
            if p % 20 < 10
            else (
                rf"\begin{{pmatrix}} {p} \\ {off} \end{{pmatrix}}",
                rf"\begin{{pmatrix}}{p}\\0\end{{pmatrix}}",
            ),
        )
        found, answer = kinds[p % len(kinds)]
        if i % 100 == 57:
            found, answer = HANGING, f"{p}"
        text = f"First we add {i} and {i + 1}, then halve the sum. "
        text += f"The final answer is ${found}$." if i % 8 == 5 else rf"Therefore the result is $\boxed{{{found}}}$."
        triples.append((text, answer, "math"))
    return triples


def grade_seconds(count: int = ANSWERS) -> dict[str, float]:
    """Grade `answers(count)` in a pool, its start excluded. Returns `seconds`, `cpu` and the count of each status."""
    import resource

    from evaluation.grading import GradingPool

    tasks = answers(count)
    with GradingPool() as pool:
        pool.grade(r"\boxed{1}", "1")
        started = time.perf_counter()
        grades = pool.grade_many(tasks)
        seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    statuses = [grade.status for grade in grades]
    found = {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return {**found, **{status: statuses.count(status) for status in sorted(set(statuses))}}


def code_seconds(file: pathlib.Path) -> dict[str, float]:
    """Grade HumanEval+'s solutions, then functions that return `[]`, in a pool; its start is excluded.

    Returns `seconds` of the solutions, the number of `problems`, and of `right` and `empty_right` programs. Raises
    ConfigError where the file is not HumanEval+'s, or has no solutions.
    """
    from evaluation.benchmarks._files import read_rows
    from evaluation.benchmarks.code import humaneval_plus
    from evaluation.grading import GradingPool

    answers = [problem["answer"] for problem in humaneval_plus.read(file)]
    rows = list(read_rows(file, None))
    if any("canonical_solution" not in row for row in rows):
        raise ConfigError(f"{file}: no column canonical_solution; take the file of EvalPlus' release")
    found: dict[str, float] = {"problems": len(rows)}
    with GradingPool() as pool:
        pool.grade(r"\boxed{1}", "1")
        for name, body in (("right", None), ("empty_right", "    return []\n")):
            started = time.perf_counter()
            futures = [
                pool.submit_grade(
                    f"```python\n{row['prompt']}{body or row['canonical_solution']}\n```",
                    answer,
                    "code",
                    run_generated_code=True,
                )
                for row, answer in zip(rows, answers, strict=True)
            ]
            found[name] = sum(pool.verdict(future.result()).correct for future in futures)
            found.setdefault("seconds", time.perf_counter() - started)
    return found


def write_model(directory: pathlib.Path) -> pathlib.Path:
    """A Hugging Face directory of a small random Qwen2 model with a character tokenizer, for timing."""
    from common.tiny_models import character_tokenizer, ends_of, random_model, save

    tokenizer = character_tokenizer()
    sizes = {"hidden": 192, "layers": 4, "heads": 6, "intermediate_size": 512}
    model = random_model("Qwen2", len(tokenizer), **sizes, max_position_embeddings=256, **ends_of(tokenizer))
    return save(directory, model, tokenizer)


def throughput(
    requests: int = REQUESTS,
    rounds: int = ROUNDS,
    batch_size: int = BATCH_SIZE,
    *,
    model: pathlib.Path | None = None,
    dtype: str = "float32",
    max_tokens: int = MAX_TOKENS,
    eager: bool = False,
) -> dict[str, float]:
    """Paired rounds of `sample` and `LLM.generate` on one engine, in turn first.

    model: a Hugging Face directory; None: a small one with random weights. eager: without CUDA graphs and compilation.
    Returns the median `ratio` with the lowest and highest round, `wall_ratio` by the clock, our `tokens_per_second`.
    """
    from vllm import SamplingParams, TokensPrompt

    from evaluation.generation import EngineOptions, Prompter, Sampling, close_engine, engine_for, sample, sample_seed
    from evaluation.grading import GradingPool

    with tempfile.TemporaryDirectory() as temporary, GradingPool() as pool:
        folder = pathlib.Path(temporary)
        model = write_model(folder / "model") if model is None else model
        import torch

        platform = "gpu" if torch.cuda.is_available() else "cpu"
        engine = engine_for(model, EngineOptions(platform, dtype, max_tokens + MAX_TOKENS, 0.5, eager=eager))
        prompter = Prompter(model)
        prompts = [
            prompter.prompt([{"role": "user", "content": f"{i} + {7 * i} = "}], "plain").ids for i in range(requests)
        ]
        sampling = Sampling(1, 1.0, 1.0, max_tokens)

        def ours(number: int) -> int:
            drawn = sample(
                engine,
                prompts,
                sampling,
                seed=number,
                directory=folder / str(number),
                batch_size=batch_size,
                progress=lambda done, total: None,
                on_sample=lambda place, index, drawn: futures.append(pool.submit_grade(drawn.text, "1", "boxed")),
            )
            return sum(row[0].tokens for row in drawn)

        def bare(number: int) -> int:
            parameters = [
                SamplingParams(temperature=1.0, top_p=1.0, max_tokens=max_tokens, seed=sample_seed(number, prompt, 0))
                for prompt in prompts
            ]
            tokens = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
            outputs = engine.llm.generate(tokens, parameters, use_tqdm=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs)

        futures = []
        bare(-1)
        speeds: dict[str, list[float]] = {"processor": [], "clock": []}
        ratios: dict[str, list[float]] = {"processor": [], "clock": []}
        for number in range(rounds):
            rates: dict[Callable, dict[str, float]] = {}
            for side in (ours, bare) if number % 2 else (bare, ours):
                clock, processor = time.perf_counter(), time.process_time()
                count = side(number)
                rates[side] = {
                    "clock": count / (time.perf_counter() - clock),
                    "processor": count / (time.process_time() - processor),
                }
                for future in futures:
                    future.result()
            for name in ratios:
                ratios[name].append(rates[ours][name] / rates[bare][name])
                speeds[name].append(rates[ours][name])
        close_engine()
    counted = ratios["clock" if platform == "gpu" else "processor"]
    return {
        "ratio": statistics.median(counted),
        "ratio_low": min(counted),
        "ratio_high": max(counted),
        "wall_ratio": statistics.median(ratios["clock"]),
        "tokens_per_second": statistics.median(speeds["clock"]),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--only", choices=["grading", "throughput", "code"], help="one of the parts")
    parser.add_argument("--code", type=pathlib.Path, metavar="FILE", help="HumanEval+: the solutions' time too")
    arguments = parser.parse_args()
    if arguments.only == "code" and arguments.code is None:
        parser.error("--only code: name the file of HumanEval+ by --code FILE")
    # One thread: waiting threads of a parallel loop spin, which would count as work.
    os.environ.update(OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    figures: dict[str, float] = {"cores": len(os.sched_getaffinity(0))}
    if arguments.only in (None, "code") and arguments.code is not None:
        figures |= {f"code_{name}": value for name, value in code_seconds(arguments.code).items()}
    if arguments.only in (None, "grading"):
        graded = grade_seconds()
        figures["grade_10k_seconds"] = graded.pop("seconds")
        figures |= {f"grade_{status}": count for status, count in graded.items()}
    if arguments.only in (None, "throughput"):
        found = throughput()
        figures["throughput_vs_vllm"] = found.pop("ratio")
        figures |= {f"throughput_{name}": value for name, value in found.items()}
    if arguments.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
