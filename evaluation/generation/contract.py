"""What an engine draws and answers, and what it is started with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.errors import ConfigError

HEARTBEAT_SECONDS = 2.0
GENERATE_AT_ONCE = 1024


@dataclass(frozen=True)
class EngineOptions:
    """What an engine is started with. platform: `cpu` or `gpu`; dtype: of the weights; max_length: prompt and response
    tokens; gpu_memory: share of the device's memory; tensor_parallel: devices it spans; eager: without CUDA graphs
    and compilation, as always on a CPU."""

    platform: str
    dtype: str
    max_length: int
    gpu_memory: float
    tensor_parallel: int = 1
    trust_remote_code: bool = False
    eager: bool = False


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. temperature 0 is greedy decoding, of which more than one sample makes no sense; `stop`
    strings end a response and are left out of it."""

    num_samples: int
    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        if self.num_samples < 1 or self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling: {self} needs num_samples, max_tokens >= 1, temperature >= 0, top_p in (0, 1]")
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError(f"sampling: {self.num_samples} greedy samples are all equal; set num_samples to 1")
        if any(not text for text in self.stop):
            raise ConfigError("sampling: stop: an empty text would end every response at once; leave it out")


@dataclass(frozen=True)
class Request:
    """One response to draw: token ids of the prompt, the sample's seed and how to draw it."""

    prompt: tuple[int, ...]
    seed: int
    sampling: Sampling


@dataclass(frozen=True)
class Sample:
    """One response. finish_reason: `stop` or `length`, or that of a prompt too long to be answered; tokens: its length
    with the end-of-turn token; seed: its own."""

    text: str
    finish_reason: str
    tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """One prompt (token ids) to complete; `stop` strings end the text and are left out of it; `seed` is of no account
    at temperature 0."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int


class Backend(Protocol):
    """What draws responses.

    description: what decides what it draws; what is kept of a killed run counts only under the same one.
    """

    description: dict

    def run(
        self, shards: Sequence[tuple[int, Sequence[Request]]], heartbeat: Callable[[], None] = ...
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (number, samples in request order) of each numbered shard, in any order."""
        ...


class Engine(Backend, Protocol):
    """A `VllmEngine`, or several of them as `Replicas`.

    count: of its engines. usable: False once it holds work that nobody waits for. files: digest of the model's files
    besides its weights. reproducible: whether a second run of the same seed would draw the same responses.
    """

    model: Path
    options: EngineOptions
    count: int
    usable: bool
    files: str
    reproducible: bool

    def load(self, model: Path) -> None:
        """Exchange the weights for those of another checkpoint of the same architecture and tokenizer.

        Raises ConfigError if any of the model's other files differs. The responses are those of a fresh engine.
        """
        ...

    def score(
        self, rows: Sequence[tuple[Sequence[int], int]], heartbeat: Callable[[], None] = ...
    ) -> list[tuple[float, bool]]:
        """Of each (token ids, start): the log-probability of ids[start:] given ids[:start], in nats, and whether each
        of its tokens is the likeliest. start >= 1, and at most max_length - 1 ids."""
        ...

    def complete(self, completions: Sequence[Completion], heartbeat: Callable[[], None] = ...) -> list[str]:
        """The text that continues each prompt."""
        ...

    def close(self) -> None:
        """Free its memory and processes."""
        ...
