"""A page as self-contained HTML and as Markdown, from the templates of this package."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from launch.report.parts import Page
from launch.store import Record

TEMPLATES = Path(__file__).parent / "templates"


def as_html(page: Page, records: Mapping[str, Record]) -> str:
    """HTML that loads nothing; every number links to its record, shown at the end. `records` are by address."""
    citations = page.citations()
    cited = {address for group in citations for address in group}
    shown = {
        address: json.dumps({k: v for k, v in asdict(record).items() if k != "payload"}, indent=1, sort_keys=True)
        for address, record in records.items()
        if address in cited
    }
    groups = {group: number for group, number in citations.items() if len(group) > 1}
    return _environment().get_template("page.html.j2").render(page=page, groups=groups, records=shown)


def as_markdown(page: Page) -> str:
    """Markdown with the pictures as files beside it; a footnote names the records behind every number."""
    return _environment().get_template("page.md.j2").render(page=page, citations=page.citations())


def as_index(entries: Sequence[Any]) -> str:
    """HTML that lists reports, each with `page`, `recipe`, `overrides`, `branches` and `made`."""
    return _environment().get_template("index.html.j2").render(entries=entries)


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["data_url"] = lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    made.filters["cell"] = lambda text: " ".join(text.replace("|", "\\|").split())
    return made
