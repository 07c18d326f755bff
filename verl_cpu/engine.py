"""verl's FSDP2 engine on device "cpu". Name it in a model config: ``external_lib: verl_cpu.engine``.

Not imported by the plug-in itself: verl's engines cost five seconds to import, and only training workers need them.
"""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.distributed.tensor import DTensor
from verl.utils.fsdp_utils import merged_lora_context, normalize_peft_param_name
from verl.utils.model import convert_weight_keys
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.base import EngineRegistry

from common.errors import ConfigError
from verl_cpu import patches, plugin

if TYPE_CHECKING:  # the decorator that registers verl's engine hides its type
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine as Engine
else:
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead as Engine

_PRECISION_FIELDS = ("param_dtype", "reduce_dtype", "buffer_dtype")


@EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
class CPUEngineWithLMHead(Engine):
    """``FSDPEngineWithLMHead`` for CPU; raises ``ConfigError`` for settings that fail or are silently lossy there."""

    def __init__(self, model_config, engine_config, optimizer_config, checkpoint_config):
        if engine_config.strategy != "fsdp2":
            raise ConfigError(f"engine.strategy is {engine_config.strategy!r}: platform cpu supports only 'fsdp2'")
        precision = engine_config.mixed_precision
        if precision is None or any(
            field not in precision or PrecisionType.to_dtype(precision[field]) != torch.float32
            for field in _PRECISION_FIELDS
        ):
            raise ConfigError(
                f"engine.mixed_precision is {precision} (verl's default is bf16): platform cpu supports only "
                "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
            )
        attention = model_config.hf_config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise ConfigError(
                f"model.override_config.attn_implementation is {attention!r}: platform cpu supports 'sdpa' and 'eager'"
            )
        # Some processors are twenty times slower with numbers below 1e-38. Threads that start later take this over.
        torch.set_flush_denormal(True)
        super().__init__(model_config, engine_config, optimizer_config, checkpoint_config)

    def _build_fsdp_module(self, module):
        # verl shards forward-only (reference) models with CPUOffloadPolicy(pin_memory=True): pinning needs an
        # accelerator, and on a CPU there is nothing to offload to.
        config = self.engine_config
        resident = copy.copy(config)
        object.__setattr__(resident, "forward_only", False)
        object.__setattr__(resident, "offload_policy", False)
        self.engine_config = resident
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config

    def _merged_lora_per_tensor_param(self) -> Iterator[tuple[str, torch.Tensor]]:
        # verl's own rounds what it sends to bfloat16: a rollout in fp32 would not be of the trained weights. Tensors
        # are cloned because they alias the module's storage, from which leaving the context takes the update out.
        with merged_lora_context(self.module, backup_adapters=True):
            parameters = convert_weight_keys(
                normalize_peft_param_name(self.module.state_dict()), cast(Any, self.module)
            )
            for name, parameter in parameters.items():
                whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
                yield name, whole.detach().clone()


if plugin.requested():
    patches.use_private_weight_socket()
