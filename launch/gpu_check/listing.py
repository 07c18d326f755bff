"""The items of the check, most valuable first. Imports nothing but the standard library."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

TRAINING = ("transformers", "tensordict", "ray", "verl", "peft", "accelerate", "pyarrow", "hydra", "pydantic")


@dataclass(frozen=True)
class Item:
    """One part of the check, run in a process of its own.

    module: of launch.gpu_check.items. share: of the time, in minutes of ten. needs: packages without which it does not
    run.
    """

    number: int
    module: str
    title: str
    share: float
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """The packages of `needs` that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


LAUNCH = (
    "vllm",
    "humanize",
    "jinja2",
    "rich",
    "pynvml",
    "xxhash",
    "math_verify",
    "matplotlib",
    "sacrebleu",
    "statsmodels",
)

ITEMS = (
    Item(1, "device", "versions, device, ceilings", 0.3, ("torch",)),
    Item(2, "kernels", "Triton kernels against float64", 0.7, ("torch", "triton", "numpy")),
    Item(3, "heads", "objectives on an output head, and a whole step", 2.0, ("torch", "numpy")),
    Item(4, "reference_cache", "reference cache beside a bare forward", 0.7, ("torch", "transformers", "pyarrow")),
    Item(5, "training", "SFT through verl's engine", 1.5, ("torch", *TRAINING)),
    Item(6, "pipeline", "the micro-world: SFT, GRPO, evaluation", 3.0, ("torch", *TRAINING, *LAUNCH)),
    Item(7, "evaluation", "vLLM evaluation beside bare generate", 1.8, ("torch", "vllm", "math_verify")),
)
