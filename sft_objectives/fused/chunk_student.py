"""The student's statistics of a few rows whose logits live in one reused buffer, and their gradient, in place.

The second provider of `sft_objectives.student`. All passes over the vocabulary run tile by tile (some rows that fit a
cache), the logits stay intact until `overwrite_with_gradient` turns them into the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ..reductions import dot, surely
from ..student import Chunk, OfChunk, Student

TILE_BYTES = {"cpu": 2**23, "cuda": 2**27}
"""Size of a tile: a share of the cores' common cache, or enough work for a GPU."""

TOP_K_BLOCK = 128

SMALLEST_MASS = 1e-30
"""Probabilities whose sum is below lose ids that count to underflow."""

OfTile = Callable[[int], Tensor]
AtIds = tuple[Tensor, Tensor]  # (n, K) ids and gradients
Expected = tuple[OfTile, Tensor]  # weights of a tile by its place, (n, 1) gradients
Outside = tuple[Tensor, Tensor, Tensor]  # (n, K) ids, (n, 1) log of the other ids' mass, (n, 1) gradients
Upstream = tuple[Tensor, list[AtIds], list[Expected], list[Outside], Tensor | None, Tensor]
"""(n, 1) gradients at log_p_label, those at the other statistics (None at mean_log_p where it was not asked for), and
their (n, 1) total, which multiplies -p."""


