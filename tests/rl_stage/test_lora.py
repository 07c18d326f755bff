"""A low-rank update in verl's own engine: what it sends to vLLM and what we publish are the same merged model."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]

ENGINE = """
import json, pathlib, sys
from verl_cpu import plugin
plugin.require_active()
import torch, torch.distributed, verl_cpu.engine
from common.settings import rebuild
from omegaconf import OmegaConf
from rl_stage.checkpoints import Exports
from rl_stage.config import verl_config
from rl_stage.curve import Curve
from rl_stage.export import finish_export
from safetensors.torch import save_file
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine import EngineRegistry

request = json.loads(pathlib.Path(sys.argv[1]).read_text())
settings = rebuild(request["settings"])
paths = {name: pathlib.Path(path) for name, path in request["paths"].items()}
torch.distributed.init_process_group("cpu:gloo")
config = verl_config(settings, paths, paths["scratch"])
OmegaConf.resolve(config)
actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
engine = EngineRegistry.new(
    model_type="language_model", backend="fsdp2",
    model_config=omega_conf_to_dataclass(config.actor_rollout_ref.model),
    engine_config=actor.engine, optimizer_config=actor.optim, checkpoint_config=actor.checkpoint,
)
engine.initialize()
generator = torch.Generator().manual_seed(0)
updates = [p for name, p in engine.module.named_parameters() if "lora_B" in name]
for parameter in updates:
    local = parameter.data.to_local()
    local.copy_(torch.randn(local.shape, generator=generator))
sent = dict(engine.get_per_tensor_param()[0])  # all of them, after the engine has taken its update out again
save_file({name: tensor.clone().contiguous() for name, tensor in sent.items()}, paths["scratch"] / "sent.safetensors")
exports = Exports(paths["scratch"], settings, Curve(paths["scratch"] / "curve.jsonl"))
engine.save_checkpoint(str(exports.checkpoints / "global_step_2" / "actor"), global_step=2)
exports.keep(2)
finish_export(exports.path(2), paths["model"], paths["output"] / "step_2")
torch.distributed.destroy_process_group()
"""


@pytest.mark.e2e
@pytest.mark.parametrize("fixture", ["tiny_model", "untied_model"])
def test_what_vllm_gets_is_what_is_published(fixture, request, inputs, stage_command, tmp_path):
    from safetensors.torch import load_file

    model = request.getfixturevalue(fixture)
    lora = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}
    stage_command(tmp_path, model, inputs["data"], lora=lora)  # writes the request
    platform = yaml.safe_load((ROOT / "recipes" / "platform" / "cpu.yaml").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(tmp_path / "request.json")],
        env=os.environ | platform["env"] | ranks | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    start, published = (load_file(path / "model.safetensors") for path in (model, tmp_path / "output" / "step_2"))
    sent = load_file(tmp_path / "scratch" / "sent.safetensors")
    assert published.keys() == start.keys()
    assert sent.keys() - {"lm_head.weight"} == start.keys() - {"lm_head.weight"}
    for name, tensor in published.items():
        assert sent[name].dtype == tensor.dtype, name  # verl's own engine sends bfloat16
        assert (tensor - sent[name]).abs().max() <= 2**-22 * tensor.abs().max(), name
        assert name.endswith("proj.weight") == bool((tensor != start[name]).any()), name
    assert json.loads((tmp_path / "output" / "step_2" / "config.json").read_text())["dtype"] == "float32"
