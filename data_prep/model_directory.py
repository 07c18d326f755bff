"""A model as a Hugging Face directory: from a directory or a hub name, with its own EOS or another.

Base models are often trained with one end token and carry the chat template of another (Qwen2.5: `<|endoftext|>` and
`<|im_end|>`). `model.eos` says which one ends a turn; every stage then reads the same corrected directory.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]


def model_directory(path: str, revision: str | None, eos: str | None, view: Path) -> Path:
    """The directory of the model `path`; with `eos` the directory `view`, made to end turns with that token.

    Args:
        path: a directory, or a hub name, which is fetched (or found in the local hub cache).
        revision: of a hub name.
        eos: a token of the vocabulary, or None to leave the model as it is.
        view: where to put links to the model's files and corrected copies of the configuration.

    Raises:
        ValueError: `eos` is not one token of the model's vocabulary.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        directory = Path(snapshot_download(path, revision=revision, allow_patterns=PATTERNS))
    return directory if eos is None else end_turns_with(directory, eos, view)


def end_turns_with(directory: Path, eos: str, view: Path) -> Path:
    """Fill `view` with the model in `directory`, whose tokenizer, configuration and generation stop at `eos`."""
    from transformers import AutoTokenizer

    index = AutoTokenizer.from_pretrained(directory).get_vocab().get(eos)
    if index is None:
        raise ValueError(f"model.eos={eos}: not a token of {directory}; name the token that ends the template's turns")
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(parents=True)
    for file in directory.iterdir():
        if file.is_file():
            (view / file.name).symlink_to(file.resolve())
    _rewrite(view / "tokenizer_config.json", {"eos_token": eos})
    if (view / "special_tokens_map.json").exists():
        _rewrite(view / "special_tokens_map.json", {"eos_token": eos})
    _rewrite(view / "config.json", {"eos_token_id": index})
    _rewrite(view / "generation_config.json", {"eos_token_id": index})
    found = AutoTokenizer.from_pretrained(view).eos_token_id
    if found != index:
        raise ValueError(f"model.eos={eos}: the tokenizer of {directory} keeps {found} instead of {index} as its EOS")
    return view


def _rewrite(path: Path, changes: dict[str, Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)  # a link: the model itself stays as it is
    path.write_text(json.dumps({**content, **changes}, sort_keys=True, indent=1, ensure_ascii=False))
