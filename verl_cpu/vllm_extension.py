"""Both ends of verl's actor-to-rollout weight transfer on CPU: the receiving vLLM worker and the sending adapter.

Set ``rollout.engine_kwargs.vllm.worker_extension_cls: verl_cpu.vllm_extension.CPUColocateWorkerExtension``.
"""

from typing import Any

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from common.errors import ConfigError
from verl_cpu.patches import private_socket
from verl_cpu.vllm_reload import ReloadWorkerExtension, repack_output_layers


class PrivateSocketServerAdapter(ServerAdapter):
    """verl's rollout adapter (the sender), on a socket of this Ray cluster only."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.zmq_handle = private_socket(self.zmq_handle)


class CPUColocateWorkerExtension(vLLMColocateWorkerExtension, ReloadWorkerExtension):
    """verl's worker extension with a weight update that vLLM's CPU backend supports.

    Its linear layers repack their weight and drop the parameter, so verl's in-place ``load_weights`` has nothing to
    write into; vLLM's layerwise reload restores, loads and repacks each layer.
    """

    def _get_zmq_handle(self) -> str:
        return private_socket(super()._get_zmq_handle())

    def update_weights_from_ipc(
        self, peft_config: dict | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """Receive all weights of the actor and load them; raises what loading raised, after the transfer has ended."""
        model = self.model_runner.model
        started = False
        failure: Exception | None = None

        def load(weights: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
            nonlocal started, failure
            # The sender waits for ever on a receiver that stopped answering: keep answering, raise afterwards.
            if failure is not None:
                return
            try:
                if peft_config:
                    raise ConfigError("actor_rollout_ref.model.lora_rank > 0: platform cpu cannot serve LoRA rollouts")
                if not started:
                    initialize_layerwise_reload(model)
                    started = True
                # The tensors are views of the shared segment, and the reload defers their use beyond its lifetime.
                own = [(name, tensor.clone()) for name, tensor in weights]
                no_adapter: Any = None  # what verl tests for, though it declares a dict
                self._update_weights(own, no_adapter, base_sync_done)
            except Exception as error:
                failure = error

        receiver = BucketedWeightReceiver(self._get_zmq_handle(), torch.device("cpu"), use_shm=use_shm)
        receiver.receive_weights(load)
        if failure is not None:
            raise failure
        finalize_layerwise_reload(model, self.model_runner.model_config)
        repack_output_layers(model)
