"""The stage `rl`: one run of verl's PPO trainer (GRPO, DAPO) from one SFT checkpoint, published as a model artifact."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

PROJECT = pathlib.Path(__file__).resolve().parent.parent
OBJECT_STORE_BYTES = 500_000_000
# Logical cores of a private Ray: verl's actors each reserve one and mostly wait.
LOGICAL_CPUS = 32
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


def run(
    settings: SimpleNamespace,
    inputs: Mapping[str, pathlib.Path],
    output: pathlib.Path,
    scratch: pathlib.Path,
    report: Callable[..., None],
) -> None:
    """Train the policy `inputs["model"]` on `inputs["data"]` and publish checkpoints, curve and metrics in `output`.

    settings: {rl, data, model, platform, seed}. Resumes from the last complete checkpoint in `scratch`. A resumed run
    is a continuation of the same optimization, equal bit for bit only under `rl.full_determinism` without dynamic
    sampling. Raises ValueError for configuration or data that cannot work and for a task that dynamic sampling finds
    saturated, RuntimeError for a failed weight sync, TimeoutError past `rl.step_timeout`.
    """
    began = time.monotonic()
    prepare_environment(settings)
    report(0, settings.rl.steps)
    from rl_stage import handoff
    from rl_stage.config import verl_config
    from rl_stage.rewards import load_reward
    from rl_stage.trainer import Curve, Exports, time_limit

    rl = settings.rl
    scratch.mkdir(parents=True, exist_ok=True)
    load_reward(rl.reward.name, rl.reward.settings)
    handoff.check_model(inputs["model"], settings)
    data = handoff.check_prompts(inputs, settings, scratch)
    config = verl_config(settings, {**inputs, "data": data}, scratch)
    resumed = repair_checkpoints(scratch / "checkpoints", rl.keep_checkpoints)
    curve = Curve(scratch / "curve.jsonl")
    curve.forget_after(resumed)
    exports = Exports(scratch, settings, curve)
    exports.keep(resumed)
    # A kill between the last checkpoint and its validation leaves only the validation to do.
    validated = "validation_pass_rate" in curve.rows.get(rl.steps, {})
    if resumed < rl.steps or not exports.path(rl.steps).exists() or not validated:
        config.trainer.val_before_train = 0 not in curve.rows or resumed == rl.steps
        with ray_session(settings), time_limit(rl.step_timeout) as begin_phase:
            exports.timing(step=resumed, start_seconds=time.monotonic() - began)
            train(config, settings, curve, exports, report, begin_phase)
    publish(settings, inputs, output, scratch, curve, exports)
    report(rl.steps, rl.steps)


def prepare_environment(settings: SimpleNamespace) -> None:
    """Set what verl, vLLM and Ray read when they are imported, here and in the processes they start."""
    paths = [str(PROJECT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
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
        os.environ["VERL_USE_EXTERNAL_MODULES"] = "verl_cpu.plugin,rl_stage.lean"
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
def ray_session(settings: SimpleNamespace) -> Iterator[None]:
    """Join the cluster of RAY_ADDRESS, or run a private one on loopback; on leaving end every process started here."""
    import psutil
    import ray
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    before = set(psutil.Process().children(recursive=True))
    watch: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    environment = get_ppo_ray_runtime_env()["env_vars"] | {"TRANSFER_QUEUE_ENABLE": "1"}
    shared = os.environ.get("RAY_ADDRESS")
    if shared:
        environment |= {name: os.environ[name] for name in (*FORWARDED, *settings.platform.env) if name in os.environ}
        ray.init(address=shared, runtime_env={"env_vars": environment}, log_to_driver=True)
        refuse_second_run()
        watch = lost_nodes_raise()
    else:
        # A private Ray inherits this environment: without a runtime environment its workers start at once.
        os.environ.update(environment)
        start_private_ray(settings)
    try:
        with watch:
            yield
    finally:
        started = set(psutil.Process().children(recursive=True)) - before
        ray.shutdown()
        end_processes(started)
        if settings.platform.name == "cpu":
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


def start_private_ray(settings: SimpleNamespace) -> None:
    """`ray.init` on loopback with logical devices on the CPU platform, tried three times: Ray allows its daemons 30 s,
    which a loaded machine may miss."""
    import psutil
    import ray

    on_cpu = settings.platform.name == "cpu"
    for attempt in range(1, 4):
        before = set(psutil.Process().children(recursive=True))
        try:
            ray.init(
                address="local",
                num_cpus=LOGICAL_CPUS,
                num_gpus=settings.rl.processes if on_cpu else None,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES if on_cpu else None,
                log_to_driver=True,
                _node_ip_address="127.0.0.1",
                _system_config={"prestart_worker_first_driver": False, "enable_worker_prestart": False},
            )
            return
        except Exception as error:
            if attempt == 3 or "timed out during startup" not in str(error):
                raise
            print(f"Ray did not start in time (attempt {attempt} of 3)", file=sys.stderr)
            ray.shutdown()
            end_processes(set(psutil.Process().children(recursive=True)) - before)


def end_processes(processes: Iterable[psutil.Process]) -> None:
    """Kill these processes and wait until they are gone."""
    import psutil

    waiting = list(processes)
    for process in waiting:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(waiting, timeout=10)


def refuse_second_run() -> None:
    """verl's queue has one fixed name per cluster: a second run would silently train on the first one's rollouts."""
    from ray.util import list_named_actors

    actors: list[Any] = list_named_actors(all_namespaces=True)
    if any(actor["name"] == "TransferQueueController" for actor in actors):
        raise RuntimeError(
            "another verl run uses this Ray cluster, and verl allows one at a time: wait for it, or give this stage a "
            "cluster of its own (RAY_ADDRESS)"
        )


def train(config, settings, curve, exports, report, begin_phase) -> None:
    """verl's own sequence (`verl.trainer.main_ppo.TaskRunnerV1.run`) in this process instead of in a Ray actor, which
    saves a process and lets errors arrive as they are."""
    import transfer_queue as tq
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ

    from rl_stage.trainer import make_trainer

    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    # The queue's processes start beside the workers'; the trainer waits for them before it first uses the queue.
    queue_started = in_background(tq.init, config.transfer_queue)
    trainer = None
    try:
        trainer = make_trainer(config, settings, curve, exports, report, begin_phase, queue_started)
        trainer.init()
        manager = AgentLoopManagerTQ.create(
            config=config,
            llm_client=trainer.get_llm_client(),
            teacher_client=trainer.get_teacher_client(),
            reward_loop_worker_handles=trainer.get_reward_handles(),
        )
        trainer.fit(manager)
    finally:
        tracking = getattr(trainer, "logger", None)
        if tracking is not None:
            tracking.finish(exit_code=int(sys.exc_info()[0] is not None))
        tq.close()


def in_background(function: Callable[..., object], *arguments: object) -> Callable[[], None]:
    """Call `function` in a thread that no exit waits for; what is returned waits for its end and raises its error."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function(*arguments)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()

    def wait() -> None:
        thread.join()
        if errors:
            raise errors[0]

    return wait


