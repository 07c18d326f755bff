"""Ray as this process needs it: the one it is in, the cluster of RAY_ADDRESS, or a private one on loopback."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from common.processes import end_processes
from common.registry import ROOT
from common.worker_forks.start import workers_from_server

LOOPBACK = "127.0.0.1"
START_TRIES = 3  # Ray gives its daemons 30 s to start, which a loaded machine may miss


def import_path() -> str:
    """PYTHONPATH under which a worker imports the same code as this process."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, given)]))


def start_private_ray(
    *, cpus: int, gpus: int | None = None, environment: Mapping[str, str] | None = None, **options: Any
) -> None:
    """`ray.init` on loopback without a dashboard, tried three times. Within `fork_server` its workers are forks.

    Args:
        cpus: cores it may give out. gpus: devices (logical ones on a CPU); None: those that Ray finds.
        environment: variables of its workers; None: they inherit this process's.
        options: any other argument of ray.init, such as `_temp_dir`.

    Raises:
        RuntimeError: it does not start.
        TimeoutError: a time limit of the caller's passed meanwhile.
    """
    import psutil
    import ray

    runtime: dict[str, Any] = {} if environment is None else {"runtime_env": {"env_vars": dict(environment)}}
    settings = {"log_to_driver": False, "logging_level": logging.ERROR, **runtime, **options}
    for attempt in range(1, START_TRIES + 1):
        before = set(psutil.Process().children(recursive=True))
        try:
            with workers_from_server():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=False,
                    _node_ip_address=LOOPBACK,
                    **settings,
                )
            return
        except Exception as error:
            ray.shutdown()
            # ray.init leaves what it had started
            end_processes(set(psutil.Process().children(recursive=True)) - before)
            if isinstance(error, TimeoutError):  # the caller's own limit, raised out of whatever it waited for
                raise
            if attempt == START_TRIES:
                raise RuntimeError(f"Ray does not start on this machine: {error}") from error
            print(f"Ray did not start in time (attempt {attempt} of {START_TRIES})", file=sys.stderr)


def join_cluster(*, environment: Mapping[str, str] | None = None, log_to_driver: bool = False) -> None:
    """`ray.init` at RAY_ADDRESS; `environment` are variables of this job's workers."""
    import ray

    runtime: dict[str, Any] = {} if environment is None else {"runtime_env": {"env_vars": dict(environment)}}
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=log_to_driver, logging_level=logging.ERROR, **runtime)


@contextlib.contextmanager
def ray_session(cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """The Ray this process is in, the cluster of RAY_ADDRESS, or a private one that ends with the context.

    `environment`: variables of the workers, beside the path under which they import this project.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    variables = {**(environment or {}), "PYTHONPATH": import_path()}
    if os.environ.get("RAY_ADDRESS"):
        join_cluster(environment=variables)
    else:
        start_private_ray(cpus=cpus, environment=variables)
    try:
        yield
    finally:
        ray.shutdown()
