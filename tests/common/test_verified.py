"""What a process above has verified counts on its machine alone."""

from __future__ import annotations

import json

from common import verified
from common.verified import VARIABLE, announcement, is_verified


def test_only_what_was_announced_counts(monkeypatch):
    assert not is_verified("/runs/cache/a")
    monkeypatch.setenv(VARIABLE, announcement(["/runs/cache/a"])[VARIABLE])
    assert is_verified("/runs/cache/a")
    assert not is_verified("/runs/cache/a/b")
    assert not is_verified("/runs/cache/b")


def test_another_machine_reads_for_itself(monkeypatch):
    told = announcement(["/runs/cache/a"])
    monkeypatch.setenv(VARIABLE, json.dumps(json.loads(told[VARIABLE]) | {"machine": "another"}))
    assert not is_verified("/runs/cache/a")
    monkeypatch.setattr(verified, "_machine", lambda: "another")
    assert is_verified("/runs/cache/a")
