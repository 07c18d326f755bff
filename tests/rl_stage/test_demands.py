"""Cores that verl's actors ask Ray for: counted before a run, and enough for verl's own pools."""

import json
import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from launch.execution.cluster import fits
from launch.graph.builder import make_plan
from launch.recipe.compose import RecipeError
from rl_stage.config import verl_config
from rl_stage.demands import DEFAULTS, PER_DEVICE, demand, demand_of
from rl_stage.verl_keys import compose_verl

# In a process of its own, because verl's platform is chosen when it is imported.
POOLS = """
import json, sys
import ray
from rl_stage.session import start_private_ray
nodes, devices, total, bundles, queue, placed = map(int, sys.argv[1:])
start_private_ray(cpus=total, gpus=nodes * devices, object_store_memory=100 * 2**20)
from verl.single_controller.ray.base import ResourcePoolManager
manager = ResourcePoolManager({"global_pool": [devices] * nodes}, {"actor": "global_pool"})
manager.create_resource_pool()
groups = manager.get_resource_pool("actor").get_placement_groups(device_name="cpu")
units = ray.util.placement_group([{"CPU": 1.0}] * queue)
ready = units.wait(30)
left = ray.available_resources().get("CPU", 0.0)
reserved = sum(bundle["CPU"] for group in groups for bundle in group.bundle_specs)
print(json.dumps({"groups": [group.bundle_count for group in groups], "reserved": reserved, "queue": ready,
                  "left": left, "devices": ray.available_resources().get("GPU", 0.0)}))
ray.shutdown()
"""


def settings_of(processes, make, per_node=None, **rl):
    settings = make(**rl)
    platform = settings.platform.model_copy(update={"gpus_per_node": per_node or processes})
    asked = {"processes": processes, "mini_batch": 16, "prompts": 16, "samples": 4}
    return settings.model_copy(update={"rl": settings.rl.model_copy(update=asked), "platform": platform})


def select(config):
    return lambda key: OmegaConf.select(config, key)


def test_verls_own_values_are_what_we_count_with():
    from verl.single_controller.ray.base import ResourcePoolManager

    composed = compose_verl()
    assert {name: OmegaConf.select(composed, name) for name in DEFAULTS} == DEFAULTS
    assert ResourcePoolManager({}, {}).max_colocate_count == PER_DEVICE


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16])
def test_the_count_of_the_recipe_is_that_of_verls_configuration(
    processes, cpu_settings, gpu_settings, inputs, tmp_path
):
    for settings in (
        settings_of(processes, cpu_settings),
        settings_of(processes, cpu_settings, per_node=min(8, processes)),
        settings_of(processes, lambda: gpu_settings("grpo"), per_node=min(8, processes)),
    ):
        assert demand_of(settings) == demand(select(verl_config(settings, inputs, tmp_path)))


def test_a_recipes_own_keys_of_verl_are_counted(cpu_settings, inputs, tmp_path):
    verl = {
        "transfer_queue": {"backend": {"SimpleStorage": {"num_data_storage_units": 5}}},
        "actor_rollout_ref.rollout.agent.num_workers": 3,
    }
    settings = settings_of(2, cpu_settings, verl=verl)
    found = demand_of(settings)
    assert found == demand(select(verl_config(settings, inputs, tmp_path)))
    assert (found.bundles, found.queue) == (6, 6)


def test_the_recipe_of_eight_devices_asks_for_more_than_any_fixed_number(gpu_settings):
    """3 x 8 for the bundles, 1 + 8 for the queue, 8 agent loops, 8 servers, and one to place with: 50, not 32."""
    found = demand_of(settings_of(8, lambda: gpu_settings("grpo")))
    assert (found.bundles, found.queue, found.placed, found.total) == (24, 9, 17, 50)
    assert found.of_node(1) == 34


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("processes", "nodes"),
    [pytest.param(n, k, marks=() if (n, k) == (8, 1) else pytest.mark.slow)
     for n, k in ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (2, 2), (8, 2), (16, 2))],
)  # fmt: skip
def test_verls_pools_are_placed_and_leave_cores_for_its_other_actors(processes, nodes, gpu_settings):
    found = demand_of(settings_of(processes, lambda: gpu_settings("grpo"), per_node=processes // nodes))
    numbers = [nodes, processes // nodes, found.total, found.bundles, found.queue, found.placed]
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "verl_cpu.plugin"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", POOLS, *map(str, numbers)],
        env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    pools = json.loads(ran.stdout.splitlines()[-1])
    assert pools["groups"] == [processes // nodes] * nodes
    assert pools["reserved"] == found.bundles and pools["queue"] is True
    assert pools["left"] == found.placed and pools["devices"] == 0


GPU = ["platform=gpu", "platform.nodes=2", "platform.gpus_per_node=8", "model.dtype=bfloat16"]
FITTING = ["rl.prompts=16", "rl.mini_batch=16", "rl.samples=4", "sft.batch_size=32"]


def placement(*overrides, processes=16):
    plan = make_plan("microworld", [*GPU, *FITTING, f"rl.processes={processes}", *overrides])
    return next(stage.placement for stage in plan.stages.values() if stage.kind == "rl")


def test_a_run_over_nodes_asks_each_node_for_what_verl_reserves_there():
    """Otherwise a cluster with too few cores would be taken, and verl's groups would never be placed."""
    found = placement()
    assert (found["nodes"], found["gpus_per_node"], found["cpus"]) == (2, 8, 24 + 1 + 1)
    assert not fits(found, [{"GPU": 8.0, "CPU": 16.0}] * 2) and fits(found, [{"GPU": 8.0, "CPU": 30.0}] * 2)
    assert placement(processes=8)["cpus"] == 1, "a Ray of its own counts its own cores"


def test_too_few_cores_are_refused_when_planned():
    with pytest.raises(RecipeError, match=r"platform\.placement\.rl\.cpus=12: verl reserves 26 cores on each of 2"):
        placement("+platform.placement.rl={cpus: 12}")
    assert placement("+platform.placement.rl={cpus: 64}")["cpus"] == 64
