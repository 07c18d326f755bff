"""Which directories a process above this one has just compared with their checksums, on this machine.

Who starts processes that read hundreds of gigabytes says so in their environment, and they do not read them for that
again. The machine is named too: an environment may be handed on to another node.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "SFT_THEN_RL_VERIFIED"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def announcement(directories: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    """What to add to the environment of processes that need not verify `directories`."""
    told = {"machine": _machine(), "directories": sorted(str(path) for path in directories)}
    return {VARIABLE: json.dumps(told)}


def is_verified(directory: str | os.PathLike[str]) -> bool:
    """Whether a process above this one has verified all of `directory` on this machine."""
    told = os.environ.get(VARIABLE)
    if told is None:
        return False
    found = json.loads(told)
    return found["machine"] == _machine() and str(directory) in found["directories"]


def _machine() -> str:
    return _BOOT.read_text().strip()
