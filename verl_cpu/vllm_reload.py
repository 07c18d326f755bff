"""Weight reload in a running vLLM engine, correct on its CPU backend too. Knows vLLM only, not verl.

Use as ``LLM(..., worker_extension_cls="verl_cpu.vllm_reload.ReloadWorkerExtension")``, then
``llm.collective_rpc("reload_weights_from_directory", args=(path,))`` followed by ``llm.reset_prefix_cache()``.
"""

from pathlib import Path
from typing import Any

import torch

from common.errors import ConfigError
from common.models import tensor_headers


def repack_output_layers(model: torch.nn.Module) -> None:
    """Rebuild the packed copy that vLLM's CPU backend keeps of an output layer whose weight is tied.

    vLLM reloads layer by layer and skips layers that own no weight: a tied lm_head shares the embedding's parameter,
    which is updated in place, but multiplies with a oneDNN copy made at start-up (``dispatch_cpu_unquantized_gemm``)
    and would keep the old weights without any error. On other backends this recomputes nothing.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def tensor_shapes(directory: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor of a Hugging Face directory."""
    return {name: list(header.shape) for name, header in tensor_headers(directory).items()}


class ReloadWorkerExtension:
    """Worker extension (``worker_extension_cls``) that loads another checkpoint of the same model."""

    model_runner: Any
    reload_weights: Any

    def reload_weights_from_directory(self, path: str, loaded: dict[str, list[int]] | None = None) -> None:
        """Replace all weights by those of the Hugging Face directory ``path``.

        ``loaded``: name -> shape of the tensors that the engine was made from; None: as its directory says, which has
        to be there still.

        Raises ``ConfigError`` if its tensors are not exactly those (name and shape) of the loaded checkpoint: vLLM
        would log a warning and keep old weights. The caller resets the prefix cache, which still holds old keys and
        values.
        """
        new = tensor_shapes(Path(path))
        if loaded is None:
            loaded = tensor_shapes(Path(self.model_runner.model_config.model))
        if new != loaded:
            different = sorted(name for name in new.keys() | loaded.keys() if new.get(name) != loaded.get(name))
            raise ConfigError(
                f"{path}: tensor {different[0]!r} (and {len(different) - 1} more) differs in name or shape from the "
                f"loaded checkpoint {self.model_runner.model_config.model}; start a new engine for another architecture"
            )
        self.reload_weights(weights_path=path)
        repack_output_layers(self.model_runner.model)
