"""Tiny models and prompts for tests that run the real verl and vLLM on CPU."""

import os
from pathlib import Path

import pytest

from common.tiny_models import byte_tokenizer, ends_of, random_model, save


def write_tiny_model(directory: Path, *, architecture: str, tied: bool, seed: int) -> Path:
    """A random fp32 byte model with tokenizer, as a Hugging Face directory. ``architecture``: qwen2 or qwen3."""
    fields = {"head_dim": 32} if architecture == "qwen3" else {}
    tokenizer = byte_tokenizer()
    model = random_model(
        architecture.capitalize(),
        len(tokenizer),
        hidden=64,
        key_value_heads=1,
        seed=seed,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        **fields,
        **ends_of(tokenizer),
    )
    return save(directory, model, tokenizer)


@pytest.fixture
def tiny_model(tmp_path):
    """Factory ``tiny_model(architecture, tied, seed) -> directory``."""

    def build(architecture: str, tied: bool, seed: int = 0) -> Path:
        name = f"{architecture}-{'tied' if tied else 'untied'}-{seed}"
        return write_tiny_model(tmp_path / name, architecture=architecture, tied=tied, seed=seed)

    return build


@pytest.fixture
def cpu_environment() -> dict[str, str]:
    """The environment of a CPU run, as recipes/platform/cpu.yaml sets it."""
    root = Path(__file__).parents[2]
    return {
        **{name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"},
        "PYTHONPATH": str(root),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "verl_cpu.plugin",
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
        "HF_HUB_OFFLINE": "1",
    }
