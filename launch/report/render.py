"""A page as self-contained HTML and as Markdown, from the templates of this package."""

from __future__ import annotations

import functools
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from launch.report.drawing import COLOURS, GLYPHS, shorter, themed
from launch.report.parts import Cell, Figure, Page
from launch.store import Record
from launch.text import bytes_text, seconds_text

TEMPLATES = Path(__file__).parent / "templates"
# Bytes of artifacts' own pictures that the HTML holds, the smallest first; it links to the files of the others.
EMBEDDED = 1_200_000
SAFE = " /:=,;()'!*@$?[]"  # characters that a data URL of an SVG may hold as they are


@dataclass(frozen=True)
class Shown:
    """A record in the list at the end: its number, its address, and what is known of how it was made."""

    number: int
    address: str
    facts: tuple[str, ...]
    inputs: tuple[int, ...]


def as_html(page: Page, records: Mapping[str, Record]) -> str:
    """HTML that loads nothing; every number links to its records, listed at the end. `records` are by address."""
    groups = page.citations()
    numbers = {address: number for number, address in enumerate(dict.fromkeys(sum(groups, ())), start=1)}
    return _template("page.html.j2").render(
        page=page,
        anchors={group: f"r{numbers[group[0]]}" if len(group) == 1 else f"g{place}" for group, place in groups.items()},
        groups={place: [numbers[one] for one in group] for group, place in groups.items() if len(group) > 1},
        records=_shown(numbers, records),
        packages=_packages(numbers, records),
        embedded=_embedded(page.every_figure()),
        colours=len(COLOURS),
    )


def as_markdown(page: Page) -> str:
    """Markdown with the pictures as files beside it; a footnote names the records behind every number."""
    return _template("page.md.j2").render(page=page, citations=page.citations())


def as_watching(asked: str, made_from: str, pause: float) -> str:
    """The script of a served page, in its tags: every `pause` seconds it asks the path `asked` what the page was made
    from, and loads it again when the answer is no longer `made_from`."""
    script = _template("watch.js.j2").render(asked=asked, made_from=made_from, pause=int(pause * 1000))
    return f"<script>\n{script}</script>\n"


def as_index(entries: Sequence[Any]) -> str:
    """HTML that lists reports, each with `page`, `recipe`, `overrides`, `branches` and `made`."""
    return _template("index.html.j2").render(entries=entries)


def _shown(numbers: Mapping[str, int], records: Mapping[str, Record]) -> list[Shown]:
    of_stage = {one.fingerprint: numbers[address] for address, one in records.items() if address in numbers}
    found = []
    for address, number in numbers.items():
        one = records.get(address)
        if one is None:
            found.append(Shown(number, address, ("no record any more",), ()))
            continue
        made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(one.started))
        facts = (made, seconds_text(one.seconds), bytes_text(one.bytes), one.host, f"attempt {one.attempt}")
        inputs = [of_stage.get(given["stage"]) for given in one.inputs.values() if given.get("stage")]
        found.append(Shown(number, address, facts, tuple(sorted({one for one in inputs if one is not None}))))
    return found


def _packages(numbers: Mapping[str, int], records: Mapping[str, Record]) -> list[tuple[str, int]]:
    """Every set of package versions among the records, and how many were made with it."""
    counts: dict[str, int] = defaultdict(int)
    for address in numbers.keys() & records.keys():
        counts[", ".join(f"{name} {version}" for name, version in sorted(records[address].packages.items()))] += 1
    return sorted(counts.items(), key=lambda one: (-one[1], one[0]))


def _embedded(figures: Iterable[Figure]) -> dict[str, str]:
    """By file what stands for each picture that the page holds: the SVG itself of ours, else a data URL."""
    found, left = {}, EMBEDDED
    for figure in sorted(figures, key=lambda one: len(one.svg)):
        if figure.ours:
            found[figure.file] = themed(figure.svg, figure.name)
            continue
        url = f"data:image/svg+xml,{quote(' '.join(shorter(figure.svg).split()), safe=SAFE)}"
        if len(url) <= left:
            found[figure.file], left = url, left - len(url)
    return found


def _number(cell: Cell) -> str:
    """What a cell is sorted by; nothing for text."""
    return "" if cell.value is None else f"{cell.value:.6g}"


def _plain(text: str) -> str:
    """A text as a part of an id."""
    return re.sub(r"\W+", "-", text).strip("-").lower()


@functools.cache
def _template(name: str) -> jinja2.Template:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["cell"] = lambda text: " ".join(text.replace("|", "\\|").split())
    made.filters["number"] = _number
    made.filters["plain"] = _plain
    made.filters["size"] = lambda text: bytes_text(len(text.encode()))
    made.globals["glyph"] = lambda key: GLYPHS[key.shape]
    return made.get_template(name)
