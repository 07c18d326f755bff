"""The benchmark compares like with like: stock verl gets every key that our stage sets."""

import importlib.util
import pathlib
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from rl_stage import bench, bench_inputs, bench_stock
from rl_stage.config import verl_config


@pytest.fixture
def paths(inputs, tmp_path):
    return {**inputs, "scratch": tmp_path, "output": tmp_path / "output"}


def test_stock_verl_gets_our_keys(paths, tmp_path):
    settings = bench_inputs.stage_settings(prompts=4, samples=2, steps=5)
    command = bench_stock.stock_command(settings, paths)
    assert command[1:3] == ["-m", "verl.trainer.main_ppo"]
    overrides = [argument for argument in command[3:] if not argument.startswith("hydra.")]
    verl = importlib.util.find_spec("verl")
    assert verl is not None and verl.submodule_search_locations
    directory = pathlib.Path(verl.submodule_search_locations[0]) / "trainer" / "config"
    with initialize_config_dir(str(directory), version_base=None):
        stock: Any = OmegaConf.to_container(compose("ppo_trainer", overrides))
    ours: Any = OmegaConf.to_container(verl_config(settings, paths, tmp_path))
    different = {name for name, _ in bench_stock.differences(ours, stock)} | {
        name for name, _ in bench_stock.differences(stock, ours)
    }
    assert {name for name in different if not name.startswith((*bench_stock.OURS_ALONE, "ray_kwargs"))} == set()


def test_ratios_are_of_medians():
    rows = [
        {
            "side": side,
            "step_seconds": steps,
            "step_cpu_seconds": [2 * seconds for seconds in steps],
            "startup_seconds": start,
            "startup_cpu_seconds": 3 * start,
            "peak_memory_gb": peak,
        }
        for side, steps, start, peak in (
            ("ours", [1.0, 2.0, 9.0], 30.0, 4.0),
            ("stock", [1.0, 4.0, 9.0], 60.0, 6.0),
            ("ours", [1.0, 2.0, 2.0], 32.0, 5.0),
            ("stock", [4.0, 8.0, 8.0], 64.0, 6.5),
            ("warm", [1.0, 1.0, 1.0], 15.5, 5.0),
        )
    ]
    found = bench.figures(rows)
    # Ours: median of 1, 1, 2, 2, 2, 9; stock: of 1, 4, 4, 8, 8, 9.
    assert (found["step_time_ratio"], found["step_time_ratio_low"], found["step_time_ratio_high"]) == (
        0.3333,
        0.25,
        0.5,
    )
    assert (found["warm_start"], found["warm_start_cpu"], found["warm_startup_seconds"]) == (0.25, 0.25, 15.5)
    assert (found["step_cpu_ratio"], found["startup_ratio"], found["startup_cpu_ratio"]) == (0.3333, 0.5, 0.5)
    assert (found["peak_memory_gb"], found["stock_peak_memory_gb"]) == (5.0, 6.5)
