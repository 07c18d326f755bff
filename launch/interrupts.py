"""Ctrl-C in the command line: while there is nothing to clean up, the process just ends.

A KeyboardInterrupt may be raised anywhere, and within an import or a library's compiled code it ends as a traceback.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
SAID = "interrupted; the same command continues"


def end_at_once() -> None:
    """From here on Ctrl-C ends the process with one line."""
    signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> NoReturn:
    os.write(2, f"{SAID}\n".encode())
    os._exit(INTERRUPTED)


def raise_again() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt: there are processes, leases or files to clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """From here on Ctrl-C changes nothing: the process is being taken down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
