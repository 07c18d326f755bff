"""What a format is, and the fields of one row, of which each is taken by name or counted as not understood."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.sources.contract import RowError

Part = Literal["chat", "prompt"]


class Fields:
    """The fields of one row; what was not taken is not understood.

    where: the row's place, for messages. raw: its fields. A field that is null counts as absent.
    """

    def __init__(self, where: str, raw: Mapping[str, Any]):
        self.where, self.raw = where, raw
        self._taken: set[str] = set()
        self._strange: set[str] = set()

    def take(self, *names: str) -> Any:
        """The value of the first of `names` that is there, or None; the others stay untaken."""
        for name in names:
            self._taken.add(name)
            if self.raw.get(name) is not None:
                return self.raw[name]
        return None

    def has(self, *names: str) -> bool:
        """Whether one of `names` is there."""
        return any(self.raw.get(name) is not None for name in names)

    def strange(self, name: str) -> None:
        """Counts a field below the row's own (`messages.mood`) as not understood."""
        self._strange.add(name)

    def unknown(self) -> list[str]:
        """Names of the fields that were not understood."""
        rest = {str(name) for name, value in self.raw.items() if value is not None and name not in self._taken}
        return sorted(rest | self._strange)

    def nested(self, name: str, value: Any) -> Any:
        """`value`, or what it says where it is JSON text (a cell of a table). Raises RowError for text that is not."""
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise RowError("broken", f"{self.where}: {name} is text that is not JSON ({error})") from None


@dataclass(frozen=True)
class Format:
    """One way to write a row.

    columns: part ("chat", "prompt") -> its fields in words; a part that it cannot express is absent. fits: whether a
    row's fields are those of the format. messages: the turns of a row of `part` as {role, content, ...}, as they stand
    in the row; `formats.turns` checks them.
    """

    name: str
    columns: Mapping[str, str]
    fits: Callable[[Mapping[str, Any], str], bool]
    messages: Callable[[Fields, str], Any]
    answer: Callable[[Fields], Any] = lambda fields: fields.take("answer")


def present(raw: Mapping[str, Any], *names: str) -> bool:
    """Whether one of `names` is a field with a value."""
    return any(raw.get(name) is not None for name in names)


def said(role: str, content: Any) -> dict[str, Any]:
    """One turn."""
    return {"role": role, "content": content}
