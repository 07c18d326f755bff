"""Single numbers of a row: scores, gains, entropy, time and memory, each with its interval and its records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluation.artifact import AT_MOST
from evaluation.compare import average_of, headlines
from evaluation.statistics import Paired, over_seeds, paired
from launch.report.lines import PHASES, Line, Member, Model
from launch.report.parts import Cell, estimate
from launch.report.source import Source
from launch.store import Record
from launch.text import bytes_text, seconds_text

Metrics = dict[str, Any]
Estimate = Mapping[str, float]  # value, low, high
EQUAL = "equal on every problem"
SAME = f"0, {EQUAL}"
HELD_OUT = "held_out"  # the name under which a model's held-out chats are measured


def spread(values: Sequence[float]) -> float:
    """Standard deviation of at least two values (n - 1)."""
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def mean_of(found: Sequence[Estimate], records: tuple[str, ...]) -> Cell:
    """The mean of several seeds' estimates with the means of their bounds, and their standard deviation."""
    value, low, high = (sum(one[name] for one in found) / len(found) for name in ("value", "low", "high"))
    deviation = spread([one["value"] for one in found]) if len(found) > 1 else None
    return estimate(value, low, high, records, deviation=deviation)


def noted(cell: Cell, *notes: str) -> Cell:
    """A cell with remarks behind it."""
    return replace(cell, text="; ".join([cell.text, *notes]), small=(*cell.small, *notes))


def over_seeds_interval(differences: Sequence[Sequence[float]], records: tuple[str, ...]) -> Cell:
    """Mean of paired differences, of each seed one a problem, with the interval of `evaluation.statistics.over_seeds`;
    empty below two seeds."""
    if len(differences) < 2 or len(differences[0]) < 2:
        return Cell()
    if not any(map(any, differences)):
        return Cell(SAME, 0.0, records=records, head="0", small=(EQUAL,))
    found = over_seeds(differences)
    return estimate(found.value, found.low, found.high, records, signed=True, notes=[f"{found.n} seeds"])


def detectable(smallest: float, records: tuple[str, ...]) -> Cell:
    """The smallest difference that a comparison could have found."""
    if smallest == float("inf"):
        return Cell("none", records=records)
    return Cell(f"{smallest:.3f}", smallest, records=records)


