"""The tables of the report: by objective, by benchmark, diversity and drift, contrasts, selection and cost."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.compare import headlines
from evaluation.statistics import holm
from launch.graph.plan import Plan
from launch.graph.select import Selected
from launch.report.cells import Cells, detectable_text, over_seeds_interval
from launch.report.lines import PHASES, Line
from launch.report.parts import Cell, Grid, Row, grid
from launch.store import Store

COLUMNS = {
    "sft_pass1": "SFT pass@1",
    "sft_passk": "SFT pass@k",
    "sft_general": "SFT general pass@1",
    "entropy": "token entropy",
    "rl_pass1": "RL pass@1",
    "rl_passk": "RL pass@k",
    "rl_general": "RL general pass@1",
    "gain": "gain from RL, pass@1",
    "gain_greedy": "gain from RL, greedy",
    "time": "time SFT + RL",
    "memory": "peak memory",
}
# Metric of the target, or of held-out chats, to the column that shows it.
DRIFT = {
    "self_bleu": "self-BLEU",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "tokens_p25": "tokens, p25",
    "tokens_p50": "p50",
    "tokens_p75": "p75",
    "truncated": "truncated",
    "unanswered": "unanswered",
    "ungraded": "ungraded",
}
DRIFT_HELD_OUT = {"entropy": "token entropy", "loss": "held-out loss", "kl_from_base": "KL from base"}
CONTRASTS = ("difference in pass@1, over problems", "over problems and seeds", "p (Holm)", "detectable")
SELECTION = ("setting", "seeds", "validation", "device-hours", "goes on")
COST = ("attempts", "hours", "device-hours")


def main_row(cells: Cells, line: Line) -> dict[str, Cell]:
    """The cells of a row of the main table, by the names of `COLUMNS`."""
    target = "pass@1"
    return {
        "sft_pass1": cells.of_target(line, "sft", target),
        "sft_passk": cells.passk(line, "sft"),
        "sft_general": cells.general(line, "sft"),
        "entropy": cells.of_held_out(line, "sft", "entropy"),
        "rl_pass1": cells.of_target(line, "rl", target),
        "rl_passk": cells.passk(line, "rl"),
        "rl_general": cells.general(line, "rl"),
        "gain": cells.gain(line, "sampled"),
        "gain_greedy": cells.gain(line, "greedy"),
        "time": cells.time(line),
        "memory": cells.memory(line),
    }


def main_grid(rows: Sequence[tuple[Line, dict[str, Cell]]]) -> Grid:
    """The main table of rows as `main_row` makes them."""
    return grid(list(COLUMNS.values()), [(line.name, [row[name] for name in COLUMNS]) for line, row in rows])


def _after_each_phase(lines: Sequence[Line]) -> list[tuple[Line, str, str]]:
    """Line, phase and name for every line after SFT and after RL."""
    found = []
    for line in lines:
        for phase, title in PHASES.items():
            if any(phase in member.models and member.models[phase].measures for member in line.members):
                found.append((line, phase, line.name if line.is_base or line.from_base else f"{line.name} {title}"))
    return found


def benchmarks(cells: Cells, lines: Sequence[Line]) -> Grid:
    """The score on every benchmark and task, of every line after SFT and after RL."""
    places = _after_each_phase(lines)
    found = (cells.source.metrics(member.models.get(phase)) for line, phase, _ in places for member in line.members)
    names = list(dict.fromkeys(name for metrics in found if metrics is not None for name in headlines(metrics)))
    return grid(names, [(title, [cells.score(line, phase, n) for n in names]) for line, phase, title in places])


def drift(cells: Cells, lines: Sequence[Line]) -> Grid:
    """How diverse and how long the responses to the target are, and how far the model has moved from the base."""
    rows: list[Row] = []
    for line, phase, title in _after_each_phase(lines):
        responses = [cells.of_target(line, phase, name) for name in DRIFT]
        chats = [cells.of_held_out(line, phase, name) for name in DRIFT_HELD_OUT]
        rows.append((title, (*responses, *chats)))
    return grid([*DRIFT.values(), *DRIFT_HELD_OUT.values()], rows)


def reference(lines: Sequence[Line]) -> Line | None:
    """The line that the others are compared with: the first one that was fine-tuned."""
    return next((line for line in lines if not line.is_base and not line.from_base), None)


def contrasts(cells: Cells, lines: Sequence[Line]) -> Grid:
    """Every line against the reference: paired differences of pass@1 on the target.

    Both are taken where the walk ended (after RL if there is RL), over the seeds that both lines have. Cells: the
    difference with its interval over problems (each problem averaged over seeds), the same over problems and seeds,
    Holm's p-value over the whole table, of the first, and the smallest difference that it could have found.
    """
    first, target = reference(lines), cells.settings.target
    found, p_values = [], []
    for line in lines:
        if first is None or line is first or line.is_base:
            continue
        models = [(a.last, b.last) for a in first.members for b in line.members if a.seed == b.seed]
        scored = [(pair, [cells.source.scores(model, target, "sampled") for model in pair]) for pair in models]
        scored = [(pair, scores) for pair, scores in scored if all(scores)]
        if not scored or len({frozenset(side) for _, scores in scored for side in scores}) > 1:
            continue
        problems = sorted(scored[0][1][0])
        means = [[sum(scores[side][p] for _, scores in scored) / len(scored) for p in problems] for side in (0, 1)]
        records = tuple(model.measures[target].address for pair, _ in scored for model in pair if model is not None)
        over_problems, tested = cells.paired(means[0], means[1], records)
        shifts = [[b[p] - a[p] for p in problems] for _, (a, b) in scored]
        least = Cell(detectable_text(tested.detectable), records=records)
        found.append((line.name, over_problems, over_seeds_interval(shifts, records), records, least))
        p_values.append(tested.p)
    adjusted = holm(p_values) if p_values else []
    return grid(
        CONTRASTS,
        [
            (name, [problems, seeds, Cell(f"{p:.3f}", p, records=records), least])
            for (name, problems, seeds, records, least), p in zip(found, adjusted, strict=True)
        ],
    )


def _plain(*texts: str) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in texts)


def costs(plan: Plan, store: Store) -> Grid:
    """Per branch: attempts, hours and device-hours of all its stages; a shared stage counts in each branch."""
    attempts = store.costs()
    rows: list[Row] = []
    for name, stages in (
        *((branch.name, set(branch.stages.values())) for branch in plan.branches),
        ("all, shared stages once", plan.stages.keys()),
    ):
        mine = [row for row in attempts if row["fingerprint"] in stages]
        hours, devices = sum(r["seconds"] for r in mine) / 3600, sum(r["device_hours"] for r in mine)
        rows.append((name, _plain(str(len(mine)), f"{hours:.2f}", f"{devices:.2f}")))
    return grid(COST, rows, head="branch")


def selection(selected: Selected, store: Store) -> Grid:
    """A row for each candidate: group, setting, seeds, mean metric, device-hours spent to decide, the choice."""
    attempts = store.costs()
    rows: list[Row] = []
    for choice in selected.choices:
        for candidate in choice.candidates:
            hours = sum(row["device_hours"] for row in attempts if row["fingerprint"] in candidate.spent)
            value = "" if candidate.value is None else f"{candidate.value:.4f}"
            chosen = "undecided" if not choice.chosen else "yes" if candidate.setting in choice.chosen else ""
            if candidate.stopped is not None:
                chosen = f"stopped at step {candidate.stopped}"
            texts = (candidate.setting, str(len(candidate.stages)), value, f"{hours:.2f}", chosen)
            rows.append((choice.group, _plain(*texts)))
    return grid(SELECTION, rows)


def _not_spent(selected: Selected, store: Store) -> float:
    """Device-hours that the stopped candidates' RL would have taken to the end, by what its steps have taken."""
    attempts, total = store.costs(), 0.0
    for candidate in (one for choice in selected.choices for one in choice.candidates if one.stopped is not None):
        for stage in candidate.stages:
            spent = sum(row["device_hours"] for row in attempts if row["fingerprint"] == stage.fingerprint)
            total += spent * (stage.settings["rl"]["steps"] / candidate.stopped - 1)
    return total


def budget(selected: Selected, store: Store) -> str:
    """Whether every group was given as many candidates and seeds as the others, and what rungs have spared."""
    counts = {(len(c.candidates), tuple(len(x.stages) for x in c.candidates)) for c in selected.choices}
    metric = selected.plan.branches[0].recipe.selection.metric
    if len(counts) == 1:
        (candidates, seeds), *_ = counts
        start = f"Equal budget: every group tried {candidates} settings, {sum(seeds)} SFT runs"
    else:
        start = "Unequal budget: the groups did not try equally many settings and seeds"
    settings = selected.plan.branches[0].recipe.selection
    if settings.rungs:
        steps = ", ".join(map(str, settings.rungs[:-1]))
        how = f"the better half went on at RL step {steps}, by {metric} there"
        return (
            f"{start}; {how}. The validation column is this criterion at the last comparison, and no result. About "
            f"{_not_spent(selected, store):.2f} device-hours of RL were not spent on candidates that were stopped."
        )
    return f"{start}; chosen by {metric}. The validation column is this criterion and no result: it has no interval."
