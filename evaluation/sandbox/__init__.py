"""Running model-written Python with as few rights as the kernel can take away from a process."""

from importlib import import_module

_HOMES = {
    "Execution": "evaluation.sandbox.sandbox",
    "Limits": "evaluation.sandbox.sandbox",
    "run_code": "evaluation.sandbox.sandbox",
    "extract_code": "evaluation.sandbox.sandbox",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'evaluation.sandbox' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
