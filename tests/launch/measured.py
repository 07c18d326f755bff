"""Hand-made artifacts of measured models and of training, and plans over them."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import toy

from evaluation.artifact import OUTCOMES, write_metrics
from evaluation.statistics import bootstrap, pass_at_k
from launch.graph.model import BranchModel
from launch.graph.plan import Branch
from launch.store import Store

PROBLEMS, SAMPLES = 12, 4
BEFORE = {"target": [1, 2, 0, 1, 2, 3, 1, 0, 2, 1, 1, 2], "sorting": [4] * PROBLEMS, "dates": [2] * PROBLEMS}
AFTER = {"target": [3, 4, 2, 3, 4, 4, 3, 1, 4, 3, 2, 4], "sorting": [3] * PROBLEMS, "dates": [2] * PROBLEMS}
MEASURED = (*BEFORE, "held_out")


def estimate(values):
    return vars(bootstrap(values, seed=0, resamples=200, proportion=max(values) <= 1))


def measure(folder, name, counts=None, reproducible=True, base_minimum=None):
    """A `measure` artifact of a benchmark, from the number of correct samples of each problem, or of held-out chats.

    The greedy response is the majority.
    """
    engine = {"vllm": "0", "dtype": "float32", "max_length": 64, "reproducible": reproducible}
    facts = {"engine": engine, "base_minimum": base_minimum, "name": name, "protocol": {}}
    if counts is None:
        facts |= {
            "kind": "held_out",
            "counts": {"chats": 9, "chats_too_long": 0, "tokens": 90},
            "metrics": {"entropy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}},
            "entropy_histogram": {
                "edges": [0.0, 1.0],
                "shares": [{"value": value, "low": 0.2, "high": 0.8, "n": 9} for value in (0.25, 0.75)],
            },
        }
    else:
        metrics = {"ungraded": estimate([0.0] * len(counts)), "self_bleu": estimate([50.0 + c for c in counts])}
        metrics |= {f"pass@{k}": estimate([pass_at_k(SAMPLES, c, k) for c in counts]) for k in (1, 2, 4)}
        sizes = {"problems": len(counts), "responses": 5 * len(counts), "grading": {}}
        facts |= {"kind": "benchmark", "counts": sizes, "metrics": metrics}
        _outcomes(folder, counts)
    write_metrics(folder, facts)


def _outcomes(folder, counts):
    rows = []
    for problem, count in enumerate(counts):
        verdicts = [("sampled", index, index < count) for index in range(SAMPLES)]
        verdicts.append(("greedy", 0, count > SAMPLES // 2))
        for mode, sample, correct in verdicts:
            row = {"id": str(problem), "mode": mode, "sample": sample, "correct": correct}
            rows.append(dict.fromkeys(OUTCOMES.names) | row)
    pq.write_table(pa.Table.from_pylist(rows, OUTCOMES), folder / "outcomes.parquet")


def publish(store, stage, write, seconds=10.0, peak=2_000_000_000):
    store.acquire(stage, "run")
    attempt = store.begin(stage)
    write(store.temporary(stage, attempt))
    store.publish(stage, attempt, "run", started=0.0, seconds=seconds, peak_memory_bytes=peak)
    store.finish(stage, attempt, {"outcome": "ok", "message": "", "seconds": seconds})
    store.release(stage, "run")


def curve(metric):
    def write(folder):
        rows = [{"step": step, metric: 1.0 / step} for step in range(1, 6)]
        (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def measures(model, label, names=MEASURED):
    """A `measure` stage of each name: `<label>.<name>` reads the model's stage (None: the base)."""
    inputs = {} if model is None else {"model": model}
    return {name: toy.steps(f"{label}.{name}", "measure", inputs=inputs) for name in names}


def branch_of(name, overrides, recipe, models):
    """A branch from (name, phase, start, role, the stage that made it, its measures) of every model, and the step where
    it is not the last one; and its stages."""
    stages, made = {}, []
    for model, phase, start, role, stage, measured, *step in models:
        if stage is not None:
            stages[role] = stage
        stages |= {f"measure:{model}:{of}": one for of, one in measured.items()}
        marks = {of: one.fingerprint for of, one in measured.items()}
        made.append(BranchModel(model, phase, start, role, marks, *step))
    roles = {role: stage.fingerprint for role, stage in stages.items()}
    return Branch(name, overrides, recipe, roles, made), list(stages.values())


def experiment(root, *, seeds=(0,), objectives=("dft",), rl=True, names=MEASURED, lrs=(None,), selection=None):
    """The base, and per objective, learning rate and seed: SFT, RL, and the measures of each. Nothing is published."""
    base = measures(None, "base", names)
    recipe = toy.plan(root).branches[0].recipe
    if selection is not None:
        recipe = recipe.model_copy(update={"selection": selection})
    branches, stages = [], [*base.values()]
    for objective in objectives:
        for lr in lrs:
            for seed in seeds:
                given = {} if lr is None else {"lr": lr}
                sft = toy.stage("steps", objective, "sft", seed=seed, **given)
                models = [
                    ("base", "base", None, None, None, base),
                    ("sft", "sft", None, "sft", sft, measures(sft, objective, names)),
                ]
                if rl:
                    tuned = toy.stage("steps", objective, "rl", inputs={"model": sft}, seed=seed, **given)
                    after = measures(tuned, f"{objective}.rl", names)
                    models.append(("rl@final", "rl", "final", "rl@final", tuned, after))
                texts = [] if lr is None else [f"sft.lr={lr}"]
                shown = " ".join([objective, *(text.removeprefix("sft.") for text in texts), f"seed={seed}"])
                overrides = (f"objective={objective}", *texts, f"seed={seed}")
                own = recipe.model_copy(update={"objective": {"name": objective}, "seed": seed})
                branch, found = branch_of(shown, overrides, own, models)
                branches.append(branch)
                stages += found
    return replace(toy.plan(root, *stages), branches=branches)


def of(plan, label):
    """The measure stages under a label, by what they measure."""
    found = (stage for stage in plan.stages.values() if stage.kind == "measure")
    return {stage.label.rpartition(".")[2]: stage for stage in found if stage.label.rpartition(".")[0] == label}


def publish_measure(store, stage, counts, reproducible=True):
    """`counts`: benchmark -> correct samples of each problem."""
    name = stage.label.rpartition(".")[2]
    publish(store, stage, lambda folder: measure(folder, name, counts.get(name), reproducible))


def fill(plan, reproducible=True):
    """Publishes every stage: models after RL score `AFTER`, all others `BEFORE`."""
    store = Store(plan.root)
    for stage in plan.stages.values():
        if stage.kind == "measure":
            publish_measure(store, stage, AFTER if ".rl." in stage.label else BEFORE, reproducible)
        else:
            publish(store, stage, curve("loss" if stage.kind == "sft" else "reward"))
    return store


def bounds(cell):
    sign = "+" if cell["text"].startswith(("+", "-")) else ""
    return f"{cell['low']:{sign}.3f} to {cell['high']:{sign}.3f}"
