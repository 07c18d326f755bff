"""`adopt`: brings a model that was trained elsewhere into the store, so that it stands in plans beside trained ones."""

from __future__ import annotations

import os

from launch import interrupts
from launch.graph.plan import Plan
from launch.rows import Kept, call_stage
from launch.store import Store
from launch.text import bytes_text

KIND = "adopt"


def adopt(plan: Plan, name: str, model: str) -> int:
    """Makes the `adopt` stages of a plan and says how the model is used; returns 0.

    Raises ConfigError for a model that RL could not start from, StoreError where another run makes it.
    """
    store = Store(plan.root)
    os.environ.update(plan.branches[0].recipe.platform.env)
    interrupts.raise_again()
    for stage in (stage for stage in plan.stages.values() if stage.kind == KIND):
        if not store.has(stage):
            with Kept(store, plan.recipe) as place:
                place.make(stage, lambda out, scratch, one=stage: call_stage(one, {}, out, scratch, store))
        record = store.find(stage)
        assert record is not None
        print(f"{name}: {store.directory(stage)} ({bytes_text(record.bytes)})")
    print(f"a branch of any recipe with this store: python -m launch run {plan.recipe} ... adopt.{name}={model}")
    return 0
