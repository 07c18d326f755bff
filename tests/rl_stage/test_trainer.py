"""What our layer over verl's trainer measures and refuses, with verl's part scripted."""

import importlib.util
import json
import pathlib
from types import SimpleNamespace
from typing import ClassVar

import pytest

from common.errors import ConfigError, Paused

# What verl measures in a step, by its names; values are the places in this list.
THEIRS = [
    "critic/rewards/mean",
    "response_length/mean",
    "actor/entropy",
    "actor/pg_clipfrac",
    "actor/pg_clipfrac_lower",
    "actor/ppo_kl",
    "actor/kl_loss",
    "training/rollout_probs_diff_max",
    "training/rollout_probs_diff_mean",
    "training/rollout_actor_probs_pearson_corr",
]


class Scripted:
    """Stands for verl's trainer."""

    difference: ClassVar = {"mean": 2e-7, "max": 3e-6}

    def __init__(self, config):
        self.global_steps = 3

    def _compute_metrics(self, batch, metrics, timing_raw, global_steps, epoch):
        metrics.update({name: float(number) for number, name in enumerate(THEIRS)})

    def _compute_old_log_prob(self, batch, metrics):
        metrics.update({f"training/rollout_probs_diff_{name}": value for name, value in self.difference.items()})
        metrics["training/rollout_actor_probs_pearson_corr"] = 1.0
        return batch


@pytest.fixture
def trainer(tmp_path, monkeypatch, cpu_settings):
    from rl_stage import trainer as module
    from rl_stage.checkpoints import Exports
    from rl_stage.curve import Curve

    monkeypatch.setattr(module, "get_trainer_cls", lambda mode: Scripted)
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def make(**rl):
        settings = cpu_settings(**rl)
        curve = Curve(scratch / "curve.jsonl")
        exports = Exports(scratch, settings, curve)
        return module.make_trainer(
            settings.rl.mode, None, settings, curve, exports, lambda *_, **__: None, lambda phase: None, lambda: None,
            SimpleNamespace(warm=False, parts=None),
        )  # fmt: skip

    return make


def measured(trainer, monkeypatch, infos: list[dict[str, float]], step: int = 3) -> dict[str, float]:
    """verl's metrics after a step whose responses got these rewards; the last key is padding."""
    fields = {"extra_fields": [{"reward_extra_info": info} for info in infos]}

    def get(keys, partition_id, select_fields):
        assert keys == [str(number) for number in range(len(infos))]
        return fields

    monkeypatch.setattr("rl_stage.trainer.tq.kv_batch_get", get)
    names = [str(number) for number in range(len(infos) + 1)]
    tags = [{"is_padding": name == names[-1]} for name in names]
    metrics: dict[str, float] = {}
    batch = SimpleNamespace(keys=names, tags=tags, partition_id="train")
    trainer._compute_metrics(batch, metrics, {"gen": 1.0}, step, 1)
    return metrics


def info(acc: float, failed: float = 0.0, no_answer: float = 0.0) -> dict[str, float]:
    return {"score": acc, "acc": acc, "failed": failed, "no_answer": no_answer}


def test_a_step_writes_every_promised_metric_to_the_curve_and_to_verls_loggers(trainer, monkeypatch):
    trainer = trainer()
    metrics = measured(trainer, monkeypatch, [info(1.0), info(0.0, failed=1.0), info(0.0, no_answer=1.0), info(1.0)])
    assert json.loads(trainer.curve.path.read_text()) == {
        "step": 3,
        "reward": 0.0,
        "response_length": 1.0,
        "entropy": 2.0,
        "clip_fraction": 3.0,
        "clip_fraction_lower": 4.0,
        "update_kl": 5.0,
        "kl": 6.0,
        "probability_difference_max": 7.0,
        "probability_difference_mean": 8.0,
        "probability_pearson": 9.0,
        "pass_rate": 0.5,
        "rewards_failed": 0.25,
        "no_answer": 0.25,
    }
    ours = {name: value for name, value in metrics.items() if name.startswith("reward/")}
    assert ours == {"reward/pass_rate": 0.5, "reward/rewards_failed": 0.25, "reward/no_answer": 0.25}


def test_a_run_pauses_after_a_step_is_measured_saved_and_logged(trainer, monkeypatch):
    trainer = trainer(steps=9, pause_at=3)
    saved = []
    monkeypatch.setattr(trainer, "_checkpoint_now", lambda: saved.append(trainer.global_steps))
    measured(trainer, monkeypatch, [info(1.0)])
    assert saved == [3] and trainer.curve.rows[3]["pass_rate"] == 1.0
    trainer.global_steps += 1  # verl logs the step in between
    with pytest.raises(Paused, match="before step 4"):
        trainer.on_step_begin()
    with pytest.raises(Paused, match="before step 4"):
        trainer.on_train_begin()


def test_a_step_of_mostly_failed_rewards_ends_the_run(trainer, monkeypatch):
    failing = [info(0.0, failed=1.0), info(0.0, failed=1.0), info(1.0)]
    with pytest.raises(RuntimeError, match=r"rl\.reward\.name: has_boxed_answer failed on 67% .* of step 3"):
        measured(trainer(), monkeypatch, failing)
    measured(trainer(), monkeypatch, failing[1:])  # half is not most


