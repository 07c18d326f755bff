"""How many tokens a model has room for, from its config.json as vLLM reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.files import read_json

# Names under which architectures keep it.
FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
# Of these kinds of rotary scaling the configuration already states the longer context.
STATED = ("su", "longrope", "llama3")


def context_length(model: Path) -> int | None:
    """Prompt and response tokens that a Hugging Face directory's model was built for; None where it does not say."""
    config: dict[str, Any] = read_json(model / "config.json") or {}
    config = config.get("text_config") or config
    found = [config[name] for name in FIELDS if isinstance(config.get(name), int)]
    if not found:
        return None
    length = float(min(found))
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    # Gemma 3's states it too, whatever the kind.
    applies = "gemma3" not in config.get("model_type", "")
    if applies and "factor" in scaling and scaling.get("rope_type", scaling.get("type")) not in STATED:
        length = scaling.get("original_max_position_embeddings", length) * scaling["factor"]
    return int(length)
