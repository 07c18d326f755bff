"""Where rows come from and what is done with those that do not fit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ValidationError, create_model, field_validator, model_validator

from common.errors import ConfigError
from data_prep import formats, sources
from data_prep.sources.feeds import Feed
from launch.recipe.section import Section, setting

_OWN = ("source", "rows", "weight")  # of an entry of data.sft or data.rl; the rest belongs to its source


class _Data(Section):
    source: str = setting("files", "where the rows of a part come from that names no source of its own")
    sft: list[dict[str, Any]] = setting(
        [], "sources of the demonstrations, e.g. [{source: files, rows: 5000}]: name, rows, weight and own settings"
    )
    rl: list[dict[str, Any]] = setting([], "sources of the RL prompts, as for sft")
    seed: int = setting(0, "generation and splits")
    system_prompt: str | None = setting(None, "put before every chat that has none")
    max_length: int = setting(2048, "tokens a chat may have", gt=1)
    on_long_row: Literal["error", "drop", "truncate_left", "truncate_right"] = setting(
        "error", "a chat over max_length"
    )
    turns: Literal["all", "last"] = setting("all", "which assistant turns of a chat are trained on")
    prompt_mismatch: Literal["as_inferred", "error"] = setting(
        "as_inferred", "a turn whose prompt is no prefix of the whole chat: a row of its own, or an error"
    )
    supervise_after_end: bool = setting(
        False, "train on the white space after the token that ends a turn too, as verl does"
    )
    on_bad_row: Literal["error", "drop"] = setting("error", "a row that breaks the schema")
    format: str = setting("auto", "how rows are written: auto, or a format of data_prep.formats (docs/data.md)")
    on_unknown_field: Literal["count", "error"] = setting("count", "a field of a row that is not understood")
    allow_shared_prompts: bool = setting(True, "RL prompts may be prompts of demonstrations too")

    @field_validator("source")
    @classmethod
    def _source_is_known(cls, value: str) -> str:
        sources.load(value)
        return value

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, value: str) -> str:
        if value != formats.AUTO and value not in formats.names():
            raise ValueError(f"allowed: {', '.join((formats.AUTO, *formats.names()))}")
        return value

    @model_validator(mode="after")
    def _entries_are_valid(self) -> _Data:
        for part in ("sft", "rl"):
            feeds_of(self, part)
        return self


_SOURCES: dict[str, Any] = {
    name: (source.section, setting(source.section(), f"settings of source {name}"))
    for name in sources.names()
    if (source := sources.load(name)).section.model_fields
}
# Every source that ships with the package has its settings here, under its name.
Data: Any = create_model("Data", __base__=_Data, __module__=__name__, **_SOURCES)


def feeds_of(data: Any, part: str) -> list[Feed]:
    """The feeds of `part` ("sft" or "rl") with complete settings: an entry's own go before those of `data.<source>`.

    Raises ConfigError (one line) for an unknown source, setting or value.
    """
    entries = getattr(data, part) or [{"source": data.source}]
    found = []
    for place, entry in enumerate(entries):
        where = f"data.{part}.{place}"
        if "source" not in entry:
            raise ConfigError(f"{where}: source is missing; allowed: {', '.join(sources.names())}, or a path")
        own = {key: value for key, value in entry.items() if key not in _OWN}
        given = {key: value for key, value in entry.items() if key in _OWN}
        settings = source_settings(data, str(entry["source"]), own, where).model_dump(mode="json")
        found.append(Feed.model_validate({**given, "settings": settings}))
    return found


def source_settings(data: Any, name: str, own: dict[str, Any], where: str) -> BaseModel:
    """The section of source `name`: `data.<name>` where there is one, with `own` before it.

    Raises ConfigError (one line) that names `where`, the field and what is allowed.
    """
    source = sources.load(name)
    known = source.section.model_fields
    unknown = sorted(set(own) - set(known))
    if unknown:
        raise ConfigError(
            f"{where}.{unknown[0]}: source {name} has no such setting; allowed: {', '.join([*_OWN, *known])}"
        )
    shared = getattr(data, source.name, None)
    given = shared.model_dump() if isinstance(shared, BaseModel) else {}
    try:
        return source.section.model_validate({**given, **own})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, (where, *first["loc"])))
        raise ConfigError(f"{field}={first['input']}: {first['msg']}") from None
