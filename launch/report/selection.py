"""What was chosen before RL: the candidates, what the choice saved, and what it cost where all were run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from launch.graph.plan import Plan, Stage
from launch.graph.select import Candidate, Choice, Selected
from launch.report.cells import Cells
from launch.report.lines import Member, lines
from launch.report.parts import Cell, Grid, Row, Section, grid
from launch.store import Store

COLUMNS = ("setting", "seeds", "validation", "device-hours", "hours", "goes on")


@dataclass(frozen=True)
class Spent:
    """Wall and device hours."""

    hours: float = 0.0
    devices: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.hours + other.hours, self.devices + other.devices)

    def text(self) -> str:
        """Device-hours, or the hours where no device was used."""
        return f"{self.devices:.2f} device-hours" if self.devices else f"{self.hours:.2f} hours (of a CPU)"


def sections(selected: Selected, whole: Plan, cells: Cells) -> list[Section]:
    """The section; none where nothing is selected. whole: the plan before selection."""
    if not selected.choices:
        return []
    of_stage = _ledger(cells.source.store)
    saved = (_not_spent(selected, whole, cells, of_stage), _stopped(selected, of_stage))
    texts = [_budget(selected), *saved, *_costs_of_choosing(selected, whole, cells)]
    return [Section("Selection", " ".join(filter(None, texts)), (_table(selected, of_stage),))]


def _table(selected: Selected, of_stage: Mapping[str, Spent]) -> Grid:
    """A row for each candidate: group, setting, seeds, mean metric, hours spent to decide, the choice."""
    rows: list[Row] = []
    for choice in selected.choices:
        for one in choice.candidates:
            spent = sum((of_stage.get(mark, Spent()) for mark in sorted(one.spent)), Spent())
            value = Cell() if one.value is None else Cell(f"{one.value:.4f}", one.value)
            devices = Cell(f"{spent.devices:.2f}", spent.devices) if spent.devices else Cell()
            chosen = "undecided" if not choice.chosen else "yes" if one.setting in choice.chosen else ""
            if one.stopped is not None:
                chosen = f"stopped at step {one.stopped}"
            seeds, hours = Cell(str(len(one.stages)), len(one.stages)), Cell(f"{spent.hours:.2f}", spent.hours)
            rows.append((choice.group, (Cell(one.setting), seeds, value, devices, hours, Cell(chosen))))
    return grid(COLUMNS, rows)


def _budget(selected: Selected) -> str:
    """Whether every group was given as many candidates and seeds as the others."""
    counts = {(len(c.candidates), tuple(len(x.stages) for x in c.candidates)) for c in selected.choices}
    settings = selected.plan.branches[0].recipe.selection
    metric = settings.metric
    if len(counts) == 1:
        (candidates, seeds), *_ = counts
        start = f"Equal budget: every group tried {candidates} settings, {sum(seeds)} SFT runs"
    else:
        start = "Unequal budget: the groups did not try equally many settings and seeds"
    if settings.rungs:
        steps = ", ".join(map(str, settings.rungs[:-1]))
        how = f"the better half went on at RL step {steps}, by {metric} there"
        return f"{start}; {how}. The validation column is this criterion at the last comparison, and no result."
    return f"{start}; chosen by {metric}. The validation column is this criterion and no result: it has no interval."


def _ledger(store: Store) -> dict[str, Spent]:
    """Fingerprint -> hours of all attempts of the stage."""
    found: dict[str, Spent] = defaultdict(Spent)
    for row in store.costs():
        found[row["fingerprint"]] += Spent(row["seconds"] / 3600, row["device_hours"])
    return found


def _work(stage: Stage) -> tuple[str, str]:
    """What stages of different branches have in common: the kind, and what of a model it looks at (`rl.target`)."""
    return stage.kind, stage.label.partition(".")[2]


def _not_spent(selected: Selected, whole: Plan, cells: Cells, of_stage: Mapping[str, Spent]) -> str:
    """The hours of the stages that were left out, by what the same stages took of the branches that go on."""
    if selected.undecided or not selected.ended:
        return ""
    joint = {branch.stages[role] for branch in whole.branches for role in whole.joint if role in branch.stages}
    kept = {mark for one in selected.plan.branches if one.name not in selected.ended for mark in one.stages.values()}
    left = [
        stage
        for mark, stage in whole.stages.items()
        if mark not in selected.plan.stages and mark not in joint and cells.source.record(stage) is None
    ]
    if not left:
        return "Nothing was saved: the losers were run to the end as well."
    took: dict[tuple[str, str], list[Spent]] = defaultdict(list)
    for mark in kept & of_stage.keys():
        took[_work(whole.stages.get(mark) or selected.plan.stages[mark])].append(of_stage[mark])
    by_kind: dict[str, Spent] = defaultdict(Spent)
    unknown = 0
    for stage in left:
        paid = took.get(_work(stage))
        if paid is None:
            unknown += 1
            continue
        total = sum(paid, Spent())
        by_kind[stage.kind] += Spent(total.hours / len(paid), total.devices / len(paid))
    if not by_kind:
        return f"What the {len(left)} stages left out would have taken is not known yet: the winners have not run them."
    whole_sum = sum(by_kind.values(), Spent())
    parts = ", ".join(f"{kind} {one.devices if whole_sum.devices else one.hours:.2f}" for kind, one in by_kind.items())
    rest = f"; {unknown} more stages are not counted, since no winner has run such a one yet" if unknown else ""
    source = f"by what the same stages took of the winners{rest}"
    return f"Not spent on the losers: about {whole_sum.text()} ({parts}), {source}."


def _stopped(selected: Selected, of_stage: Mapping[str, Spent]) -> str:
    """The hours that RL stopped at a rung would have taken to its end, by what its steps have taken."""
    total = Spent()
    stopped = [one for choice in selected.choices for one in choice.candidates if one.stopped is not None]
    for one in stopped:
        assert one.stopped is not None
        for stage in one.stages:
            left, spent = stage.settings["rl"]["steps"] / one.stopped - 1, of_stage.get(stage.fingerprint, Spent())
            total += Spent(spent.hours * left, spent.devices * left)
    return f"RL that was stopped would have taken about {total.text()} more." if stopped else ""


def _costs_of_choosing(selected: Selected, whole: Plan, cells: Cells) -> list[str]:
    """For each group that is decided: the best candidate's score less that of the best one chosen."""
    members = {member.branch: member for line in reversed(lines(whole)) if line.objective for member in line.members}
    return [_cost_of_choosing(choice, members, cells) for choice in selected.choices if choice.chosen]


