"""Stage `prepare`: rows of a source become chats, prompts, problems or pretraining text; one artifact for each part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from common.errors import ConfigError
from common.files import read_json
from common.templates import template_file
from common.user_code import code_digest
from data_prep import sources
from data_prep.sources import feeds
from data_prep.sources.feeds import Feed
from evaluation import graders
from launch.recipe.data import Data, feeds_of, source_settings
from launch.recipe.platform import Placement
from launch.recipe.section import setting
from launch.stages.contract import Branch, Cost, Counts, Made, Outside, Settings, StageKind, Step, Tokens
from launch.stages.references import model_of
from launch.stages.references import sources as references

CHAT_SHARE = 0.5  # of data.max_length that a chat fills when nothing is known
RESPONSE_SHARE = 0.7  # of a chat's tokens that are supervised when nothing is known
ROW_BYTES = 40.0


class PrepareSettings(Settings):
    part: Literal["sft", "rl", "benchmark", "pretrain"] = setting("sft", "which part of the data")
    name: str = setting("", "of the benchmark")
    sources: list[Feed] = setting([], "where its rows come from; none: the published benchmark itself")
    grader: str = setting("math", "of prompts that name none; empty where a function of the user's scores them")
    data: Data = setting(Data(), "the recipe's data section")  # type: ignore[valid-type]


class Prepare(StageKind):
    name = "prepare"
    version = 6
    function = "data_prep.prepare:run"
    reads_rows = True
    tables = ("statistics.json", "contamination.json")

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        models = (model_of(recipe, role) for role in dict.fromkeys(("base", *references(branch))))
        if any(isinstance(model, Made) for model in models):
            text = _feed("microworld", source_settings(recipe.data, "microworld", {}, "data.microworld"))
            yield self._step(branch, "prepare:pretrain", "pretrain", "", [text], {})
        benchmarks: dict[str, Made | Outside] = {}
        if recipe.eval.enabled:
            for entry in recipe.eval.benchmarks:
                role = f"prepare:benchmark/{benchmark_name(entry.name)}"
                yield self._step(branch, role, "benchmark", entry.name, problem_sources(recipe, entry), {})
                benchmarks[f"benchmark_{benchmark_name(entry.name)}"] = Made(role, identifies=False)
        chats = recipe.sft.enabled or (recipe.eval.enabled and recipe.eval.held_out_chats)
        if chats:
            yield self._step(branch, "prepare:sft", "sft", "", feeds_of(recipe.data, "sft"), benchmarks)
        if recipe.rl.enabled or recipe.readiness.enabled:
            shared = {"sft": Made("prepare:sft")} if chats and not recipe.data.allow_shared_prompts else {}
            prompts = feeds_of(recipe.data, "rl")
            yield self._step(branch, "prepare:rl", "rl", "", prompts, {**benchmarks, **shared})

    def _step(
        self,
        branch: Branch,
        role: str,
        part: str,
        name: str,
        entries: list[Feed],
        inputs: Mapping[str, Made | Outside],
    ) -> Step:
        recipe = branch.recipe
        what = {"benchmark": f"benchmark/{benchmark_name(name)}" if name else ""}.get(part, part)
        identity: dict[str, Any] = {
            "part": what,
            "eos": recipe.model.eos,
            "template_arguments": recipe.model.template_arguments,
            "sources": feeds.identity(entries, what),
        }
        found = dict(inputs)
        for place, entry in enumerate(entries):
            _check_pinned(recipe, entry)
            before = feeds.inputs(entries[:place], what)
            for key, path in feeds.inputs(entries[: place + 1], what).items():
                if key not in before:
                    found[key] = _outside(entry, path, key, part, name)
        if not entries:
            published = _published(name)
            identity["published"] = {
                "name": published.name,
                "version": published.version,
                "file": published.file,
                "revision": published.revision,
                "code": code_digest(name),
            }
            if Path(published.file).expanduser().is_file():
                found["file"] = Outside(published.file, f"eval.benchmarks.{name}")
        data = recipe.data
        identity |= {
            field: getattr(data, field)
            for field in ("seed", "system_prompt", "max_length", "on_long_row", "on_bad_row", "format")
        }
        identity["on_unknown_field"] = data.on_unknown_field
        grader = "math"
        if part == "sft":
            identity |= {field: getattr(data, field) for field in ("turns", "prompt_mismatch", "supervise_after_end")}
        if part == "rl":
            grader = recipe.rl.reward.name if recipe.rl.reward.name in graders.names() else ""
            identity |= {"allow_shared_prompts": data.allow_shared_prompts, "grader": grader}
        if recipe.model.path is not None:
            found["model"] = model_of(recipe, "base")
        if recipe.model.chat_template is not None:
            template = str(template_file(recipe.model.chat_template))
            found["chat_template"] = Outside(template, "model.chat_template", local=True)
        settings = PrepareSettings.model_validate(
            {
                "part": part,
                "name": name,
                "sources": entries,
                "grader": grader,
                "data": data,
                "model": recipe.model,
                "platform": recipe.platform,
            }
        )
        label = benchmark_name(name) if part == "benchmark" else part
        return Step(role, label, settings, identity, found)

    def placement(self, recipe: Any) -> Placement:
        return Placement(gpus_per_node=0)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        settings = counts.settings
        size = 0.0
        for entry in settings["sources"]:
            source = sources.load(entry["source"])
            section = source.section.model_validate(entry["settings"])
            size += ROW_BYTES * (source.rough_rows(section, _what(settings)) or 0.0)
        return Cost(bytes=size, start_seconds=15.0)

    def contents(self, settings: Mapping[str, Any], inputs: Mapping[str, str], directory: Path | None) -> Any:
        part = settings["part"]
        if part == "sft" and directory is not None:
            summary = read_json(directory / "summary.json") or {}
            counts = summary.get("tokens", {}).get("sft_train")
            if counts is not None:
                return Tokens(counts.get("rows", counts["chats"]), counts["tokens"], counts["response_tokens"], True)
        rows, tokens = 0.0, Tokens(0.0, 0.0, 0.0, False)
        for entry in settings["sources"]:
            source = sources.load(entry["source"])
            section = source.section.model_validate(entry["settings"])
            found = source.rough_rows(section, _what(settings)) or 1000.0
            taken = min(found, entry["rows"] or found) * entry["weight"]
            rows += taken
            if part == "sft":
                whole = source.rough_tokens(section, settings["data"]["max_length"]) or _guessed(settings, found)
                share = taken / found if found else 1.0
                tokens = Tokens(
                    tokens.chats + whole[0] * share,
                    tokens.tokens + whole[1] * share,
                    tokens.responses + whole[2] * share,
                    False,
                )
        return tokens if part == "sft" else max(1.0, rows)


def _check_pinned(recipe: Any, entry: Feed) -> None:
    unpinned = sources.load(entry.source).unpinned(feeds.section_of(entry)) if recipe.run.pinned else ""
    if unpinned:
        raise ConfigError(
            f"data source {entry.source}: run.pinned=true takes a hub name with its commit only, and none is known of "
            f"{unpinned}; set data.{entry.source}.path to a local copy"
        )


def _outside(entry: Feed, path: str, key: str, part: str, name: str) -> Outside:
    """What a source reads from outside; `files` and `hub`'s copies are local."""
    if entry.source == "hub":
        return Outside(path, f"data.{part}: path", local=True)
    if entry.source != "files":
        return Outside(path, f"data source {entry.source}: {key}")
    field = f"data.files.benchmarks.{name}" if part == "benchmark" else f"data.files.{key}"
    return Outside(path, field, local=True)


