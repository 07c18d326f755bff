"""Print docs/objectives.md: the table of objectives, with the errors that the tests of this folder bound.

python tests/oracle/table.py > docs/objectives.md
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import measure  # noqa: E402

import sft_objectives  # noqa: E402
import sft_objectives.losses  # noqa: E402

HEAD = """\
# Objectives

Made by `python tests/oracle/table.py > docs/objectives.md` from what `tests/oracle` measures.

- Equation: the recipe's, `recipes/objective/<name>.yaml`; settings by their recipe names, q a frozen reference.
- Needs: statistics of the student; then for each source of a frozen model the fields of its reference at the default
  settings (`logits`: the whole vocabulary, so a live model).
- Sources: what `objective.source` may be, the default first.
- Oracle error: the largest error of losses and gradient against a plain float64 formula (`tests/oracle/formulas.py`),
  relative to the row's largest value, over all settings tested (their number in brackets) and over the dense and the
  fused path. The bound is 1e-10.
- Invariance error: the largest error of the float32 gradient of one step over 1, 2, 4 micro-batches, 1, 2 data-parallel
  ranks, packed and padded, relative to the gradient's largest value. The bound is 1e-6.

| objective | equation | needs | sources | oracle error | invariance error |
|---|---|---|---|---|---|"""

TAIL = """
Where public code computes the same thing, it agrees (`tests/oracle/test_third_party.py`): TRL's `dft` and `nll` with
`dft` and `sft`, axolotl's EAFT with `eaft_repo_axolotl`, TRL's generalised JSD at beta 0 with `sft_kl`, Liger-Kernel's
distillation at beta 0 with `kd` on the whole vocabulary. Differences have a cause: axolotl does not divide the entropy
by ln k, so its loss is (ln k)^exponent times the paper's, and adds 1e-10 inside the logarithm; Liger-Kernel reports
KL(q || p), `kd` CE(q, p), the entropy of q apart, with the same gradient; and its JSD between beta 0 and 1 compares
both models with their mixture, which no paper here does."""


def equation(name: str) -> str:
    first = (ROOT / "recipes" / "objective" / f"{name}.yaml").read_text().splitlines()[0]
    return first.removeprefix("# loss = ").replace("|", "\\|")


STATISTICS = ("log_p_label", "log_p", "expected_log_p", "mean_log_p", "statistic", "log_p_outside", "entropy", "top_k")


def statistics(objective: sft_objectives.Objective, batch: measure.Batch) -> list[str]:
    """Names of the student's statistics that a call reads."""
    read: set[str] = set()

    class Watched(measure.DenseStudent):
        def __getattribute__(self, name: str):
            caller = sys._getframe(1).f_globals["__name__"]
            if name in STATISTICS and caller != measure.DenseStudent.__module__:
                read.add(name)
            return super().__getattribute__(name)

    with patch.object(sft_objectives.losses, "DenseStudent", Watched):
        measure.dense(objective, batch)
    return sorted(read)


def needs(objective: sft_objectives.Objective, batch: measure.Batch) -> str:
    found = objective.needs
    parts = [", ".join(statistics(objective, batch))]
    parts += [f"{source}: {', '.join(sorted(wanted.fields))}" for source, wanted in found.references.items()]
    parts += [f"column {name}" for name in sorted(found.columns)]
    if found.batch is not None:
        parts += ["sequences"] * found.batch.sequences + ["the global batch"]
    return "; ".join(parts + ["the data set"] * (found.dataset is not None))


def sources(objective: sft_objectives.Objective) -> str:
    for item in dataclasses.fields(objective):
        if item.name == "source":
            return ", ".join([item.default, *(s for s in item.metadata["choices"] if s != item.default)])
    return "of rule and residual" if objective.name == "q_target" else "-"


def main() -> None:
    print(HEAD)
    batch = measure.build()
    for name in sft_objectives.names():
        cases = [settings for case, settings in measure.CASES if case == name]
        oracle = max(
            measure.oracle_error(name, settings, provider, batch)
            for settings in cases
            for provider in measure.PROVIDERS.values()
        )
        invariance = max(measure.invariance_error(name, settings) for settings in cases)
        objective = sft_objectives.load(name)
        cells = [f"`{name}`", equation(name), needs(objective, batch), sources(objective)]
        print("| " + " | ".join([*cells, f"{oracle:.0e} ({len(cases)})", f"{invariance:.0e}"]) + " |")
    print(TAIL)


if __name__ == "__main__":
    main()
