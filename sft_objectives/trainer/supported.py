"""What the trainer does not support, said in one line when a run is planned. Imports neither torch nor verl.

`check_settings` reads the recipe alone; `check_model` also a model's config.json, where that is at hand. What only the
built model shows is refused when training starts (`fused.engine_hook`, `trainer.low_rank`).
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.nested import flat

TOWERS = ("vision_config", "audio_config", "vision_tower", "mm_vision_tower", "speech_config")
TEXT_ONLY = ("gemma3",)
"""Models with a tower whose text part trains without it: chats are text, so the tower gets no gradient and stays."""

_RECURRENT_LAYERS = ("mamba", "linear", "recurrent", "conv", "ssm", "rnn", "lightning")
_RECURRENT_KEYS = ("mamba_", "ssm_", "linear_conv_kernel_dim", "linear_num_value_heads", "conv_L_cache", "state_size")
_RECURRENT_MODELS = ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# keys of sft.verl -> the values that are supported, and what to do instead
_KEYS: dict[str, tuple[tuple[Any, ...], str]] = {
    "engine.strategy": (("fsdp2",), "the objectives run in verl's FSDP2 engine (not FSDP1, Megatron, veOmni)"),
    "model.use_fused_kernels": (
        (False,),
        "verl's fused kernels know no objective; sft.fused=auto does this for all",
    ),
    "engine.ulysses_sequence_parallel_size": ((), "set sft.sequence_parallel"),
    "engine.context_parallel_size": ((1,), "context parallelism is not supported; set sft.sequence_parallel"),
    "engine.tensor_model_parallel_size": ((1,), "tensor parallelism is Megatron's; set sft.processes"),
    "engine.pipeline_model_parallel_size": ((1,), "pipeline parallelism is Megatron's; set sft.processes"),
    "engine.pad_to_length": ((False,), "packed rows cannot be padded to a bucket"),
    "engine.forward_only": ((False,), "the engine has to train"),
    "engine.mixed_precision.param_dtype": (("fp32", "bf16"), "set model.dtype"),
    "trainer.logger": (([],), "this trainer writes to no logger of verl's; set run.trackers"),
    "model.override_config.output_router_logits": ((False,), "its loss would be ignored; set sft.router_aux_loss"),
}


def check_settings(sft: Any) -> None:
    """Raise ConfigError (one line) for a key of `sft.verl` that the trainer cannot honour."""
    given = flat(sft.verl)
    for section in ("engine", "model", "optim", "data", "trainer"):
        if section in given:
            raise ConfigError(
                f"sft.verl: {section}={given[section]!r} replaces a section of verl's configuration; allowed: keys "
                f"in it, such as {section}.<key>; only verl's FSDP2 engine is supported"
            )
    for key, (allowed, remedy) in _KEYS.items():
        if key in given and given[key] not in allowed:
            values = ", ".join(map(str, allowed)) or "nothing, remove it"
            raise ConfigError(f"sft.verl: {key}={given[key]!r} is not supported; allowed: {values}; {remedy}")


def check_model(directory: Path, sft: Any) -> None:
    """Raise ConfigError (one line) for a model that the trainer cannot train with these settings (`sft` section).

    directory: of a Hugging Face model; nothing is checked where it holds no config.json.
    """
    file = directory / "config.json"
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    kind = config.get("model_type", "unknown")
    tower = next((name for name in TOWERS if config.get(name)), None)
    if tower and kind not in TEXT_ONLY:
        raise ConfigError(
            f"{directory}: {kind} has a {tower}, towers of other modalities are not supported; allowed: text models, "
            f"and {', '.join(TEXT_ONLY)} for its text alone"
        )
    if tower and sft.sequence_parallel > 1:
        raise ConfigError(
            f"{directory}: {kind} has a {tower}; sft.sequence_parallel={sft.sequence_parallel} supports text models "
            "alone; set sft.sequence_parallel=1"
        )
    state = _recurrent(text)
    if state and sft.packed:
        raise ConfigError(
            f"{directory}: {kind} carries a state from token to token ({state}), which packed chats would leak into "
            "one another; set sft.packed=false"
        )
    if state and sft.sequence_parallel > 1:
        raise ConfigError(
            f"{directory}: {kind} carries a state from token to token ({state}), which cannot be spread over ranks; "
            "set sft.sequence_parallel=1"
        )
    if sft.router_aux_loss and not any(text.get(name) for name in _EXPERTS):
        raise ConfigError(
            f"sft.router_aux_loss={sft.router_aux_loss}: {directory} ({kind}) has no experts; allowed for it: 0"
        )
    head = _head_that_is_not_called(directory, config) if sft.fused != "off" else None
    if head is not None:
        raise ConfigError(f"{directory}: {head}: losses cannot be computed in it; set sft.fused=off for whole logits")


def _recurrent(config: Mapping[str, Any]) -> str | None:
    """What in a text model's configuration says that layers carry a state, None if none does."""
    for name in ("layer_types", "layers_block_type", "block_types", "attn_type_list"):
        layers = config.get(name)
        if isinstance(layers, list) and layers:
            found = sorted({str(layer) for layer in layers if any(word in str(layer) for word in _RECURRENT_LAYERS)})
            return f"{name}: {', '.join(found)}" if found else None
    if config.get("model_type") in _RECURRENT_MODELS:
        return str(config["model_type"])
    return next((key for key in config if key.startswith(_RECURRENT_KEYS) and config[key]), None)


