"""The attention kernels of a recipe: what each needs, and the registration of our own. Imports no torch by itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from common.errors import ConfigError

VARLEN = "varlen"
FLASH = "flash_attention_2"
PACKED = (FLASH, VARLEN)
"""Kernels that compute packed chats one by one; in bfloat16 alone, and not on a CPU."""

COMPILED = "pip install flash-attn==2.8.3 --no-build-isolation"


def obstacle(attention: str) -> tuple[str, str] | None:
    """What a kernel lacks in what is installed here, and the remedy; None if nothing. Looks at no device."""
    if attention == FLASH and importlib.util.find_spec("flash_attn") is None:
        return "flash_attn is not installed", f"{COMPILED}, or model.attention=varlen"
    if attention == VARLEN:
        torch = importlib.util.find_spec("torch")
        folders = list((torch.submodule_search_locations if torch else None) or [])
        if not any((Path(folder) / "nn" / "attention" / "varlen.py").is_file() for folder in folders):
            return "this PyTorch has no torch.nn.attention.varlen", "install PyTorch 2.11, or model.attention=sdpa"
    return None


def require(attention: str) -> None:
    """Raise ConfigError (one line) where a kernel is missing on this machine."""
    found = obstacle(attention)
    if found is not None:
        raise ConfigError(f"model.attention={attention}: {found[0]}; {found[1]}")


def prepare(attention: str) -> None:
    """Called before a model is loaded with this kernel. Raises ConfigError where it is missing."""
    require(attention)
    if attention == VARLEN:
        import common.varlen_attention  # noqa: F401  (registers it with transformers)
