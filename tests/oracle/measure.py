"""Batches, the rows of the test table, providers, and the two errors that tests bound and docs/objectives.md prints."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import formulas
import torch
from torch import Tensor

import sft_objectives
from sft_objectives import BatchConstants, Objective, Reference, Step
from sft_objectives.student import DenseStudent

SOURCES = ("base", "teacher", "checkpoint", "ema", "old")

# one row for each objective, ablation and preset: a new objective adds one here and a formula in formulas.py
CASES: list[tuple[str, dict]] = [
    ("sft", {}),
    ("dft", {}),
    ("dft", {"source": "checkpoint"}),
    ("dft", {"source": "ema"}),
    ("profit", {}),
    ("profit", {"threshold": 0.2}),
    ("profit", {"source": "base"}),
    ("talr", {}),
    ("talr", {"temperature": 1.0}),
    ("talr", {"source": "base"}),
    ("talr", {"source": "teacher", "w_min": 0.2}),
    ("talr", {"normalize": True, "w_min": 0.0}),
    ("eaft", {}),
    ("eaft", {"source": "base"}),
    ("eaft", {"top_k": 5, "exponent": 2.0}),
    ("eaft", {"divide_by": 3.0}),
    ("eaft", {"divide_by": 1.0}),
    ("idft", {}),
    ("idft", {"source": "base"}),
    ("idft", {"bound": 0.3}),
    ("idft", {"variant": "repo"}),
    ("prift_prob", {}),
    ("prift_prob", {"source": "teacher"}),
    ("prift_mass", {}),
    ("prift_mass", {"threshold": 0.9}),
    ("prift_mass", {"source": "online"}),
    ("prift_mass", {"variant": "repo"}),
    *(
        ("token_selection", {"statistic": statistic, "order": order, "source": source})
        for statistic in ("prob", "entropy")
        for order in ("top", "bottom")
        for source in ("online", "base")
    ),
    ("token_selection", {"fraction": 0.3, "normalizer": "kept"}),
    ("critical_token", {}),
    ("iw_sft", {}),
    ("iw_sft", {"numerator": "teacher"}),
    ("iw_sft", {"variant": "repo"}),
    ("iw_sft", {"variant": "repo_token"}),
    ("flow", {}),
    ("flow", {"temperature": 2.0, "mean_weight": 0.4}),
    ("flow", {"median": "mean", "mean_weight": 1.0}),
    ("beyond_log", {}),
    ("beyond_log", {"exponent": 0.0}),
    ("beyond_log", {"exponent": 0.4}),
    ("beyond_log", {"exponent": 10.0}),
    ("beyond_log", {"threshold": 0.1, "normalizer": "kept"}),
    ("beyond_log", {"threshold": 0.1, "keep": "below"}),
    ("beyond_log", {"threshold": 1.0, "normalizer": "kept"}),  # nothing is kept
    ("sed_sft", {}),
    ("sed_sft", {"mask": False}),
    ("sed_sft", {"fraction": 0.5, "top_k": 3}),
    ("sed_sft", {"positions": "supervised", "weight": 0.3}),
    ("sed_sft", {"threshold_top_k": 10}),
    ("sed_sft", {"threshold": 0.6}),
    ("psft", {}),
    ("psft", {"clip": 0.28}),
    ("psft", {"inner_updates": 0}),
    ("label_smoothing", {}),
    ("label_smoothing", {"weight": 0.7}),
    *(("kd", {"weight": c}) for c in (0.2, 0.5, 0.8, 1.0)),
    ("kd", {"top_k": 5}),
    ("kd_decomposed", {}),
    ("kd_decomposed", {"weight": 0.0}),
    ("kd_decomposed", {"weight": 1.0}),
    ("kd_decomposed", {"estimator": "topk"}),
    ("sft_kl", {}),
    ("sft_kl", {"estimator": "topk"}),
    ("sft_kl", {"estimator": "topk", "top_k": 5, "weight": 1.0}),
    ("sft_k3", {}),
    ("sft_k3", {"weight": 0.3}),
    ("asft", {}),
    ("asft", {"weight": 0.1}),
    ("asft", {"estimator": "topk"}),
    ("gem", {}),
    ("gem", {"temperature": 0.4, "weight": 0.5}),
    ("gem", {"variant": "logsigmoid"}),
    ("lp_sft", {}),
    ("lp_sft", {"top_k": 3}),
    ("lp_sft", {"weight": 0.1}),
    ("lp_sft", {"schedule": "fixed"}),
    ("lp_sft", {"schedule": "fixed", "rounding": "round", "divergence": "ce"}),
    ("lp_sft", {"rounding": "round"}),
    ("lp_sft", {"following": "top_k", "top_k": 2}),
    ("lp_sft", {"following": "top_k", "top_k": 2, "schedule": "fixed", "divergence": "ce", "remove_label": False}),
    ("lp_sft", {"following": "top_k", "top_k": 3, "schedule": "fixed", "rounding": "round", "divergence": "ce"}),
    *(
        ("lp_sft", {"remove_label": remove, "normalize": normalize, "weight": weight})
        for remove, normalize in ((False, True), (True, False), (False, False))
        for weight in (1.0, 0.05)
    ),
    ("lp_sft", {"scope": "full"}),
    ("target_sft", {}),
    ("target_sft", {"exponent": 0.2}),
    ("target_sft", {"exponent": 1.0, "top_k": 5}),
    *(("target_sft", {"residual_weight": c}) for c in (0.2, 0.5, 1.0)),
    ("target_sft", {"residual_form": "product"}),
    ("q_target", {}),
    ("q_target", {"rule": "prift_prob", "residual": "truncated", "residual_settings": {"top_k": 7}}),
    ("q_target", {"rule": "talr", "residual": "full"}),
    ("q_target", {"rule": "prift_mass", "residual": "uniform", "residual_rule": "eaft", "residual_weight": 0.5}),
    ("q_target", {"rule": "sft", "residual": "sharpened", "residual_weight": -0.3}),
    ("q_target", {"rule": "eaft", "rule_settings": {"source": "base"}, "residual": "product"}),
    ("q_target", {"residual": "self"}),
]


def case_id(case: tuple[str, dict]) -> str:
    name, settings = case
    return "-".join([name, *(f"{key}={value}" for key, value in settings.items())])


@dataclass
class Batch:
    """Packed sequences. logits (N, V) leaf; reference logits by source; upstream (N,): weight of each loss."""

    logits: Tensor
    labels: Tensor
    mask: Tensor
    lengths: Tensor
    reference_logits: dict[str, Tensor]
    references: dict[str, Reference]
    critical: Tensor
    upstream: Tensor

    def positions(self, dtype: torch.dtype) -> tuple[Tensor, list[formulas.Position]]:
        """A leaf with these logits in `dtype`, and the positions that the formulas read."""
        logits = self.logits.detach().to(dtype).requires_grad_()
        ids = {source: reference.support_ids for source, reference in self.references.items()}
        arguments = (self.labels, self.mask, self.lengths, self.reference_logits, ids, self.critical)
        return logits, formulas.positions(logits, *arguments)


def build(
    dtype=torch.float64, *, vocab_size=50, lengths=(4, 1, 2, 3, 3), scale=2.0, top_k=24, seed=10, masked=None, tie=False
) -> Batch:
    """A batch whose third sequence has no supervised position; labels are likely words, but for some.

    tie: words 0 to 4 of every reference are equally likely, and so are the label and another word.
    """
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)

    def normal() -> Tensor:
        return torch.randn(n, vocab_size, generator=generator, dtype=torch.float64)

    logits = normal() * scale
    rank = torch.randint(0, min(4, vocab_size), (n, 1), generator=generator)
    likely = logits.argsort(descending=True).gather(1, rank).squeeze(1)
    labels = torch.where(
        torch.rand(n, generator=generator) < 0.75, likely, torch.randint(0, vocab_size, (n,), generator=generator)
    )
    reference_logits = {source: (logits + 0.25 * scale * normal()).to(dtype) for source in SOURCES}
    if tie:
        for z in reference_logits.values():
            z[:, :5] = z[:, :1]
            z[torch.arange(n), (labels + 1) % vocab_size] = z[torch.arange(n), labels]
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    supervised = (torch.rand(n, generator=generator) < 0.85) & (sequence != 2)
    supervised[0] = True
    return Batch(
        logits=logits.to(dtype).requires_grad_(),
        labels=labels,
        mask=supervised if masked is None else torch.full((n,), not masked),
        lengths=torch.tensor(lengths),
        reference_logits=reference_logits,
        references={s: Reference.from_logits(z, labels, top_k=top_k) for s, z in reference_logits.items()},
        critical=(torch.rand(n, generator=generator) < 0.5).float(),
        upstream=torch.rand(n, generator=generator, dtype=torch.float64) * 4 - 1,
    )


# providers: (objective, batch, constants) -> (losses (N,), d sum(upstream * losses) / d logits (N, V))

Provider = Callable[[Objective, Batch, dict[str, float] | None], tuple[Tensor, Tensor]]


def dense(objective: Objective, batch: Batch, constants: dict[str, float] | None = None) -> tuple[Tensor, Tensor]:
    losses = sft_objectives.token_losses(
        objective,
        batch.logits,
        batch.labels,
        mask=batch.mask,
        sequence_lengths=batch.lengths,
        reference=batch.references,
        columns={"critical": batch.critical},
        constants=constants,
    )
    (gradient,) = torch.autograd.grad((losses * batch.upstream.to(losses.dtype)).sum(), batch.logits)
    return losses.detach(), gradient


def fused(objective: Objective, batch: Batch, constants: dict[str, float] | None = None) -> tuple[Tensor, Tensor]:
    """The fused path over chunks of 4 rows; its head is the identity, so that d hidden is d logits. A bias rules out
    the ids that the batch rules out everywhere."""
    nowhere = batch.logits.detach().isneginf().all(0)
    hidden = batch.logits.detach().masked_fill(nowhere, 0).requires_grad_()
    bias = torch.zeros_like(hidden[0]).masked_fill_(nowhere, -torch.inf) if nowhere.any() else None
    value, statistics = sft_objectives.fused_loss(
        objective,
        hidden,
        torch.eye(hidden.shape[-1], dtype=hidden.dtype),
        batch.labels,
        mask=batch.mask,
        head_bias=bias,
        token_scale=batch.upstream,
        sequence_lengths=batch.lengths,
        reference=batch.references,
        columns={"critical": batch.critical},
        constants=constants,
        normalizer=1.0,
        chunk_size=4,
        return_statistics=True,
    )
    (gradient,) = torch.autograd.grad(value, hidden)
    return statistics["loss"], gradient


PROVIDERS: dict[str, Provider] = {"dense": dense, "fused": fused}


def expected(name: str, settings: dict, batch: Batch, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    """Losses and gradient of the formula, evaluated in `dtype`."""
    logits, positions = batch.positions(dtype)
    losses = formulas.losses(name, positions, **settings)
    (gradient,) = torch.autograd.grad((losses * batch.upstream.to(dtype)).sum(), logits)
    return losses.detach(), gradient


def row_errors(found: Tensor, wanted: Tensor, scale: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Largest error of each row over `scale` (N,), or over 1e-3 of the row's weight if that is more.

    Where p_y is nearly 1, log p_y and p - e_y are differences of numbers near 1: their absolute error is that of 1,
    whatever their size, and a weight multiplies it (up to e^70 in iw_sft).
    """
    found, wanted = found.double().reshape(len(found), -1), wanted.double().reshape(len(wanted), -1)
    floor = 1e-3 * torch.as_tensor(weight, dtype=torch.float64).clamp(min=1.0)
    return (found - wanted).abs().amax(-1) / scale.double().maximum(floor)


