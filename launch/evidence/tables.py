"""The tables of a study as Markdown, and the page that holds them between marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from common.errors import ConfigError
from evaluation import readiness
from evaluation.readiness.association import FEWEST, Outcome, associations, outcomes_of
from evaluation.statistics import paired
from launch.evidence.claims import Claim, Result
from launch.evidence.differences import difference, of_problems
from launch.evidence.power import Spread
from launch.evidence.runs import BEFORE_RL, Run, arms, of_arm
from launch.report.cells import spread as deviation

SHOWN = {
    "sft": ("pass@1", "pass@16", "general", "self_bleu", "held_out_loss", "held_out_kl_from_base"),
    "rl": ("pass@1", "pass@16", "general"),
}
MARK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with these columns."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def arms_table(runs: Sequence[Run], arm_names: Sequence[str], bases: Sequence[Run]) -> str:
    """A row for each arm: the means over its seeds and their standard deviations, after SFT and, where a study has it,
    after RL."""
    columns = [(phase, name) for phase in SHOWN if any(run.phase == phase for run in runs) for name in SHOWN[phase]]
    rows = []
    for base in bases:
        rows.append(["base", "1", *(_cell([base], name) if phase == "sft" else "" for phase, name in columns)])
    for arm in arm_names:
        sides = {phase: of_arm(runs, arm, phase) for phase in SHOWN}
        cells = [_cell(list(sides[phase].values()), name) for phase, name in columns]
        rows.append([arm, str(max(map(len, sides.values()))), *cells])
    return markdown(["arm", "seeds", *(f"{phase.upper()} {_short(name)}" for phase, name in columns)], rows)


def _short(name: str) -> str:
    return name.removeprefix("held_out_").replace("_", " ")


def _cell(runs: Sequence[Run], name: str) -> str:
    values = [run.figures[name] for run in runs if name in run.figures]
    if not values:
        return ""
    return f"{sum(values) / len(values):.3f}" + (f" ± {deviation(values):.3f}" if len(values) > 1 else "")


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def contrasts_table(runs: Sequence[Run], arm_names: Sequence[str], against: str, phase: str, figure: str) -> str:
    """Every arm less `against`: the difference with its interval over seeds and problems, p, what could be found.

    Raises ConfigError where there is no arm `against`.
    """
    if against not in arm_names:
        raise ConfigError(f"against: no arm {against!r}; allowed: {', '.join(arm_names)}")
    head = ["arm", f"{figure} less {against}'s", "p", "detectable", "seeds"]
    rows = []
    for arm in arm_names:
        common = of_arm(runs, arm, phase).keys() & of_arm(runs, against, phase).keys()
        if arm != against and len(common) > 1:
            found = difference(runs, arm, against, phase, figure)
            shown = _interval(found.value, found.low, found.high)
            rows.append([arm, shown, f"{found.p:.3f}", f"{found.detectable:.3f}", str(found.seeds)])
    return markdown(head, rows)


def claims_table(results: Sequence[Result]) -> str:
    """The claims with their estimates and verdicts."""
    head = ["claim", "paper", "what it says", "what we compare", "difference", "p (Holm)", "verdict"]
    rows = []
    for one in results:
        found, claim = one.difference, one.claim
        shown = f"{_interval(found.value, found.low, found.high)}, {found.seeds} seeds"
        where = f"{claim.paper}, {claim.where}"
        rows.append([claim.name, where, claim.says, claim.measure, shown, f"{one.p_holm:.3f}", one.verdict])
    return markdown(head, rows)


def hypotheses_table(claims: Sequence[Claim]) -> str:
    """The claims before there are runs."""
    head = ["claim", "paper", "what it says", "what we compare", "we expect"]
    rows = [[one.name, f"{one.paper}, {one.where}", one.says, one.measure, one.direction] for one in claims]
    return markdown(head, rows)


def power_table(found: Spread, seeds: Sequence[int], problems: Sequence[int]) -> str:
    """The smallest difference that is found with 80% power, by seeds and problems."""
    head = ["seeds", *(f"{count} problems" for count in problems)]
    return markdown(head, [[str(n), *(f"{found.detectable(n, p):.3f}" for p in problems)] for n in seeds])


def predictors_table(runs: Sequence[Run], *, seed: int = 0, resamples: int = 2000) -> str:
    """How every figure before RL orders the arms by pass@1 after RL; a sentence where there are too few arms."""
    outcomes: dict[str, list[Outcome]] = {}
    for arm in arms(runs):
        before, after = of_arm(runs, arm, "sft"), of_arm(runs, arm, "rl")
        seeds = sorted(before.keys() & after.keys())
        pairs = [(_before_rl(before[one]), after[one].figures["pass@1"]) for one in seeds]
        for name, outcome in outcomes_of(arm, pairs).items():
            outcomes.setdefault(name, []).append(outcome)
    if max(map(len, outcomes.values()), default=0) < FEWEST:
        return f"Fewer than {FEWEST} arms have figures before RL and scores after it: nothing can be concluded.\n"
    goals = {name: readiness.goal_of(name) for name in outcomes}
    found = associations(outcomes, goals, seed=seed, resamples=resamples)
    order = sorted(found, key=lambda name: -found[name].spearman.value)
    rows = []
    for name in order:
        one = found[name]
        spearman = f"{one.spearman.value:+.2f} ({one.spearman.low:+.2f} to {one.spearman.high:+.2f})"
        kendall = f"{one.kendall.value:+.2f} ({one.kendall.low:+.2f} to {one.kendall.high:+.2f})"
        regret = f"{one.regret.value:.3f} ({one.at_random:.3f})"
        rows.append([name, goals[name], str(one.n), spearman, kendall, f"{one.p_holm:.3f}", regret, one.chosen])
    head = ["figure", "goal", "arms", "Spearman", "Kendall", "p (Holm)", "regret (at random)", "it chooses"]
    return markdown(head, rows)


def rates_table(rows: Sequence[Mapping[str, str]], figure: str) -> str:
    """A row for each arm, a column for each learning rate, the best of `figure` in bold: rows with `arm`, `rate`."""
    rates = sorted({row["rate"] for row in rows}, key=float)
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["arm"], {})[row["rate"]] = float(row[figure])
    cells = []
    for arm, of_rate in found.items():
        best = max(of_rate.values())
        shown = {rate: f"{value:.3f}" for rate, value in of_rate.items()}
        cells.append([arm, *(f"**{shown[one]}**" if of_rate[one] == best else shown[one] for one in rates)])
    return markdown(["arm", *rates], cells)


def again_table(first: Sequence[Run], again: Sequence[Run], figure: str) -> str:
    """A row for each run that was made a second time: both values of `figure` (pass@k), and whether they agree.

    The difference is paired by problem (`evaluation.statistics.paired`); they agree where its interval holds zero.
    Raises ConfigError for a run of stages that `first` has not.
    """
    of_stages = {run.measured: run for run in first if run.measured}
    head = ["arm", "seed", "after", figure, "again", "again less first", "problems with as many right", "agree"]
    rows = []
    for run in again:
        before = of_stages.get(run.measured)
        if before is None:
            raise ConfigError(f"{run.arm}, seed {run.seed}, {run.phase}: run again, but not among the study's runs")
        once, twice = of_problems(before, figure), of_problems(run, figure)
        assert once is not None and twice is not None, f"{figure} is no mean over problems"
        found = paired(once, twice)
        shown = _interval(found.difference, found.low, found.high)
        equal = sum(a == b for a, b in zip(before.right, run.right, strict=True))
        agree = "yes" if found.low <= 0 <= found.high else "no"
        means = [f"{one.mean():.3f}" for one in (once, twice)]
        name = [before.arm, str(run.seed), run.phase.upper()]
        rows.append([*name, *means, shown, f"{equal} of {len(run.right)}", agree])
    return markdown(head, rows)


def _before_rl(run: Run) -> dict[str, float]:
    return {name.removeprefix(BEFORE_RL): value for name, value in run.figures.items() if name.startswith(BEFORE_RL)}


def fill(page: str, made: Mapping[str, Callable[[], str]]) -> str:
    """The page with every table between its marks replaced. Raises ConfigError for a mark that nothing fills."""

    def one(match: re.Match[str]) -> str:
        if match[2] not in made:
            raise ConfigError(f"table {match[2]}: nothing makes it; allowed: {', '.join(made)}")
        return f"{match[1]}\n{made[match[2]]()}\n{match[4]}"

    return MARK.sub(one, page)
