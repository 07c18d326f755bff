"""What a model thinks of held-out chats that it did not write: token entropy, loss, KL from the base model.

The text is fixed, so checkpoints are compared on equal terms, and a forward pass sees the whole vocabulary; the top
log-probabilities that a sampler returns would truncate both figures.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

import numpy as np

from common.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.generation.prompts import Prompter
    from evaluation.token_table import TokenWriter

P = ParamSpec("P")
T = TypeVar("T")
POSITIONS_PER_CHUNK = 1024
STATISTICS = 2  # to be raised when the sums below are others
TABLE_VERSION = 1  # to be raised when the rows of `token_table` hold something else; here a plan reads it in no time
MOST_PLAUSIBLE = 30  # ids of a position (the window of LP-SFT, eq. 2)
ENTROPY_EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, float("inf"))


@dataclass(frozen=True)
class HeldOut:
    """Sums over the response tokens of each chat; arrays are (chats,) float64, in nats, but for the histogram.

    entropy: of the student's next-token distribution. loss: -log p of the written token. kl: KL(base || student), or
    None without a base. tokens: response tokens. histogram: (chats, len(ENTROPY_EDGES) - 1) int64, tokens by entropy
    between `ENTROPY_EDGES`. plausible: entropy of the student's distribution among the base's plausible ids, without a
    base its own (see `plausible_entropy`). drift: |p - q| of the written token, q the base's, or None without a base.
    """

    entropy: np.ndarray
    loss: np.ndarray
    kl: np.ndarray | None
    tokens: np.ndarray
    histogram: np.ndarray
    plausible: np.ndarray
    drift: np.ndarray | None


def encode(
    prompter: Prompter, messages: Sequence[dict], max_length: int, tools: list | None = None
) -> tuple[list[int], int] | None:
    """Token ids of a chat up to the end of its last message, the response, and the place where that begins; None if
    over `max_length`.

    Raises ConfigError if the last message is not the assistant's or the template refuses the chat.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise ConfigError("held-out chat: the last message is not the assistant's")
    row = prompter.renderer.rows(messages, tools)[-1]
    start, end = row.supervised.index(1), len(row.ids) - row.supervised[::-1].index(1)
    return (row.ids[:end], start) if end <= max_length else None