class Cells:
    """Makes cells from what `source` holds; `settings` is the recipe's `eval` section (target, seed, resamples)."""

    def __init__(self, source: Source, settings: Any) -> None:
        self.source, self.settings = source, settings

    def over_seeds(
        self,
        line: Line,
        phase: str,
        names: Callable[[Model], Iterable[str]],
        read: Callable[[Metrics, Member], Estimate | None],
    ) -> Cell:
        """Mean over the members for which `read` finds an estimate, with the mean of their intervals.

        That is no narrower than the mean's interval: a mean's deviation is at most the mean of the deviations.
        `names` are the measures of a model that the estimate is computed from: their records are cited.
        """
        found: list[Estimate] = []
        records: list[str] = []
        for member in line.members:
            model = member.models.get(phase)
            metrics = self.source.metrics(model)
            one = None if metrics is None else read(metrics, member)
            if one is not None and model is not None:
                found.append(one)
                records += [model.measures[name].address for name in names(model) if name in model.measures]
        if not found:
            return Cell()
        return mean_of(found, tuple(records))

    def target(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """Metrics of the target benchmark; empty if it was not measured."""
        found = metrics["benchmarks"].get(self.settings.target)
        return {} if found is None else found["metrics"]

    def of_target(self, line: Line, phase: str, metric: str) -> Cell:
        """A metric of the target benchmark."""
        return self._bounded(line, phase, self.settings.target, lambda metrics: (self.target(metrics), metric))

    def _bounded(
        self, line: Line, phase: str, name: str, find: Callable[[Metrics], tuple[Mapping[str, Any], str | None]]
    ) -> Cell:
        """One metric of what is called `name`; where answers were not graded, also what it is if all these are right.

        find: the metrics among which it stands, and what it is called there.
        """
        ungraded = False

        def read(metrics: Metrics, most: bool) -> Estimate | None:
            nonlocal ungraded
            among, metric = find(metrics)
            if metric is None:
                return None
            bound = among.get(f"{AT_MOST}{metric}")
            ungraded = ungraded or bound is not None
            return among.get(metric) if bound is None or not most else bound

        cell, most = (
            self.over_seeds(line, phase, lambda _: [name], lambda m, _, most=most: read(m, most))
            for most in (False, True)
        )
        if not ungraded or most.value is None:
            return cell
        return noted(cell, f"{most.value:.3f} if all that was not graded is right")

    def of_held_out(self, line: Line, phase: str, metric: str) -> Cell:
        """A metric of the held-out chats, per token in nats."""
        return self.over_seeds(
            line, phase, lambda _: [HELD_OUT], lambda m, _: (m["held_out"] or {"metrics": {}})["metrics"].get(metric)
        )

    def score(self, line: Line, phase: str, name: str) -> Cell:
        """The one score of a benchmark or task (see `evaluation.compare.headlines`)."""

        def find(metrics: Metrics) -> tuple[Mapping[str, Any], str | None]:
            if name in metrics["benchmarks"]:
                among = metrics["benchmarks"][name]["metrics"]
                return among, "balanced_accuracy" if "balanced_accuracy" in among else "pass@1"
            found = headlines(metrics).get(name)
            return {} if found is None else {name: found}, name

        cell = self._bounded(line, phase, name, find)
        measured = [self.source.metrics(member.models.get(phase)) for member in line.members]
        counts = [
            one["benchmarks"][name]["counts"] for one in measured if one is not None and name in one["benchmarks"]
        ]
        if not cell.text:
            return cell
        clamped, unanswered = (
            max((one.get(what, 0) for one in counts), default=0) for what in ("clamped", "unanswered")
        )
        notes = [f"the context cut max_tokens of {clamped} problems"] * bool(clamped)
        notes += [f"{unanswered} prompts filled the context and count as wrong"] * bool(unanswered)
        return noted(cell, *notes) if notes else cell

    def metric(self, line: Line, phase: str, name: str, metric: str) -> Cell:
        """A metric of a benchmark, or the one score of a task, where that is asked for as pass@1."""

        def find(metrics: Metrics) -> tuple[Mapping[str, Any], str | None]:
            if name in metrics["benchmarks"]:
                among = metrics["benchmarks"][name]["metrics"]
                balanced = metric == "pass@1" and "balanced_accuracy" in among
                return among, "balanced_accuracy" if balanced else metric
            found = headlines(metrics).get(name) if metric == "pass@1" else None
            return ({}, None) if found is None else ({name: found}, name)

        return self._bounded(line, phase, name, find)

    def passk(self, line: Line, phase: str) -> Cell:
        """pass@k on the target for the largest k measured; empty if that is 1."""

        def largest(metrics: Metrics) -> tuple[Mapping[str, Any], str | None]:
            target = self.target(metrics)
            ks = [int(name.removeprefix("pass@")) for name in target if name.startswith("pass@")]
            return target, f"pass@{max(ks)}" if ks and max(ks) > 1 else None

        return self._bounded(line, phase, self.settings.target, largest)

    def general(self, line: Line, phase: str) -> Cell:
        """`evaluation.compare.average` over what is not the target; its interval treats benchmarks as independent.

        Empty while a benchmark of the model has no artifact: a mean over fewer would not compare with the others.
        """
        minimum = self.settings.base_minimum

        def others(model: Model) -> list[str]:
            return [name for name in model.measures if name not in (self.settings.target, HELD_OUT)]

        def mean(metrics: Metrics, member: Member) -> Estimate | None:
            before = self.source.metrics(member.models.get("base"))
            scores = headlines(metrics).keys() - {self.settings.target}
            measured = {*metrics["benchmarks"], *metrics["tasks"]}
            if not scores or not measured.issuperset(others(member.models[phase])):
                return None
            if minimum is not None:
                bases = {} if before is None else headlines(before)
                if scores - bases.keys() or all(bases[name]["value"] < minimum for name in scores):
                    return None
            return average_of(metrics, before, minimum, without=measured - scores)

        return self.over_seeds(line, phase, others, mean)

    def gain(self, line: Line, mode: str) -> Cell:
        """What RL adds on the target, paired by problem, each problem averaged over seeds first."""
        return self.change(line, mode, lambda member: (member.start, member.models.get("rl")))

    def change(self, line: Line, mode: str, models: Callable[[Member], tuple[Model | None, Model | None]]) -> Cell:
        """The target's score of the second of a member's two models less that of the first, paired by problem, each
        problem averaged over seeds first."""
        before: dict[str, list[float]] = defaultdict(list)
        after: dict[str, list[float]] = defaultdict(list)
        records: list[str] = []
        target = self.settings.target
        for member in line.members:
            pair = [model for model in models(member) if model is not None]
            scores = [self.source.scores(model, target, mode) for model in pair]
            if len(pair) < 2 or not all(scores):
                continue
            for model, found, side in zip(pair, scores, (before, after), strict=True):
                for problem, score in found.items():
                    side[problem].append(score)
                records.append(model.measures[target].address)
        if not before or before.keys() != after.keys():
            return Cell()
        problems = sorted(before)
        means = [[sum(scores[p]) / len(scores[p]) for p in problems] for scores in (before, after)]
        return self.paired(means[0], means[1], tuple(records))[0]

    def paired(self, a: Sequence[float], b: Sequence[float], records: tuple[str, ...]) -> tuple[Cell, Paired]:
        """mean(b) - mean(a) of scores of the same problems with its interval over problems, and what else was found.

        Scores that are equal problem by problem have no interval: nothing varies.
        """
        found = paired(a, b, seed=self.settings.seed)
        if all(one == other for one, other in zip(a, b, strict=True)):
            return Cell(SAME, 0.0, records=records, head="0", small=(EQUAL,), p=found.p), found
        return estimate(found.difference, found.low, found.high, records, signed=True, p=found.p), found

    def _training(self, line: Line) -> list[tuple[str, str, Record]]:
        """Phase, address and record of every published stage that trained a model of the line."""
        stages = [(phase, stage) for phase in PHASES for one in line.members for stage in one.trained.get(phase, ())]
        found = [(phase, stage.address, self.source.record(stage)) for phase, stage in stages]
        return [(phase, address, record) for phase, address, record in found if record is not None]

    def time(self, line: Line) -> Cell:
        """Wall time of training, phase by phase: a phase's stages added up, averaged over seeds."""
        means = []
        for phase in PHASES:
            seeds = [[self.source.record(stage) for stage in one.trained.get(phase, ())] for one in line.members]
            sums = [sum(r.seconds for r in seed if r is not None) for seed in seeds if any(r is not None for r in seed)]
            if sums:
                means.append(sum(sums) / len(sums))
        if not means:
            return Cell()
        records = tuple(address for _, address, _ in self._training(line))
        return Cell(" + ".join(seconds_text(mean) for mean in means), sum(means), records=records)

    def memory(self, line: Line) -> Cell:
        """The largest peak of memory among the stages that trained the line's models."""
        found = self._training(line)
        if not found:
            return Cell()
        peak = max(record.peak_memory_bytes for _, _, record in found)
        return Cell(bytes_text(peak), float(peak), records=tuple(address for _, address, _ in found))
