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
    """Ids, links, addresses of records that numbers lead to, picture sources and headings."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.sources, self.headings = set(), set(), [], []
        self.path, self.of_group, self.of_record, self.of_cells = [], {}, {}, set()
        self.group = self.record = ""

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found["id"]} if "id" in found else set()
        self.sources += [found["src"]] if "src" in found else []
        self.group = found.get("id", self.group) if tag == "p" else self.group
        self.record = found.get("id", self.record) if tag == "li" else self.record
        if "href" in found:
            self.links.add(found["href"])
            if "td" in self.path or "h2" in self.path:
                self.of_cells.add(found["href"].removeprefix("#"))
            elif "p" in self.path:
                self.of_group.setdefault(self.group, []).append(found["href"].removeprefix("#"))
        self.path.append(tag)

    def handle_endtag(self, tag):
        while self.path and self.path.pop() != tag:
            pass

    def handle_data(self, data):
        if "th" in self.path and data.strip():
            self.headings.append(data)
        if "code" in self.path and "li" in self.path:
            self.of_record[self.record] = data

    @property
    def cited(self):
        records = [one for place in self.of_cells for one in self.of_group.get(place, [place])]
        return {self.of_record[one] for one in records if one in self.of_record}


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
