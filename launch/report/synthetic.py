"""A store as a finished sweep leaves it, with scores that were made up: to measure and to look at the report.

python -m launch.report.synthetic DIR [branches]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.artifact import OUTCOMES, write_metrics
from evaluation.statistics import bootstrap, pass_at_k
from launch.graph.builder import make_plan
from launch.graph.plan import Plan, Stage
from launch.store import Store
from launch.store.leases import Heartbeat

OBJECTIVES = ("sft", "dft", "lp_sft", "prift_mass", "gem", "talr", "eaft", "beyond_log")
RATES = ("1e-4", "2e-4", "3e-4", "4e-4", "5e-4")
BRANCHES = len(OBJECTIVES) * len(RATES)
PROBLEMS, SAMPLES, CHATS = 128, 16, 128
STEPS = 60  # rows of a curve
RESAMPLES = 50  # of a bootstrap: the intervals are to look like some
Write = Callable[[Path], None]


def sweep(root: Path, *, objectives: int = len(OBJECTIVES), rates: int = 1, more: tuple[str, ...] = ()) -> Plan:
    """A plan of so many objectives and learning rates, with RL from the base and readiness."""
    rows = [f"objective={','.join(OBJECTIVES[:objectives])}", f"sft.lr={','.join(RATES[:rates])}", f"run.root={root}"]
    return make_plan("microworld", [*rows, "rl.from=[base,final]", "readiness.enabled=true", *more])


def fill(plan: Plan) -> Store:
    """Publishes what the report reads of every branch: training, measures, readiness. RL lifts all scores, less so
    where they were high before it."""
    store = Store(plan.root)
    store.root.mkdir(parents=True, exist_ok=True)
    with Heartbeat(store, plan.recipe) as beat:
        for stage in plan.stages.values():
            write = _writer(plan, stage)
            if write is not None and store.find(stage) is None:
                store.acquire(stage, beat.run)
                attempt = store.begin(stage)
                write(store.temporary(stage, attempt))
                seconds = 60.0 if stage.kind in ("sft", "rl") else 3.0
                store.publish(stage, attempt, beat.run, started=0.0, seconds=seconds, peak_memory_bytes=2_000_000_000)
                store.finish(stage, attempt, {"outcome": "ok", "message": "", "seconds": seconds})
                store.release(stage, beat.run)
    return store


def _writer(plan: Plan, stage: Stage) -> Write | None:
    rng = np.random.default_rng(int(stage.fingerprint[:8], 16))
    name = stage.label.rpartition(".")[2]
    skill = _skill(plan, stage)
    if stage.kind == "measure" and name == "held_out":
        return lambda folder: _held_out(folder, rng)
    if stage.kind == "measure":
        count, samples = (PROBLEMS, SAMPLES) if name == "target" else (32, 2)
        chances = np.clip(rng.beta(2 * skill, 2 * (1 - skill), count), 0.01, 0.99)
        return lambda folder: _benchmark(folder, name, rng.binomial(samples, chances), samples, rng)
    if stage.kind == "readiness":
        figures = {key: asdict(_estimate(rng.normal(skill, 0.02, 40))) for key in ("pass@1", "pass@16", "learnable")}
        figures["label_drift"] = asdict(_estimate(rng.normal(0.1, 0.02, 40)))
        return lambda folder: _json(folder / "metrics.json", {"figures": figures})
    if stage.kind in ("sft", "rl"):
        return lambda folder: _trained(folder, stage.kind, skill, rng)
    return None


def _skill(plan: Plan, stage: Stage) -> float:
    """How often a branch's model is right, by its objective and learning rate; more after RL."""
    recipe = next(branch.recipe for branch in plan.branches if stage.fingerprint in branch.stages.values())
    known = recipe.objective["name"] in OBJECTIVES
    place = OBJECTIVES.index(recipe.objective["name"]) if known else 0
    before = 0.2 + 0.03 * place + 60 * recipe.sft.lr
    if stage.label.startswith("base"):
        before = 0.43
    return before + 0.5 * (0.7 - before) if stage.kind == "rl" or ".rl" in stage.label else before


