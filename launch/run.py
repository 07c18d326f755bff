"""The driver: runs what a plan lacks on Ray, in dependency order, and can be killed and started again at any moment.

It keeps no state of its own. What is done is in the store; what is being done is a lease in the store; everything else
is worked out anew from the plan. Ray is started or joined only if something has to run.

Devices. Each job (one stage, or several `evaluate` stages that share one engine) gets a placement group with the
stage's `{nodes, gpus_per_node, cpus, strategy}`; a Ray task on its first bundle runs the supervisor
(launch/execution/supervisor.py), and the child sees the devices that Ray gave to that task. A stage that uses Ray
itself (`rl`, `filter`) starts its own Ray inside its bundle when it has one node: the bundle pays for its devices,
whatever it does with them. A stage with more than one node has to join the cluster's Ray (RAY_ADDRESS in its
environment) and make placement groups of its own there, so the driver waits until the bundles fit, gives them back,
starts the child, and asks for no more devices than the rest of the cluster has until that child ends.

`evaluate` stages run last, when every other stage has ended: then the ones with equal settings share one child and with
it one vLLM engine (or as many children as the cluster has devices for).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.estimate import estimate_plan
from launch.execution.display import Display, print_budget
from launch.execution.environment import PRIVATE_RAY
from launch.execution.requests import request_of
from launch.execution.supervisor import supervise
from launch.plan import Plan, Stage
from launch.schema import Run as Limits
from launch.select import select
from launch.store import Corrupt, Store, StoreError
from launch.store.leases import Heartbeat, end_run
from launch.store.records import host
from launch.store.replica import Replica

FINISHED = frozenset({"cached", "done", "failed", "blocked", "stopped"})
RETRIED = frozenset({"fault", "timeout", "hung", "lost", "stopped"})
PENDING_GROUPS = 16  # placement groups asked for at once; Ray gives them out in the order they were asked for
# The runtime field that an out-of-memory attempt halves once, by section.
MICRO_BATCH = {
    "sft": ("tokens_per_micro_batch", "micro_batch_size"),
    "rl": ("tokens_per_micro_batch",),
    "cache": ("tokens_per_batch",),
}


@dataclass
class Progress:
    """What this driver knows of one stage.

    States: waiting, held (by another driver), queued (for devices), running, and the ones in FINISHED.
    """

    stage: Stage
    state: str = "waiting"
    message: str = ""
    faults: int = 0
    halved: bool = False
    salvaged: bool = False
    not_before: float = 0.0
    attempt: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    ready_since: float | None = None
    waited: float = 0.0


@dataclass
class Job:
    """Stages that run in one child, and Ray's handles of it."""

    stages: list[Stage]
    placement: dict[str, Any]
    group: Any = None
    task: Any = None
    lent: float = 0.0
    started: float = 0.0
    attempts: dict[str, int] = field(default_factory=dict)


class Refused(Exception):
    """The run cannot start as asked; the message names the field and the remedy."""


