"""An analysis over the artifacts that a plan's stages have published, outside the store."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.progress import Progress

from common.errors import ConfigError
from launch.graph.plan import Plan, Stage
from launch.graph.select import select
from launch.report.folders import folder_of
from launch.store import Store

FINDINGS = "findings.json"


def analyse(plan: Plan, name: str, settings: Mapping[str, Any], output: Path | None) -> int:
    """Runs analysis `name` over those of its inputs that the store has, says which are missing, and returns 0.

    plan: of a recipe that asks for the analysis. settings: of its section. output: of what it writes (see
    `evaluation.analyse.run`); None: a folder beside the recipe's report. What an analysis wrote there before is
    replaced. Raises ConfigError where nothing is there to be analysed, and for an output that holds other files.
    """
    from evaluation import analyses
    from evaluation.analyse import run

    store = Store(plan.root)
    plan = select(plan, store).plan
    short = analyses.load(name).name
    stage = next((one for one in plan.stages.values() if one.kind == "analyse" and one.label == short), None)
    if stage is None:
        needs = ", ".join(analyses.load(name).needs)
        raise ConfigError(
            f"analysis {name!r}: recipe {plan.recipe} makes nothing that it reads ({needs}); see its page"
        )
    inputs, missing = _inputs(plan, store, stage)
    if missing:
        print(f"not there yet: {', '.join(missing)}", file=sys.stderr)
    if missing and not inputs:
        raise ConfigError(
            f"analysis {name!r}: none of its {len(missing)} inputs is in {store.root}; run the recipe first"
        )
    folder = folder_of(plan, store.root) / short if output is None else output
    _check(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    given = [one for one in stage.settings["given"] if one["input"] in inputs]
    asked = SimpleNamespace(analysis=name, settings=dict(settings), given=given, target=stage.settings["target"])
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(short, total=None)
            made_here, scratch = Path(made, "output"), Path(made, "scratch")
            made_here.mkdir()
            scratch.mkdir()

            def report(done: int, total: int, **_: Any) -> None:
                bar.update(task, completed=done, total=total)

            run(asked, inputs, made_here, scratch, report)
        if folder.exists():
            shutil.rmtree(folder)
        made_here.rename(folder)
    _say(folder)
    return 0


def _inputs(plan: Plan, store: Store, stage: Stage) -> tuple[dict[str, Path], list[str]]:
    """Directories of the inputs that are published, by name; what the others are called."""
    found, missing = {}, []
    for name, given in stage.inputs.items():
        maker = plan.stages[str(given.stage)]
        if store.find(maker) is None:
            missing.append(maker.name)
        else:
            found[name] = store.select(store.directory(maker), given.select)
    return found, missing


def _check(folder: Path) -> None:
    if folder.exists() and not (folder / FINDINGS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output {folder}: holds something else than an analysis; name another directory")


def _say(folder: Path) -> None:
    from common.files import read_json

    print(read_json(folder / FINDINGS)["sentence"])
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".png", ".html", ".csv", ".parquet"):
            print(path)
