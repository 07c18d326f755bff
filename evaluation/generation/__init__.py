"""Sampling responses with vLLM: seeded per sample, resumable, deduplicated."""

from importlib import import_module

_HOMES = {
    "Sample": "evaluation.generation.sampling",
    "Sampling": "evaluation.generation.sampling",
    "sample": "evaluation.generation.sampling",
    "sample_seed": "evaluation.generation.sampling",
    "Prompter": "evaluation.generation.prompts",
    "VllmEngine": "evaluation.generation.engine",
    "Replicas": "evaluation.generation.replicas",
    "EngineOptions": "evaluation.generation.engine",
    "close_engine": "evaluation.generation.engine",
    "engine_for": "evaluation.generation.engine",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'evaluation.generation' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
