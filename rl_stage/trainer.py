"""verl's V1 trainer with our measurements around it: no step of its algorithm is changed."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, get_trainer_cls
from verl.utils import tensordict_utils
from verl.utils.dataset.rl_dataset import collate_fn

from common.errors import ConfigError, Paused
from rl_stage.checkpoints import Exports
from rl_stage.config import POLL_SECONDS
from rl_stage.curve import Curve
from rl_stage.handoff import judge_probe
from rl_stage.renewable import RenewableAgentLoopManager, RenewableWorker
from rl_stage.warm import Session
from rl_stage.weight_check import limits_of

# Above this share of failed rewards in one step the reward is broken, and training on its zeros would unteach.
MAX_FAILED_REWARDS = 0.5

# verl's names -> ours, in curve.jsonl.
METRICS = {
    "critic/rewards/mean": "reward",
    "critic/score/mean": "score",
    "response_length/mean": "response_length",
    "response_length/clip_ratio": "response_clipped",
    "actor/entropy": "entropy",
    "actor/pg_loss": "policy_loss",
    "actor/pg_clipfrac": "clip_fraction",
    "actor/pg_clipfrac_lower": "clip_fraction_lower",
    "actor/ppo_kl": "update_kl",
    "actor/kl_loss": "kl",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "lr",
    "training/rollout_probs_diff_max": "probability_difference_max",
    "training/rollout_probs_diff_mean": "probability_difference_mean",
    "training/rollout_actor_probs_pearson_corr": "probability_pearson",
    "training/filter_groups/evicted_samples": "groups_dropped",
}


FRESH = torch.get_rng_state()  # before anything was drawn in this process; the host's, a trainer needs no device
# Attributes of verl's trainer that a later run in the same processes takes over (`rl_stage.warm`).
KEPT = (
    "actor_rollout_wg",
    "checkpoint_manager",
    "distillation_config",
    "llm_server_manager",
    "ref_in_actor",
    "ref_policy_wg",
    "resource_pool_manager",
    "resource_pool_to_cls",
    "role_worker_mapping",
    "teacher_model_manager",
)
USED = ("llm_server_manager", "checkpoint_manager", "actor_rollout_wg")  # of them, to begin anew


def train(
    config: DictConfig,
    settings: Any,
    curve: Curve,
    exports: Exports,
    report: Callable[..., None],
    begin_phase: Callable[[str], None],
    session: Session,
) -> None:
    """verl's own sequence (`verl.trainer.main_ppo.TaskRunnerV1.run`) in this process instead of in a Ray actor, which
    saves a process and lets errors arrive as they are. In a session that has run before, its actors begin anew."""
    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    if session.parts is None:
        # The queue's processes start beside the workers'; the trainer waits for them before it first uses the queue.
        queue_started = in_background(tq.init, config.transfer_queue)
        session.at_end(tq.close)
    else:
        queue_started = empty_queue
    trainer = None
    try:
        given = (config, settings, curve, exports, report, begin_phase, queue_started, session)
        trainer = make_trainer(settings.rl.mode, *given)
        trainer.init()
        clients = (config, trainer.get_llm_client(), trainer.get_teacher_client(), trainer.get_reward_handles())
        manager = agent_loops(session, *clients)
        with contextlib.suppress(Paused):
            trainer.fit(manager)
    finally:
        tracking = getattr(trainer, "logger", None)
        if tracking is not None:
            tracking.finish(exit_code=int(sys.exc_info()[0] is not None))


def agent_loops(session: Session, *clients: Any) -> Any:
    """verl's manager of agent loops, over workers that begin anew where the session has some. clients: verl's
    configuration, the client of its servers, of its teachers, and handles of its reward workers."""
    if session.agent_loops:
        return RenewableAgentLoopManager.renewed(session.agent_loops, *clients)
    manager: Any = (RenewableAgentLoopManager if session.warm else AgentLoopManagerTQ).create(*clients)
    session.agent_loops = manager.agent_loop_workers if session.warm else []
    return manager


def empty_queue() -> None:
    """Take everything out of TransferQueue that a run has left there."""
    for partition, entries in (tq.kv_list() or {}).items():
        if entries:
            tq.kv_clear(keys=list(entries), partition_id=partition)


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


if TYPE_CHECKING:
    from verl.trainer.ppo.v1 import PPOTrainer as _Trainer
else:
    _Trainer = object


def make_trainer(mode: str, *given: Any) -> Any:
    """An instance of verl's trainer for `rl.mode`, with what `_Measured` is given."""
    base: type = get_trainer_cls(mode)
    return type("Trainer", (_Measured, base), {})(*given)


