"""PyTorch's packed attention for transformers' models: `attn_implementation="varlen"`, registered when imported.

Chats that are packed into one row are told apart by their position ids: wherever these do not go on by one, another
chat begins. `torch.nn.attention.varlen.varlen_attn` then computes each chat alone, forward and backward, on CUDA
devices in bfloat16 or float16. On a CPU `reference_varlen_attn` answers in its place, for tests and rehearsals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.errors import ConfigError

NAME = "varlen"
HALF = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
_OTHER = "set model.attention=sdpa (with sft.packed=false) or flash_attention_2"


class Layout(NamedTuple):
    """Where chats begin in the tokens of a batch.

    cumulative: (chats + 1,) int32, their ends, after a 0; longest: tokens of the longest; kept: (tokens,) int64, places
    of the tokens that are no padding in the flattened batch, None: all.
    """

    cumulative: Tensor
    longest: int
    kept: Tensor | None


def layout_of(positions: Tensor, mask: Tensor | None) -> Layout:
    """The chats of a (B, L) batch: a row begins one, and so does a position id that is not the one before plus 1.

    positions: (B, L) or (1, L) integers. mask: (B, L) bool, False on padding; None: no padding.
    """
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    kept = None
    if mask is not None:
        begins = begins.expand_as(mask).clone()
        # the first real token of a row begins a chat, whatever stands before it
        begins[:, 1:] |= mask[:, 1:] & ~mask[:, :-1]
        kept = mask.flatten().nonzero().squeeze(-1)
        begins = begins.flatten()[kept]
    starts = begins.flatten().nonzero().squeeze(-1).to(torch.int32)
    total = torch.tensor([begins.numel()], dtype=torch.int32, device=starts.device)
    cumulative = torch.cat([starts, total])
    return Layout(cumulative, int(cumulative.diff().max()), kept)


class _Last:
    """The layout of the last batch: every layer of a model asks for the same one, and finding it waits for the device.

    Known by the very tensors, which are kept, and their versions; inference tensors have none and are looked at again.
    """

    def __init__(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.value: Layout | None = None

    def of(self, positions: Tensor, mask: Tensor | None, rows: int) -> Layout:
        given = [tensor for tensor in (positions, mask) if tensor is not None]
        if any(tensor.is_inference() for tensor in given):
            return layout_of(positions.expand(rows, -1), mask)
        key = (positions, mask, rows, *(tensor._version for tensor in given))
        same = len(key) == len(self.key) and all(
            a is b if isinstance(a, Tensor) or a is None else a == b for a, b in zip(key, self.key, strict=True)
        )
        if not same or self.value is None:
            self.key, self.value = key, layout_of(positions.expand(rows, -1), mask)
        return self.value


_last = _Last()


def reference_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """The interface of PyTorch's `varlen_attn` in plain PyTorch, chat by chat: (T, H, D) of each to (T, H, D).

    window_size: tokens that are seen before and after one's own, -1: all. Any dtype, any device, slow.
    """
    parts = []
    bounds = zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], cu_seq_k.tolist(), cu_seq_k.tolist()[1:], strict=False)
    for first, last, first_key, last_key in bounds:
        q, k, v = query[first:last], key[first_key:last_key], value[first_key:last_key]
        if len(q) > max_q or len(k) > max_k:
            raise ValueError(f"a sequence of {len(q)} queries and {len(k)} keys; max_q={max_q}, max_k={max_k}")
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        rows = torch.arange(len(q), device=q.device)[:, None] + len(k) - len(q)
        distance = rows - torch.arange(len(k), device=q.device)[None]
        before, after = window_size
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if before >= 0:
            hidden |= distance > before
        if after >= 0:
            hidden |= -distance > after
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(parts)


def _kernel(device: torch.device) -> Callable[..., Any]:
    if device.type != "cuda":
        return reference_varlen_attn
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _computed_in(query: Tensor) -> torch.dtype:
    """The dtype that the kernel computes in. Raises ConfigError for float32 on a device, which no kernel takes."""
    device = query.device.type
    if query.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)  # a norm in float32 inside a half-precision model
    if device == "cuda" and query.dtype not in HALF:
        raise ConfigError(
            f"model.attention={NAME}: the kernel takes bfloat16 and float16, not {str(query.dtype)[6:]}; set "
            "model.dtype=bfloat16, or model.attention=sdpa"
        )
    return query.dtype


def varlen_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    position_ids: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each chat, as transformers calls it; padding gives zeros.

    query: (B, H, L, D); key, value: (B, K, L, D), whose heads are repeated where K < H (PyTorch 2.11 knows no groups).
    attention_mask: (B, L) bool, or None without padding. Returns (B, L, H, D) in the dtype of query. Raises ConfigError
    for a model or a call that this kernel does not compute; one that hands over no position ids is among them, because
    its chats would see one another.
    """
    rows, heads, length, width = query.shape
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    for unfit, what in (
        (
            position_ids is None or position_ids.ndim != 2,
            "the model gives its attention no position ids of rows",
        ),
        (key.shape[2] != length, "it is for training, not for generation with a cache of keys"),
        (not causal, "the model's attention is not causal"),
        (dropout > 0, f"the model drops {dropout:g} of its attention"),
        (kwargs.get("softcap") is not None, "the model caps its attention scores"),
        (kwargs.get("s_aux") is not None, "the model has attention sinks"),
        (value.shape[-1] != width, "keys and values differ in width"),
        (width % 8 != 0 or width > LARGEST_HEAD, f"heads of width {width}, not a multiple of 8 up to {LARGEST_HEAD}"),
        (attention_mask is not None and attention_mask.ndim != 2, "the model has an attention mask of its own"),
    ):
        if unfit:
            raise ConfigError(f"model.attention={NAME}: {what}; {_OTHER}")
    assert position_ids is not None
    found = _last.of(position_ids, attention_mask, rows)
    computed = _computed_in(query)

    def flat(states: Tensor) -> Tensor:
        states = states.transpose(1, 2).flatten(0, 1).to(computed)
        if found.kept is not None:
            states = states[found.kept]
        return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], dim=1)

    before = -1 if sliding_window is None else sliding_window - 1
    result = _kernel(query.device)(
        flat(query), flat(key), flat(value), found.cumulative, found.cumulative, found.longest, found.longest,
        scale=scaling, window_size=(before, 0),
    )  # fmt: skip
    if found.kept is not None:
        result = result.new_zeros(rows * length, heads, width).index_copy(0, found.kept, result)
    return result.view(rows, length, heads, width).to(query.dtype), None


def padding_mask(*, kv_length: int, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """The (B, L) mask that `varlen_attention_forward` gets: as given, None where nothing is padding."""
    if attention_mask is None:
        return None
    mask = attention_mask[:, -kv_length:].bool()
    return None if bool(mask.all()) else mask


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, varlen_attention_forward)
    AttentionMaskInterface.register(NAME, padding_mask)


_register()
