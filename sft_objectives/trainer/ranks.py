"""The processes of an SFT stage, one a device: started on this node or on several, followed until they end.

On several nodes a Ray actor on each, with the node's devices, starts that node's processes. verl's own Ray trainer is
not used: it has no resume of ours to the byte, and its driver would hold the data for all ranks. A rank is the same
program (`python -m sft_objectives.trainer.rank <job.json> <descriptor>`) wherever it runs, with the same numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.ports import free_port, node_address
from common.ray_session import LOOPBACK, import_path, join_cluster

HEARTBEAT = 2.0  # seconds
BAD_CONFIGURATION = 64  # exit status of a rank whose settings or data are wrong
PLACEMENT_SECONDS = 300.0

Poll = tuple[list[dict[str, Any]], list[int | None]]


def node_count(settings: Any) -> int:
    """Nodes that the stage's processes are spread over; ConfigError (one line) if they do not divide evenly."""
    platform, processes = settings.platform, settings.sft.processes
    given = platform.placement.get("sft")
    derived = 1 if platform.nodes == 1 else -(-processes // platform.gpus_per_node)
    nodes = derived if given is None or given.nodes is None else given.nodes
    if processes % nodes:
        raise ConfigError(
            f"sft.processes={processes} does not divide over {nodes} nodes; make it a multiple of {nodes}"
        )
    return nodes


def run_ranks(settings: Any, job: Path, report: Callable[..., None]) -> None:
    """Run all ranks of the job file to their end, passing their progress to `report` every few seconds.

    Several nodes need RAY_ADDRESS and a job file that every node sees. Raises ConfigError with the message of a rank
    that found settings or data wrong, RuntimeError if a rank failed or a node was lost; no rank outlives the call.
    """
    nodes = node_count(settings)
    processes = settings.sft.processes
    environments = [rank_environment(settings, rank, processes // nodes) for rank in range(processes)]
    if nodes == 1:
        ranks = NodeRanks()
        ranks.start(str(job), environments, LOOPBACK, free_port())
        try:
            _follow(lambda: [ranks.poll(HEARTBEAT)], report)
        finally:
            ranks.kill()
    else:
        _run_on_nodes(nodes, str(job), environments, report)


def rank_environment(settings: Any, rank: int, ranks_of_a_node: int) -> dict[str, str]:
    """The environment of a rank, but for its devices and where the ranks meet."""
    local = {"VERL_PLATFORM": "cpu"} if settings.platform.name == "cpu" else {}
    return {
        **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
        **local,
        **settings.platform.env,
        "PYTHONPATH": import_path(),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % ranks_of_a_node),
        "WORLD_SIZE": str(settings.sft.processes),
        "LOCAL_WORLD_SIZE": str(ranks_of_a_node),
    }


class NodeRanks:
    """The ranks of one node, as processes below this one; they end when it does."""

    def __init__(self) -> None:
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._messages = -1
        self._pending = b""

    def meeting_point(self) -> tuple[str, int]:
        """This node's address in its Ray cluster, and a port that is free there."""
        return node_address(), free_port()

    def start(self, job: str, environments: Sequence[Mapping[str, str]], master: str, port: int) -> None:
        """Start a rank for each environment; they meet at `master`:`port`. Devices are those of this process."""
        own = {"MASTER_ADDR": master, "MASTER_PORT": str(port)}
        if master == LOOPBACK:
            own["GLOO_SOCKET_IFNAME"] = "lo"
        if "CUDA_VISIBLE_DEVICES" in os.environ and environments[0].get("VERL_PLATFORM") != "cpu":
            own["CUDA_VISIBLE_DEVICES"] = os.environ["CUDA_VISIBLE_DEVICES"]
        self._messages, write_end = os.pipe()
        for environment in environments:
            self._ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "sft_objectives.trainer.rank", job, str(write_end)],
                    env={**environment, **own},
                    stdin=subprocess.PIPE,  # its end of file tells a rank that this process is gone
                    pass_fds=(write_end,),
                )
            )
        os.close(write_end)

    def poll(self, seconds: float) -> Poll:
        """The ranks' messages, waiting up to `seconds` for some, and their exit statuses (None: still running)."""
        lines: list[bytes] = []
        if self._messages >= 0:
            with selectors.DefaultSelector() as selector:
                selector.register(self._messages, selectors.EVENT_READ)
                if selector.select(seconds):
                    received = os.read(self._messages, 1 << 16)
                    *lines, self._pending = (self._pending + received).split(b"\n")
                    if not received:
                        os.close(self._messages)
                        self._messages = -1
        else:
            time.sleep(0.05)  # every rank has closed its end and is about to exit
        return [json.loads(line) for line in lines], [process.poll() for process in self._ranks]

    def kill(self) -> None:
        """End the ranks that still run."""
        for process in self._ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()
        if self._messages >= 0:
            os.close(self._messages)
            self._messages = -1


def _follow(poll: Callable[[], list[Poll]], report: Callable[..., None]) -> None:
    """Pass messages to `report` until all ranks have ended; raises as soon as one failed."""
    done, total, metrics, refused, cause = 0, 0, {}, None, ""
    while True:
        codes: list[int | None] = []
        for messages, of_node in poll():
            codes += of_node
            for message in messages:
                refused = message.get("refused", refused)
                cause = cause or message.get("failed", "")  # of the first rank; the others lose it and fail after it
                if "done" in message:
                    done, total, metrics = message["done"], message["total"], message["metrics"]
        report(done, total, **metrics)
        if BAD_CONFIGURATION in codes and refused is not None:
            raise ConfigError(refused)
        failed = [code for code in codes if code not in (None, 0)]
        if failed:
            raise RuntimeError(f"an SFT process ended with status {failed[0]}" + (cause and f": {cause}"))
        if None not in codes:
            return


def _run_on_nodes(nodes: int, job: str, environments: Sequence[Mapping[str, str]], report: Callable[..., None]) -> None:
    if "RAY_ADDRESS" not in os.environ:
        raise ConfigError(
            f"sft.processes={len(environments)} needs {nodes} nodes: set RAY_ADDRESS to their Ray cluster"
        )
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    devices = len(environments) // nodes
    join_cluster(environment={"PYTHONPATH": environments[0]["PYTHONPATH"]}, log_to_driver=True)
    hosts: list[Any] = []
    try:
        group = ray.util.placement_group([{"CPU": 1, "GPU": devices}] * nodes, strategy="STRICT_SPREAD")
        deadline = time.monotonic() + PLACEMENT_SECONDS
        while not group.wait(HEARTBEAT):
            report(0, 0)
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cluster had no {nodes} nodes with {devices} free devices each for 5 minutes")
        actor = ray.remote(NodeRanks)
        hosts = [
            actor.options(
                num_cpus=1,
                num_gpus=devices,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote()
            for index in range(nodes)
        ]
        points = ray.get([host.meeting_point.remote() for host in hosts])
        (master, port), addresses = points[0], {address for address, _ in points}
        if len(addresses) == 1:  # Ray nodes on one machine
            master = LOOPBACK
        starts = [
            host.start.remote(job, environments[index * devices : (index + 1) * devices], master, port)
            for index, host in enumerate(hosts)
        ]
        ray.get(starts)
        _follow(lambda: ray.get([host.poll.remote(HEARTBEAT) for host in hosts]), report)
    except RayError as error:
        raise RuntimeError(f"a node of the SFT stage was lost: {' '.join(str(error).split())[-300:]}") from error
    finally:
        with contextlib.suppress(RayError):
            ray.get([host.kill.remote() for host in hosts], timeout=10)
        ray.shutdown()
