from __future__ import annotations

import pytest

from common.errors import ConfigError
from launch.execution.outcomes import Stopped, classify


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("row 7"), "config"),
        (ValueError("Free memory on device (3.1/79 GiB) on startup is less than desired"), "fault"),
        (RuntimeError("x"), "fault"),
        (MemoryError(), "oom"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "oom"),
        (OSError(28, "No space left on device"), "disk"),
        (ValueError("IOError: No space left on device"), "disk"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk"),
        (RuntimeError("Error while serializing: IoError(Custom: os error 28)"), "disk"),
        (OSError(122, "Disk quota exceeded"), "disk"),
        (Stopped(), "stopped"),
        (SystemExit(1), "fault"),
    ],
)
def test_exceptions_fall_into_classes(error, kind):
    assert classify(error)[0] == kind


def test_the_cause_counts_when_it_was_memory():
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise RuntimeError("worker died") from error
    except RuntimeError as error:
        assert classify(error)[0] == "oom"


def test_messages_are_one_line():
    assert classify(ConfigError("a\n  b")) == ("config", "a b")
    assert classify(KeyError("x"))[1] == "KeyError: 'x'"