class _Measured(_Trainer):
    """Mixed in before verl's trainer class; reports to `curve`, `exports` and `report`.

    queue_started: returns once TransferQueue is up and empty; called before the trainer uses it. session: whose actors
    it takes over, or to which it leaves its own.
    """

    def __init__(
        self,
        config: Any,
        settings: Any,
        curve: Curve,
        exports: Exports,
        report: Callable[..., None],
        begin_phase: Callable[[str], None],
        queue_started: Callable[[], None],
        session: Session,
    ):
        super().__init__(config)
        self.session = session
        self.settings, self.curve, self.exports = settings, curve, exports
        self.report, self.begin_phase, self.queue_started = report, begin_phase, queue_started
        rl = settings.rl
        # With nucleus sampling vLLM reports renormalised probabilities; an async rollout used older weights.
        comparable = rl.mode == "sync" and rl.top_p == 1.0
        kind = settings.platform.name, settings.model.dtype
        self.limits = limits_of(*kind, lora=rl.lora is not None) if comparable else None
        self.step_began = time.monotonic()
        self.saved_step = -1
        self.data_sources: set[str] = set()  # seen in training

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        if self.session.warm:
            mapping: dict[Any, Any] = self.role_worker_mapping
            for role in mapping:
                mapping[role] = ray.remote(RenewableWorker)

    def _setup(self) -> None:
        if self.session.parts is not None:
            self._renew(self.session.parts)
            return
        if self.session.warm:
            torch.set_rng_state(FRESH)
        super()._setup()
        if self.session.warm:
            self.session.parts = {name: getattr(self, name) for name in KEPT if hasattr(self, name)}

    def _renew(self, parts: Mapping[str, Any]) -> None:
        """verl's `_setup` where actors and engine are there: each is given what its constructor would be given."""
        torch.set_rng_state(FRESH)
        self._init_tokenizer()
        self._init_dataloader()
        self._init_dump_executor()
        for name, value in parts.items():
            setattr(self, name, value)
        servers, checkpoints, workers = (cast(Any, parts[name]) for name in USED)
        servers.config = self.config
        checkpoints.sleep_replicas()
        workers.renew(self.config.actor_rollout_ref)
        workers.init_model()
        self.reward_loop_manager = RewardLoopManager(self.config)
        self._load_checkpoint()

    def _load_checkpoint(self) -> None:
        self.queue_started()
        super()._load_checkpoint()

    def _pause(self) -> None:
        """Raises Paused where the step to come is one after `rl.pause_at`, whose checkpoint is there."""
        if self.settings.rl.pause_at is not None and self.global_steps > self.settings.rl.pause_at:
            raise Paused(f"before step {self.global_steps}")

    def on_step_begin(self) -> None:
        self._pause()
        self.begin_phase(f"step {self.global_steps}")
        self.step_began = time.monotonic()
        super().on_step_begin()

    def on_step_end(self) -> None:
        self.begin_phase(f"weight sync after step {self.global_steps}")
        super().on_step_end()
        if self.global_steps in self.settings.rl.publish_steps:
            self._checkpoint_now()

    def on_train_begin(self) -> None:
        self._pause()
        if self.global_steps == 1 and self.settings.rl.probe.prompts:
            self.begin_phase("the reachability probe")
            rates = self._probe()
            self.curve.add(0, {"probe_pass_rate": sum(rates) / len(rates)})
            judge_probe(rates, self.settings)
        super().on_train_begin()

    def _probe(self) -> list[float]:
        """Pass rates of the first prompts, sampled as in training; uses the engine that is already there."""
        probe, dataset = self.settings.rl.probe, cast(Any, self.train_dataset)
        count = min(probe.prompts, len(dataset))
        rows = collate_fn([dataset[number] for number in range(count)])
        names = [f"probe{number}" for number in range(count)]
        rows["uid"] = np.array(names, dtype=object)
        rows["__rollout_n__"] = np.array([probe.samples] * count, dtype=object)
        batch = tensordict_utils.get_tensordict(rows)
        tensordict_utils.assign_non_tensor_data(batch, "global_steps", 0)
        tags = [{"is_prompt": True, "status": "pending", "global_steps": 0}] * count
        tq.kv_batch_put(keys=names, partition_id="train", tags=tags)
        cast(Any, self.agent_loop_manager).generate_sequences(batch)
        while any(self._status(name) in ("pending", "running") for name in names):
            time.sleep(POLL_SECONDS)
        keys = [key for key in tq.kv_list("train")["train"] if key not in names]
        fields: Any = tq.kv_batch_get(keys=keys, partition_id="train", select_fields=["extra_fields"])
        right: dict[str, list[float]] = {name: [] for name in names}
        for key, field in zip(keys, fields["extra_fields"], strict=True):
            right[key.split("_")[0]].append(getattr(field, "data", field)["reward_extra_info"]["acc"])
        tq.kv_clear(keys=[*keys, *names], partition_id="train")
        return [sum(values) / probe.samples for values in right.values()]

    def _status(self, name: str) -> str:
        return tq.kv_list("train")["train"][name]["status"]

    def on_validate_begin(self) -> None:
        self.begin_phase(f"validation at step {self.global_steps}")
        super().on_validate_begin()

    def _compute_old_log_prob(self, batch: Any, metrics: dict) -> Any:
        batch = super()._compute_old_log_prob(batch, metrics)
        if self.limits is not None:
            self.limits.check(
                self.global_steps,
                mean=metrics["training/rollout_probs_diff_mean"],
                largest=metrics["training/rollout_probs_diff_max"],
                correlation=metrics["training/rollout_actor_probs_pearson_corr"],
            )
        return batch

    def _compute_metrics(self, batch: Any, metrics: dict, timing_raw: dict, global_steps: int, epoch: int) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, global_steps, epoch)
        row = {ours: float(metrics[theirs]) for theirs, ours in METRICS.items() if theirs in metrics}
        rewards = self._reward_metrics(batch)
        metrics.update({f"reward/{name}": value for name, value in rewards.items()})
        row |= rewards
        self.curve.add(global_steps, row)
        self.exports.timing(step=global_steps, seconds=time.monotonic() - self.step_began, **_seconds(timing_raw))
        shown = {name: row[name] for name in ("reward", "pass_rate", "response_length", "entropy") if name in row}
        self.report(global_steps, self.settings.rl.steps, **shown)
        failed = row.get("rewards_failed", 0.0)
        if failed > MAX_FAILED_REWARDS:
            # a reward that fails from the first step on would fail again; later the machine may be to blame
            kind = ConfigError if global_steps == 1 else RuntimeError
            raise kind(
                f"rl.reward.name: {self.settings.rl.reward.name} failed on {failed:.0%} of the responses of step "
                f"{global_steps} (raised, timed out or crashed); its first failures are in the log"
            )
        if global_steps == self.settings.rl.pause_at:
            self._checkpoint_now()  # all of the step is measured

    def _reward_metrics(self, batch: Any) -> dict[str, float]:
        """Means over the step's responses of what our reward function says beside the score.

        With prompts of several sources `pass_rate/<source>` and `score/<source>` too, of the sources in this step.
        """
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        if not keys:
            return {}
        fields: Any = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
        extra = [getattr(field, "data", field) for field in fields["extra_fields"]]
        infos = [field["reward_extra_info"] for field in extra]
        names = {"acc": "pass_rate", "no_answer": "no_answer", "failed": "rewards_failed", "overlong": "overlong"}
        means = {ours: _mean(infos, theirs) for theirs, ours in names.items() if theirs in infos[0]}
        by_source: dict[str, list[Mapping[str, Any]]] = {}
        for field, info in zip(extra, infos, strict=True):
            by_source.setdefault(str(field.get("data_source")), []).append(info)
        self.data_sources |= by_source.keys()
        if len(self.data_sources) > 1:
            for source, found in sorted(by_source.items()):
                means |= {f"pass_rate/{source}": _mean(found, "acc"), f"score/{source}": _mean(found, "score")}
        return means

    def _validate(self) -> dict[str, float]:
        values = super()._validate()
        scores = validation_scores(values)
        self.curve.add(self.global_steps, scores)
        score = scores.get("validation_pass_rate")
        if score is not None and self.global_steps > 0 and self.exports.is_best(self.global_steps, score):
            self._checkpoint_now()
        return values

    def _checkpoint_now(self) -> None:
        if self.saved_step != self.global_steps:
            self._save_checkpoint()
        else:
            self.exports.keep(self.global_steps)  # not wanted when it was saved, before its validation

    def _save_checkpoint(self) -> None:
        self.begin_phase(f"checkpoint at step {self.global_steps}")
        super()._save_checkpoint()
        self.saved_step = self.global_steps
        self.exports.keep(self.global_steps)


def validation_scores(values: Mapping[str, float]) -> dict[str, float]:
    """`validation_pass_rate`, the mean over the data sources, each of which counts the same however many prompts it
    has; with several, `validation_pass_rate/<source>` too. values: verl's validation metrics."""
    rates = {
        name.removeprefix("val-core/").rpartition("/acc/mean@")[0]: float(value)
        for name, value in values.items()
        if name.startswith("val-core/") and "/acc/mean@" in name
    }
    if not rates:
        return {}
    scores = {"validation_pass_rate": sum(rates.values()) / len(rates)}
    if len(rates) > 1:
        scores |= {f"validation_pass_rate/{source}": rate for source, rate in sorted(rates.items())}
    return scores


def _mean(infos: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(info[name]) for info in infos) / len(infos)


def _seconds(timing: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_seconds": round(float(value), 4) for name, value in timing.items() if name != "step"}
