"""The comparison: objectives by what SFT and then RL make of them, each number with the records it came from."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import evaluation
from common.files import file_digest
from evaluation import artifact
from evaluation.compare import NOT_REPRODUCIBLE, average_of, headlines
from launch.plan import Branch, Plan, Stage
from launch.select import Selected, select
from launch.store import Corrupt, Record, Store
from launch.text import bytes_text, seconds_text

VERSION = 3
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
NOTES = (
    "pass@1 and pass@k are of the target benchmark, sampled; k is the largest one measured. General is the mean "
    "pass@1 of the other benchmarks (of a task its accuracy). Token entropy is the mean over held-out chats after "
    "SFT, in nats. Intervals are 95% bootstrap intervals over problems; gains are paired by problem. With several "
    "seeds a cell is the mean and, after ±, the standard deviation over seeds; its bounds are the means of the seeds' "
    "bounds, which are at least as far apart as those of the mean. Gains average each problem over seeds first."
)
SCORES = (
    "pass@1, or balanced accuracy where the recipe asks for it; of a task of lm-evaluation-harness its first metric."
)
DRIFTS = (
    "Of the responses to the target: self-BLEU (100: all equal), distinct n-grams, tokens (quartiles), and the shares "
    "that were cut off, held no answer, or could not be graded. Of held-out chats, per token in nats: entropy, loss "
    "and KL(base || model)."
)
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


@dataclass(frozen=True)
class Cell:
    """A number as shown, its value and interval, and the addresses of the records it was computed from."""

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    records: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """One row: the base model, or a branch from one SFT checkpoint, with the stages of each of its seeds by role."""

    name: str
    members: tuple[Mapping[str, Stage], ...]
    seeds: tuple[str, ...] = ("",)


def lines(plan: Plan, ended: frozenset[str] = frozenset()) -> list[Line]:
    """The rows of a plan: base models first, then branches; branches that differ in `seed` alone make one row.

    `ended` are the branches that selection left at SFT; they have no row.
    """
    bases: dict[str, Line] = {}
    groups: dict[tuple[str, ...], list[Mapping[str, Stage]]] = defaultdict(list)
    names: dict[tuple[str, ...], str] = {}
    seeds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for branch in plan.branches:
        base = branch.stages.get("evaluate:base")
        if base is not None:
            stage = plan.stages[base]
            bases.setdefault(base, Line("base model", ({"base_eval": stage, "sft_eval": stage},)))
        if branch.name in ended:
            continue
        starts = [role.partition("@")[2] for role in branch.stages if role.startswith("rl@")] or [None]
        for start in starts:
            key = (*(text for text in branch.overrides if not text.startswith("seed=")), str(start))
            groups[key].append(_member(plan, branch, start))
            seeds[key].append(next((text for text in branch.overrides if text.startswith("seed=")), ""))
            words = [word for word in branch.name.split() if not word.startswith("seed=")]
            name = " ".join(words) or str(branch.recipe.objective["name"])
            names[key] = name if len(starts) == 1 else f"{name}, from {start}"
    return [
        *bases.values(),
        *(Line(names[key], tuple(members), tuple(seeds[key])) for key, members in groups.items()),
    ]


def _member(plan: Plan, branch: Branch, start: str | None) -> Mapping[str, Stage]:
    roles = {"base_eval": "evaluate:base", "sft": "sft", "sft_eval": "evaluate:sft"}
    if start is not None:
        roles |= {"rl": f"rl@{start}", "rl_eval": f"evaluate:rl@{start}"}
        if start != "final":
            roles["sft_eval"] = f"evaluate:sft@{start}"
    return {short: plan.stages[branch.stages[role]] for short, role in roles.items() if role in branch.stages}


class _Source:
    """Reads published artifacts, checked against their records, and remembers what it read."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.damaged: list[str] = []
        self._records: dict[str, Record | None] = {}
        self._metrics: dict[str, dict[str, Any]] = {}
        self._outcomes: dict[tuple[str, str], dict[str, dict[str, list[bool]]]] = {}

    def record(self, stage: Stage | None) -> Record | None:
        if stage is None:
            return None
        if stage.fingerprint not in self._records:
            try:
                record = self.store.find(stage)
                if record is not None and stage.kind == "evaluate":
                    self.store.verify(self.store.directory(stage), stage.fingerprint)
            except Corrupt as error:
                self.damaged.append(str(error))
                record = None
            self._records[stage.fingerprint] = record
        return self._records[stage.fingerprint]

    def metrics(self, stage: Stage | None) -> dict[str, Any] | None:
        if self.record(stage) is None or stage is None:
            return None
        if stage.fingerprint not in self._metrics:
            self._metrics[stage.fingerprint] = artifact.read_metrics(self.store.directory(stage))
        return self._metrics[stage.fingerprint]

    def notes(self) -> str:
        """What to know of the numbers read so far."""
        repeatable = all(metrics["engine"]["reproducible"] for metrics in self._metrics.values())
        return NOTES if repeatable else f"{NOTES} {NOT_REPRODUCIBLE}"

    def scores(self, stage: Stage, benchmark: str, mode: str) -> dict[str, float]:
        """Problem id -> pass@1 (mode sampled) or correctness of the greedy response."""
        key = (stage.fingerprint, benchmark)
        if key not in self._outcomes:
            self._outcomes[key] = artifact.read_outcomes(self.store.directory(stage), benchmark)
        found = self._outcomes[key].get(mode, {})
        return {problem: sum(correct) / len(correct) for problem, correct in found.items()}

    def curve(self, stage: Stage | None) -> list[dict[str, float]]:
        record = self.record(stage)
        if record is None or stage is None or "curve.jsonl" not in record.payload:
            return []
        path = self.store.directory(stage) / "curve.jsonl"
        if file_digest(path) != record.payload["curve.jsonl"]["sha256"]:
            self.damaged.append(
                f"{path} differs from its record; restore it, or delete the artifact to have it made again"
            )
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]


