"""How a benchmark is run: which responses it draws, and its settings as they stand in a result."""

from __future__ import annotations

from typing import Any

from common.errors import ConfigError
from evaluation.generation.contract import Sampling
from evaluation.generation.prompts import Form


def modes(benchmark: Any) -> dict[str, Sampling]:
    """`sampled`, and `greedy` where asked for and not the same, of an entry of eval.benchmarks.

    Raises ConfigError, naming the benchmark, for settings that cannot be drawn.
    """
    try:
        found = {
            "sampled": Sampling(
                benchmark.num_samples,
                benchmark.temperature,
                benchmark.top_p,
                benchmark.max_tokens,
                tuple(benchmark.stop),
            )
        }
    except ConfigError as error:
        raise ConfigError(f"eval.benchmarks: {benchmark.name!r}: {error}") from None
    if benchmark.greedy and benchmark.temperature > 0:
        found["greedy"] = Sampling(1, 0.0, 1.0, benchmark.max_tokens, tuple(benchmark.stop))
    return found


def form(benchmark: Any) -> Form:
    """What goes around each problem of an entry of eval.benchmarks.

    Raises ConfigError, naming the benchmark, for a text without its places.
    """
    try:
        shots = tuple((shot.prompt, shot.answer) for shot in benchmark.shots)
        return Form(benchmark.prompting, benchmark.plain, shots, benchmark.prefill)
    except ConfigError as error:
        raise ConfigError(f"eval.benchmarks: {benchmark.name!r}: {error}") from None


def described(entry: Any) -> dict[str, Any]:
    """The settings of an entry of eval.benchmarks or eval.tasks as JSON values."""
    return entry.model_dump(mode="json") if hasattr(entry, "model_dump") else dict(vars(entry))


def asked(settings: Any) -> tuple[str, Any]:
    """What a stage is asked to measure: ("benchmark", entry), ("task", entry) or ("held_out", True).

    Raises ConfigError unless it is exactly one of them.
    """
    found = [(kind, value) for kind in ("benchmark", "task", "held_out") if (value := getattr(settings, kind, None))]
    if len(found) != 1:
        raise ConfigError(f"benchmark, task, held_out: name exactly one, found {[kind for kind, _ in found]}")
    return found[0]
