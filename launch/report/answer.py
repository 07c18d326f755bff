"""What a reader wants to know first: what was compared, and what may be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluation.statistics import holm
from launch.graph.plan import Plan
from launch.report.cells import SAME, Cells
from launch.report.contrasts import LEVEL, Contrast, reference
from launch.report.lines import PHASES, Line
from launch.report.parts import Cell

NAMED = 3  # lines that a sentence names
FEW_CHATS = 100  # held-out chats: of fewer the page says that they are few
SAID = ("objective", "seed")  # overrides that other facts tell
OTHERS = ("sft_general", "rl_general", "entropy")  # of the main table's columns, those not of the target
Scores = Mapping[str, Cell]  # of a line, by the names of the main table's columns


def facts(plan: Plan, cells: Cells, lines: Sequence[Line], made: int) -> tuple[tuple[str, str], ...]:
    """What was compared: label and text of each fact that there is. made: stages with a record."""
    recipes = [branch.recipe for branch in plan.branches]
    objectives = [line.objective for line in lines if line.objective]
    found = [
        ("Recipe", plan.recipe),
        ("Objectives", _listed(objectives)),
        ("Seeds", _listed(str(one.seed) for one in recipes)),
        ("Base model", _listed(one.model.path or f"trained from nothing by {plan.recipe}" for one in recipes)),
        ("RL", _listed(_rl(one) for one in recipes)),
        *_measured(cells, lines),
        ("With", _shortened([text for text in plan.overrides if text.partition("=")[0] not in SAID])),
        ("Done", f"{made} of {len(plan.stages)} stages, {_several(len(plan.branches), 'branch', 'branches')}"),
    ]
    return tuple((label, text) for label, text in found if text)


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(text for text in texts if text))


def _shortened(overrides: Sequence[str]) -> str:
    shown = ", ".join(overrides[:NAMED])
    return f"{shown} and {len(overrides) - NAMED} more, below" if len(overrides) > NAMED else shown


def overridden(plan: Plan) -> str:
    """All overrides, where the facts leave some out."""
    return f"Overrides: {' '.join(plan.overrides)}." if len(plan.overrides) > NAMED else ""


def _several(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _rl(recipe: Any) -> str:
    if not recipe.rl.enabled:
        return ""
    return f"{recipe.rl.algorithm}, {_several(recipe.rl.steps, 'step', 'steps')}"


def _measured(cells: Cells, lines: Sequence[Line]) -> list[tuple[str, str]]:
    """The target and what else was measured, from the first model that has it."""
    models = [model for line in lines for member in line.members for model in member.models.values()]
    measured = [one for model in models if (one := cells.source.metrics(model)) is not None]
    target = cells.settings.target
    found = []
    for one in measured:
        if target in one["benchmarks"]:
            counts, metrics = (one["benchmarks"][target][part] for part in ("counts", "metrics"))
            ks = [int(name.removeprefix("pass@")) for name in metrics if name.startswith("pass@")]
            text = f"{target}, {_several(counts['problems'], 'problem', 'problems')}"
            found.append(("Target benchmark", f"{text}, pass@k up to k = {max(ks)}" if ks else text))
            break
    others = _listed(name for one in measured for name in (*one["benchmarks"], *one["tasks"]) if name != target)
    chats = next((one["held_out"]["counts"]["chats"] for one in measured if one["held_out"]), None)
    if others:
        found.append(("Also", others))
    if chats is not None:
        few = f"; few: their intervals say little below {FEW_CHATS}" if chats < FEW_CHATS else ""
        found.append(("Held-out chats", f"{chats}{few}"))
    return found


def sentences(
    cells: Cells, rows: Sequence[tuple[Line, Scores]], contrasts: Sequence[Contrast], started: bool
) -> tuple[str, ...]:
    """The answer in two sentences, as far as tests carry it. started: whether anything was made yet."""
    scored = [(line, row) for line, row in rows if row["sft_pass1"].text or row["rl_pass1"].text]
    if not scored:
        if any(row[name].text for _, row in rows for name in OTHERS):
            return (f"The target benchmark, {cells.settings.target}, is not measured; the tables have what is.",)
        return ("Nothing is measured yet." if started else "Nothing has run yet.",)
    return tuple(filter(None, (_between(cells, scored, contrasts), _of_rl(cells, scored, contrasts))))


def _between(cells: Cells, rows: Sequence[tuple[Line, Scores]], contrasts: Sequence[Contrast]) -> str:
    """Which lines end higher or lower than the reference."""
    first = reference([line for line, _ in rows])
    phase = "rl" if any(row["rl_pass1"].text for _, row in rows) else "sft"
    where = f"pass@1 on {cells.settings.target} after {PHASES[phase]}"
    if first is None or not contrasts:
        (line, row), *more = [found for found in rows if not found[0].is_base] or rows
        if more:
            return f"So far {len(more) + 1} lines are measured, none comparable with the first one where training ends."
        phase = "rl" if row["rl_pass1"].text else "sft"
        score = f"pass@1 on {cells.settings.target} after {PHASES[phase]} is {_with_interval(row[f'{phase}_pass1'])}"
        return f"Only {line.name} is measured, so there is nothing to tell it from: {score}."
    caution = "" if any(one.seeds.value is not None for one in contrasts) else "; of one seed each, another may differ"
    sure = [one for one in contrasts if one.certain]
    if not sure:
        largest = max(contrasts, key=lambda one: abs(one.problems.value or 0.0))
        told = f"In {where} nothing can be told from {first.name}"
        if largest.problems.text == SAME:
            return f"{told}: all score the same on every problem{caution}."
        most = f"the largest difference is that of {largest.line.name}"
        if largest.p <= LEVEL:  # certain over these problems, but not for other seeds
            return (
                f"{told} over problems and seeds: {most}, {_with_interval(largest.seeds)}; over problems alone, "
                f"of these seeds, {_with_interval(largest.problems)}."
            )
        unseen = largest.tested.detectable
        hint = f", and one below {unseen:.3f} could well have been missed" if unseen != float("inf") else ""
        return f"{told}: {most}, {_with_interval(largest.problems)} with p = {largest.p:.2g} after Holm{hint}{caution}."
    parts = []
    for above, said in ((True, "higher than"), (False, "lower than")):
        those = [one for one in sure if ((one.problems.value or 0.0) > 0) is above]
        those.sort(key=lambda one: -abs(one.problems.value or 0.0))
        if those:
            shown = [f"{one.line.name} ({one.problems.head})" for one in those]
            parts.append(f"{_named(shown)} {'ends' if len(those) == 1 else 'end'} {said} {first.name}")
    rest = len(contrasts) - len(sure)
    alike = f"; {_several(rest, 'other', 'others')} cannot be told from it" if rest else ""
    return f"In {where}, {' and '.join(parts)} (paired tests, Holm, p <= {LEVEL:g}){alike}{caution}."


def _named(names: Sequence[str]) -> str:
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        shown.append(f"{len(names) - NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _with_interval(cell: Cell) -> str:
    interval = next((one for one in cell.small if " to " in one), "")
    return f"{cell.head} ({interval})" if interval else cell.text


def _of_rl(cells: Cells, rows: Sequence[tuple[Line, Scores]], contrasts: Sequence[Contrast]) -> str:
    """What RL made of the SFT scores; without RL what SFT made of the base."""
    trained = [(line, row) for line, row in rows if not line.is_base]
    changes = [(line, row["gain"]) for line, row in trained if row["gain"].p is not None]
    what, of = "RL", "pass@1"
    if not changes:
        if any(row["rl_pass1"].text for _, row in trained):
            return ""
        found = [(line, _from_base(cells, line)) for line, _ in trained]
        changes = [(line, cell) for line, cell in found if cell.p is not None]
        what, of = "SFT", "the base model's pass@1"
    if not changes:
        return ""
    sure = [p <= LEVEL for p in holm([cell.p or 0.0 for _, cell in changes])]
    parts = []
    for above, verb in ((True, "raises"), (False, "lowers")):
        those = [one for one, known in zip(changes, sure, strict=True) if known and ((one[1].value or 0) > 0) is above]
        if those:
            line, cell = max(those, key=lambda one: abs(one[1].value or 0.0))
            count = _of_all(len(those), len(changes))
            parts.append(f"{verb} {of} in {count}, most for {line.name}: {_with_interval(cell)}")
    parts = parts or [f"changes {of} in {_of_all(0, len(changes))} measurably"]
    return f"{what} {' and '.join(parts)}{_order(trained, contrasts)}."


def _of_all(count: int, of: int) -> str:
    if of == 1:
        return "the one line measured" if count else "no line"
    return {0: f"none of {of} lines", of: f"all {of} lines"}.get(count, f"{count} of {of} lines")


def _from_base(cells: Cells, line: Line) -> Cell:
    return cells.change(line, "sampled", lambda member: (member.models.get("base"), member.models.get("sft")))


def _order(rows: Sequence[tuple[Line, Scores]], contrasts: Sequence[Contrast]) -> str:
    """Where the best line after SFT ends after RL."""
    both = [
        (line, row["sft_pass1"].value, row["rl_pass1"].value)
        for line, row in rows
        if not line.from_base and row["sft_pass1"].value is not None and row["rl_pass1"].value is not None
    ]
    if len(both) < 2:
        return ""
    best = max(both, key=lambda one: one[1] or 0.0)
    rank = 1 + sum((one[2] or 0.0) > (best[2] or 0.0) for one in both)
    place = "first" if rank == 1 else f"in place {rank} of {len(both)}"
    unsure = "" if any(one.certain for one in contrasts) else ", though tests tell none of these ends apart"
    return f"; {best[0].name}, the highest after SFT ({best[1]:.3f}), ends {place}{unsure}"
