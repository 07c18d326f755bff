"""The Ray that places the children of a driver: the cluster of RAY_ADDRESS, or a private one on this machine."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.ray_session import join_cluster, start_private_ray
from launch.execution.environment import PRIVATE_RAY
from launch.graph.plan import Stage


class Refused(ConfigError):
    """The run cannot start as asked; the message names the field and the remedy."""


def start_ray(temporary: str, *, cpus: int, gpus: int) -> None:
    """Starts a Ray for placing children on this machine: loopback, no dashboard, logical devices, files in `temporary`.

    Raises Refused if it does not start.
    """
    # this Ray only places children, and must not kill them when the machine is short of memory
    os.environ.update(RAY_memory_monitor_refresh_ms="0")
    try:
        start_private_ray(
            cpus=cpus, gpus=gpus, object_store_memory=80 * 2**20, configure_logging=False, _temp_dir=temporary
        )
    except RuntimeError as error:
        raise Refused(str(error)) from error


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Keeps SIGTERM from what is started within, and this process's handler of it what it was.

    A signal to a whole process group or control group would otherwise end Ray before the stages that it supervises.
    Ray's daemons and workers start with SIGTERM blocked; the guards of the stages let it through again.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # ray.init sets its own
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def cluster(stages: Iterable[Stage], platform: Any, temporary: str) -> Iterator[None]:
    """Joins the cluster of RAY_ADDRESS, or starts a Ray on this machine with the recipe's logical devices.

    Raises Refused if it cannot.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not os.environ.get("RAY_ADDRESS"):
        # A worker that loses this driver would kill the guard, which is there to end all that is below it.
        os.environ.update(PRIVATE_RAY, RAY_kill_child_processes_on_worker_exit="false")
    import ray

    placements = [stage.placement for stage in stages]
    already = ray.is_initialized()
    if not already and os.environ.get("RAY_ADDRESS"):
        join()
    elif not already:
        if max(placement["nodes"] for placement in placements) > 1:
            raise Refused(f"platform.nodes={platform.nodes}: no Ray cluster; set RAY_ADDRESS")
        # a device's stage takes a core: stages without one have a place beside them, whatever cores there are
        beside = platform.gpus_per_node + 1
        cores = max(os.cpu_count() or 1, beside, *(math.ceil(placement["cpus"]) for placement in placements))
        with shielded():
            start_ray(temporary, cpus=cores, gpus=platform.gpus_per_node)
    try:
        yield
    finally:
        if not already:
            with _ending_who_is_asked():
                ray.shutdown()