def repair_checkpoints(directory: pathlib.Path, keep: int) -> int:
    """Make `directory` what verl's resume expects after a kill at any moment; returns the step to resume from, or 0.

    verl writes its tracker file last and not atomically, and deletes only parts of old checkpoints. A checkpoint is
    complete when its data loader's state, written after everything else, is a whole file.
    """
    complete: dict[int, pathlib.Path] = {}
    for path in directory.glob("global_step_*"):
        if zipfile.is_zipfile(path / "data.pt") and (path / "actor" / "huggingface").is_dir():
            complete[int(path.name.removeprefix("global_step_"))] = path
        else:
            shutil.rmtree(path)
    for step in sorted(complete)[:-keep]:
        shutil.rmtree(complete.pop(step))
    tracker = directory / "latest_checkpointed_iteration.txt"
    if not complete:
        tracker.unlink(missing_ok=True)
        return 0
    tracker.write_text(str(max(complete)))
    return max(complete)


def publish(settings, inputs, output, scratch, curve, exports) -> None:
    """Write the model artifact: checkpoints that reload, checkpoints.json, metrics.json, curve.jsonl, timings.jsonl."""
    from rl_stage import handoff

    steps = sorted(exports.wanted())
    for step in steps:
        target = output / "checkpoints" / f"step_{step}"
        handoff.finish_export(exports.path(step), inputs["model"], target)
    best = exports.best_step()
    listing = {"final": settings.rl.steps, "best": best, "steps": steps}
    (output / "checkpoints.json").write_text(json.dumps(listing, indent=1) + "\n")
    last = curve.rows[settings.rl.steps]
    if "validation_pass_rate" not in last:
        raise RuntimeError(f"{inputs['data'] / 'rl_val.parquet'}: no response to it was scored after training")
    metrics = {name: value for name, value in last.items() if name != "step"}
    start = curve.rows.get(0, {}).get("validation_pass_rate")
    if start is not None:
        metrics["validation_pass_rate_before"] = start
        metrics["validation_pass_rate_gain"] = last["validation_pass_rate"] - start
    metrics["prompts_dropped"] = float(json.loads((scratch / "prompts.json").read_text())["dropped"])
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
    shutil.copy(curve.path, output / "curve.jsonl")
    if exports.timings.exists():
        shutil.copy(exports.timings, output / "timings.jsonl")
