"""Runs of words that training rows share with a benchmark's problems: a report, since a run alone proves no leak.

The run length is GPT-3's (Brown et al. 2020, appendix C): 13 words, without case and punctuation. A problem of fewer
words has none; that the same problem is in the rows is an error elsewhere, whatever its length.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.problems import plain

RUN = 13
# A run that so many problems of one benchmark share is its instruction, not its content.
SHARED = 10
EXAMPLES = 5
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Overlap:
    """Counts of what was added, for every benchmark.

    Args:
        problems: name of a benchmark -> its problems as (id, text).
    """

    def __init__(self, problems: Mapping[str, Iterable[tuple[str, str]]]):
        self._runs: dict[int, dict[str, set[str]]] = {}  # hash of a run -> benchmark -> ids of problems
        self._text: dict[int, str] = {}
        self._found: dict[str, dict[str, Any]] = {}
        for name, given in problems.items():
            self._enter(name, given)
        self._hashes = np.array(sorted(self._runs), np.uint64)

    def _enter(self, name: str, problems: Iterable[tuple[str, str]]) -> None:
        total = short = 0
        owners: dict[int, set[str]] = {}
        texts: dict[int, str] = {}
        for identity, text in problems:
            words = _words(text)
            total += 1
            short += len(words) < RUN
            for place, value in enumerate(_runs(words).tolist()):
                owners.setdefault(value, set()).add(identity)
                texts.setdefault(value, " ".join(words[place : place + RUN]))
        self._found[name] = {"of": total, "too_short": short, "problems": set(), "rows": 0, "examples": []}
        for value, ids in owners.items():
            if len(ids) <= SHARED:
                self._runs.setdefault(value, {})[name] = ids
                self._text[value] = texts[value]

    def add(self, part: str, identity: str, turns: Sequence[Mapping[str, Any]]) -> None:
        """Look at one row of `part`: at everything that is said in it."""
        if not len(self._hashes):
            return
        words = [word for turn in turns for word in _words(turn["content"])]
        runs = _runs(words)
        nearest = np.minimum(np.searchsorted(self._hashes, runs), len(self._hashes) - 1)
        places = np.flatnonzero(self._hashes[nearest] == runs)
        hits: Counter[str] = Counter()
        for place in places.tolist():
            value, text = int(runs[place]), " ".join(words[place : place + RUN])
            if self._text[value] != text:
                continue  # another run with the same hash
            for name, ids in self._runs[value].items():
                found = self._found[name]
                if not hits[name] and len(found["examples"]) < EXAMPLES:
                    example = {"part": part, "row": identity, "problem": min(ids), "words": text}
                    found["examples"].append(example)
                hits[name] += 1
                found["problems"] |= ids
        for name in hits:
            self._found[name]["rows"] += 1

    def rows(self) -> dict[str, int]:
        """Rows with a run of each benchmark."""
        return {name: found["rows"] for name, found in self._found.items() if found["rows"]}

    def report(self) -> dict[str, Any]:
        """For every benchmark with any: `problems` of `of` with a run in some of `rows`, those `too_short`, examples.

        A benchmark that shares nothing is not named, so that it leaves no trace in what was made without it.
        """
        return {
            name: {**found, "problems": len(found["problems"]), "run": RUN}
            for name, found in sorted(self._found.items())
            if found["rows"]
        }


def _words(text: str) -> list[str]:
    return _WORD.findall(plain(text))


def _runs(words: Sequence[str]) -> np.ndarray:
    """(words - RUN + 1,) uint64: a hash of every run, from the words' own hashes in this process."""
    if len(words) < RUN:
        return np.empty(0, np.uint64)
    values = np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)
    count = len(words) - RUN + 1
    runs = np.zeros(count, np.uint64)
    for place in range(RUN):
        runs = runs * _FACTOR + values[place : place + count]
    return runs
