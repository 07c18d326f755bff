"""The processes of one RL run: their environment, the Ray they live in, and their end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import ConfigError
from common.processes import end_processes
from common.ray_session import import_path, join_cluster, start_private_ray
from rl_stage.demands import Demand

OBJECT_STORE_BYTES = 500_000_000
WORKER_START_SECONDS = 600  # forks wait for the imports of the server they come from, long on a busy machine
QUEUE = "TransferQueueController"  # the actor that verl's queue is known by, one in a cluster
TURN = "sft_then_rl_turn"  # name and namespace of the actor that the run holds whose turn it is
# What `prepare_environment` sets, for the workers of a cluster that somebody else started.
FORWARDED = (
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "TQ_NUM_THREADS",
    "VERL_PLATFORM",
    "VERL_USE_EXTERNAL_MODULES",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
)


def prepare_environment(settings: Any) -> None:
    """Set what verl, vLLM and Ray read when they are imported, here and in the processes they start."""
    os.environ["PYTHONPATH"] = import_path()
    os.environ.update(settings.platform.env)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("TQ_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    if "RAY_ADDRESS" not in os.environ:
        # Ray's switch for desktop systems: without it a private Ray replaces 127.0.0.1 by the machine's address, and
        # vLLM's server and verl's queue, which know no password, would listen there.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if settings.platform.name == "cpu":
        os.environ["VERL_PLATFORM"] = "cpu"
        os.environ["VERL_USE_EXTERNAL_MODULES"] = "verl_cpu.plugin,rl_stage.skipped_imports"
        # vLLM's CPU backend insists on a worker process of its own otherwise, for thread settings made above.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # Generation and training take turns, so each may have all threads.
        os.environ["OMP_NUM_THREADS"] = str(settings.platform.threads)
        # Ray numbers its logical devices in it and refuses an empty list; the CPU builds of torch and vLLM ignore it.
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        from verl_cpu.plugin import require_active

        require_active()
    if settings.rl.full_determinism:
        os.environ.update(VERL_FULL_DETERMINISM="1", VLLM_BATCH_INVARIANT="1", PYTHONHASHSEED=str(settings.seed))


@contextlib.contextmanager
def verl_session(settings: Any, demand: Demand) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or run a private one on loopback; on leaving end every process started here.

    demand: cores that verl's actors will ask for. Raises ConfigError where the joined cluster has fewer.
    """
    import psutil
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    on_cpu = settings.platform.name == "cpu"
    before = set(psutil.Process().children(recursive=True))
    watch: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    turn: Any = None
    environment = get_ppo_ray_runtime_env()["env_vars"] | {"TRANSFER_QUEUE_ENABLE": "1"}
    if os.environ.get("RAY_ADDRESS"):
        environment |= {name: os.environ[name] for name in (*FORWARDED, *settings.platform.env) if name in os.environ}
        join_cluster(environment=environment, log_to_driver=True)
        require_cores(demand)
        turn = take_turn()
        watch = lost_nodes_raise()
    else:
        # A private Ray inherits this environment: without a runtime environment its workers start at once.
        os.environ.update(environment)
        start_private_ray(
            cpus=demand.total,
            gpus=settings.rl.processes if on_cpu else None,
            object_store_memory=OBJECT_STORE_BYTES if on_cpu else None,
            log_to_driver=True,
            logging_level=logging.INFO,
            _system_config={
                "prestart_worker_first_driver": False,
                "enable_worker_prestart": False,
                **({"worker_register_timeout_seconds": WORKER_START_SECONDS} if on_cpu else {}),
            },
        )
    try:
        with watch:
            yield
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        del turn
        ray.shutdown()
        end_processes(started)
        if on_cpu:
            from verl_cpu.patches import remove_stale_weight_segments

            remove_stale_weight_segments()


@contextlib.contextmanager
def lost_nodes_raise() -> Iterator[None]:
    """While open, the main thread gets a RuntimeError when a node of verl's workers is lost. verl's queue notices by
    itself after ten minutes of waiting for the node's answer."""
    import ray

    ended = threading.Event()
    main = threading.get_ident()
    placed: dict[str, Any] = {}

    def lost(group: Mapping[str, Any]) -> bool:
        if group["state"] == "CREATED":  # Ray moves the bundles of a lost node to another at once
            nodes = group["bundles_to_node_id"]
            return placed.setdefault(group["placement_group_id"], nodes) != nodes
        return group["state"] == "RESCHEDULING"

    def watch() -> None:
        while not ended.wait(2.0):
            groups = ray.util.placement_group_table().values()
            if any(lost(group) for group in groups if "verl_group" in group["name"]):
                signal.pthread_kill(main, signal.SIGUSR1)
                return

    def stop(_number: int, _frame: object) -> None:
        raise RuntimeError("a node of the RL stage was lost")

    previous = signal.signal(signal.SIGUSR1, stop)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGUSR1, previous)


def take_turn(wait: float = 2.0) -> Any:
    """Wait until no other verl run uses the joined cluster; the returned actor keeps others waiting while it lives.

    verl's queue has one fixed name per cluster: a second run would silently train on the first one's rollouts. Says so
    in the log about once a minute. wait: seconds between two looks.
    """
    import ray

    turn: Any = ray.remote(num_cpus=0)(_Turn)
    said = float("-inf")
    while True:
        holder: Any = None
        with contextlib.suppress(ValueError):  # Ray gives a name to one actor only
            holder = turn.options(name=TURN, namespace=TURN).remote()
        if holder is not None:
            ray.get(holder.ready.remote())
            if not _queue_exists():
                return holder
            ray.kill(holder)
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print("waiting for another verl run that uses this Ray cluster (verl allows one at a time)", flush=True)
        time.sleep(wait)


class _Turn:
    """What has the name while a run uses the cluster; Ray ends it with the run's job, however that ends."""

    def ready(self) -> bool:
        return True


def _queue_exists() -> bool:
    from ray.util import list_named_actors

    actors: list[Any] = list_named_actors(all_namespaces=True)
    return any(actor["name"] == QUEUE for actor in actors)


def require_cores(demand: Demand) -> None:
    """Raise ConfigError where the joined cluster has fewer cores than verl reserves, for which Ray would wait."""
    import ray

    cores, wanted = ray.cluster_resources().get("CPU", 0.0), demand.of_node(1)
    if cores < wanted:
        raise ConfigError(
            f"rl.processes={demand.devices}: verl reserves {wanted} cores of the Ray cluster, which has {cores:g}; add "
            "nodes, or start them with more cores (ray start --num-cpus)"
        )