class ChunkStudent(Student):
    """The statistics from an (n, V) float32 or float64 buffer of logits, which is overwritten.

    labels: (n,) int64 in [0, V). whole: call back with all rows at once, not tile by tile, and keep the weights (for
    callables that multiply matrices). differentiable: statistics are leaves that remember what they were asked for;
    otherwise all are detached.
    """

    def __init__(self, logits: Tensor, labels: Tensor, *, whole: bool, differentiable: bool) -> None:
        n, self.vocab_size = logits.shape
        self.labels = labels
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        self._logits = logits
        self._differentiable = differentiable
        row_bytes = self.vocab_size * dtype.itemsize
        self._whole = whole
        size = n if whole else TILE_BYTES[logits.device.type] // row_bytes
        self._tiles = slices(n, size)
        self._at_ids: list[tuple[Tensor, Tensor]] = []  # ids, leaf
        self._expected: list[tuple[OfTile, Tensor, Tensor]] = []  # weights, their sum, leaf
        self._mean: Tensor | None = None  # leaf
        self._outside: list[tuple[Tensor, Tensor, Tensor]] = []  # ids, log of the other ids' mass, leaf
        self._top: dict[int, tuple[Tensor, Tensor]] = {}
        self.has_gradient = torch.zeros_like(labels, dtype=torch.bool)
        """(n,) the rows of which `overwrite_with_gradient` gave one that is not zero."""
        with torch.no_grad():
            self._logsumexp = logits.new_empty(n, 1, dtype=dtype)
            self._reduce()
            label = self._log_p_of(labels.unsqueeze(-1)).squeeze(-1)
        self._log_p_label = self._leaf(label)

    def _reduce(self) -> None:
        """Set logsumexp, turn the logits into log-probabilities."""
        for tile in self._tiles:
            z, labels = self._logits[tile], self.labels[tile].unsqueeze(-1)
            at_label = z.gather(1, labels)
            logsumexp = None if surely(at_label.isfinite()) else z.logsumexp(-1, keepdim=True)
            torch.log_softmax(z, -1, out=z)
            self._logsumexp[tile] = at_label.sub_(z.gather(1, labels)) if logsumexp is None else logsumexp

    def _tile(self, tile: slice) -> Tensor:
        """(m, V) log-probabilities. May be changed only if restored."""
        return self._logits[tile]

    def _log_p_of(self, ids: Tensor) -> Tensor:
        """(n, K) log-probabilities of ids, new."""
        return self._logits.gather(1, ids)

    @cached_property
    def _scratch(self) -> Tensor:
        return self._logsumexp.new_empty(len(self._logits[self._tiles[0]]), self.vocab_size)

    def _probabilities(self, log_p: Tensor) -> Tensor:
        """Those of a tile, in memory that the next call takes again."""
        return torch.softmax(log_p, -1, out=self._scratch[: len(log_p)])

    @property
    def log_p_label(self) -> Tensor:
        return self._log_p_label

    def log_p(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            leaf = self._leaf(self._log_p_of(ids))
        if self._remembers():
            self._at_ids.append((ids, leaf))
        return leaf

    def expected_log_p(self, weights: OfChunk) -> Tensor:
        kept: list[Tensor] = []
        sums, values = [], []
        with torch.no_grad():
            for tile in self._tiles:
                chunk = self._chunk(tile)
                log_p, w = chunk.logits, weights(chunk)
                if self._whole:
                    kept.append(w)
                sums.append(w.sum(-1))
                values.append(dot(w, log_p))
            leaf = self._leaf(torch.cat(values))
        if self._remembers():
            again: OfTile = kept.__getitem__ if self._whole else lambda place: weights(self._chunk(self._tiles[place]))
            self._expected.append((again, torch.cat(sums), leaf))
        return leaf

    @property
    def mean_log_p(self) -> Tensor:
        if self._mean is None:
            with torch.no_grad():
                self._mean = self._leaf(torch.cat([self._tile(tile).mean(-1) for tile in self._tiles]))
        return self._mean

    @torch.no_grad()
    def statistic(self, of_chunk: OfChunk) -> Tensor:
        return torch.cat([of_chunk(self._chunk(tile)) for tile in self._tiles])

    @cached_property
    def entropy(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._entropy_of_tiles()

    @torch.no_grad()
    def _entropy_of_tiles(self) -> Tensor:
        parts = []
        for tile in self._tiles:
            log_p = self._tile(tile)
            parts.append(-dot(self._probabilities(log_p), log_p))
        return torch.cat(parts)

    @torch.no_grad()
    def top_k(self, k: int) -> tuple[Tensor, Tensor]:
        if k not in self._top:
            found = [largest(self._tile(tile), min(k, self.vocab_size)) for tile in self._tiles]
            self._top[k] = torch.cat([values for values, _ in found]), torch.cat([ids for _, ids in found])
        return self._top[k]

    @property
    def logsumexp(self) -> Tensor:
        return self._logsumexp.squeeze(-1)

    def log_p_outside(self, ids: Tensor) -> Tensor:
        # overrides the generic form, which would keep (n, V) weights
        with torch.no_grad():
            outside = torch.empty_like(self._logsumexp)  # log of the other ids' mass
            for tile in self._tiles:
                log_p = self._tile(tile)
                p = self._probabilities(log_p)
                mass = p.scatter_(1, ids[tile], 0).sum(-1, keepdim=True)
                if surely(mass > SMALLEST_MASS):
                    outside[tile] = mass.log_()
                else:
                    outside[tile] = log_p.scatter(1, ids[tile], -torch.inf).logsumexp(-1, keepdim=True)
            leaf = self._leaf(outside.squeeze(-1).clone())
        if self._remembers():
            self._outside.append((ids, outside.clamp_(min=torch.finfo(outside.dtype).min), leaf))
        return leaf

    @torch.no_grad()
    def overwrite_with_gradient(self, losses: Tensor, scale: Tensor, *, entropy: bool = False) -> Tensor:
        """(n, V) gradient of sum(scale * losses) with respect to the logits, in their buffer; losses, scale: (n,).

        No statistic can be asked for afterwards, but for the entropy where `entropy` is given: it comes from the
        probabilities that the gradient needs anyway.
        """
        upstream = self._upstream(losses, scale)
        if entropy and (upstream is None or "entropy" in self.__dict__):
            _ = self.entropy  # kept, as all that is computed once
            entropy = False
        if upstream is None:
            return self._logits.zero_()
        entropies = []
        label, at_ids, expected, outside, mean, total = upstream
        smallest = math.log(SMALLEST_MASS)
        for place, tile in enumerate(self._tiles):
            z = self._logits[tile]
            scaled = len(outside) == 1 and surely(outside[0][1][tile] > smallest)
            others = self._dense_terms(place, [], [] if scaled else outside, None)
            weights = [(of_tile(place), gradient[tile]) for of_tile, gradient in expected]
            p = self._probabilities(z) if entropy else torch.softmax(z, -1, out=z)
            if entropy:
                entropies.append(-dot(p, z))
            if scaled:  # the softmax over the other ids is p / their mass
                ids, logsumexp, gradient = (tensor[tile] for tensor in outside[0])
                inside = p.gather(1, ids).mul_(-total[tile])
                torch.mul(p, gradient * (-logsumexp).exp() - total[tile], out=z).scatter_(1, ids, inside)
            else:
                torch.mul(p, -total[tile], out=z)
            if others is not None:
                z.add_(others)
            for w, gradient in weights:
                z.addcmul_(gradient, w)
            if mean is not None:
                z.add_(mean[tile] / self.vocab_size)
            z.scatter_add_(1, self.labels[tile].unsqueeze(-1), label[tile])
            for ids, gradient in at_ids:
                z.scatter_add_(1, ids[tile], gradient[tile])
        if entropy:
            self.entropy = torch.cat(entropies)
        return self._logits

    def _upstream(self, losses: Tensor, scale: Tensor) -> Upstream | None:
        """Gradients of sum(scale * losses) at the statistics; None if no loss depends on one."""
        if not losses.requires_grad:
            return None
        leaves = [self._log_p_label]
        leaves += [leaf for *_, leaf in (*self._at_ids, *self._expected, *self._outside)]
        leaves += [] if self._mean is None else [self._mean]
        found = list(torch.autograd.grad(losses, leaves, scale.to(losses.dtype), materialize_grads=True))
        label = found.pop(0).unsqueeze(-1)
        at_ids = [(ids, found.pop(0)) for ids, _ in self._at_ids]
        expected = [(of_tile, found.pop(0).unsqueeze(-1)) for of_tile, *_ in self._expected]
        outside = [(ids, logsumexp, found.pop(0).unsqueeze(-1)) for ids, logsumexp, _ in self._outside]
        mean = found.pop(0).unsqueeze(-1) if found else None
        total = label.clone() if mean is None else label + mean
        for _, gradient in at_ids:
            total += gradient.sum(-1, keepdim=True)
        for (_, sums, _), (_, gradient) in zip(self._expected, expected, strict=True):
            total += gradient * sums.unsqueeze(-1)
        for *_, gradient in outside:
            total += gradient
        at_leaves = [label, *(gradient for *_, gradient in (*at_ids, *expected, *outside))]
        at_leaves += [] if mean is None else [mean]
        self._top: dict[int, tuple[Tensor, Tensor]] = {}
        self.has_gradient = torch.stack([(gradient != 0).any(-1) for gradient in at_leaves]).any(0)
        return label, at_ids, expected, outside, mean, total

    def _dense_terms(
        self, place: int, expected: list[Expected], outside: list[Outside], mean: Tensor | None
    ) -> Tensor | None:
        """(m, V) terms of a tile's gradient that are neither softmax nor single ids, new; None if there are none."""
        tile, dense = self._tiles[place], None
        for ids, logsumexp, gradient in outside:
            z = self._tile(tile).scatter(1, ids[tile], -torch.inf)
            term = z.sub_(logsumexp[tile]).exp_().mul_(gradient[tile])
            dense = term if dense is None else dense.add_(term)
        for of_tile, gradient in expected:
            w = of_tile(place)
            dense = gradient[tile] * w if dense is None else dense.addcmul_(gradient[tile], w)
        if mean is not None:
            share = mean[tile] / self.vocab_size
            dense = share.repeat(1, self.vocab_size) if dense is None else dense.add_(share)
        return dense

    def _chunk(self, tile: slice) -> Chunk:
        return Chunk(tile, self._tile(tile), self.labels[tile])

    def _leaf(self, value: Tensor) -> Tensor:
        return value.requires_grad_(self._differentiable)

    def _remembers(self) -> bool:
        return self._differentiable and torch.is_grad_enabled()


def slices(n: int, size: int) -> list[slice]:
    """Those of `n` rows, `size` at a time (one at least); one empty slice for no rows."""
    size = max(size, 1)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)] or [slice(0, 0)]


def largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(n, k) largest values of (n, V), decreasing, and their int64 places.

    They lie in the k blocks of ids with the largest maxima, which saves the partial sort of a whole vocabulary.
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