def _what(settings: Mapping[str, Any]) -> str:
    if settings["part"] != "benchmark":
        return settings["part"]
    return f"benchmark/{benchmark_name(settings['name'])}"


def _guessed(settings: Mapping[str, Any], rows: float) -> tuple[float, float, float]:
    """Chats, tokens and supervised tokens of `rows` rows of which nothing is known."""
    tokens = rows * CHAT_SHARE * settings["data"]["max_length"]
    return rows, tokens, RESPONSE_SHARE * tokens


def benchmark_name(name: str) -> str:
    """What a benchmark is called in roles, addresses and tables: of one's own (a dotted path) its own `name`."""
    if "." not in name and ":" not in name:
        return name
    return _published(name).name


def _published_names() -> list[str]:
    from evaluation import benchmarks

    return benchmarks.names()


def _published(name: str) -> Any:
    from evaluation import benchmarks

    return benchmarks.load(name)


def _feed(source: str, section: Any) -> Feed:
    return Feed.model_validate({"source": source, "settings": section.model_dump(mode="json")})


def problem_sources(recipe: Any, entry: Any) -> list[Feed]:
    """Where the problems of an entry of eval.benchmarks come from; [] for a published benchmark or one of one's own.

    Raises ConfigError where nobody has them.
    """
    data = recipe.data
    if entry.source == "published" or (entry.source is None and ("." in entry.name or ":" in entry.name)):
        benchmark_name(entry.name)
        return []
    name = entry.source or data.source
    section = source_settings(data, name, {}, f"data.{name}")
    given = list(sources.load(name).benchmarks(section))
    if entry.name not in given and entry.source is None and entry.name in data.files.benchmarks:
        name, section = "files", data.files
        given = [entry.name]
    if entry.name not in given and entry.source is None and name == "files" and entry.name in _published_names():
        return []
    if entry.name not in given:
        if name == "files":
            raise ConfigError(
                f"eval.benchmarks names {entry.name!r}; give its problems as data.files.benchmarks.{entry.name}=<file> "
                f"(docs/evaluation.md); given: {', '.join(given) or 'none'}"
            )
        raise ConfigError(
            f"eval.benchmarks names {entry.name!r}; data.source={name} has {', '.join(given) or 'none'}; or give a "
            f"file as data.files.benchmarks.{entry.name}"
        )
    return [_feed(name, section)]


PREPARE = Prepare()