def test_a_reward_that_fails_from_the_first_step_on_is_a_wrong_configuration(trainer, monkeypatch):
    failing = [info(0.0, failed=1.0), info(0.0, failed=1.0)]
    with pytest.raises(ConfigError, match=r"rl\.reward\.name: has_boxed_answer failed on 100% .* of step 1"):
        measured(trainer(), monkeypatch, failing, step=1)
    with pytest.raises(RuntimeError):  # later the machine may be to blame
        measured(trainer(), monkeypatch, failing, step=2)


@pytest.mark.parametrize(
    ("difference", "stale"),
    [
        ({"mean": 2e-7, "max": 3e-6}, False),
        ({"mean": 2e-5, "max": 3e-5}, True),
        ({"mean": 2e-7, "max": 2e-3}, True),
        ({"mean": float("nan"), "max": float("nan")}, True),
    ],
)
def test_stale_weights_in_vllm_end_the_run_where_rollouts_are_exact(difference, stale, trainer, monkeypatch):
    monkeypatch.setattr(Scripted, "difference", difference)
    batch = object()
    if stale:
        with pytest.raises(RuntimeError, match=r"weight sync: at step 3 .* vLLM does not serve the trained weights"):
            trainer()._compute_old_log_prob(batch, {})
    else:
        assert trainer()._compute_old_log_prob(batch, {}) is batch
    # Older weights by design, and renormalised probabilities.
    for rl in ({"mode": "colocate_async"}, {"top_p": 0.9}):
        assert trainer(**rl)._compute_old_log_prob(batch, {}) is batch


def test_verl_still_has_every_metric_that_the_curve_renames():
    """The curve leaves out what verl does not report: a metric that verl renames would vanish without a word."""
    from rl_stage.trainer import METRICS

    assert set(THEIRS) <= METRICS.keys()
    spec = importlib.util.find_spec("verl")
    assert spec is not None and spec.submodule_search_locations
    verl = pathlib.Path(spec.submodule_search_locations[0])
    files = ["trainer/ppo/metric_utils.py", "utils/debug/metrics.py", "trainer/ppo/core_algos.py"]
    files += ["workers/utils/losses.py", "workers/engine_workers.py", "workers/engine/fsdp/transformer_impl.py"]
    files += [str(path.relative_to(verl)) for path in (verl / "trainer/ppo/v1").glob("*.py")]
    sources = "".join((verl / file).read_text() for file in files)
    # verl's trainer puts "actor/" before what its workers report.
    missing = [
        name
        for name in METRICS
        if f'"{name}"' not in sources and not (name.startswith("actor/") and f'"{name[6:]}"' in sources)
    ]
    assert missing == []


def of_source(source: str, acc: float) -> dict:
    return {"reward_extra_info": info(acc), "data_source": source}


def step_rows(trainer, monkeypatch, *steps: list[dict]) -> list[dict[str, float]]:
    """Rows of the curve after steps whose responses have these extra fields."""
    for number, fields in enumerate(steps, 1):
        monkeypatch.setattr("rl_stage.trainer.tq.kv_batch_get", lambda fields=fields, **_: {"extra_fields": fields})
        keys = [str(place) for place in range(len(fields))]
        batch = SimpleNamespace(keys=keys, tags=[{}] * len(keys), partition_id="train")
        trainer._compute_metrics(batch, {}, {}, number, 1)
    return [json.loads(line) for line in trainer.curve.path.read_text().splitlines()]


def test_a_step_of_several_sources_is_measured_by_source(trainer, monkeypatch):
    both = [of_source("gsm8k", 1.0), of_source("gsm8k", 0.0), of_source("letters", 1.0)]
    first, second, third = step_rows(
        trainer(), monkeypatch, [of_source("gsm8k", 0.0)], both, [of_source("letters", 0.0)]
    )
    assert not any("/" in name for name in first)  # one source so far: the mean is its own
    assert {name: value for name, value in second.items() if "/" in name} == {
        "pass_rate/gsm8k": 0.5, "score/gsm8k": 0.5, "pass_rate/letters": 1.0, "score/letters": 1.0,
    }  # fmt: skip
    assert second["pass_rate"] == pytest.approx(2 / 3)
    assert {name: value for name, value in third.items() if "/" in name} == {
        "pass_rate/letters": 0.0, "score/letters": 0.0,
    }  # fmt: skip


def test_a_validation_score_is_the_mean_over_the_sources():
    from rl_stage.trainer import validation_scores

    values = {
        "val-core/openai/gsm8k/acc/mean@1": 0.75,
        "val-core/letters/acc/mean@1": 0.25,
        "val-aux/letters/score/mean@1": 9.0,
        "val-core/letters/acc/best@1/mean": 9.0,
    }
    assert validation_scores(values) == {
        "validation_pass_rate": 0.5,
        "validation_pass_rate/letters": 0.25,
        "validation_pass_rate/openai/gsm8k": 0.75,
    }
    assert validation_scores({"val-core/files/acc/mean@1": 0.75}) == {"validation_pass_rate": 0.75}
    assert validation_scores({"val-aux/num_turns/min": 2.0}) == {}
