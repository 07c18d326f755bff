"""A forward pass of a Hugging Face model that one device holds."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from common.attention import prepare
from common.errors import ConfigError
from data_prep.reference.producers.contract import Heartbeat
from data_prep.reference.statistics import statistics
from data_prep.reference.tokens import length_batches

# Logits that one product with the output head makes (fp32 but where `statistics_in_one_pass` reads them as they are),
# and fp32 logits that one pass of `statistics` reads: on a CPU the first should be large enough for a fast product, the
# second should stay in its cache.
LOGITS_BYTES = {"cpu": 1 << 25, "cuda": 1 << 30}
STATISTICS_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}
FLOAT_BYTES = 4
MASKED_LOGIT = -1e30  # finite, so that 0 * logit is 0 in the entropy
SCALED = "the model scales or caps its logits after the head; not supported"


class ForwardProducer:
    """A forward pass of a Hugging Face model that one device holds (`sharded`: one that none holds).

    Chats of similar length share a batch, padded on the right: under a causal mask padding cannot reach a real token,
    so no attention mask is needed and the fast kernels apply. Only stored positions go through the output head.

    Args:
        directory: Hugging Face directory.
        cache: the recipe's `cache` section; `model`: its `model` section.
        allowed: (V,) bool, ids that may have probability; None: all.

    Raises:
        ConfigError: the model changes its logits after the head (soft-cap, scaling), which this pass would miss.
    """

    model: Any
    head: Callable[[Tensor], Tensor]  # (n, D) to logits (n, V)
    vocab_size: int

    def __init__(self, directory: Path, cache: Any, model: Any, allowed: np.ndarray | None):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokens_per_batch = cache.tokens_per_batch
        self._load(directory, cache.dtype, model)
        self.one_pass = one_pass_over(self.device)
        width = getattr(torch, cache.dtype).itemsize if self.one_pass else FLOAT_BYTES
        self.chunk = max(1, LOGITS_BYTES[self.device.type] // (width * self.vocab_size))
        self.rows_at_once = max(1, STATISTICS_BYTES[self.device.type] // (FLOAT_BYTES * self.vocab_size))
        self.allowed = None
        if allowed is not None:
            padded = np.zeros(self.vocab_size, dtype=bool)
            padded[: min(len(allowed), self.vocab_size)] = allowed[: self.vocab_size]
            self.allowed = torch.from_numpy(padded).to(self.device)
        self._check_head(directory)

    def _load(self, directory: Path, dtype: str, model: Any) -> None:
        prepare(model.attention)
        self.model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            attn_implementation=model.attention,
            trust_remote_code=model.trust_remote_code,
        )
        torch.nn.Module.to(self.model, self.device).eval().requires_grad_(False)
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        if not isinstance(decoder, torch.nn.Module) or not isinstance(head, torch.nn.Linear):
            raise ConfigError(f"{directory}: not a causal language model with a linear output head; not supported")
        self.decoder, self.head = decoder, head
        self.vocab_size = head.weight.shape[0]

    @torch.no_grad()
    def _check_head(self, directory: Path) -> None:
        ids = torch.arange(min(8, self.vocab_size), device=self.device).unsqueeze(0)
        ours = self.head(self.hidden(ids)).float()
        theirs = self.model(input_ids=ids, use_cache=False).logits.float()
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            raise ConfigError(f"{directory}: {SCALED}")

    def hidden(self, ids: Tensor) -> Tensor:
        """(B, L, D) last hidden states of (B, L) ids."""
        return self.decoder(input_ids=ids, use_cache=False).last_hidden_state

    @torch.inference_mode()
    def rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], top_k: int, heartbeat: Heartbeat
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        for batch in length_batches([len(ids) for ids in chats], self.tokens_per_batch):
            yield batch, self.batch_rows(chats, positions, batch, top_k)
            heartbeat(sum(len(positions[index]) for index in batch))

    def batch_rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], batch: Sequence[int], top_k: int
    ) -> dict[str, Tensor]:
        """Statistics of the positions of some chats, in one forward pass; empty if they have none."""
        padded = np.zeros((len(batch), max(len(chats[index]) for index in batch)), dtype=np.int64)
        for row, index in enumerate(batch):
            padded[row, : len(chats[index])] = chats[index]
        ids = on_device(padded, self.device)
        hidden = self.hidden(ids).flatten(0, 1)
        starts = [row * padded.shape[1] + positions[index] for row, index in enumerate(batch)]
        flat = on_device(np.concatenate(starts), self.device)
        labels = ids.flatten()[flat]
        pieces = []
        for part in range(0, len(flat), self.chunk):
            rows = slice(part, part + self.chunk)
            pieces += self._statistics(hidden[flat[rows] - 1], labels[rows], top_k)
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}

    def _statistics(self, hidden: Tensor, labels: Tensor, top_k: int) -> Iterator[dict[str, Tensor]]:
        """Of (n, D) hidden states and (n,) labels, some rows at a time."""
        logits = self.head(hidden)
        if not self.one_pass:
            logits = logits.float()
        if self.allowed is not None:
            logits.masked_fill_(~self.allowed, MASKED_LOGIT)
        if self.one_pass:
            from data_prep.reference.kernels import statistics_in_one_pass

            yield statistics_in_one_pass(logits, labels, top_k)
            return
        for some, some_labels in zip(logits.split(self.rows_at_once), labels.split(self.rows_at_once), strict=True):
            yield statistics(some, some_labels, top_k)


def one_pass_over(device: torch.device) -> bool:
    """Whether the statistics of logits on this device are computed by a Triton kernel."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """The values on the device: on a GPU a copy, for which this thread does not wait until earlier work is done."""
    host = torch.from_numpy(values)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
