"""Several engines as Ray actors, on one node or many: data parallelism over shards."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from common.errors import ConfigError
from common.ray_session import ray_session
from evaluation.generation.contract import (
    GENERATE_AT_ONCE,
    HEARTBEAT_SECONDS,
    Completion,
    EngineOptions,
    Request,
    Sample,
    Sampling,
)
from evaluation.generation.vllm_engine import VllmEngine, model_files_digest

# What a replica must share with the process that asks: threads and kernels decide the last bit of a sum.
ENVIRONMENT = ("OMP_NUM_THREADS", "TORCHDYNAMO_DISABLE", "TOKENIZERS_PARALLELISM")
ENVIRONMENT_PREFIXES = ("VLLM_", "HF_")
CLOSE_SECONDS = 30.0


class Replicas:
    """`count` engines in Ray actors; a `contract.Engine` like one `VllmEngine`.

    Ray is the cluster of RAY_ADDRESS, whose nodes must read the model under the same path, or a private one on
    loopback. Replicas spread over its nodes; each takes `tensor_parallel` devices, on the CPU platform one core and, of
    a cluster that counts enough of them, one logical device. Each shard is drawn whole by one replica, so that the
    responses are those of a single engine.
    """

    def __init__(self, model: Path, options: EngineOptions, count: int):
        import ray

        self.model = Path(model).resolve()
        self.options = options
        self.count = count
        self.files = model_files_digest(self.model)
        self.usable = True
        with contextlib.ExitStack() as stack:
            stack.enter_context(ray_session(count, _environment()))
            devices = options.tensor_parallel
            if options.platform == "cpu":
                devices = int(ray.cluster_resources().get("GPU", 0) >= count)
            actor = ray.remote(_Replica).options(num_cpus=1, num_gpus=devices, scheduling_strategy="SPREAD")
            self._actors: list[Any] = [actor.remote(str(self.model), asdict(options)) for _ in range(count)]
            stack.callback(self._end_actors)
            facts = ray.get([replica.facts.remote() for replica in self._actors])
            if any(other != facts[0] for other in facts):
                raise RuntimeError(f"replicas differ: {facts}; install equal versions on every node")
            self.description, self.reproducible = facts[0]
            self._stack = stack.pop_all()

    def load(self, model: Path) -> None:
        """Exchange the weights of every replica; see `contract.Engine.load`."""
        import ray

        model = Path(model).resolve()
        if model_files_digest(model) != self.files:
            raise ConfigError(f"{model}: its configuration or tokenizer differs from that of {self.model}")
        ray.get([replica.load.remote(str(model)) for replica in self._actors])
        self.model = model
        self.description["model"] = str(model)

    def run(
        self, shards: Sequence[tuple[int, Sequence[Request]]], heartbeat: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (number, samples in request order) of each shard as it completes; see `contract.Backend`.

        Raises what a replica raised. A run that is left early leaves replicas at work: they are replaced, not reused.
        """
        import ray

        self.usable = False
        streams: list[Any] = []
        for place, replica in enumerate(self._actors):
            mine = [
                (number, [(request.prompt, request.seed, asdict(request.sampling)) for request in requests])
                for number, requests in shards[place :: self.count]
            ]
            if mine:
                streams.append(replica.run.options(num_returns="streaming").remote(mine))
        while streams:
            ready, _ = ray.wait(streams, num_returns=1, timeout=HEARTBEAT_SECONDS, fetch_local=False)
            heartbeat()
            for stream in ready:
                try:
                    number, rows = ray.get(next(cast(Iterator, stream)))
                except StopIteration:
                    streams.remove(stream)
                    continue
                yield number, [Sample(*row) for row in rows]
        self.usable = True

    def score(
        self, rows: Sequence[tuple[Sequence[int], int]], heartbeat: Callable[[], None] = lambda: None
    ) -> list[tuple[float, bool]]:
        """See `contract.Engine.score`; batches of rows are dealt out to the replicas."""
        return self._dealt("score", [(list(ids), start) for ids, start in rows], heartbeat)

    def complete(self, completions: Sequence[Completion], heartbeat: Callable[[], None] = lambda: None) -> list[str]:
        """See `contract.Engine.complete`; batches are dealt out to the replicas."""
        return self._dealt("complete", list(completions), heartbeat)

    def _dealt(self, method: str, items: list, heartbeat: Callable[[], None]) -> list:
        import ray

        self.usable = False
        # Batches as one engine would compute them: what is in a batch decides the last bit of a sum.
        batches = [items[start : start + GENERATE_AT_ONCE] for start in range(0, len(items), GENERATE_AT_ONCE)]
        results = [
            getattr(self._actors[number % self.count], method).remote(batch) for number, batch in enumerate(batches)
        ]
        waiting = list(results)
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=1, timeout=HEARTBEAT_SECONDS)
            heartbeat()
        found = [value for part in ray.get(results) for value in part]
        self.usable = True
        return found

    def close(self) -> None:
        """End the actors, and the private Ray if there is one."""
        self._stack.close()

    def _end_actors(self) -> None:
        import ray

        if self.usable:
            closing = [replica.close.remote() for replica in self._actors]
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for replica in self._actors:
            ray.kill(replica)


class _Replica:
    """The actor. Plain lists, tuples and dicts cross the wire."""

    def __init__(self, model: str, options: dict):
        self.engine = VllmEngine(Path(model), EngineOptions(**options))

    def facts(self) -> tuple[dict, bool]:
        return self.engine.description, self.engine.reproducible

    def load(self, model: str) -> None:
        self.engine.load(Path(model))

    def run(self, shards: list[tuple[int, list[tuple]]]) -> Iterator[tuple[int, list[tuple]]]:
        requests = [
            (number, [Request(tuple(prompt), seed, Sampling(**sampling)) for prompt, seed, sampling in rows])
            for number, rows in shards
        ]
        for number, samples in self.engine.run(requests):
            yield number, [(sample.text, sample.finish_reason, sample.tokens, sample.seed) for sample in samples]

    def score(self, rows: list[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        return self.engine.score(rows)

    def complete(self, completions: list[Completion]) -> list[str]:
        return self.engine.complete(completions)

    def close(self) -> None:
        self.engine.close()


def _environment() -> dict[str, str]:
    import torch

    shared = {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }
    # Without it Ray would give every actor as many threads as it has cores.
    return {"OMP_NUM_THREADS": str(torch.get_num_threads()), **shared}
