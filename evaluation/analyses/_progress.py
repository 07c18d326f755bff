"""Progress of the analysis that runs, without handing a callback through its functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_report: ContextVar[Callable[[int, int], None] | None] = ContextVar("report", default=None)


def beat(done: int, total: int) -> None:
    """Says that `done` of `total` units of work are done, where someone listens."""
    report = _report.get()
    if report is not None:
        report(done, total)


@contextmanager
def listening(report: Callable[[int, int], None]) -> Iterator[None]:
    """Within the block `beat` calls `report`."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)