def _estimate(values: np.ndarray) -> Any:
    inside = bool(values.min() >= 0 and values.max() <= 1)
    return bootstrap(values, seed=0, resamples=RESAMPLES, proportion=inside)


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _facts(name: str, kind: str, counts: dict[str, Any], metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    engine = {"vllm": "0", "dtype": "float32", "max_length": 128, "reproducible": True}
    found = {key: asdict(_estimate(values)) for key, values in metrics.items()}
    facts = {"name": name, "kind": kind, "protocol": {}, "base_minimum": None, "engine": engine}
    return {**facts, "counts": counts, "metrics": found}


def _held_out(folder: Path, rng: np.random.Generator) -> None:
    metrics = {name: rng.gamma(2, 0.2, CHATS) for name in ("entropy", "loss", "kl_from_base")}
    facts = _facts("held_out", "held_out", {"chats": CHATS, "chats_too_long": 0, "tokens": 20 * CHATS}, metrics)
    edges = [0.0, 0.1, 0.5, 1.0, 2.0]
    shares = [asdict(_estimate(one)) for one in rng.dirichlet(np.ones(len(edges)), CHATS).T]
    write_metrics(folder, {**facts, "entropy_histogram": {"edges": edges, "shares": shares}})


def _benchmark(folder: Path, name: str, right: np.ndarray, samples: int, rng: np.random.Generator) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ks = [k for k in (1, 2, 4, 8, 16) if k <= samples]
    metrics = {f"pass@{k}": np.array([pass_at_k(samples, int(one), k) for one in right]) for k in ks}
    metrics |= {"self_bleu": rng.normal(50, 5, len(right)), "ungraded": np.zeros(len(right))}
    metrics |= {"distinct_1": rng.beta(4, 6, len(right)), "tokens_p50": rng.normal(30, 5, len(right))}
    counts = {"problems": len(right), "responses": samples * len(right), "grading": {}}
    write_metrics(folder, _facts(name, "benchmark", counts, metrics))
    size = samples + 1
    rows = {
        "id": [str(place) for place in range(len(right)) for _ in range(size)],
        "mode": ["sampled" if sample < samples else "greedy" for _ in right for sample in range(size)],
        "sample": [sample if sample < samples else 0 for _ in right for sample in range(size)],
        "correct": [sample < one if sample < samples else 2 * one > samples for one in right for sample in range(size)],
    }
    empty = {field: [""] * len(rows["id"]) for field in OUTCOMES.names if field not in rows}
    pq.write_table(pa.table({**rows, **empty}, schema=OUTCOMES), folder / "outcomes.parquet")


def _trained(folder: Path, kind: str, skill: float, rng: np.random.Generator) -> None:
    steps = np.arange(1, STEPS + 1)
    noise = rng.normal(0, 0.02, (3, STEPS))
    falling, rising = 2 * np.exp(-steps / 15) + 1 - skill, skill * (1 - np.exp(-steps / 15))
    metrics = {"loss": falling / 2, "cross_entropy": falling} if kind == "sft" else {"reward": rising}
    values = {name: one + noise[place] for place, (name, one) in enumerate(metrics.items())}
    values["entropy"] = 1.5 - 0.5 * rising + noise[2]
    rows = [
        {"step": int(step), **{name: float(one[at]) for name, one in values.items()}} for at, step in enumerate(steps)
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _json(folder / "metrics.json", {"val_loss": 2 - skill})
    _json(folder / "checkpoints.json", {"final": STEPS, "best": STEPS, "steps": [STEPS]})


def main() -> None:
    """Makes the store and its report in a directory."""
    from launch.report.write import write_report

    root = Path(sys.argv[1])
    branches = int(sys.argv[2]) if len(sys.argv) > 2 else BRANCHES
    rates = -(-branches // len(OBJECTIVES))
    plan = sweep(root, objectives=-(-branches // rates), rates=rates)
    fill(plan)
    write_report(plan)


if __name__ == "__main__":
    main()
