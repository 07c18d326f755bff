"""Several engines behind Ray, on one node or many: data parallelism over shards."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from evaluation.generation.engine import HEARTBEAT_SECONDS, EngineOptions, engine_for
from evaluation.generation.sampling import Request, Sample, Sampling


class Replicas:
    """`count` engines in Ray actors; a `sampling.Backend`. Use as a context manager, which ends the actors.

    Ray is the cluster of RAY_ADDRESS, or a private one on loopback. Each replica takes `tensor_parallel` devices, on
    the CPU platform one core. Shards are dealt out in turn and each is drawn whole by one replica, so the
    responses are those of a single engine.
    """

    def __init__(self, model: pathlib.Path, options: EngineOptions, count: int):
        self.model = pathlib.Path(model).resolve()
        self.options = options
        self.count = count
        self.description: dict = {}
        self.reproducible = False

    def __enter__(self) -> "Replicas":
        import ray

        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_ray_session(self.count))
            devices = 0 if self.options.platform == "cpu" else self.options.tensor_parallel
            actor = ray.remote(_Replica).options(num_cpus=1, num_gpus=devices)
            arguments = (str(self.model), asdict(self.options))
            self._actors = [actor.remote(*arguments) for _ in range(self.count)]
            for replica in self._actors:
                stack.callback(ray.kill, replica)
            facts = ray.get([replica.facts.remote() for replica in self._actors])
            if any(other != facts[0] for other in facts):
                raise RuntimeError(f"replicas differ: {facts}; install equal versions on every node")
            self.description, self.reproducible = facts[0]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(
        self, shards: Sequence[tuple[int, Sequence[Request]]], heartbeat: Callable[[], None]
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (number, samples in request order) of each shard as it completes; see `sampling.Backend`."""
        import ray

        streams = []
        for place, replica in enumerate(self._actors):
            mine = [
                (number, [asdict(request) for request in requests]) for number, requests in shards[place :: self.count]
            ]
            if mine:
                streams.append(replica.run.options(num_returns="streaming").remote(mine))
        while streams:
            ready, _ = ray.wait(streams, num_returns=1, timeout=HEARTBEAT_SECONDS, fetch_local=False)
            heartbeat()
            for stream in ready:
                try:
                    number, rows = ray.get(next(stream))
                except StopIteration:
                    streams.remove(stream)
                    continue
                yield number, [Sample(**row) for row in rows]


class _Replica:
    """The actor. Plain lists and dicts cross the wire."""

    def __init__(self, model: str, options: dict):
        self.engine = engine_for(pathlib.Path(model), EngineOptions(**options))

    def facts(self) -> tuple[dict, bool]:
        return self.engine.description, self.engine.reproducible

    def run(self, shards: list[tuple[int, list[dict]]]):
        requests = [
            (number, [Request(tuple(row["prompt"]), row["seed"], Sampling(**row["sampling"])) for row in rows])
            for number, rows in shards
        ]
        for number, samples in self.engine.run(requests):
            yield number, [asdict(sample) for sample in samples]


@contextlib.contextmanager
def _ray_session(count: int) -> Iterator[None]:
    """The Ray this process is in, the cluster of RAY_ADDRESS, or a private one on loopback that ends with the stage."""
    import ray

    if ray.is_initialized():
        yield
        return
    root = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join(dict.fromkeys([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False)
    else:
        os.environ["PYTHONPATH"] = path
        ray.init(
            address="local",
            num_cpus=count,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    try:
        yield
    finally:
        ray.shutdown()
