"""The page as a browser lays it out: no overflow, both schemes, and tables that sort."""

from __future__ import annotations

import json
import re

import pytest

from launch.report import synthetic
from launch.report.write import write

from .browser import needs_browser, seen

pytestmark = needs_browser
LONG = "pass_at_k_of_a_benchmark_with_a_name_that_does_not_end_and_has_no_place_to_break"
# What sticks out of the window, but for what scrolls in a box of its own.
OUTSIDE = """[...document.body.querySelectorAll("*")].filter(one => !one.closest(".scroll table, svg")
 && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.tagName + one.className).join()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a made-up sweep of two objectives and two learning rates."""
    plan = synthetic.sweep(tmp_path_factory.mktemp("store"), objectives=2, rates=2)
    synthetic.fill(plan)
    return write(plan).path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_sticks_out_of_the_window_and_what_is_drawn_can_be_read(page, tmp_path, width, dark):
    text = page.read_text().replace("<h2 id", f"<p>{LONG}</p><h2 id", 1)
    long = page.with_name("long.html")
    long.write_text(text)
    colours = 'getComputedStyle(document.querySelector("svg text")).fill'
    script = f"[document.documentElement.scrollWidth <= innerWidth, innerWidth, {OUTSIDE}, {colours}].join('|')"
    fits, inner, outside, ink = seen(long, tmp_path, script, width=width, dark=dark).split("|")
    assert (fits, inner, outside) == ("true", str(width), "")
    lightness = sum(map(int, re.findall(r"\d+", ink)[:3])) / 3
    assert lightness > 150 if dark else lightness < 130


def test_a_click_on_a_heading_sorts_and_the_third_one_gives_the_first_order_back(page, tmp_path):
    script = """(() => {
      const table = document.querySelector("table.sorts"), heads = [...table.tHead.rows[0].cells];
      const place = heads.findIndex(one => one.textContent === "RL pass@1");
      const head = heads[place], button = head.querySelector("button"), found = [];
      const rows = () => [...table.tBodies[0].rows];
      const look = () => found.push([head.getAttribute("aria-sort"), rows().map(row => row.cells[0].textContent),
        rows().map(row => row.cells[place].dataset.v ?? "")]);
      look();
      for (let turn = 0; turn < 3; turn++) { button.focus(); document.activeElement.click(); look(); }
      return JSON.stringify(found);
    })()"""
    before, falling, rising, after = json.loads(seen(page, tmp_path, script))
    assert [one[0] for one in (before, falling, rising, after)] == ["none", "descending", "ascending", "none"]
    assert before[1:] == after[1:] and before[1][0] == "base model" and len(before[1]) == 6
    for order, reverse in ((falling, True), (rising, False)):
        *values, last = order[2]
        assert last == "" and order[1][-1] == "base model", "a row without a value comes last"
        assert values == sorted(values, key=float, reverse=reverse) and len(set(values)) > 1


def test_a_number_leads_to_its_records(page, tmp_path):
    script = """(() => {
      const link = document.querySelector('td a[href^="#g"]');
      location.hash = link.hash;
      const group = document.querySelector(link.hash);
      return [getComputedStyle(group).display, group.querySelectorAll("a").length > 1,
        [...group.querySelectorAll("a")].every(one => document.querySelector(one.hash + " code"))].join();
    })()"""
    assert seen(page, tmp_path, script) == "block,true,true"


def test_the_page_loads_nothing_and_is_whole_without_its_script(page):
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)', text) and "url(" not in re.sub(r"url\(#", "", text)
    assert "@import" not in text and "<button" not in text
