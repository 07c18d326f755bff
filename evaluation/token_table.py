"""What a model says of every response token of the held-out chats: one row for each, in Parquet, read as a stream.

`TOKENS` is the schema. Rows stand in the order of the text, so that the tables of two models over the same chats line
up row by row. Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import ConfigError
from common.parquet import streamed

if TYPE_CHECKING:
    from torch import Tensor

FILE, TEXTS = "held_out_tokens.parquet", "held_out_texts.parquet"
TOP = 20  # most probable ids that are kept
WINDOW = 30  # of N1 and N2
BATCH_ROWS = 65_536
GROUP_ROWS = 262_144  # rows that wait to be written

TOKENS = pa.schema(
    [
        ("chat", pa.int32()),  # place among the held-out chats
        ("position", pa.int32()),  # of the token among the chat's ids
        ("token", pa.int32()),  # its id
        ("log_p", pa.float32()),  # of the token, in nats
        ("rank", pa.int32()),  # 1: no id is more probable
        ("mass", pa.float32()),  # of the ids that are at most as probable; 1 exactly for rank 1
        ("entropy", pa.float32()),  # over the whole vocabulary, in nats
        ("n1", pa.float32()),  # effective support of the top-30 window (LP-SFT)
        ("n2", pa.float32()),
        ("kl", pa.float32()),  # KL(base || model), null of the base itself
        ("top_ids", pa.list_(pa.int32(), TOP)),  # in decreasing order; -1 beyond a smaller vocabulary
        ("top_log_p", pa.list_(pa.float32(), TOP)),
    ]
)
TEXT = pa.schema([("id", pa.int32()), ("text", pa.string())])


def statistics(log_p: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Columns of `TOKENS` from (n, V) float32 log-probabilities and (n,) labels; `entropy` and `kl` are not among them.

    Takes a (n, V) float32 and a (n, V) bool tensor for a moment.
    """
    import torch
    import torch.nn.functional as F

    of_label = log_p.gather(1, labels[:, None])
    above = log_p > of_label
    rank = above.sum(-1) + 1
    mass = log_p.exp().masked_fill_(above, 0).sum(-1)
    del above
    top = log_p.topk(min(WINDOW, log_p.shape[-1]), dim=-1)
    log_q = top.values.double().log_softmax(-1)
    q = log_q.exp()
    missing = max(0, TOP - top.values.shape[-1])
    return {
        "log_p": of_label.squeeze(1),
        "rank": rank,
        "mass": torch.where(rank == 1, torch.ones_like(mass), mass),
        "n1": torch.special.entr(q).sum(-1).exp(),
        "n2": 1 / q.square().sum(-1),
        "top_ids": F.pad(top.indices[:, :TOP], (0, missing), value=-1),
        "top_log_p": F.pad(top.values[:, :TOP], (0, missing), value=-torch.inf),
    }


class TokenWriter:
    """Writes the rows of one model and, when closed, the texts of the ids that occur in them.

    text: of an id. `add` takes columns of `TOKENS` as arrays of equal length; `kl` may be None.
    """

    def __init__(self, directory: Path, text: Callable[[int], str]) -> None:
        self._writer = pq.ParquetWriter(directory / FILE, TOKENS, compression="zstd")
        self._texts, self._text = directory / TEXTS, text
        self._seen: set[int] = set()
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def add(self, **columns: np.ndarray | None) -> None:
        """Appends rows; rows of one model come in the order of the text."""
        rows = len(next(values for values in columns.values() if values is not None))
        arrays = []
        for field in TOKENS:
            values = columns[field.name]
            if values is None:
                arrays.append(pa.nulls(rows, field.type))
            elif pa.types.is_fixed_size_list(field.type):
                flat = pa.array(np.ascontiguousarray(values).reshape(-1), field.type.value_type, from_pandas=False)
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, TOP))
            else:
                arrays.append(pa.array(values, field.type, from_pandas=False))
        for name in ("token", "top_ids"):
            values = columns[name]
            self._seen.update(np.unique(values).tolist() if values is not None else ())
        self._waiting.append(pa.RecordBatch.from_arrays(arrays, schema=TOKENS))
        self._rows += rows
        if self._rows >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting))
        self._waiting, self._rows = [], 0

    def close(self) -> None:
        """Writes what waits, and the texts."""
        self._flush()
        self._writer.close()
        ids = sorted(self._seen - {-1})
        pq.write_table(pa.table([ids, [self._text(one) for one in ids]], schema=TEXT), self._texts)


def batches(directory: Path, columns: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    """`columns` of the rows in `directory`, some at a time: (n,) arrays, of the top ids (n, TOP); a null is NaN.

    Every table is cut at the same rows. Raises ConfigError where there is no such table.
    """
    path = directory / FILE
    if not path.is_file():
        raise ConfigError(
            f"{directory}: no {FILE}; set eval.held_out_chats above 0 and run `generate` again, which writes it"
        )
    with streamed(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
            yield {name: _array(batch.column(name)) for name in columns}


def _array(column: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.to_numpy(zero_copy_only=False)


def rows_of(directory: Path) -> int:
    """Rows of the table in `directory`."""
    return pq.read_metadata(directory / FILE).num_rows


def texts(directory: Path) -> dict[int, str]:
    """Text by id, of the ids that occur in the table in `directory`."""
    table = pq.read_table(directory / TEXTS)
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def aligned(directories: Sequence[Path], columns: Sequence[str]) -> Iterator[list[dict[str, np.ndarray]]]:
    """The rows of several models side by side. Raises ConfigError where they are not of the same tokens."""
    wanted = list(dict.fromkeys(("chat", "position", "token", *columns)))
    sizes = {rows_of(one) for one in directories} if all((one / FILE).is_file() for one in directories) else {0}
    if len(sizes) > 1:
        raise _differ(directories)
    for together in zip(*(batches(one, wanted) for one in directories), strict=True):
        for name in ("chat", "position", "token"):
            if any(not np.array_equal(one[name], together[0][name]) for one in together[1:]):
                raise _differ(directories)
        yield list(together)


def _differ(directories: Iterable[Path]) -> ConfigError:
    return ConfigError(
        f"{', '.join(map(str, directories))}: tokens of different texts; give the branches one tokenizer, data, "
        "eval.held_out_chats and eval.max_length"
    )


def contexts(
    directory: Path, wanted: Iterable[tuple[int, int]], before: int = 16, after: int = 4
) -> dict[tuple[int, int], tuple[str, str, str]]:
    """For each wanted (chat, position) the text before it in the response, its own, and the text after it."""
    places: dict[int, list[int]] = {}
    for chat, position in wanted:
        places.setdefault(chat, []).append(position)
    chats = np.array(sorted(places), dtype=np.int32)
    ids: dict[int, dict[int, int]] = {chat: {} for chat in places}
    for batch in batches(directory, ("chat", "position", "token")):
        kept = np.isin(batch["chat"], chats)
        for chat, position, token in zip(*(batch[name][kept].tolist() for name in batch), strict=True):
            ids[chat][position] = token
    written = texts(directory)

    def text(chat: int, positions: range) -> str:
        return "".join(written[ids[chat][one]] for one in positions if one in ids[chat])

    return {
        (chat, at): (
            text(chat, range(at - before, at)),
            text(chat, range(at, at + 1)),
            text(chat, range(at + 1, at + 1 + after)),
        )
        for chat, there in places.items()
        for at in there
    }
