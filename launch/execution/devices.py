"""What NVIDIA's driver says of this node's devices, and the wait until those of a stage are free."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

FREE_BELOW = 1024  # MiB in use on a device that nobody computes on: the driver's own share is less


@dataclass(frozen=True)
class Device:
    """One device, in the order of nvidia-smi. used_mib: None where it does not say (a partitioned one)."""

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


@contextlib.contextmanager
def _driver() -> Iterator[str]:
    """The driver's version, while the library is open."""
    pynvml.nvmlInit()
    try:
        yield pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()


def _used_mib(handle: Any) -> int | None:
    try:
        # the second version leaves out what the driver keeps for itself, as nvidia-smi does
        memory: Any = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return memory.used // 2**20
    except pynvml.NVMLError as error:
        if getattr(error, "value", None) in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION):
            return None
        raise


def list_devices() -> list[Device]:
    """The devices of this node. Raises pynvml.NVMLError where the driver does not answer."""
    with _driver() as version:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            Device(
                str(index),
                pynvml.nvmlDeviceGetUUID(handle),
                pynvml.nvmlDeviceGetName(handle),
                version,
                _used_mib(handle),
            )
            for index, handle in enumerate(handles)
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
