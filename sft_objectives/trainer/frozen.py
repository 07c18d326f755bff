"""Frozen models beside the student, which never exist as a whole in a process of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from verl.utils.device import get_device_id
from verl.utils.fsdp_utils import apply_fsdp2

from common.errors import ConfigError

from .vocabularies import check_vocabulary


def frozen_model(path: str, engine: Any) -> torch.nn.Module:
    """The model of a directory, sharded like the student of verl's `engine`.

    In a group of several ranks it is built without weights and each rank reads its own shards from the files. Where the
    files name or split weights otherwise than the module (mixture-of-experts models), the first rank reads them all and
    the others receive their shards. Raises ConfigError under sequence parallelism and for another
    vocabulary than the student's; a head that is only padded to another width is fine.
    """
    if engine.use_ulysses_sp:
        raise ConfigError("sft.sequence_parallel > 1 does not support a live reference; set sft.sequence_parallel=1")
    student = engine.model_config
    check_vocabulary(Path(student.local_path), Path(path), "a live reference")
    options = {
        "dtype": engine._autocast_dtype,
        "attn_implementation": student.hf_config._attn_implementation,
        "trust_remote_code": student.trust_remote_code,
    }
    if dist.get_world_size() == 1:
        return _frozen(_load(path, options)).to(get_device_id())
    model = _frozen(_without_weights(path, options))
    apply_fsdp2(model, {"mesh": engine.device_mesh, "reshard_after_forward": True}, engine.engine_config)
    materialize(model, torch.device(get_device_id()))
    stored, wanted = _stored(Path(path)), model.state_dict()
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if stored and not set(wanted) - stored - tied:
        load({name: wanted[name] for name in wanted if name in stored}, storage_reader=_reader(path))
    else:
        state = _load(path, options).state_dict() if dist.get_rank() == 0 else {}
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
    return model


def _reader(path: str) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    return HuggingFaceStorageReader(path)


def _load(path: str, options: dict[str, Any]) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return cast(torch.nn.Module, AutoModelForCausalLM.from_pretrained(path, **options))


def _without_weights(path: str, options: dict[str, Any]) -> torch.nn.Module:
    """The module on the meta device, but for buffers, which no file holds."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=options["trust_remote_code"])
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, **options)
    model.tie_weights()
    return cast(torch.nn.Module, model)


def _frozen(model: torch.nn.Module) -> torch.nn.Module:
    return model.eval().requires_grad_(False)


def _stored(directory: Path) -> set[str]:
    """Names of the tensors in a directory's safetensors files."""
    names: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names |= set(opened.keys())
    return names


def materialize(model: torch.nn.Module, device: torch.device) -> None:
    """Give meta parameters memory on `device`, for this rank's shards, and move buffers; what is tied stays tied."""
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty_like(parameter, device=device)
                    made[id(parameter)] = torch.nn.Parameter(empty, requires_grad=False)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if isinstance(buffer, Tensor):
                module._buffers[name] = buffer.to(device)