def token_weights(name: str, settings: dict, batch: Batch) -> Tensor | float:
    """(N,) weights of the formula, 1 for an objective that is no token weight."""
    if name not in formulas.WEIGHTS:
        return 1.0
    _, positions = batch.positions(torch.float64)
    weights = [formulas.WEIGHTS[name](t, positions, **settings) if t.supervised else 1.0 for t in positions]
    return torch.tensor([float(weight) for weight in weights])


def oracle_error(name: str, settings: dict, provider: Provider, batch: Batch) -> float:
    """Largest error of losses and gradient against the formula, relative to the larger of the row's two."""
    losses, gradient = provider(sft_objectives.load(name, **settings), batch, None)
    true_losses, true_gradient = expected(name, settings, batch)
    weight = token_weights(name, settings, batch)
    of_losses = row_errors(losses, true_losses, true_losses.abs(), weight)
    scale = true_gradient.abs().amax(-1).maximum(true_losses.abs())
    of_gradient = row_errors(gradient, true_gradient, scale, weight)
    return float(torch.cat([of_losses, of_gradient]).max())


# one optimizer step: micro-batches, ranks, padding


def dataset_constants(objective: Objective, batch: Batch) -> dict[str, float]:
    """Constants of the training set, if the batch is all of it; none if the objective has none."""
    if objective.needs.dataset is None:
        return {}
    base, sequence = batch.references["base"], torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths)
    scalars = {name: base.get(name) for name in objective.needs.dataset.fields}
    return objective.dataset_constants({**scalars, "mask": batch.mask, "sequence": sequence})


