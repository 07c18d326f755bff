from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from launch.report.write import write_report


@pytest.fixture
def rows_of(capsys):
    """Writes the report of a plan; the rows of its main table by name."""

    def rows(plan):
        capsys.readouterr()
        assert write_report(plan, as_json=True) == 0
        return {row["name"]: row for row in json.loads(capsys.readouterr().out)}

    return rows


class Page(HTMLParser):
    """Ids, links, titles of links, picture sources and headings."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.cited, self.sources, self.headings = set(), set(), set(), [], []
        self.tag = ""

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found["id"]} if "id" in found else set()
        self.links |= {found["href"]} if "href" in found else set()
        self.cited |= set(found["title"].split(", ")) if "title" in found else set()
        self.sources += [found["src"]] if "src" in found else []
        self.tag = tag

    def handle_data(self, data):
        if self.tag == "th" and data.strip():
            self.headings.append(data)


@pytest.fixture
def parsed():
    """The parts of report.html in a folder."""

    def page(folder):
        found = Page()
        found.feed((folder / "report.html").read_text())
        return found

    return page


@pytest.fixture
def footnotes():
    """Of report.md in a folder: the footnotes that are cited, those defined, and the addresses that these name."""

    def notes(folder):
        text = (folder / "report.md").read_text()
        cited = set(re.findall(r"\[\^(\d+)\](?!:)", text))
        defined = dict(re.findall(r"^\[\^(\d+)\]: records? (.*)$", text, re.M))
        return cited, set(defined), {address for one in defined.values() for address in re.findall(r"`(.*?)`", one)}

    return notes
