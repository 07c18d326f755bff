"""What is wrong with the section `eval` alone, before there is any data or model."""

from __future__ import annotations

from typing import Any

from common.errors import ConfigError
from evaluation.protocol import form, modes


def check(evaluation: Any) -> None:
    """Raises ConfigError, naming the field, for a section `eval` that cannot be run whatever the data."""
    if not evaluation.benchmarks and not evaluation.tasks:
        raise ConfigError(
            "eval.benchmarks, eval.tasks: nothing to evaluate; list at least one or set eval.enabled=false"
        )
    names = [one.name for one in (*evaluation.benchmarks, *evaluation.tasks)]
    if len(set(names)) < len(names):
        raise ConfigError(f"eval.benchmarks, eval.tasks: a name occurs twice in {', '.join(names)}")
    if any(k < 1 for k in evaluation.k):
        raise ConfigError(f"eval.k={evaluation.k}: each k of pass@k is at least 1; leave the others out")
    for benchmark in evaluation.benchmarks:
        modes(benchmark)
        form(benchmark)
