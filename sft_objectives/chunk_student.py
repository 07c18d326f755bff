"""The student's statistics of a few rows whose logits live in one reused buffer, and their gradient, in place.

The second provider of `sft_objectives.student`. All passes over the vocabulary run tile by tile (some rows that fit a
cache), the logits stay intact until `overwrite_with_gradient` turns them into the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .student import Chunk, OfChunk, Student

TILE_BYTES = {"cpu": 2**20, "cuda": 2**27}
"""Size of a tile: a share of a core's cache, or enough work for a GPU."""

TOP_K_BLOCK = 128


class ChunkStudent(Student):
    """The statistics from an (n, V) float32 or float64 buffer of logits, which is overwritten.

    labels: (n,) int64 in [0, V). whole: call back with all rows at once, not tile by tile (for callables that multiply
    matrices). differentiable: statistics are leaves that remember what they were asked for; otherwise all are detached.
    """

    def __init__(self, logits: Tensor, labels: Tensor, *, whole: bool, differentiable: bool) -> None:
        n, self.vocab_size = logits.shape
        self.labels = labels
        self._logits = logits
        self._differentiable = differentiable
        row_bytes = self.vocab_size * logits.element_size()
        size = n if whole else TILE_BYTES[logits.device.type] // row_bytes
        self._tiles = _slices(n, size)
        self._words: list[tuple[Tensor, Tensor]] = []  # ids, leaf
        self._expected: list[tuple[list[Tensor], Tensor, Tensor]] = []  # weights of each tile, their sum, leaf
        self._outside: list[tuple[Tensor, Tensor, Tensor]] = []  # ids, log of the other words' sum, leaf
        with torch.no_grad():
            self._scratch = torch.empty_like(logits[self._tiles[0]])
            self._peak = logits.new_empty(n, 1)
            self._logsumexp = logits.new_empty(n, 1)
            for tile in self._tiles:
                z = logits[tile]
                torch.amax(z, -1, keepdim=True, out=self._peak[tile])
                z.sub_(self._peak[tile])
                self._logsumexp[tile] = self._exp(z).sum(-1, keepdim=True).log_()
            label = logits.gather(1, labels.unsqueeze(-1)).sub_(self._logsumexp).squeeze(-1)
        self._log_p_label = self._leaf(label)

    @property
    def log_p_label(self) -> Tensor:
        return self._log_p_label

    def log_p(self, ids: Tensor) -> Tensor:
        leaf = self._leaf(self._logits.gather(1, ids).sub_(self._logsumexp))
        if self._remembers():
            self._words.append((ids, leaf))
        return leaf

    def expected_log_p(self, weights: OfChunk) -> Tensor:
        kept, sums, values = [], [], []
        with torch.no_grad():
            for tile in self._tiles:
                z, logsumexp = self._logits[tile], self._logsumexp[tile]
                w = weights(self._chunk(tile))
                total = w.sum(-1)
                value = torch.linalg.vecdot(w, z) - total * logsumexp.squeeze(-1)
                if not bool(value.isfinite().all()):  # 0 * inf, which counts 0
                    value = (w * (z - logsumexp).masked_fill_(w == 0, 0)).sum(-1)
                kept.append(w)
                sums.append(total)
                values.append(value)
            leaf = self._leaf(torch.cat(values))
        if self._remembers():
            self._expected.append((kept, torch.cat(sums), leaf))
        return leaf

    @torch.no_grad()
    def statistic(self, of_chunk: OfChunk) -> Tensor:
        return torch.cat([of_chunk(self._chunk(tile)) for tile in self._tiles])

    @property
    @torch.no_grad()
    def entropy(self) -> Tensor:
        parts = []
        for tile in self._tiles:
            z, logsumexp = self._logits[tile], self._logsumexp[tile]
            # H = lse - sum p z: no term is negative, since the row maximum was subtracted
            p = torch.sub(z, logsumexp, out=self._scratch[: len(z)]).exp_()
            part = logsumexp.squeeze(-1) - torch.linalg.vecdot(p, z)
            if not bool(part.isfinite().all()):
                part = logsumexp.squeeze(-1) - (p * z.masked_fill(p == 0, 0)).sum(-1)
            parts.append(part)
        return torch.cat(parts)

    @torch.no_grad()
    def top_k(self, k: int) -> tuple[Tensor, Tensor]:
        found = [largest(self._logits[tile], min(k, self.vocab_size)) for tile in self._tiles]
        values = torch.cat([values for values, _ in found])
        return values.sub_(self._logsumexp), torch.cat([ids for _, ids in found])

    @property
    def logsumexp(self) -> Tensor:
        return (self._logsumexp + self._peak).squeeze(-1)

    def log_p_outside(self, ids: Tensor) -> Tensor:
        # overrides the generic form, which would keep (n, V) weights
        with torch.no_grad():
            outside = torch.empty_like(self._logsumexp)
            for tile in self._tiles:
                z = self._logits[tile]
                inside = z.gather(1, ids[tile])
                z.scatter_(1, ids[tile], -torch.inf)
                peak = z.amax(-1, keepdim=True).clamp_(min=torch.finfo(z.dtype).min)
                shifted = torch.sub(z, peak, out=self._scratch[: len(z)])
                outside[tile] = shifted.exp_().sum(-1, keepdim=True).log_().add_(peak)
                z.scatter_(1, ids[tile], inside)
            leaf = self._leaf((outside - self._logsumexp).squeeze(-1))
        if self._remembers():
            self._outside.append((ids, outside.clamp_(min=torch.finfo(outside.dtype).min), leaf))
        return leaf

    @torch.no_grad()
    def overwrite_with_gradient(self, losses: Tensor, scale: Tensor) -> Tensor:
        """(n, V) gradient of sum(scale * losses) with respect to the logits, in their buffer; losses, scale: (n,).

        No statistic can be asked for afterwards.
        """
        leaves = [self._log_p_label]
        leaves += [leaf for *_, leaf in (*self._words, *self._expected, *self._outside)]
        if not losses.requires_grad:
            return self._logits.zero_()
        found = list(torch.autograd.grad(losses, leaves, scale.to(losses.dtype), materialize_grads=True))
        label = found.pop(0).unsqueeze(-1)
        words = [(ids, found.pop(0)) for ids, _ in self._words]
        expected = [(kept, sums, found.pop(0)) for kept, sums, _ in self._expected]
        outside = [(ids, logsumexp, found.pop(0).unsqueeze(-1)) for ids, logsumexp, _ in self._outside]
        total = label.clone()
        for _, upstream in words:
            total += upstream.sum(-1, keepdim=True)
        for _, sums, upstream in expected:
            total += (upstream * sums).unsqueeze(-1)
        for _, _, upstream in outside:
            total += upstream
        for place, tile in enumerate(self._tiles):
            z = self._logits[tile]
            others = [
                z.scatter(1, ids[tile], -torch.inf).sub_(logsumexp[tile]).exp_().mul_(upstream[tile])
                for ids, logsumexp, upstream in outside
            ]
            z.sub_(self._logsumexp[tile]).exp_().mul_(-total[tile])
            for other in others:
                z.add_(other)
            for kept, _, upstream in expected:
                z.addcmul_(upstream[tile].unsqueeze(-1), kept[place])
            z.scatter_add_(1, self.labels[tile].unsqueeze(-1), label[tile])
            for ids, upstream in words:
                z.scatter_add_(1, ids[tile], upstream[tile])
        return self._logits

    def _exp(self, z: Tensor) -> Tensor:
        return torch.exp(z, out=self._scratch[: len(z)])

    def _chunk(self, tile: slice) -> Chunk:
        return Chunk(tile, self._logits[tile], self.labels[tile])

    def _leaf(self, value: Tensor) -> Tensor:
        return value.requires_grad_(self._differentiable)

    def _remembers(self) -> bool:
        return self._differentiable and torch.is_grad_enabled()


def _slices(n: int, size: int) -> list[slice]:
    size = max(size, 1)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)] or [slice(0, 0)]


def largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(n, k) largest values of (n, V), decreasing, and their int64 places.

    They lie in the k blocks of words with the largest maxima, which saves the partial sort of a whole vocabulary.
    """
    n, vocab_size = z.shape
    blocks = vocab_size // TOP_K_BLOCK
    if blocks < 4 * k:
        return z.topk(k, dim=-1)
    edge = blocks * TOP_K_BLOCK
    by_block = z[:, :edge].unflatten(1, (blocks, TOP_K_BLOCK))
    chosen = by_block.amax(-1).topk(k, dim=-1).indices.unsqueeze(-1)
    candidates = by_block.gather(1, chosen.expand(-1, -1, TOP_K_BLOCK)).flatten(1)
    places = (chosen * TOP_K_BLOCK + torch.arange(TOP_K_BLOCK, device=z.device)).flatten(1)
    rest = torch.arange(edge, vocab_size, device=z.device).expand(n, -1)
    candidates, places = torch.cat([candidates, z[:, edge:]], 1), torch.cat([places, rest], 1)
    values, found = candidates.topk(k, dim=-1)
    return values, places.gather(1, found)
