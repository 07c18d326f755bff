"""The engine of this process: started once, its weights exchanged between checkpoints of one architecture."""

from pathlib import Path

from evaluation.generation.contract import Engine, EngineOptions
from evaluation.generation.replicas import Replicas
from evaluation.generation.vllm_engine import VllmEngine, model_files_digest

_engine: Engine | None = None


def close_engine() -> None:
    """Free this process's engine, if it has one."""
    global _engine
    if _engine is not None:
        _engine.close()
        _engine = None


def engine_for(model: Path, options: EngineOptions, replicas: int = 1) -> Engine:
    """This process's engine, or its `replicas` engines, with the weights of `model`.

    Kept between calls: importing vLLM takes many seconds and starting an engine seconds to minutes, a reload far less.
    Replaced where the options, the number of replicas or any file of the model besides its weights differ.
    """
    global _engine
    model = Path(model).resolve()
    if _engine is not None and (
        (_engine.options, _engine.count) != (options, replicas)
        or not _engine.usable
        or _engine.files != model_files_digest(model)
    ):
        close_engine()
    if _engine is None:
        _engine = VllmEngine(model, options) if replicas == 1 else Replicas(model, options, replicas)
    elif _engine.model != model:
        try:
            _engine.load(model)
        except BaseException:
            # Half-loaded weights must never answer.
            close_engine()
            raise
    return _engine
