"""A model's files: from a directory or a hub name, with its own EOS or another; its tokenizer.

Base models are often trained with one end token and carry the chat template of another (Qwen2.5: `<|endoftext|>` and
`<|im_end|>`). `model.eos` says which one ends a turn; every stage then reads the same corrected directory.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import ConfigError
from common.files import files_digest
from common.hub import refusal
from common.templates import template_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What of a hub repository is read; weights in other formats (*.bin, *.pth, *.gguf, ...) stay there.
FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py")
WEIGHTS = ("config.json", "*.safetensors", "*.gguf", "pytorch_model*.bin")


def fetch(name: str, revision: str | None = None, *, offline: bool = False) -> Path:
    """A hub model's directory in the local cache; `offline` downloads nothing. Raises what the hub's client raises."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=offline))


def model_directory(path: str, revision: str | None, eos: str | None, view: Path) -> Path:
    """The directory of the model `path`; with `eos` the directory `view`, made to end turns with that token.

    Args:
        path: a directory, or a hub name, which is fetched (or found in the local hub cache).
        revision: of a hub name.
        eos: a token of the vocabulary, or None to leave the model as it is.
        view: where to put links to the model's files and corrected copies of the configuration.

    Raises:
        ConfigError: `eos` is not one token of the model's vocabulary; the model is gated, private or not there.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        try:
            directory = fetch(path, revision)
        except Exception as error:  # the client raises errors of several libraries
            raise refusal(error, path, "model", revision) or error from error
    return directory if eos is None else _end_turns_with(directory, eos, view)


def _end_turns_with(directory: Path, eos: str, view: Path) -> Path:
    """Fill `view` with the model in `directory`, whose tokenizer, configuration and generation stop at `eos`."""
    from transformers import AutoTokenizer

    index = AutoTokenizer.from_pretrained(directory).get_vocab().get(eos)
    if index is None:
        raise ConfigError(f"model.eos={eos}: not a token of {directory}; name the token that ends the template's turns")
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
        raise ConfigError(f"model.eos={eos}: the tokenizer of {directory} keeps {found} instead of {index} as its EOS")
    return view


def _rewrite(path: Path, changes: dict[str, Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.unlink(missing_ok=True)  # a link: the model itself stays as it is
    path.write_text(json.dumps({**content, **changes}, sort_keys=True, indent=1, ensure_ascii=False))


def load_tokenizer(
    directory: Path | str, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, with the Jinja file `chat_template` in place of its own if given."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = template_file(chat_template).read_text(encoding="utf-8")
    return tokenizer


def weights_digest(directory: Path) -> str:
    """sha256 (hex) over names and bytes of a model's configuration and weight files."""
    return files_digest({path for kind in WEIGHTS for path in directory.glob(kind)})


def vocabulary_size(directory: Path) -> int:
    """Width of a model's logits, from its config.json."""
    config = json.loads((directory / "config.json").read_text())
    return (config.get("text_config") or config)["vocab_size"]


class TensorHeader(NamedTuple):
    """What a safetensors file says of a tensor: its dtype (F32, BF16, ...) and shape."""

    dtype: str
    shape: tuple[int, ...]


def tensor_headers(directory: Path) -> dict[str, TensorHeader]:
    """Name to header of every tensor in the safetensors files of a directory; weights are not read.

    Raises ConfigError where there is no such file.
    """
    headers: dict[str, TensorHeader] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        headers |= {name: TensorHeader(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    if not headers:
        raise ConfigError(f"{directory}: no *.safetensors file; name a Hugging Face directory with its weights")
    return headers
