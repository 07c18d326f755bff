"""A text and its token ids, and the way from characters of the one to places among the other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


class TokenText:
    """A text and its ids; `starts` and `stops` are the characters of each, None for a tokenizer that does not tell."""

    def __init__(self, tokenizer: Any, text: str, ids: list[int], offsets: list[tuple[int, int]] | None):
        self.tokenizer, self.text, self.ids = tokenizer, text, ids
        self.starts = None if offsets is None else [first for first, _ in offsets]
        self.stops = None if offsets is None else [last for _, last in offsets]

    def place(self, char: int) -> int | None:
        """The id that begins at a character; None where one spans it."""
        if self.starts is None:
            ids = self.tokenizer(self.text[:char], add_special_tokens=False)["input_ids"]
            return len(ids) if self.ids[: len(ids)] == ids else None
        place = bisect_left(self.starts, char)
        assert self.stops is not None
        return None if place and self.stops[place - 1] > char else place

    def tail(self, place: int | None, char: int, specials: frozenset[int]) -> tuple[str, list[int]]:
        """The text from the last special token before `char` up to it, and the ids that stand there.

        Special tokens cut a text, so these ids are the prompt's if and only if the tail alone gives them.
        """
        if place is None or self.starts is None:
            return "", []
        begin = place
        while begin and self.ids[begin - 1] not in specials:
            begin -= 1
        begin = max(0, begin - 1)
        return self.text[self.starts[begin] if begin else 0 : char], self.ids[begin:place]

    def end_before(self, bound: int, start: int, wanted: Sequence[int], specials: frozenset[int]) -> int | None:
        """The place of the token that ends a turn of the characters [start, bound)."""
        if self.starts is None:
            first, end = (
                len(self.tokenizer(self.text[:at], add_special_tokens=False)["input_ids"]) for at in (start, bound)
            )
        else:
            first, end = bisect_left(self.starts, start), bisect_left(self.starts, bound)
        found = last_of(self.tokenizer, self.ids, first, end, wanted)
        if found is None and end == len(self.ids):
            place = next((at for at in range(end - 1, first - 1, -1) if self.ids[at] in specials), None)
            if place is not None and not self.tokenizer.decode(self.ids[place + 1 :]).strip():
                found = place
        return found

    def char_after(self, place: int) -> int:
        return len(self.tokenizer.decode(self.ids[: place + 1])) if self.stops is None else self.stops[place]

    def is_marked(self, place: int, marks: Sequence[tuple[int, int]]) -> bool:
        if self.starts is None:
            return True
        return any(first <= self.starts[place] < last for first, last in marks)


def encode(tokenizer: Any, texts: list[str]) -> list[TokenText]:
    if not texts:
        return []
    batch = tokenizer(texts, add_special_tokens=False, verbose=False, return_offsets_mapping=bool(tokenizer.is_fast))
    offsets = batch["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    return [TokenText(tokenizer, *entry) for entry in zip(texts, batch["input_ids"], offsets, strict=True)]


def last_of(tokenizer: Any, ids: Sequence[int], begin: int, end: int, wanted: Sequence[int]) -> int | None:
    """The last place in [begin, end) of the first of the `wanted` ids that is there; the first of those that follow
    one another with nothing but white space between (Phi writes its end and then EOS)."""
    found = next((at for index in wanted for at in range(end - 1, begin - 1, -1) if ids[at] == index), None)
    if found is not None:
        for place in range(found - 1, begin - 1, -1):
            if ids[place] in wanted:
                found = place
            elif tokenizer.decode([ids[place]]).strip():
                break
    return found