def halve_micro_batch(settings: dict[str, Any]) -> dict[str, Any] | None:
    """A copy of a stage's settings with its micro-batch halved, or None if it has none above 1. Changes no identity."""
    for section, names in MICRO_BATCH.items():
        if section in settings and any(settings[section][name] > 1 for name in names):
            smaller = {name: max(1, settings[section][name] // 2) for name in names}
            return {**settings, section: {**settings[section], **smaller}}
    return None


def run(plan: Plan) -> int:
    """Runs every stage of the plan that the store lacks, then writes the report.

    With `selection.fields` it goes twice: the candidates' SFT first, then what the best of them need. Returns 0 when
    everything is done, 1 when a stage failed (others that could run have run), 3 when it was stopped (SIGTERM, `launch
    stop`, run.max_device_hours) and the same command continues.
    """
    store = Store(plan.root)
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        clean_up(store)
        code, undecided = 0, None
        while code == 0 and undecided != 0:
            selected = select(plan, store)
            if len(selected.undecided) == undecided:
                raise Refused("selection: the candidates are trained and yet undecided; see `launch status`")
            undecided = len(selected.undecided)
            code = _Driver(selected.plan, store).run()
    except (StoreError, Refused) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from launch.report import write_report

    return max(code, write_report(plan)) if code != 3 else code


def stop(plan: Plan) -> int:
    """Asks every living driver of this recipe to stop its stages and leave, and waits. Returns 1 if none runs."""
    store = Store(plan.root)
    drivers = [d for d in store.list_drivers() if d.recipe == plan.recipe and store.alive(d.run)]
    if not drivers:
        print(f"no run of {plan.recipe} is alive in {store.root}")
        return 1
    for driver in drivers:
        (store.drivers / f"{driver.run}.stop").touch()
        print(f"asked {driver.host} process {driver.pid} to stop; stages end within run.grace")
    while any(store.alive(driver.run) for driver in drivers):
        time.sleep(0.2)
    return 0


def start_ray(temporary: str, *, cpus: int, gpus: int) -> None:
    """Starts a Ray for placing children on this machine: loopback, no dashboard, logical devices, files in `temporary`.

    Ray gives its node 30 s to register, which a machine busy with other work can miss, so it is tried three times.
    Raises Refused after that.
    """
    import ray

    # this Ray only places children, and must not kill them when the machine is short of memory
    os.environ.update(RAY_memory_monitor_refresh_ms="0")
    for attempt in (1, 2, 3):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=80 * 2**20,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                _temp_dir=temporary,
                _node_ip_address="127.0.0.1",
            )
            return
        except Exception as error:
            ray.shutdown()
            _end_children(temporary)  # ray.init leaves what it had started
            if attempt == 3:
                raise Refused(f"Ray does not start on this machine: {error}") from error


def _end_children(temporary: str) -> None:
    """Kills this process's descendants whose command line names the directory."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(temporary in word for word in process.cmdline()):
                process.kill()
                process.wait(5)


def clean_up(store: Store) -> None:
    """Ends and removes what dead drivers of this host left: processes, temporary directories, their sign-on."""
    for driver in store.list_drivers():
        if driver.host == host() and not store.alive(driver.run):
            end_run(driver.run)
            shutil.rmtree(driver.temporary, ignore_errors=True)
            store.sign_off(driver.run)


class _Driver:
    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan, self.store = plan, store
        recipe = plan.branches[0].recipe
        self.limits: Limits = recipe.run
        self.platform = recipe.platform
        self.progress = {mark: Progress(stage) for mark, stage in plan.stages.items()}
        self.users: dict[str, list[str]] = defaultdict(list)
        for mark, stage in plan.stages.items():
            for given in stage.inputs.values():
                if given.stage is not None:
                    self.users[given.stage].append(mark)
        self.queued: list[Job] = []
        self.running: list[Job] = []
        self.jobs = 0
        self.device_seconds = 0.0
        self.stopping = ""
        self.looked = 0.0
        self.devices = 0.0  # of the cluster
        self.replica = None if self.limits.replica is None else Replica(self.limits.replica)

    # --- the whole

    def run(self) -> int:
        begun = time.monotonic()
        for progress in self.progress.values():
            record = self.store.find(progress.stage)
            if record is not None:
                progress.state = "cached"
                progress.seconds, progress.peak_memory_bytes = record.seconds, record.peak_memory_bytes
                self.store.forget_dead_owner(progress.stage)
                self._push(progress.stage)
        missing = [p for p in self.progress.values() if p.state != "cached"]
        if missing:
            self.flops = {mark: estimate.flops for mark, estimate in estimate_plan(self.plan, self.store).items()}
            temporary = tempfile.mkdtemp(prefix="run-", dir="/tmp")  # Ray's sockets need a short path
            try:
                with (
                    Heartbeat(self.store, self.plan.recipe, temporary) as beat,
                    Display(self.store) as self.display,
                ):
                    self.beat = beat
                    with self._ray(temporary), self._signals():
                        self._loop()
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        print_budget(list(self.progress.values()), time.monotonic() - begun)
        states = [p.state for p in self.progress.values()]
        for progress in self.progress.values():
            if progress.state == "failed":
                print(f"failed: {progress.stage.kind} {progress.stage.label}: {progress.message}")
                print(f"  log: {self.store.logs(progress.stage) / 'latest'}")
        counts = {
            state: states.count(state)
            for state in ("cached", "done", "failed", "blocked", "stopped")
            if state in states
        }
        print(
            ", ".join(f"{count} {state}" for state, count in counts.items())
            + (f" ({self.stopping})" if self.stopping else "")
        )
        if "failed" in states:
            return 1
        return 3 if self.stopping and "stopped" in states else 0

    def _loop(self) -> None:
        import ray

        while True:
            self._notice_stop()
            self._start_queued()
            if not self.stopping:
                self._queue_ready()
            if not self.running and not self.queued:
                if self.stopping:
                    for progress in self.progress.values():
                        if progress.state not in FINISHED:
                            progress.state = "stopped"
                if all(p.state in FINISHED for p in self.progress.values()):
                    return
            tasks = [job.task for job in self.running]
            if tasks:
                ended, _ = ray.wait(tasks, num_returns=1, timeout=0.05 if self.queued else 0.2)
                for job in [job for job in self.running if job.task in ended]:
                    self._settle(job)
            else:
                time.sleep(0.02 if self.queued else 0.1)
            self.display.update(self.progress)

    def _notice_stop(self) -> None:
        winding_down = not self.stopping or "max_device_hours" in self.stopping
        if winding_down and self.beat.stop_requested():
            self.stopping = "stopped on request; the same command continues"
        limit = self.limits.max_device_hours
        if not self.stopping and limit is not None:
            now = time.monotonic()
            current = sum((now - job.started) * _devices(job.placement) for job in self.running)
            if (self.device_seconds + current) / 3600 >= limit:
                self.stopping = f"run.max_device_hours={limit:g} is used up"
                self._drop_queued()
        elif self.stopping and "max_device_hours" not in self.stopping:
            self._drop_queued()
            for job in self.running:
                for stage in job.stages:
                    (self.store.logs(stage) / f"attempt-{job.attempts[stage.fingerprint]}.stop").touch()

    def _drop_queued(self) -> None:
        for job in self.queued:
            self._remove(job)
            for stage in job.stages:
                self.progress[stage.fingerprint].state = "waiting"
                self.store.release(stage, self.beat.run)
        self.queued = []

    # --- choosing

    def _ready(self) -> list[Progress]:
        now = time.monotonic()
        found = []
        for progress in self.progress.values():
            if progress.state not in ("waiting", "held"):
                continue
            states = [self.progress[g.stage].state for g in progress.stage.inputs.values() if g.stage is not None]
            if any(state in ("failed", "blocked") for state in states):
                progress.state, progress.message = "blocked", "an input failed"
            elif now >= progress.not_before and all(state in ("done", "cached") for state in states):
                found.append(progress)
        return found

    def _queue_ready(self) -> None:
        ready = self._ready()
        now = time.monotonic()
        if any(p.state == "held" for p in ready):
            if now - self.looked < 1.0:
                ready = [p for p in ready if p.state != "held"]
            else:
                self.looked = now
        first = [p for p in ready if p.stage.kind != "evaluate"]
        for progress in first:
            if len(self.queued) >= PENDING_GROUPS:
                return
            if self._claim(progress):
                self._queue([progress.stage])
        unfinished = any(p.stage.kind != "evaluate" and p.state not in FINISHED for p in self.progress.values())
        if unfinished:
            return
        groups: dict[str, list[Stage]] = defaultdict(list)
        for progress in ready:
            if progress.stage.kind == "evaluate" and self._claim(progress):
                settings = {**progress.stage.settings, "halved": progress.halved, "placement": progress.stage.placement}
                groups[json.dumps(settings, sort_keys=True)].append(progress.stage)
        for stages in groups.values():
            room = self._room(stages[0].placement)
            size = math.ceil(len(stages) / room)
            for start in range(0, len(stages), size):
                self._queue(stages[start : start + size])

    def _room(self, placement: dict[str, Any]) -> int:
        """How many jobs of this placement the whole cluster takes at once."""
        wanted = _devices(placement)
        return max(1, int(self.devices // wanted)) if wanted else 1

    def _claim(self, progress: Progress) -> bool:
        stage = progress.stage
        if not self.store.acquire(stage, self.beat.run):
            progress.state, progress.message = "held", "another run makes it"
            return False
        try:
            found = self.store.find(stage)  # another run may have made it since we looked
        except Corrupt as error:
            progress.state, progress.message = "failed", str(error)
            found = None
        if found is not None:
            progress.state, progress.seconds, progress.peak_memory_bytes = (
                "cached",
                found.seconds,
                found.peak_memory_bytes,
            )
        if progress.state in FINISHED:
            self.store.release(stage, self.beat.run)
            return False
        if self.replica is not None and self._pull(stage, progress):
            self.store.release(stage, self.beat.run)
            return False
        progress.ready_since = progress.ready_since or time.monotonic()
        return True

    def _salvage(self, progress: Progress) -> bool:
        """Has a damaged reference cache made again from its whole shards, once a run; False if that cannot be."""
        if progress.salvaged:
            return False
        damaged = self.store.take_apart(progress.stage, self.beat.run, _mend_cache)
        if damaged is None:
            return False
        progress.salvaged, progress.state = True, "waiting"
        self.display.say(f"cache {progress.stage.label}: damaged; computing {damaged} again")
        return True

    def _push(self, stage: Stage) -> None:
        """Copies an artifact to the replica; a failure costs the copy only, and the next run tries again."""
        if self.replica is None:
            return
        try:
            self.replica.push(self.store, stage)
        except (StoreError, OSError) as error:
            print(f"{stage.kind} {stage.label} was not copied to {self.replica.url}: {error}", flush=True)

    def _pull(self, stage: Stage, progress: Progress) -> bool:
        """Takes a stage's artifact from the replica; a damaged one is said and made again."""
        assert self.replica is not None
        try:
            record = self.replica.pull(self.store, stage, self.beat.run)
        except Corrupt as error:
            self.display.say(str(error))
            return False
        if record is None:
            return False
        progress.state, progress.seconds = "cached", record.seconds
        progress.peak_memory_bytes = record.peak_memory_bytes
        self.display.say(f"{stage.kind} {stage.label} taken from {self.replica.url}")
        return True

    # --- devices

    @contextlib.contextmanager
    def _ray(self, temporary: str) -> Iterator[None]:
        """Joins the cluster of RAY_ADDRESS, or starts a Ray on this machine with the recipe's logical devices."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        if "RAY_ADDRESS" not in os.environ:
            # A worker that loses this driver would kill the guard, which is there to end all that is below it.
            os.environ.update(PRIVATE_RAY, RAY_kill_child_processes_on_worker_exit="false")
        import ray

        already = ray.is_initialized()
        wanted_nodes = max(stage.placement["nodes"] for stage in self.plan.stages.values())
        if not already and os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        elif not already:
            if wanted_nodes > 1:
                raise Refused(f"platform.nodes={self.platform.nodes}: no Ray cluster; set RAY_ADDRESS")
            cores = max(
                os.cpu_count() or 1, *(math.ceil(stage.placement["cpus"]) for stage in self.plan.stages.values())
            )
            start_ray(temporary, cpus=cores, gpus=self.platform.gpus_per_node)
        try:
            self.cluster = ray.get_runtime_context().gcs_address
            self.temporary = temporary
            self.devices = ray.cluster_resources().get("GPU", 0.0)
            self._check_store_is_shared()
            self._check_fits([node["Resources"] for node in ray.nodes() if node["Alive"]])
            yield
        finally:
            if not already:
                ray.shutdown()

    def _check_fits(self, nodes: list[dict[str, float]]) -> None:
        """Refuses a stage that this cluster could never place; Ray would wait for its devices for ever."""
        for progress in self.progress.values():
            placement = progress.stage.placement
            if progress.state != "cached" and not fits(placement, nodes):
                devices = " + ".join(f"{node.get('GPU', 0):g}" for node in nodes)
                raise Refused(
                    f"{progress.stage.kind} {progress.stage.label} wants {placement['nodes']} x "
                    f"{placement['gpus_per_node']:g} devices and {placement['cpus']:g} cores each "
                    f"({placement['strategy']}); the cluster's nodes have {devices} devices; add nodes or change "
                    f"platform.placement.{progress.stage.kind}"
                )

    def _check_store_is_shared(self) -> None:
        """Refuses a store that another node of the cluster cannot see, or that a Ray job would lose."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        if len(nodes) == 1 and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            return
        root = Path(self.plan.root).expanduser()
        if not root.is_absolute():
            raise Refused(f"run.root={self.plan.root}: on a cluster the store is an absolute path that every node sees")
        probe = root / f".probe-{self.beat.run}"
        probe.touch()
        try:
            sees = ray.remote(_sees)
            placed = [
                sees.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False))
                for n in nodes
            ]
            for node, seen in zip(nodes, ray.get([p.remote(str(probe)) for p in placed], timeout=120), strict=True):
                if not seen:
                    raise Refused(f"run.root={self.plan.root}: node {node} does not see it; use a shared directory")
        finally:
            probe.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM (Slurm, spot) and SIGINT end the stages with grace; set after ray.init, which sets its own."""

        def ask(number: int, _: object) -> None:
            self.stopping = f"{signal.Signals(number).name}; the same command continues"

        before = {}
        with contextlib.suppress(ValueError):  # not in the main thread
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _queue(self, stages: list[Stage]) -> None:
        placement = dict(stages[0].placement)
        if placement["gpus_per_node"] > 1:  # Ray gives out parts of one device, or whole ones
            placement["gpus_per_node"] = math.ceil(placement["gpus_per_node"])
        self.queued.append(Job(stages, placement))
        for stage in stages:
            self.progress[stage.fingerprint].state = "queued"

    def _remove(self, job: Job) -> None:
        import ray

        if job.group is not None:
            ray.util.remove_placement_group(job.group)
            job.group = None

    def _reserve(self, placement: dict[str, Any]) -> Any:
        import ray

        bundle = {"CPU": placement["cpus"]}
        if placement["gpus_per_node"]:
            bundle["GPU"] = placement["gpus_per_node"]
        bundles = [dict(bundle) for _ in range(placement["nodes"])]
        return ray.util.placement_group(bundles, strategy=placement["strategy"])

    def _start_queued(self) -> None:
        for job in list(self.queued):
            held = sum(_devices(other.placement) for other in self.running)
            if any(other.lent for other in self.running) and _devices(job.placement) > self.devices - held:
                # Ray shows devices as free that a child joined to the cluster is about to take
                self._remove(job)
                continue
            if job.group is None:
                job.group = self._reserve(job.placement)
            if job.group.wait(0.001):
                self.queued.remove(job)
                if job.placement["nodes"] > 1:  # its child takes the devices itself, and they are not for another group
                    for other in self.queued:
                        self._remove(other)
                self._start(job)

    def _start(self, job: Job) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        now = time.monotonic()
        entries = []
        for stage in job.stages:
            progress = self.progress[stage.fingerprint]
            progress.waited += now - (progress.ready_since or now)
            progress.state, progress.ready_since = "running", None
            settings = stage.settings
            if progress.halved:
                settings = halve_micro_batch(stage.settings) or stage.settings
            inputs, verify = {}, []
            for name, given in stage.inputs.items():
                if given.stage is None:
                    assert given.path is not None
                    inputs[name] = given.path
                    continue
                directory = self.store.directory(self.plan.stages[given.stage])
                try:
                    inputs[name] = self.store.select(directory, given.select)
                except ValueError as error:
                    progress.state, progress.message = "failed", f"config: input {name}: {error}"
                    break
                below = "" if inputs[name] == directory else str(inputs[name].relative_to(directory))
                verify.append((str(directory), given.stage, below))
            if progress.state == "failed":
                self.store.release(stage, self.beat.run)
                continue
            attempt = self.store.begin(stage)
            progress.attempt = job.attempts[stage.fingerprint] = attempt
            request = request_of(stage, attempt, self.store, inputs, settings)
            entries.append(
                {
                    "stage": stage,
                    "attempt": attempt,
                    "request": str(request),
                    "verify": verify,
                    "flops": self.flops[stage.fingerprint],
                }
            )
        job.stages = [entry["stage"] for entry in entries]
        if not job.stages:
            self._remove(job)
            return
        self.jobs += 1
        joins = job.placement["nodes"] > 1
        description = {
            "root": str(self.store.root),
            "run": self.beat.run,
            "tag": f"{self.beat.run}.{self.jobs}",
            "stages": entries,
            "cluster": self.cluster if joins else None,
            "temporary": self.temporary,
            "cwd": os.getcwd(),
            "timeout": self.limits.timeout,
            "silence": self.limits.silence,
            "grace": self.limits.grace,
        }
        resources: dict[str, Any] = {"num_cpus": 0}
        if joins:
            self._remove(job)
            job.lent = _devices(job.placement)
        else:
            strategy = PlacementGroupSchedulingStrategy(job.group, placement_group_bundle_index=0)
            resources = {
                "num_cpus": job.placement["cpus"],
                "num_gpus": job.placement["gpus_per_node"],
                "scheduling_strategy": strategy,
            }
        job.task, job.started = ray.remote(supervise).options(max_retries=0, **resources).remote(description), now
        self.running.append(job)

    # --- ending

    def _settle(self, job: Job) -> None:
        import ray
        from ray.exceptions import RayError

        self.running.remove(job)
        try:
            results = {result["fingerprint"]: result for result in ray.get(job.task)}
        except RayError as error:
            results = {}
            text = " ".join(str(error).split())[-300:]
            for stage in job.stages:
                seconds = time.monotonic() - job.started
                lost = {"outcome": "lost", "message": f"its node or Ray worker was lost ({text})", "seconds": seconds}
                results[stage.fingerprint] = {"fingerprint": stage.fingerprint, "peak_memory_bytes": 0, **lost}
                if self.store.find(stage) is None:
                    self.store.finish(stage, job.attempts[stage.fingerprint], lost)
        self._remove(job)
        self.device_seconds += (time.monotonic() - job.started) * _devices(job.placement)
        for stage in job.stages:
            self._take(stage, results[stage.fingerprint])
            self.store.release(stage, self.beat.run)

    def _take(self, stage: Stage, result: dict[str, Any]) -> None:
        """Moves a stage on by the class of its result."""
        progress = self.progress[stage.fingerprint]
        name = f"{stage.kind} {stage.label}"
        outcome, progress.message = result["outcome"], result["message"]
        progress.seconds += result["seconds"]
        progress.peak_memory_bytes = max(progress.peak_memory_bytes, result["peak_memory_bytes"])
        progress.state = "waiting"
        if outcome == "ok" or self.store.has(stage):
            progress.state = "done"
            self._push(stage)
        elif "damaged" in result and self._salvage(self.progress[result["damaged"]]):
            progress.message = ""
        elif outcome == "unstarted" or (outcome in ("stopped", "lost") and self.stopping):
            pass
        elif outcome == "oom" and not progress.halved and halve_micro_batch(stage.settings) is not None:
            progress.halved = True
            self.display.say(f"{name}: out of memory ({progress.message}); once more with half the micro-batch")
        elif outcome in RETRIED and progress.faults < self.limits.retries:
            progress.not_before = time.monotonic() + self.limits.backoff * 2**progress.faults
            progress.faults += 1
            count = f"retry {progress.faults} of {self.limits.retries}"
            self.display.say(f"{name}: {outcome}: {progress.message}; {count}")
        else:
            progress.state = "failed"
            progress.message = f"{outcome}: {progress.message}"


def fits(placement: dict[str, Any], nodes: list[dict[str, float]]) -> bool:
    """Whether nodes with these resources ({"GPU": n, "CPU": n}), all free, hold the placement's bundles."""
    gpus, cpus = placement["gpus_per_node"], placement["cpus"]
    gpus = math.ceil(gpus) if gpus > 1 else gpus

    def room(node: dict[str, float]) -> int:
        by_gpus = math.floor(node.get("GPU", 0.0) / gpus + 1e-9) if gpus else placement["nodes"]
        return min(by_gpus, math.floor(node.get("CPU", 0.0) / cpus + 1e-9))

    rooms = [room(node) for node in nodes]
    if placement["strategy"] == "STRICT_PACK":
        return max(rooms, default=0) >= placement["nodes"]
    if placement["strategy"] == "STRICT_SPREAD":
        return sum(found > 0 for found in rooms) >= placement["nodes"]
    return sum(rooms) >= placement["nodes"]


def _devices(placement: dict[str, Any]) -> float:
    return placement["nodes"] * placement["gpus_per_node"]


def _sees(path: str) -> bool:
    return Path(path).exists()


def _mend_cache(artifact: Path, scratch: Path) -> str:
    from data_prep.reference_cache import salvage

    return ", ".join(salvage(artifact, scratch)) or "no shard"