def step_gradient(objective: Objective, batch: Batch, dataset: dict[str, float], ranks: list[list[Tensor]]) -> Tensor:
    """d loss / d weight (V, V) of one step whose global batch is spread over ranks[r][m], indices of rows.

    The integrator's protocol (`sft_objectives.contract`) with one thread for each rank. The logits come from a linear
    head with the identity as its weight, so that they do not depend on the split and the gradient is a sum over rows.
    """
    needs, size, hidden = objective.needs, len(ranks), batch.logits.detach()
    everywhere = torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths)
    weight = torch.eye(hidden.shape[-1], dtype=hidden.dtype)
    barrier, box = threading.Barrier(size, timeout=60), [torch.empty(0)] * size

    def student(rows: Tensor, leaf: Tensor) -> DenseStudent:
        return DenseStudent(hidden[rows] @ leaf.T, batch.labels[rows])

    def inputs(rows: Tensor):
        references = {source: batch.references[source].rows(rows) for source in needs.references}
        return references, {name: getattr(batch, name)[rows] for name in needs.columns}

    def gradient_of(rank: int) -> Tensor:
        def reduce(local: Tensor) -> Tensor:
            box[rank] = local
            barrier.wait()
            together = torch.cat(box)
            barrier.wait()
            return together

        leaf = weight.clone().requires_grad_()
        parts = [rows[batch.mask[rows]] for rows in ranks[rank]]
        constants = BatchConstants()
        if needs.batch:
            collected = []
            for rows in parts:
                seen = student(rows, leaf) if needs.student_first else None
                scalars = objective.token_scalars(Step(seen, *inputs(rows)))
                collected.append({**scalars, "mask": torch.ones(len(rows)), "sequence": everywhere[rows]})
            constants = objective.batch_constants(
                {name: torch.cat([scalars[name].detach() for scalars in collected]) for name in collected[0]}, reduce
            )
        constants = constants.merged(dataset)
        normalizer = float(batch.mask.sum()) if constants.normalizer is None else constants.normalizer
        done = 0
        for rows in parts:
            here = constants.rows(slice(done, done + len(rows)))
            (objective.loss(Step(student(rows, leaf), *inputs(rows), here)).sum() / normalizer).backward()
            done += len(rows)
        assert leaf.grad is not None
        return leaf.grad

    with ThreadPoolExecutor(size) as pool:
        return torch.stack(list(pool.map(gradient_of, range(size)))).sum(0)