def _head_that_is_not_called(directory: Path, config: Mapping[str, Any]) -> str | None:
    """Why the losses cannot be computed in this model's head, from the text of its class; None if they can, or if the
    text is not at hand. A head has to be a module that `forward` calls, and whose output are the logits."""
    name = next(iter(config.get("architectures") or []), None)
    source = _source(directory, config, name)
    if name is None or source is None:
        return None
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return None
    methods = {node.name: node for node in classes[name].body if isinstance(node, ast.FunctionDef)}
    if "forward" not in methods or "__init__" not in methods:
        return None  # inherited
    called = {
        node.func.attr
        for node in ast.walk(methods["forward"])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_self(node.func.value)
    }
    heads = {
        target.attr
        for node in ast.walk(methods["__init__"])
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and not _is_body(node.value)
        for target in node.targets
        if isinstance(target, ast.Attribute) and _is_self(target.value)
    }
    if called & heads:
        return None
    return f"{name}.forward calls no output head as a module (it calls {', '.join(sorted(called)) or 'nothing'})"


def _is_body(call: ast.Call) -> bool:
    """Whether this makes the model below the head: LlamaModel(config), AutoModel.from_config(config)."""
    made = ast.unparse(call.func)
    return made.split(".")[0].endswith(("Model", "Decoder", "Backbone", "Encoder", "Transformer"))


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _source(directory: Path, config: Mapping[str, Any], name: str | None) -> str | None:
    """The text of the module that defines a model's class: the model's own, or transformers'."""
    own = next((str(path) for path in (config.get("auto_map") or {}).values() if str(path).endswith(f".{name}")), None)
    if own is not None:
        file = directory / f"{own.rpartition('--')[2].rpartition('.')[0]}.py"
        return file.read_text(encoding="utf-8") if file.is_file() else None
    spec = importlib.util.find_spec("transformers")
    kind = str(config.get("model_type", "")).replace("-", "_")
    if spec is None or not spec.submodule_search_locations or not kind.isidentifier():
        return None
    models = Path(spec.submodule_search_locations[0]) / "models"
    for file in (models / kind / f"modeling_{kind}.py", *models.glob(f"*/modeling_{kind.removesuffix('_text')}.py")):
        if file.is_file() and f"class {name}(" in (text := file.read_text(encoding="utf-8")):
            return text
    return None