def _spread(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def _over_seeds_interval(shifts: Sequence[float], records: tuple[str, ...]) -> Cell:
    """Mean of paired differences, one a seed, with Student's 95% interval; empty below two seeds."""
    if len(shifts) < 2:
        return Cell()
    from scipy.stats import t

    mean = sum(shifts) / len(shifts)
    half = float(t.ppf(0.975, len(shifts) - 1)) * _spread(shifts) / len(shifts) ** 0.5
    text = f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f}), {len(shifts)} seeds"
    return Cell(text, mean, mean - half, mean + half, records)


Reader = Callable[[dict[str, Any]], Mapping[str, float] | None]
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
    "held_out.entropy": "token entropy",
    "held_out.loss": "held-out loss",
    "held_out.kl_from_base": "KL from base",
}
CONTRASTS = ("difference in pass@1, over problems", "over seeds", "p (Holm)")
SELECTION = ("setting", "seeds", "validation", "device-hours", "goes on")


class _Table:
    def __init__(self, selected: Selected, source: _Source) -> None:
        plan = selected.plan
        self.source = source
        self.settings = plan.branches[0].recipe.eval
        self.lines = lines(plan, selected.ended)
        self.rows = [(line, {name: getattr(self, f"_{name}")(line) for name in COLUMNS}) for line in self.lines]

    # --- cells

    def _over_seeds(self, line: Line, role: str, read: Reader) -> Cell:
        """Mean over the members whose evaluation is there, with the mean of their intervals.

        That is no narrower than the mean's interval: a mean's deviation is at most the mean of the deviations.
        """
        found, records = [], []
        for member in line.members:
            metrics = self.source.metrics(member.get(role))
            estimate = None if metrics is None else read(metrics)
            if estimate is not None:
                found.append(estimate)
                records.append(member[role].address)
        if not found:
            return Cell()
        value, low, high = (sum(one[name] for one in found) / len(found) for name in ("value", "low", "high"))
        spread = f" ± {_spread([one['value'] for one in found]):.3f}" if len(found) > 1 else ""
        return Cell(f"{value:.3f}{spread} ({low:.3f} to {high:.3f})", value, low, high, tuple(records))

    def target(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        found = metrics["benchmarks"].get(self.settings.target)
        return {} if found is None else found["metrics"]

    def _pass1(self, line: Line, role: str) -> Cell:
        return self._over_seeds(line, role, lambda metrics: self.target(metrics).get("pass@1"))

    def _passk(self, line: Line, role: str) -> Cell:
        def largest(metrics: dict[str, Any]) -> Mapping[str, float] | None:
            target = self.target(metrics)
            ks = [int(name.removeprefix("pass@")) for name in target if name.startswith("pass@")]
            return target[f"pass@{max(ks)}"] if ks and max(ks) > 1 else None

        return self._over_seeds(line, role, largest)

    def pass_at_k(self, line: Line, role: str) -> dict[int, Cell]:
        """pass@k on the target by k, for the k that the line's evaluations in this role measured."""
        found = [self.target(self.source.metrics(member.get(role)) or {"benchmarks": {}}) for member in line.members]
        ks = {int(name.removeprefix("pass@")) for one in found for name in one if name.startswith("pass@")}
        return {
            k: self._over_seeds(line, role, lambda metrics, k=k: self.target(metrics).get(f"pass@{k}"))
            for k in sorted(ks)
        }

    def _general(self, line: Line, role: str) -> Cell:
        """`evaluation.compare.average` over what is not the target; its interval treats benchmarks as independent."""

        def mean(metrics: dict[str, Any]) -> Mapping[str, float] | None:
            before = self.source.metrics(line.members[0].get("base_eval"))
            minimum = self.settings.base_minimum
            others = headlines(metrics).keys() - {self.settings.target}
            if not others or (minimum is not None and before is None):
                return None
            without = {*metrics["benchmarks"], *metrics["tasks"]} - others
            return average_of(metrics, before, minimum, without=without)

        return self._over_seeds(line, role, mean)

    def _sft_pass1(self, line: Line) -> Cell:
        return self._pass1(line, "sft_eval")

    def _sft_passk(self, line: Line) -> Cell:
        return self._passk(line, "sft_eval")

    def _sft_general(self, line: Line) -> Cell:
        return self._general(line, "sft_eval")

    def _rl_pass1(self, line: Line) -> Cell:
        return self._pass1(line, "rl_eval")

    def _rl_passk(self, line: Line) -> Cell:
        return self._passk(line, "rl_eval")

    def _rl_general(self, line: Line) -> Cell:
        return self._general(line, "rl_eval")

    def _entropy(self, line: Line) -> Cell:
        return self._over_seeds(
            line, "sft_eval", lambda metrics: (metrics["held_out"] or {"metrics": {}})["metrics"].get("entropy")
        )

    def _paired(self, line: Line, mode: str) -> Cell:
        before: dict[str, list[float]] = defaultdict(list)
        after: dict[str, list[float]] = defaultdict(list)
        records: list[str] = []
        for member in line.members:
            pair = member.get("sft_eval"), member.get("rl_eval")
            if any(self.source.record(stage) is None for stage in pair):
                continue
            for stage, scores in zip(pair, (before, after), strict=True):
                assert stage is not None
                metrics = self.source.metrics(stage)
                if metrics is None or self.settings.target not in metrics["benchmarks"]:
                    return Cell()
                for problem, score in self.source.scores(stage, self.settings.target, mode).items():
                    scores[problem].append(score)
                records.append(stage.address)
        if not before or before.keys() != after.keys():
            return Cell()
        problems = sorted(before)
        means = [[sum(scores[p]) / len(scores[p]) for p in problems] for scores in (before, after)]
        found = evaluation.paired_comparison(*means, seed=self.settings.seed, resamples=self.settings.resamples)
        text = f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
        return Cell(text, found.difference, found.low, found.high, tuple(records))

    def _gain(self, line: Line) -> Cell:
        return self._paired(line, "sampled")

    def _gain_greedy(self, line: Line) -> Cell:
        return self._paired(line, "greedy")

    def _training(self, line: Line) -> list[tuple[Stage, Record]]:
        stages = [member[role] for member in line.members for role in ("sft", "rl") if role in member]
        found = [(stage, self.source.record(stage)) for stage in stages]
        return [(stage, record) for stage, record in found if record is not None]

    def _time(self, line: Line) -> Cell:
        found = self._training(line)
        if not found:
            return Cell()
        by_kind = [[r.seconds for s, r in found if s.kind == kind] for kind in ("sft", "rl")]
        means = [sum(seconds) / len(seconds) for seconds in by_kind if seconds]
        text = " + ".join(seconds_text(mean) for mean in means)
        return Cell(text, sum(means), records=tuple(stage.address for stage, _ in found))

    def _memory(self, line: Line) -> Cell:
        found = self._training(line)
        if not found:
            return Cell()
        peak = max(record.peak_memory_bytes for _, record in found)
        return Cell(bytes_text(peak), float(peak), records=tuple(stage.address for stage, _ in found))

    # --- the other tables

    @property
    def reference(self) -> str:
        """Name of the line that the others are compared with."""
        return next(line.name for line in self.lines if line.name != "base model")

    def contrasts(self) -> list[tuple[str, list[Cell]]]:
        """Every line against the first one after the base: paired differences of pass@1 on the target.

        Both are taken where the walk ended (after RL if there is RL), over the seeds that both lines have. Cells: the
        difference with its interval over problems (each problem averaged over seeds), the same over seeds (Student's
        t), and Holm's p-value over the whole table, of the first.
        """
        named = [line for line in self.lines if line.name != "base model"]
        if len(named) < 2:
            return []
        first, rows, p_values = named[0], [], []
        for line in named[1:]:
            pairs = [
                (self._last(a), self._last(b))
                for seed, a in zip(first.seeds, first.members, strict=True)
                for other, b in zip(line.seeds, line.members, strict=True)
                if seed == other
            ]
            found = [(a, b) for a, b in pairs if a is not None and b is not None]
            scores = [
                [self.source.scores(stage, self.settings.target, "sampled") for stage in pair]
                for pair in found
                if all(self.target(self.source.metrics(stage) or {"benchmarks": {}}) for stage in pair)
            ]
            if not scores or len({frozenset(side) for pair in scores for side in pair}) > 1:
                continue
            problems = sorted(scores[0][0])
            means = [[sum(pair[side][p] for pair in scores) / len(scores) for p in problems] for side in (0, 1)]
            result = evaluation.paired_comparison(*means, seed=self.settings.seed, resamples=self.settings.resamples)
            records = tuple(stage.address for pair in found for stage in pair)
            text = f"{result.difference:+.3f} ({result.low:+.3f} to {result.high:+.3f})"
            over_problems = Cell(text, result.difference, result.low, result.high, records)
            shifts = [sum(pair[1][p] - pair[0][p] for p in problems) / len(problems) for pair in scores]
            rows.append((line.name, over_problems, _over_seeds_interval(shifts, records), records))
            p_values.append(result.p_value)
        adjusted = evaluation.holm(p_values) if p_values else []
        return [
            (name, [problems, seeds, Cell(f"{p:.3f}", p, records=records)])
            for (name, problems, seeds, records), p in zip(rows, adjusted, strict=True)
        ]

    def _last(self, member: Mapping[str, Stage]) -> Stage | None:
        stage = member.get("rl_eval") or member.get("sft_eval")
        return stage if self.source.record(stage) is not None else None

    def _by_role(self, readers: Mapping[str, Reader]) -> list[tuple[str, list[Cell]]]:
        """A row for every line after SFT and after RL, a cell for each reader."""
        rows = []
        for line in self.lines:
            for role, suffix in (("sft_eval", "" if line.name == "base model" else " SFT"), ("rl_eval", " RL")):
                if any(role in member for member in line.members):
                    cells = [self._over_seeds(line, role, read) for read in readers.values()]
                    rows.append((line.name + suffix, cells))
        return rows

    def benchmarks(self) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
        """Names of all benchmarks and tasks, and the score on each of every line after SFT and after RL."""
        found = (
            self.source.metrics(member.get(role))
            for line in self.lines
            for member in line.members
            for role in ("sft_eval", "rl_eval")
        )
        names = dict.fromkeys(name for metrics in found if metrics is not None for name in headlines(metrics))
        return list(names), self._by_role(
            {name: lambda metrics, name=name: headlines(metrics).get(name) for name in names}
        )

    def drift(self) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
        """How diverse and how long the responses to the target are, and how far the model has moved from the base.

        Columns and rows as of `benchmarks`; columns that no evaluation has are left out.
        """
        readers = {title: _reader(self, name) for name, title in DRIFT.items()}
        rows = self._by_role(readers)
        there = [place for place in range(len(readers)) if any(cells[place].text for _, cells in rows)]
        columns = [title for place, title in enumerate(readers) if place in there]
        return columns, [(name, [cells[place] for place in there]) for name, cells in rows]

    def entropies(self, line: Line, role: str) -> tuple[list[float], list[Cell]]:
        """The histogram of token entropies on held-out chats: lower edges of the bins, and the share in each."""
        found = [self.source.metrics(member.get(role)) for member in line.members]
        edges = next((m["held_out"]["entropy_histogram"]["edges"] for m in found if m and m["held_out"]), [])

        def share(metrics: dict[str, Any], place: int) -> Mapping[str, float] | None:
            held_out = metrics["held_out"]
            return None if held_out is None else held_out["entropy_histogram"]["shares"][place]

        cells = [self._over_seeds(line, role, lambda m, place=place: share(m, place)) for place in range(len(edges))]
        return edges, cells


def _reader(table: _Table, name: str) -> Reader:
    if name.startswith("held_out."):
        return lambda metrics: (metrics["held_out"] or {"metrics": {}})["metrics"].get(name.removeprefix("held_out."))
    return lambda metrics: table.target(metrics).get(name)


def _figures(table: _Table, source: _Source) -> dict[str, str]:
    """SVG texts: pass@k on the target, training curves. Only those with something to show."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import StrMethodFormatter

    style: dict[Any, Any] = {
        "svg.hashsalt": "sft-then-rl",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    figures: dict[str, str] = {}

    def save(name: str, figure: Any) -> None:
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
        figures[name] = text.getvalue()[text.getvalue().index("<svg") :]

    with pyplot.rc_context(style):
        figure, axis = pyplot.subplots(figsize=(6.4, 3.8))
        for index, line in enumerate(table.lines):
            for role, dash in (("sft_eval", "--"), ("rl_eval", "-")):
                cells = table.pass_at_k(line, role)
                if cells:
                    is_base = line.name == "base model"
                    label = line.name if is_base else f"{line.name} {'SFT' if role == 'sft_eval' else 'RL'}"
                    colour = "#888888" if is_base else _COLOURS[(index - 1) % len(_COLOURS)]
                    ks = list(cells)
                    low, value, high = ([getattr(cells[k], name) for k in ks] for name in ("low", "value", "high"))
                    axis.plot(ks, value, dash, color=colour, marker="o", markersize=3, label=label)
                    axis.fill_between(ks, low, high, color=colour, alpha=0.12, linewidth=0)
        if axis.lines:
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set(xlabel="k", ylabel=f"pass@k, {table.settings.target}, 95% intervals", ylim=(0, 1.02))
            axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
            save("pass_at_k", figure)
        else:
            pyplot.close(figure)
        figure, axis = pyplot.subplots(figsize=(6.4, 3.8))
        for index, line in enumerate(table.lines):
            edges, cells = table.entropies(line, "sft_eval")
            if edges and all(cell.text for cell in cells):
                colour = "#888888" if line.name == "base model" else _COLOURS[(index - 1) % len(_COLOURS)]
                low, value, high = ([getattr(cell, name) for cell in cells] for name in ("low", "value", "high"))
                axis.plot(range(len(edges)), value, color=colour, marker="o", markersize=3, label=line.name)
                axis.fill_between(range(len(edges)), low, high, color=colour, alpha=0.12, linewidth=0)
                axis.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges])
        if axis.lines:
            axis.set(xlabel="token entropy after SFT, from (nats)", ylabel="share of held-out tokens, 95% intervals")
            axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
            save("entropy", figure)
        else:
            pyplot.close(figure)
        panels = (("sft", "loss", "SFT loss"), ("sft", "entropy", "SFT token entropy"), ("rl", "reward", "RL reward"))
        figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 3.2))
        for axis, (role, metric, title) in zip(axes, panels, strict=True):
            for index, line in enumerate(table.lines):
                for member in line.members:
                    rows = [row for row in source.curve(member.get(role)) if metric in row]
                    if rows:
                        steps, values = [row["step"] for row in rows], [row[metric] for row in rows]
                        first = line.name not in axis.get_legend_handles_labels()[1]
                        colour = _COLOURS[(index - 1) % len(_COLOURS)]
                        axis.plot(steps, values, color=colour, linewidth=1, label=line.name if first else "_")
            axis.set(title=title, xlabel="step")
        if any(axis.lines for axis in axes):
            shown = {
                label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
            places = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
            axes[-1].legend(list(shown.values()), list(shown), fontsize=7, frameon=False, **places)
            save("training", figure)
        else:
            pyplot.close(figure)
    return figures


def _costs(plan: Plan, store: Store) -> list[tuple[str, str, str, str]]:
    """Per branch: attempts, hours and device-hours of all its stages; a shared stage counts in each branch."""
    rows = store.costs()
    table = []
    for branch in plan.branches:
        marks = set(branch.stages.values())
        mine = [row for row in rows if row["fingerprint"] in marks]
        hours, devices = sum(r["seconds"] for r in mine) / 3600, sum(r["device_hours"] for r in mine)
        table.append((branch.name, str(len(mine)), f"{hours:.2f}", f"{devices:.2f}"))
    mine = [row for row in rows if row["fingerprint"] in plan.stages]
    hours, devices = sum(r["seconds"] for r in mine) / 3600, sum(r["device_hours"] for r in mine)
    table.append(("all, shared stages once", str(len(mine)), f"{hours:.2f}", f"{devices:.2f}"))
    return table


def _selection(selected: Selected, store: Store) -> list[tuple[str, str, str, str, str, str]]:
    """A row for each candidate: group, setting, seeds, mean validation metric, device-hours of its SFT, the choice."""
    rows = store.costs()
    table = []
    for choice in selected.choices:
        for candidate in choice.candidates:
            marks = {stage.fingerprint for stage in candidate.stages}
            hours = sum(row["device_hours"] for row in rows if row["fingerprint"] in marks)
            value = "" if candidate.value is None else f"{candidate.value:.4f}"
            mark = "undecided" if choice.chosen is None else "yes" if candidate.setting == choice.chosen else ""
            table.append((choice.group, candidate.setting, str(len(candidate.stages)), value, f"{hours:.2f}", mark))
    return table


def _budget(selected: Selected) -> str:
    """Whether every group was given as many candidates and seeds as the others."""
    counts = {(len(c.candidates), tuple(len(x.stages) for x in c.candidates)) for c in selected.choices}
    metric = selected.plan.branches[0].recipe.selection.metric
    if len(counts) == 1:
        (candidates, seeds), *_ = counts
        start = f"Equal budget: every group tried {candidates} settings, {sum(seeds)} SFT runs"
    else:
        start = "Unequal budget: the groups did not try equally many settings and seeds"
    return f"{start}; chosen by {metric}. The validation column is this criterion and no result: it has no interval."


_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #8884; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; } a { color: inherit; text-decoration-color: #8888; }
.picture { background: #fff; padding: .5rem; } .picture img { max-width: 100%; }
pre { font-size: 12px; overflow-x: auto; }
"""


def _html(title: str, head: str, table: _Table, source: _Source, figures: dict[str, str], selected: Selected) -> str:
    plan = selected.plan
    used: dict[str, None] = {}

    def cell(value: Cell) -> str:
        used.update(dict.fromkeys(value.records))
        if not value.text:
            return "<td></td>"
        marks = " ".join(f'<a href="#{html.escape(r)}" title="{html.escape(r)}">°</a>' for r in value.records[1:])
        first = html.escape(value.records[0])
        return f'<td><a href="#{first}" title="{first}">{html.escape(value.text)}</a>{marks}</td>'

    def grid(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
        top = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        body = "".join(f"<tr><td>{html.escape(name)}</td>{''.join(cells)}</tr>" for name, cells in rows)
        return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'

    parts = [f"<h1>{html.escape(title)}</h1><p>{html.escape(head)}</p>"]
    parts += [f"<p><strong>{html.escape(text)}</strong></p>" for text in source.damaged]
    parts.append(
        grid(["", *COLUMNS.values()], [(line.name, [cell(c) for c in cells.values()]) for line, cells in table.rows])
    )
    parts.append(f"<p>{html.escape(source.notes())} Every number links to its record.</p>")
    for name, text in figures.items():
        picture = base64.b64encode(text.encode()).decode()
        parts.append(f'<div class="picture"><img alt="{name}" src="data:image/svg+xml;base64,{picture}"></div>')
    names, rows = table.benchmarks()
    if names:
        parts.append(
            f"<h2>Scores by benchmark</h2><p>{SCORES}</p>"
            + grid(["", *names], [(n, [cell(c) for c in cs]) for n, cs in rows])
        )
    names, rows = table.drift()
    if names:
        parts.append(
            f"<h2>Diversity and drift</h2><p>{DRIFTS}</p>"
            + grid(["", *names], [(n, [cell(c) for c in cs]) for n, cs in rows])
        )
    contrasts = table.contrasts()
    if contrasts:
        title = f"<h2>Against {html.escape(table.reference)}</h2>"
        parts.append(title + grid(["", *CONTRASTS], [(n, [cell(c) for c in cs]) for n, cs in contrasts]))
    chosen = [
        (name, [f"<td>{html.escape(v)}</td>" for v in rest]) for name, *rest in _selection(selected, source.store)
    ]
    if chosen:
        parts.append(f"<h2>Selection</h2><p>{html.escape(_budget(selected))}</p>" + grid(["", *SELECTION], chosen))
    costs = [(name, [f"<td>{html.escape(value)}</td>" for value in rest]) for name, *rest in _costs(plan, source.store)]
    parts.append("<h2>Cost</h2>" + grid(["branch", "attempts", "hours", "device-hours"], costs))
    parts.append("<h2>Records</h2>")
    for stage in plan.stages.values():
        record = source.record(stage) if stage.address in used else None
        if record is not None:
            shown = {k: v for k, v in asdict(record).items() if k != "payload"}
            text = html.escape(json.dumps(shown, indent=1, sort_keys=True))
            name = html.escape(stage.address)
            parts.append(f'<details id="{name}"><summary>{name}</summary><pre>{text}</pre></details>')
    opener = (
        "<script>function o(){const d=document.getElementById(decodeURIComponent(location.hash.slice(1)));"
        "if(d&&d.tagName==='DETAILS')d.open=true}addEventListener('hashchange',o);o()</script>"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        + "\n".join(parts)
        + opener
        + "</body></html>\n"
    )


def _markdown(
    title: str, head: str, table: _Table, source: _Source, figures: dict[str, str], selected: Selected
) -> str:
    plan = selected.plan
    notes: dict[str, int] = {}

    def cell(value: Cell) -> str:
        return value.text + "".join(f"[^{notes.setdefault(r, len(notes) + 1)}]" for r in value.records)

    def grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        aligned = ["---", *["---:"] * (len(columns) - 1)]
        return ["| " + " | ".join(row) + " |" for row in (columns, aligned, *rows)]

    parts = [f"# {title}", "", head, "", *(f"**{text}**\n" for text in source.damaged)]
    parts += grid(["", *COLUMNS.values()], [[line.name, *map(cell, cells.values())] for line, cells in table.rows])
    parts += ["", source.notes(), ""]
    parts += [f"![{name}]({name}.svg)\n" for name in figures]
    names, rows = table.benchmarks()
    if names:
        shown = grid(["", *names], [[n, *map(cell, cells)] for n, cells in rows])
        parts += ["## Scores by benchmark", "", SCORES, "", *shown, ""]
    names, rows = table.drift()
    if names:
        shown = grid(["", *names], [[n, *map(cell, cells)] for n, cells in rows])
        parts += ["## Diversity and drift", "", DRIFTS, "", *shown, ""]
    contrasts = table.contrasts()
    if contrasts:
        rows = [[name, *map(cell, cells)] for name, cells in contrasts]
        parts += [f"## Against {table.reference}", "", *grid(["", *CONTRASTS], rows), ""]
    if selected.choices:
        found = _selection(selected, source.store)
        parts += ["## Selection", "", _budget(selected), "", *grid(["", *SELECTION], found), ""]
    parts += ["## Cost", "", *grid(["branch", "attempts", "hours", "device-hours"], _costs(plan, source.store)), ""]
    parts += [f"[^{number}]: record `{address}`" for address, number in notes.items()]
    return "\n".join(parts) + "\n"


def write_report(plan: Plan, *, as_json: bool = False) -> int:
    """Writes `<root>/<recipe>/report.html` (self-contained), `report.md` and its pictures; returns 0.

    A missing record leaves its cells empty. Nothing is written if the records are the ones of the last report.
    """
    store = Store(plan.root)
    selected = select(plan, store)
    plan = selected.plan
    source = _Source(store)
    folder = store.root / plan.recipe
    state = {
        "version": VERSION,
        "branches": [[branch.name, branch.stages] for branch in plan.branches],
        "eval": plan.branches[0].recipe.eval.model_dump(mode="json"),
        "records": {mark: _stamp(store, stage) for mark, stage in plan.stages.items()},
        "attempts": len([row for row in store.costs() if row["fingerprint"] in plan.stages]),
    }
    mark = f"<!-- {hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()} -->"
    outputs = (folder / "report.html", folder / "report.md")
    if not as_json and all(path.exists() and path.read_text().endswith(mark + "\n") for path in outputs):
        print(f"report: {outputs[0]} (unchanged)")
        return 0
    table = _Table(selected, source)
    figures = _figures(table, source)
    title = f"{plan.recipe}: SFT objectives, then RL"
    there = sum(source.record(stage) is not None for stage in plan.stages.values())
    head = f"{len(plan.branches)} branches; {there} of {len(plan.stages)} stages have a record."
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in figures.items():
        _write(folder / f"{name}.svg", text)
    _write(outputs[0], _html(title, head, table, source, figures, selected) + mark + "\n")
    _write(outputs[1], _markdown(title, head, table, source, figures, selected) + mark + "\n")
    if as_json:
        rows = [{"name": line.name, **{key: asdict(c) for key, c in cells.items()}} for line, cells in table.rows]
        print(json.dumps(rows, indent=1))
    else:
        print(f"report: {outputs[0]}")
    return 0


def _stamp(store: Store, stage: Stage) -> str | None:
    try:
        record = store.find(stage)
    except Corrupt as error:
        return str(error)
    return None if record is None else f"{record.host} {record.started} {record.attempt}"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)
