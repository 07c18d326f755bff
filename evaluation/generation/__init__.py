"""Sampling responses with vLLM: seeded per sample, resumable, deduplicated."""

from common.lazy import attributes

__all__, __getattr__ = attributes(
    __name__,
    {
        "Completion": "evaluation.generation.contract",
        "EngineOptions": "evaluation.generation.contract",
        "Sample": "evaluation.generation.contract",
        "Sampling": "evaluation.generation.contract",
        "sample": "evaluation.generation.sampling",
        "sample_seed": "evaluation.generation.sampling",
        "Prompter": "evaluation.generation.prompts",
        "VllmEngine": "evaluation.generation.vllm_engine",
        "Replicas": "evaluation.generation.replicas",
        "close_engine": "evaluation.generation.engine",
        "engine_for": "evaluation.generation.engine",
    },
)
