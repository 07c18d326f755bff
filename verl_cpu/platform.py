"""The platform "cpu" of verl: one logical device per process, gloo collectives, torch.cpu behind the device module."""

import os
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

_FORWARDED_TO_ROLLOUT = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND")


class _DeviceModule(types.ModuleType):
    """``torch.cpu`` plus what verl calls on ``torch.cuda``: memory figures are those of this process, in bytes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def current_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_name(self, device: Any = None) -> str:
        return "cpu"

    def memory_allocated(self, device: Any = None) -> int:
        return psutil.Process().memory_info().rss

    max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    def empty_cache(self) -> None:
        """Nothing to release."""

    ipc_collect = empty_cache

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """The operating system keeps the peak."""

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        """Processes share the machine's memory."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, new_state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(new_state)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed


_DEVICE_MODULE = _DeviceModule("verl_cpu.device")


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """verl's platform interface for machines without an accelerator; chosen by ``VERL_PLATFORM=cpu`` only."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """False: a machine whose GPU driver is broken must not silently train on its CPU."""
        return False

    def current_device(self) -> torch.device:  # pyright: ignore[reportIncompatibleMethodOverride]
        """verl moves tensors to this; the index 0 that other platforms return would mean cuda:0."""
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """There is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU operators are synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def set_allocator_settings(self, settings: str) -> None:
        """The system allocator has no settings of this kind."""

    def empty_cache(self) -> None:
        """Nothing to release."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        """Ray's "GPU", declared logically by ``ray.init(num_gpus=N)``: verl's bundles and ids stay what they are."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        """False selects the shared-memory path of verl's weight transfer."""
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {name: os.environ[name] for name in _FORWARDED_TO_ROLLOUT if name in os.environ}

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def cudart(self) -> None:
        return None
