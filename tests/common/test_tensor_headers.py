"""What the headers of safetensors files say."""

import pytest
import torch
from safetensors.torch import save_file

from common.errors import ConfigError
from common.models import tensor_headers


def test_headers_of_every_shard(tmp_path):
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "model.safetensors")
    save_file({"bias": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "model-2.safetensors", {"format": "pt"})
    assert tensor_headers(tmp_path) == {"weight": ("F32", (2, 3)), "bias": ("BF16", (2,))}


def test_directory_without_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no \*\.safetensors file"):
        tensor_headers(tmp_path)
