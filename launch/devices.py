"""What NVIDIA's driver says of this node's devices, and the wait until those of a stage are free."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

FREE_BELOW = 1024  # MiB in use on a device that nobody computes on: the driver's own share is less
_FIELDS = ("index", "uuid", "name", "driver_version", "memory.used")


@dataclass(frozen=True)
class Device:
    """One line of nvidia-smi. used_mib: None where the device does not say (a partitioned one)."""

    index: str
    uuid: str
    name: str
    driver: str
    used_mib: int | None

    @property
    def busy(self) -> bool:
        return self.used_mib is not None and self.used_mib > FREE_BELOW

    @property
    def use(self) -> str:
        return f"device {self.index} has {self.used_mib} MiB in use"


def list_devices() -> list[Device]:
    """The devices of this node. Raises OSError or subprocess.SubprocessError where nvidia-smi does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = [line.split(", ") for line in text.splitlines()]
    return [
        Device(index, uuid, name, driver, int(used) if used.isdecimal() else None)
        for index, uuid, name, driver, used in rows
    ]


def wait_until_free(visible: Sequence[str], seconds: float) -> list[Device]:
    """Wait until no device among `visible` (indices or UUIDs) is in use, at most `seconds`; returns those that are.

    The memory of a process that was killed comes back some time after the process has gone. Raises as `list_devices`.
    """
    deadline = time.monotonic() + seconds
    while True:
        busy = [device for device in list_devices() if device.busy and {device.index, device.uuid} & set(visible)]
        if not busy or time.monotonic() > deadline:
            return busy
        time.sleep(0.5)