def _gives_device_back(function: Callable[P, T]) -> Callable[P, T]:
    """`function(..., device=...)`, after which the device's memory is free: what was local to the call is gone then."""

    @wraps(function)
    def called(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return function(*arguments, **named)
        finally:
            gc.collect()
            if named["device"] != "cpu":
                import torch

                torch.cuda.empty_cache()  # what PyTorch keeps is not vLLM's to use

    return called


@_gives_device_back
def forward(
    model: Path,
    base: Path | None,
    chats: Sequence[tuple[list[int], int]],
    *,
    dtype: str,
    device: str,
    progress: Callable[[int], None],
    trust_remote_code: bool = False,
    tokens_to: TokenWriter | None = None,
    places: Sequence[int] | None = None,
) -> HeldOut:
    """Forward passes of `model`, and of `base` if given, over encoded chats, one at a time.

    dtype: of the weights (`float32`, `bfloat16`); distributions are always reduced in float32. device: `cpu` or `cuda`.
    progress(done) is called after each chat; the device's memory is free again afterwards. tokens_to: takes a row for
    every response token; places: numbers of the chats in it, by default 0, 1, ... Raises ConfigError if the two
    vocabularies differ in size.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from evaluation.token_table import statistics

    def load(path: Path):
        loaded = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), attn_implementation="sdpa", trust_remote_code=trust_remote_code
        )
        if getattr(loaded.config, "final_logit_softcapping", None) or getattr(loaded.config, "logit_scale", None):
            raise ConfigError(f"{path}: no support for models that transform their logits; set eval.held_out_chats=0")
        loaded.eval().to(torch.device(device))  # type: ignore[arg-type]
        return loaded.base_model, cast(torch.nn.Module, loaded.get_output_embeddings()), loaded.config.vocab_size

    student_body, student_head, vocabulary = load(model)
    reference_body, reference_head, reference_vocabulary = load(base) if base is not None else (None, None, vocabulary)
    if reference_vocabulary != vocabulary:
        raise ConfigError(
            f"{base}: vocabulary of {reference_vocabulary}, the student's has {vocabulary}; KL from base needs the same"
        )
    edges = torch.tensor(ENTROPY_EDGES[1:-1], dtype=torch.float32, device=device)
    rows = {name: np.zeros(len(chats)) for name in ("entropy", "loss", "kl", "tokens", "plausible", "drift")}
    histogram = np.zeros((len(chats), len(ENTROPY_EDGES) - 1), dtype=np.int64)
    with torch.inference_mode():
        for row, (ids, start) in enumerate(chats):
            tokens = torch.tensor([ids], device=device)
            # Position t predicts token t + 1; only the response is measured. Logits come chunk by chunk: a whole
            # chat of a large vocabulary in float32 would not fit.
            hidden = student_body(tokens).last_hidden_state[0, start - 1 : -1]
            reference_hidden = None
            if reference_body is not None:
                reference_hidden = reference_body(tokens).last_hidden_state[0, start - 1 : -1]
            labels = tokens[0, start:]
            for begin in range(0, len(labels), POSITIONS_PER_CHUNK):
                part = slice(begin, begin + POSITIONS_PER_CHUNK)
                log_p = student_head(hidden[part]).float().log_softmax(-1)
                entropy = -(log_p.exp() * log_p).sum(-1)
                rows["entropy"][row] += entropy.sum(dtype=torch.float64).item()
                written = log_p.gather(1, labels[part, None])
                rows["loss"][row] -= written.sum(dtype=torch.float64).item()
                log_q, base_entropy = log_p, entropy
                counts = torch.bincount(torch.bucketize(entropy, edges, right=True), minlength=histogram.shape[1])
                histogram[row] += counts.cpu().numpy()
                columns = None if tokens_to is None else {**statistics(log_p, labels[part]), "entropy": entropy}
                if reference_head is not None and reference_hidden is not None:
                    log_q = reference_head(reference_hidden[part]).float().log_softmax(-1)
                    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
                    rows["kl"][row] += kl.sum(dtype=torch.float64).item()
                    if columns is not None:
                        columns["kl"] = kl
                    base_entropy = -(log_q.exp() * log_q).sum(-1)
                    moved = (written.exp() - log_q.gather(1, labels[part, None]).exp()).abs()
                    rows["drift"][row] += moved.sum(dtype=torch.float64).item()
                plausible = plausible_entropy(log_p, log_q, base_entropy)
                rows["plausible"][row] += plausible.sum(dtype=torch.float64).item()
                if tokens_to is not None and columns is not None:
                    found = {name: values.cpu().numpy() for name, values in columns.items()}
                    count = len(found["rank"])
                    tokens_to.add(
                        chat=np.full(count, row if places is None else places[row], dtype=np.int32),
                        position=np.arange(start + begin, start + begin + count, dtype=np.int32),
                        token=labels[part].cpu().numpy(),
                        **{"kl": None, **found},
                    )
            rows["tokens"][row] = len(labels)
            progress(row + 1)
    kl, drift = (rows[name] if base is not None else None for name in ("kl", "drift"))
    return HeldOut(rows["entropy"], rows["loss"], kl, rows["tokens"], histogram, rows["plausible"], drift)


def plausible_entropy(log_p: Tensor, log_q: Tensor, entropy: Tensor) -> Tensor:
    """Entropy of p, renormalised among the ceil(exp(entropy of q)) most probable ids of q, in nats.

    log_p, log_q: (n, V) float; entropy: (n,) of q. Returns (n,). At most `MOST_PLAUSIBLE` ids count; of one the entropy
    is 0. These are the words whose probabilities LP-SFT preserves (its eq. 2-4), here with the label.
    """
    import torch

    values, ids = log_q.topk(min(MOST_PLAUSIBLE, log_q.shape[-1]), dim=-1)
    counted = torch.arange(values.shape[-1], device=values.device) < entropy.exp().ceil()[:, None]
    kept = log_p.gather(1, ids).masked_fill(~counted, -torch.inf)
    return torch.special.entr(kept.softmax(-1)).sum(-1)


SUMS = ("entropy", "loss", "kl", "plausible", "drift")  # columns of nats and probabilities, a row for each chat


def write(path: Path, found: HeldOut, fits: Sequence[bool]) -> None:
    """Write the sums as Parquet, a row for each chat; `fits`: which chats are measured, the others get nulls."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = iter(range(len(found.tokens)))
    at = [next(place) if fit else None for fit in fits]

    def column(values: np.ndarray | None, kind: pa.DataType) -> pa.Array:
        return pa.array([None if one is None or values is None else values[one].item() for one in at], kind)

    columns = {
        "chat": pa.array(range(len(at)), pa.int32()),
        "tokens": column(found.tokens.astype(np.int64), pa.int64()),
        **{name: column(getattr(found, name), pa.float64()) for name in SUMS},
    }
    for bin in range(found.histogram.shape[1]):
        columns[f"entropy_{bin}"] = column(found.histogram[:, bin], pa.int64())
    pq.write_table(pa.table(columns), path)


def read(path: Path) -> tuple[HeldOut, int]:
    """The sums of the measured chats, and how many were left out for their length."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rows = table.filter(table["tokens"].is_valid()).to_pydict()
    entropies = [rows[f"entropy_{bin}"] for bin in range(len(ENTROPY_EDGES) - 1)]

    def sums(name: str) -> np.ndarray:
        return np.array(rows[name], dtype=np.float64)

    based = None not in rows["kl"]
    found = HeldOut(
        sums("entropy"),
        sums("loss"),
        sums("kl") if based else None,
        sums("tokens"),
        np.array(entropies, dtype=np.int64).T,
        sums("plausible"),
        sums("drift") if based else None,
    )
    return found, table.num_rows - len(found.tokens)