@contextlib.contextmanager
def _ending_who_is_asked() -> Iterator[None]:
    """Ends those of Ray's daemons below this process that get a SIGTERM, which they block (`shielded`).

    Once this process has left them: Ray ends a process that loses its raylet, without a word, where its parent is gone
    too, and the shell that started this one may have got the same signal.
    """
    import psutil

    children = [child.pid for child in psutil.Process().children()]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for pid in children if not _is_connected() else ():
                if _asked_to_end(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _is_connected() -> bool:
    """Whether this process has a part in Ray, which `ray.shutdown` ends before the daemons."""
    from ray._private.worker import global_worker

    return hasattr(global_worker, "core_worker")


def _asked_to_end(pid: int) -> bool:
    """Whether a process has a SIGTERM that it blocks."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("ShdPnd:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def join() -> None:
    """Joins the cluster of RAY_ADDRESS. Raises Refused, within 30 s, where no Ray answers there."""
    address = os.environ["RAY_ADDRESS"]
    remedy = "name the address of a running cluster in RAY_ADDRESS, or unset it for a Ray of this run's own"
    if address != "auto":
        problem = _unanswered(address)
        if problem is not None:
            raise Refused(f"RAY_ADDRESS={address}: no Ray cluster answers there ({problem}); {remedy}")
    else:
        from ray._private.services import canonicalize_bootstrap_address

        try:
            found = canonicalize_bootstrap_address(address)
        except Exception:
            found = None
        problem = "none is known on this machine" if found is None else _unanswered(found)
        if problem is not None:
            where = "" if found is None else f" {found}:"
            raise Refused(f"RAY_ADDRESS=auto: no Ray cluster:{where} {problem}; {remedy}")
    try:
        with shielded():
            join_cluster()
    except Exception as error:  # a wrong token, another version of Ray, a cluster that ends meanwhile
        text = " ".join(str(error).split())[:300]
        raise Refused(f"RAY_ADDRESS={address}: this cluster cannot be joined: {text}; {remedy}") from error


ANSWER = 10.0  # seconds that a connection, and then its first answer, may take
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # the greeting and empty settings
_SETTINGS = 4  # type of the frame that a server answers with
_CLUSTER_CALL = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # of the cluster's own port, and of its port for clients
_CLIENT_CALL = "/ray.rpc.RayletDriver/ClusterInfo"
_OTHER = "another program answers"


def _unanswered(address: str) -> str | None:
    """Why what is at `host:port` is no Ray cluster; None if Ray's gRPC server answers there, if only to refuse.

    Ray itself would try for minutes, and then name the address it made of the one given.
    """
    target = address.removeprefix("ray://")
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        return "not an address of the form host:port"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return None
            connection.settimeout(ANSWER)
            connection.sendall(_HTTP2)
            frame = connection.recv(9)
            if len(frame) < 4 or frame[3] != _SETTINGS:
                return _OTHER
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return _unserved(target, _CLIENT_CALL if address.startswith("ray://") else _CLUSTER_CALL)


def _unserved(target: str, call: str) -> str | None:
    """Why a gRPC server has no answer to one of Ray's calls; None if it has, or asks for a token."""
    import grpc

    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=ANSWER)
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
            if code is grpc.StatusCode.UNIMPLEMENTED:
                return _OTHER
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return f"no answer to Ray's requests within {ANSWER:g} s"
    return None


def check_fits(stages: Iterable[Stage]) -> None:
    """Refuses a stage that this cluster could never place; Ray would wait for its devices for ever."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for stage in stages:
        placement = stage.placement
        if not fits(placement, nodes):
            devices = " + ".join(f"{node.get('GPU', 0):g}" for node in nodes)
            raise Refused(
                f"{stage.name} wants {placement['nodes']} x {placement['gpus_per_node']:g} devices and "
                f"{placement['cpus']:g} cores each ({placement['strategy']}); the cluster's nodes have {devices} "
                f"devices; add nodes or change platform.placement.{stage.kind}"
            )


def check_store_is_shared(root_given: str, run: str) -> None:
    """Refuses a store that another node of the cluster cannot see, or that a Ray job would lose."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    root = Path(root_given).expanduser()
    if not root.is_absolute():
        raise Refused(f"run.root={root_given}: on a cluster the store is an absolute path that every node sees")
    probe = root / f".probe-{run}"
    probe.touch()
    try:
        sees = ray.remote(_sees)
        placed = [
            sees.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)) for n in nodes
        ]
        for node, seen in zip(nodes, ray.get([p.remote(str(probe)) for p in placed], timeout=120), strict=True):
            if not seen:
                raise Refused(f"run.root={root_given}: node {node} does not see it; use a shared directory")
    finally:
        probe.unlink(missing_ok=True)


def fits(placement: dict[str, Any], nodes: list[dict[str, float]]) -> bool:
    """Whether nodes with these resources ({"GPU": n, "CPU": n}), all free, hold the placement's bundles."""
    gpus, cpus = placement["gpus_per_node"], placement["cpus"]
    gpus = math.ceil(gpus) if gpus > 1 else gpus

    def capacity(node: dict[str, float]) -> int:
        by_gpus = math.floor(node.get("GPU", 0.0) / gpus + 1e-9) if gpus else placement["nodes"]
        return min(by_gpus, math.floor(node.get("CPU", 0.0) / cpus + 1e-9))

    found = [capacity(node) for node in nodes]
    if placement["strategy"] == "STRICT_PACK":
        return max(found, default=0) >= placement["nodes"]
    if placement["strategy"] == "STRICT_SPREAD":
        return sum(count > 0 for count in found) >= placement["nodes"]
    return sum(found) >= placement["nodes"]


def _sees(path: str) -> bool:
    return Path(path).exists()