def _cost_of_choosing(choice: Choice, members: Mapping[str, Member], cells: Cells) -> str:
    scores = {one.setting: _final(one, members, cells) for one in choice.candidates}
    known = {setting: one for setting, one in scores.items() if one}
    if len(known) < len(scores) or len({frozenset(one) for one in known.values()}) > 1:
        return f"{choice.group}: what the choice cost is not known, since the losers were not run to the end."
    means = {setting: sum(one.values()) / len(one) for setting, one in known.items()}
    best, chosen = max(means, key=means.__getitem__), max(choice.chosen, key=means.__getitem__)
    if means[best] <= means[chosen]:
        return f"{choice.group}: all were run, and what was chosen, {chosen}, ends highest."
    problems = sorted(known[best])
    lost, _ = cells.paired([known[chosen][p] for p in problems], [known[best][p] for p in problems], ())
    return f"{choice.group}: all were run; the choice cost {lost.text} pass@1 against {best}."


def _final(candidate: Candidate, members: Mapping[str, Member], cells: Cells) -> dict[str, float]:
    """Problem id -> score where the walk ends, over the candidate's seeds; empty while one of them has none."""
    found: list[Mapping[str, float]] = []
    for name in candidate.branches:
        member = members.get(name)
        scores = {} if member is None else cells.source.scores(member.last, cells.settings.target, "sampled")
        if not scores:
            return {}
        found.append(scores)
    if len({frozenset(one) for one in found}) > 1:
        return {}
    return {problem: sum(one[problem] for one in found) / len(found) for problem in found[0]}
