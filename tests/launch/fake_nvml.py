"""NVIDIA's management library as it answers on a node with devices of our choice."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml

MIB = 2**20


class FakeDriver:
    """Each time the library is opened it takes the next of `answers`, and stays with the last.

    An answer is the MiB in use on each device (None: the device does not say), or an error's code.
    """

    def __init__(self, monkeypatch, *answers):
        self.opened = 0
        self.answers = answers
        for name in ("Init", "Shutdown", "SystemGetDriverVersion", "DeviceGetCount", "DeviceGetHandleByIndex"):
            monkeypatch.setattr(pynvml, f"nvml{name}", getattr(self, f"_{name}"))
        for name in ("DeviceGetUUID", "DeviceGetName", "DeviceGetMemoryInfo"):
            monkeypatch.setattr(pynvml, f"nvml{name}", getattr(self, f"_{name}"))

    @property
    def _used(self):
        return self.answers[min(self.opened, len(self.answers)) - 1]

    def _Init(self):
        self.opened += 1
        if isinstance(self._used, int):
            raise pynvml.NVMLError(self._used)

    def _Shutdown(self):
        pass

    def _SystemGetDriverVersion(self):
        return "580.65"

    def _DeviceGetCount(self):
        return len(self._used)

    def _DeviceGetHandleByIndex(self, index):
        return index

    def _DeviceGetUUID(self, index):
        return f"GPU-{'abcdefgh'[index]}"

    def _DeviceGetName(self, index):
        return "NVIDIA H100"

    def _DeviceGetMemoryInfo(self, index, version):
        assert version == pynvml.nvmlMemory_v2  # the one that nvidia-smi shows
        if self._used[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(used=self._used[index] * MIB)
