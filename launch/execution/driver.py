"""The driver: runs what a plan lacks on Ray, in dependency order, and can be killed and started again at any moment.

It keeps no state of its own. What is done is in the store; what is being done is a lease in the store; everything else
is worked out anew from the plan. Ray is started or joined only if something has to run.

Devices. Each job (one stage, or several that share one engine) gets a placement group with the stage's `{nodes,
gpus_per_node, cpus, strategy}`; a Ray task on its first bundle runs the supervisor, and the child sees the devices that
Ray gave to that task. A stage that uses Ray itself starts its own Ray inside its bundle when it has one node: the
bundle pays for its devices, whatever it does with them. A stage with more than one node has to join the cluster's Ray
(RAY_ADDRESS in its environment) and make placement groups of its own there, so the driver waits until the bundles fit,
gives them back, starts the child, and asks for no more devices than the rest of the cluster has until that child ends.

What is ready and fits runs now. Stages that share an engine come last and fill what would idle: those that are ready
together run in one child, or in as many as there are free devices for, and where a device idles later, a child that has
much to do gives back what it has not begun.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
import time
from collections import defaultdict
from typing import Any

from common.files import read_json
from launch import stages as stage_kinds
from launch.execution import placements
from launch.execution.claims import Claims
from launch.execution.cluster import Refused, check_fits, check_store_is_shared, cluster
from launch.execution.copies import Copies
from launch.execution.display import Display, print_budget, print_outcome
from launch.execution.entries import entry_of
from launch.execution.jobs import FINISHED, RETRIED, Job, StageProgress, devices, halve
from launch.execution.preconditions import check_disk, check_models
from launch.execution.requests import BEGIN_NO_MORE, STOP, ask
from launch.execution.sharing import Engines, IdleDevices, devices_left, free_places, waits_for_turn
from launch.execution.stopping import abandon, end_without_supervisor, last_resort, signals
from launch.graph.estimate import estimate_plan
from launch.graph.plan import Plan, Stage, plan_key
from launch.store import Store
from launch.store.leases import Heartbeat
from launch.store.ledger import device_hours
from launch.store.pauses import has_paused, pause_of
from launch.store.places import attempt_file
from launch.store.prune import is_pruned, take_away, wanted_again
from launch.store.replica import Replica

CONTINUES = "the same command continues"
LAST_RESORT = 1.5  # seconds of run.grace that the end without Ray takes
PENDING_GROUPS = 16  # placement groups asked for at once; Ray gives them out in the order they were asked for


class Driver:
    """Runs one plan on one store. whole: the plan before selection, whose device-hours count and which `stop` names."""

    def __init__(self, plan: Plan, store: Store, whole: Plan | None = None) -> None:
        self.plan, self.store, self.whole = plan, store, whole or plan
        recipe = plan.branches[0].recipe
        self.limits = recipe.run
        self.platform = recipe.platform
        self.progress = {mark: StageProgress(stage) for mark, stage in plan.stages.items()}
        self.kinds = {kind.name: kind for kind in stage_kinds.in_order(plan.own_stages)}
        self.engines = Engines(self.kinds)
        self.queued: list[Job] = []
        self.running: list[Job] = []
        self.jobs, self.device_seconds = 0, 0.0
        self.stopping, self.looked = "", 0.0
        self.looks, self.idle = placements.Looks(), IdleDevices(placements.free_devices)
        self.devices = 0.0  # of the cluster
        self.copies = None if self.limits.replica is None else Copies(store, Replica(self.limits.replica))

    # --- the whole

    def run(self) -> int:
        begun = time.monotonic()
        again = wanted_again(self.plan.stages, self.store)
        for mark, progress in self.progress.items():
            record = self.store.find(progress.stage)
            if record is not None and mark in again:
                take_away(self.store, progress.stage)
            elif record is None and has_paused(self.store, progress.stage):
                progress.state, progress.message = "paused", f"at step {pause_of(progress.stage)}"
            elif record is not None:
                progress.state = "cached"
                progress.seconds, progress.peak_memory_bytes = record.seconds, record.peak_memory_bytes
                self.store.forget_dead_owner(progress.stage)
                if self.copies is not None and not is_pruned(record):
                    self.copies.push(progress.stage)
        if any(p.state not in ("cached", "paused") for p in self.progress.values()):
            self._make()
        if self.copies is not None:
            with signals(self._ask_to_stop):
                self.copies.finish(lambda: bool(self.stopping) and not self._used_up)
        print_budget(list(self.progress.values()), time.monotonic() - begun)
        return print_outcome(list(self.progress.values()), self.store, self.stopping)

    def _make(self) -> None:
        """Makes what is missing."""
        self.estimates = estimate_plan(self.plan, self.store)
        check_models(self.plan, [p.stage for p in self.progress.values() if p.state not in ("cached", "paused")])
        check_disk(self.plan, self.store, self.estimates)
        self.device_seconds = 3600 * device_hours(self.store.root, self.whole.stages)
        self.temporary = tempfile.mkdtemp(prefix="run-", dir="/tmp")  # Ray's sockets need a short path
        beat = Heartbeat(self.store, self.plan.recipe, self.temporary, plan_key(self.whole))
        try:
            with beat, Display(self.store) as self.display, signals(self._ask_to_stop):
                self.beat = beat
                self.claims = Claims(self.store, beat.run, self.copies, self.kinds, self.display.say)
                grace = max(self.limits.grace - LAST_RESORT, self.limits.grace / 2)
                with (
                    last_resort(grace, self._give_up),
                    cluster(self.plan.stages.values(), self.platform, self.temporary),
                ):
                    self._work()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _work(self) -> None:
        from ray.exceptions import RayError

        try:
            self._look_at_cluster()
            self._loop()
        except RayError as error:
            abandon(self.running, self.store)
            if not self.stopping:
                text = " ".join(str(error).split())[-300:]
                raise Refused(f"the Ray cluster was lost ({text}); {CONTINUES}") from error
            for progress in self.progress.values():
                if progress.state not in FINISHED:
                    progress.state = "stopped"
        finally:
            self.claims.release_all(p.stage for p in self.progress.values())

    def _loop(self) -> None:
        import ray

        while True:
            self._notice_stop()
            self._start_queued()
            for progress in self.progress.values():
                if progress.state == "fetching":
                    self.claims.fetched(progress)
            if not self.stopping or self._used_up:
                self._queue_ready()
            if not self.running and not self.queued:
                if self.stopping and not self._used_up:
                    for progress in self.progress.values():
                        if progress.state not in FINISHED:
                            progress.state = "stopped"
                if all(p.state in FINISHED for p in self.progress.values()):
                    return
            tasks = [job.task for job in self.running]
            if tasks:
                ended, _ = ray.wait(tasks, num_returns=1, timeout=0.05 if self.queued else 0.2)
                for job in list(self.running):
                    if job.task in ended:
                        self._settle(job)
                    else:
                        self._take_published(job)
            else:
                time.sleep(0.02 if self.queued else 0.1)
            for line in self.copies.lines() if self.copies is not None else ():
                self.display.say(line)
            self.display.update(self.progress)

    # --- stopping

    def _ask_to_stop(self, name: str) -> None:
        self.stopping = f"{name}; {CONTINUES}"

    @property
    def _used_up(self) -> bool:
        """Whether only the device-hours are used up: what takes no device goes on."""
        return "max_device_hours" in self.stopping

    def _notice_stop(self) -> None:
        if (not self.stopping or self._used_up) and self.beat.stop_requested():
            self.stopping = f"stopped on request; {CONTINUES}"
        limit = self.limits.max_device_hours
        if not self.stopping and limit is not None:
            now = time.monotonic()
            current = sum((now - job.started) * devices(job.placement) for job in self.running)
            wanting = any(devices(p.stage.placement) for p in self.progress.values() if p.state not in FINISHED)
            if wanting and (self.device_seconds + current) / 3600 >= limit:
                self.stopping = f"run.max_device_hours={limit:g} is used up"
                self._drop([job for job in self.queued if devices(job.placement)])
                ask([job for job in self.running if devices(job.placement)], BEGIN_NO_MORE, self.store)
        elif self.stopping and not self._used_up:
            self._drop(self.queued)
            ask(self.running, STOP, self.store)

    def _drop(self, jobs: list[Job]) -> None:
        for job in list(jobs):
            placements.give_back(job)
            self.queued.remove(job)
            for stage in job.stages:
                self.progress[stage.fingerprint].state = "waiting"
                self.store.release(stage, self.beat.run)

    def _give_up(self) -> None:
        """Ends this process with code 3 and without Ray, which does not answer: its cluster got the same signal."""
        abandon(self.running, self.store)
        self.claims.release_all(p.stage for p in self.progress.values())
        self.store.sign_off(self.beat.run)
        shutil.rmtree(self.temporary, ignore_errors=True)
        print(f"stopped without Ray, which does not answer ({self.stopping or CONTINUES})", flush=True)
        os._exit(3)

    # --- choosing

    def _ready(self) -> list[StageProgress]:
        now = time.monotonic()
        found = []
        for progress in self.progress.values():
            if progress.state not in ("waiting", "held"):
                continue
            states = [self.progress[g.stage].state for g in progress.stage.inputs.values() if g.stage is not None]
            if any(state in ("failed", "blocked") for state in states):
                progress.state, progress.message = "blocked", "an input failed"
            elif "paused" in states:
                progress.state, progress.message = "paused", "an input has paused"
            elif self._used_up and (devices(progress.stage.placement) or "stopped" in states):
                progress.state = "stopped"
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
        sharing = {p.stage.fingerprint: p for p in ready if self.kinds[p.stage.kind].shares(p.stage.settings)}
        for progress in ready:
            if progress.stage.fingerprint in sharing:
                continue
            if len(self.queued) >= PENDING_GROUPS:
                return
            if self.claims.claim(progress):
                self._queue([progress.stage])
        self._queue_sharing(list(sharing.values()))

    def _queue_sharing(self, ready: list[StageProgress]) -> None:
        """Queues stages that can share an engine where they fit at once; the others wait for more of their like."""
        groups: dict[str, list[StageProgress]] = defaultdict(list)
        for progress in ready:
            groups[self.engines.of(progress)].append(progress)
        for engine, members in groups.items():
            count = free_places(engine, members[0].stage.placement, self.devices, [*self.running, *self.queued])
            if not count:
                continue
            claimed = [progress.stage for progress in members if self.claims.claim(progress)]
            ends = [place * len(claimed) // count for place in range(count + 1)]
            for part in (claimed[a:b] for a, b in itertools.pairwise(ends) if b > a):
                self._queue(part)
        if not self.stopping:
            parted = self.idle.share_out(self.running, self.queued, self.devices, time.monotonic())
            ask(parted, BEGIN_NO_MORE, self.store)

    # --- devices

    def _look_at_cluster(self) -> None:
        import ray

        self.cluster = ray.get_runtime_context().gcs_address
        self.devices = ray.cluster_resources().get("GPU", 0.0)
        check_store_is_shared(self.plan.root, self.beat.run)
        check_fits(p.stage for p in self.progress.values() if p.state != "cached")

    def _queue(self, stages: list[Stage]) -> None:
        placement = dict(stages[0].placement)
        if placement["gpus_per_node"] > 1:  # Ray gives out parts of one device, or whole ones
            placement["gpus_per_node"] = math.ceil(placement["gpus_per_node"])
        engine = self.engines.of(self.progress[stages[0].fingerprint])
        turns = self.kinds[stages[0].kind].takes_turns(placement)
        self.queued.append(Job(stages, placement, engine=engine, turns=turns))
        self.looks.changed()
        for stage in stages:
            self.progress[stage.fingerprint].state = "queued"

    def _start_queued(self) -> None:
        for job in list(self.queued) if self.looks.due() else ():
            free = devices_left(self.devices, self.running)
            lent = any(other.lent for other in self.running) and devices(job.placement) > free
            if lent or waits_for_turn(job, self.running):
                # Ray shows devices as free that a child joined to the cluster is about to take
                placements.give_back(job)
                continue
            if placements.granted(job):
                self.queued.remove(job)
                for other in self.queued if job.placement["nodes"] > 1 else ():
                    placements.give_back(other)  # its child takes the devices itself, and no other group may
                self._start(job)

    def _start(self, job: Job) -> None:
        now = time.monotonic()
        entries = []
        for stage in job.stages:
            progress = self.progress[stage.fingerprint]
            progress.waited += now - (progress.ready_since or now)
            progress.state, progress.ready_since = "running", None
            entry = entry_of(progress, self.plan, self.store, self.kinds, self.estimates[stage.fingerprint].flops)
            if entry is None:
                self.store.release(stage, self.beat.run)
                continue
            job.attempts[stage.fingerprint] = progress.attempt
            entries.append(entry)
        job.stages = [entry["stage"] for entry in entries]
        if not job.stages:
            placements.give_back(job)
            return
        self.jobs += 1
        job.tag = f"{self.beat.run}.{self.jobs}"
        description = {
            "root": str(self.store.root),
            "run": self.beat.run,
            "tag": job.tag,
            "stages": entries,
            "cluster": self.cluster if job.placement["nodes"] > 1 else None,
            "temporary": self.temporary,
            "cwd": os.getcwd(),
            "timeout": self.limits.timeout,
            "silence": self.limits.silence,
            "grace": self.limits.grace,
        }
        job.started = now
        placements.start(job, description)
        self.running.append(job)

    # --- ending

    def _settle(self, job: Job) -> None:
        import ray
        from ray.exceptions import RayError

        self.running.remove(job)
        try:
            results = {result["fingerprint"]: result for result in ray.get(job.task)}
        except RayError as error:
            text = " ".join(str(error).split())[-300:]
            results = end_without_supervisor(job, self.store, "lost", f"its node or Ray worker was lost ({text})")
        placements.give_back(job)
        self.looks.changed()
        self.device_seconds += (time.monotonic() - job.started) * devices(job.placement)
        for stage in job.stages:
            self._take(stage, results[stage.fingerprint])
            self.store.release(stage, self.beat.run)

    def _take_published(self, job: Job) -> None:
        """Goes on with what a child of several stages has made already."""
        for stage in list(job.stages) if len(job.attempts) > 1 else ():
            attempt = job.attempts[stage.fingerprint]
            result = read_json(attempt_file(self.store.logs(stage), attempt, "result.json"))
            if result is None:  # a child runs its stages in turn
                return
            if result["outcome"] == "ok":
                job.stages.remove(stage)
                self._take(stage, result)
                self.store.release(stage, self.beat.run)

    def _take(self, stage: Stage, result: dict[str, Any]) -> None:
        """Moves a stage on by the class of its result."""
        progress = self.progress[stage.fingerprint]
        name = stage.name
        outcome, progress.message = result["outcome"], result["message"]
        progress.seconds += result["seconds"]
        progress.peak_memory_bytes = max(progress.peak_memory_bytes, result["peak_memory_bytes"])
        progress.state = "waiting"
        repeated = bool(result.get("traceback")) and result["traceback"] == progress.traceback
        progress.traceback = result.get("traceback", "")
        if outcome == "ok" or self.store.has(stage):
            progress.state = "done"
            if self.copies is not None:
                self.copies.push(stage)
        elif outcome == "paused":
            progress.state = "paused"
        elif "damaged" in result and self.claims.mend(self.progress[result["damaged"]]):
            progress.message = ""
        elif outcome == "unstarted" or (outcome in ("stopped", "lost") and self.stopping):
            pass
        elif outcome == "oom" and not progress.halved and halve(stage.settings, self.kinds[stage.kind]) is not None:
            progress.halved = True
            self.display.say(f"{name}: out of memory ({progress.message}); once more with half the micro-batch")
        elif outcome in RETRIED and progress.faults < self.limits.retries and not (outcome == "fault" and repeated):
            progress.not_before = time.monotonic() + self.limits.backoff * 2**progress.faults
            progress.faults += 1
            count = f"retry {progress.faults} of {self.limits.retries}"
            self.display.say(f"{name}: {outcome}: {progress.message}; {count}")
        else:
            progress.state = "failed"
            again = " (twice in the same place: not tried again)" if outcome == "fault" and repeated else ""
            progress.message = f"{outcome}: {progress.message}{again}"