def padded(batch: Batch) -> Batch:
    """The same batch with every sequence padded to the longest; padding is unsupervised."""
    longest, ends = int(batch.lengths.max()), batch.lengths.cumsum(0)
    starts = (ends - batch.lengths)[:, None]
    rows = (starts + torch.arange(longest)).minimum(ends[:, None] - 1).flatten()
    is_padding = (torch.arange(longest) >= batch.lengths[:, None]).flatten()
    return replace(
        batch,
        logits=batch.logits.detach()[rows],
        labels=batch.labels[rows],
        mask=batch.mask[rows] & ~is_padding,
        lengths=torch.full_like(batch.lengths, longest),
        references={source: reference.rows(rows) for source, reference in batch.references.items()},
        critical=batch.critical[rows],
    )


def splits(batch: Batch) -> dict[str, list[list[Tensor]]]:
    """Spreads of whole sequences over 1, 2, 4 micro-batches and 1, 2 data-parallel ranks."""
    sequences = list(torch.arange(int(batch.lengths.sum())).split(batch.lengths.tolist()))
    a, b, c, d, *rest = sequences
    return {
        "whole": [[torch.cat(sequences)]],
        "2 micro-batches": [[torch.cat([a, b]), torch.cat([c, d, *rest])]],
        "4 micro-batches": [[a, b, c, torch.cat([d, *rest])]],
        "2 ranks": [[torch.cat([a, b])], [torch.cat([c, d, *rest])]],
        "2 ranks, 2 micro-batches": [[a, c], [torch.cat([b, *rest]), d]],
    }


def invariance_error(name: str, settings: dict) -> float:
    """Largest error of the float32 gradient of one step over splits, ranks and padding, over its largest value."""
    batch, objective = build(torch.float32), sft_objectives.load(name, **settings)
    dataset = dataset_constants(objective, batch)
    found = [
        step_gradient(objective, layout, dataset, ranks)
        for layout in (batch, padded(batch))
        for ranks in splits(layout).values()
    ]
    largest = float(found[0].abs().max()) or 1.0  # where nothing is kept every gradient must be 0
    return max(float((gradient - found[0]).abs().max()) / largest for gradient in found)
