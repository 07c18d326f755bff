"""`report --watch`: what is served, what is not, and that the page follows the records."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from measured import AFTER, BEFORE, experiment, of, publish_measure

from common.errors import ConfigError
from launch.__main__ import main
from launch.report import serve
from launch.report.serve import ADDRESS, ASKED, PAGE, watch
from launch.store import Store

from .browser import dumped, needs_browser, shown
from .browser import found as found_in


class Served:
    """A report that is watched in a thread, until `end`; `again` lets it look at the records once more."""

    def __init__(self, plan, capsys, **options):
        self.turn, self.looked, self.over = threading.Event(), threading.Event(), False
        self.code = None
        self.thread = threading.Thread(target=self._run, args=(plan,), kwargs=options)
        self.thread.start()
        assert self.looked.wait(60)
        self.said = capsys.readouterr().out
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)/report\.html", self.said)[1])

    def _run(self, plan, **options):
        self.code = watch(plan, wait=self._wait, **options)

    def _wait(self, seconds):
        assert seconds >= serve.PAUSE
        self.looked.set()
        self.turn.wait(60)
        self.turn.clear()
        if self.over:
            raise KeyboardInterrupt

    def again(self):
        self.looked.clear()
        self.turn.set()
        assert self.looked.wait(60)

    def end(self):
        self.over = True
        self.turn.set()
        self.thread.join(60)

    def get(self, path, host=None, method="GET"):
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=30)
        connection.request(method, path, headers={"Host": host or f"{ADDRESS}:{self.port}"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer


@pytest.fixture
def served(tmp_path, capsys):
    plan = experiment(tmp_path / "store")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "secret.txt").write_text("secret")
    found = Served(plan, capsys)
    yield plan, found
    found.end()


def test_the_page_is_written_again_when_a_record_comes_and_says_so(served, capsys):
    plan, found = served
    status, before, _ = found.get(PAGE)
    mark = found.get(ASKED)[1]
    assert status == 200 and "Nothing has run yet." in before and mark in before
    found.again()
    assert found.get(ASKED)[1] == mark, "nothing has changed"
    publish_measure(Store(plan.root), of(plan, "dft")["target"], BEFORE)
    found.again()
    assert found.get(ASKED)[1] != mark
    assert "Only dft is measured" in found.get(PAGE)[1] and "sessionStorage" in found.get(PAGE)[1]
    assert "sessionStorage" not in next((Store(plan.root).root / "toy").glob("report.html")).read_text()
    publish_measure(Store(plan.root), of(plan, "dft.rl")["target"], AFTER)
    found.again()
    assert "RL raises pass@1" in found.get(PAGE)[1]
    found.end()
    assert found.code == 0 and capsys.readouterr().out == "report: no longer served\n"


def test_only_the_folder_of_the_report_is_served_and_to_this_host_alone(served, tmp_path):
    _, found = served
    folder = tmp_path / "store" / "toy"
    assert found.get("/")[2].getheader("Location") == PAGE
    assert found.get("/report.md")[0] == 200 and found.get("/report.md", method="HEAD")[0] == 200
    (folder / "out").symlink_to(tmp_path / "store" / "secret.txt")
    (folder / "deep").mkdir()
    for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/out", "/deep/", "/deep", "//etc/passwd", "/none.html"):
        status, text, _ = found.get(path)
        assert status in (301, 404) and "secret" not in text.replace("secret.txt", ""), path
        assert "Directory listing" not in text
    for host in ("evil.example", f"evil.example:{found.port}", "127.0.0.1:1"):
        assert found.get(PAGE, host=host)[0] == found.get("/report.md", host=host, method="HEAD")[0] == 403
    assert found.get(PAGE, host=f"localhost:{found.port}")[0] == 200
    assert found.get(PAGE, method="POST")[0] == 501
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.2", found.port)) != 0, "it listens at one address"


def test_a_port_that_is_taken_is_refused_and_a_given_one_used(served, tmp_path, capsys):
    plan, found = served
    with pytest.raises(ConfigError, match=f"--port {found.port}: .*leave it out for a free one"):
        watch(plan, port=found.port)
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        port = free.getsockname()[1]
    other = Served(plan, capsys, port=port, output=tmp_path / "elsewhere")
    assert other.port == port and (tmp_path / "elsewhere" / "report.html").is_file()
    other.end()


def test_a_store_that_is_odd_for_a_moment_is_said_once_and_the_page_stays(served, capsys):
    plan, found = served
    stage = of(plan, "dft")["target"]
    folder = Store(plan.root).directory(stage)
    publish_measure(Store(plan.root), stage, BEFORE)
    record = folder / "record.json"
    text = record.read_text()
    record.write_text(text.replace(stage.fingerprint, stage.fingerprint[:16] + "0" * 48))
    found.again()
    found.again()
    assert found.get(PAGE)[0] == 200 and capsys.readouterr().err.count("not written: ") == 1
    record.write_text(text)
    found.again()
    assert "Only dft is measured" in found.get(PAGE)[1]


@needs_browser
def test_the_order_that_a_reader_chose_stays_when_the_page_is_loaded_again(tmp_path, capsys, monkeypatch):
    """The browser sorts two tables of the first page; a record comes while it asks, and it loads the second page."""
    plan = experiment(tmp_path / "store", objectives=("dft", "sft"))
    store, pages, asked, changed = Store(plan.root), [], threading.Event(), threading.Event()
    for name, counts in (("dft", BEFORE), ("sft", AFTER)):
        publish_measure(store, of(plan, name)["target"], counts)
    click = """for (const [place, times] of [[0, 2], [1, 1]]) {
      const head = document.querySelectorAll("table.sorts")[place].tHead.rows[0].cells[1];
      for (let turn = 0; turn < times; turn++) head.querySelector("button").click();
    }"""
    orders = """JSON.stringify([...document.querySelectorAll("table.sorts")].map(table => [
      [...table.tHead.rows[0].cells].filter(one => one.ariaSort && one.ariaSort !== "none")
        .map(one => [one.textContent, one.ariaSort]),
      [...table.tBodies[0].rows].map(row => [row.cells[0].textContent, row.cells[1].dataset.v ?? ""])]))"""
    send = serve.Handler._send

    def answer(handler, kind, text):
        if kind.startswith("text/html"):
            pages.append(text)
            text += (f"<script>{click}</script>" if len(pages) == 1 else "") + shown(orders)
        elif not asked.is_set():
            asked.set()
            assert changed.wait(120)
            text = handler.server.latest.made_from
        send(handler, kind, text)

    monkeypatch.setattr(serve.Handler, "_send", answer)
    found, browser = Served(plan, capsys), []
    address = f"http://{ADDRESS}:{found.port}{PAGE}"
    reader = threading.Thread(target=lambda: browser.append(dumped(address, tmp_path, milliseconds=9000)))
    reader.start()
    try:
        assert asked.wait(120)
        publish_measure(store, of(plan, "dft.rl")["target"], AFTER)
        found.again()
    finally:
        changed.set()
        reader.join()
        found.end()
    main, second, *others = json.loads(found_in(browser[0]))
    assert len(pages) == 2 and "dft RL" not in pages[0], "the page was loaded twice, with another record"
    assert main[0] == [["SFT pass@1", "ascending"]] and second[0] == [["self-BLEU", "descending"]]
    assert [name.strip("●■") for name, _ in main[1]] == ["dft", "sft", "base model"]
    assert [name.strip("●■") for name, _ in second[1]] == ["dft RL", "sft SFT", "dft SFT"]
    assert others and not any(chosen for chosen, _ in others), "a table that nobody sorted keeps its order"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "8000"], "--port is of --watch"),
        (["--watch", "--json"], "give one of them"),
        (["--watch", "--port", "70000"], "allowed: 1 to 65535"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, arguments, said):
    assert main(["report", "microworld", f"run.root={tmp_path}", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_ends_the_command_with_one_line_and_success(tmp_path):
    command = [sys.executable, "-m", "launch", "report", "microworld", f"run.root={tmp_path}", "--watch"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        first = process.stdout.readline()
        assert "http://127.0.0.1:" in first, process.stderr.read()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=120)
    assert (process.returncode, rest, errors) == (0, "report: no longer served\n", "")
