"""verl's SFT data set of chats as training rows, with the rows of reference caches aligned to their tokens.

Give it to verl as `data.custom_cls={path: pkg://data_prep.chat_dataset, name: ChatDataset}`. It reads verl's `messages`
and gives verl's tensors; token ids and masks are those of `common.chats`.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from common.chats import POLICY, Rendered, Renderer
from common.errors import ConfigError
from common.files import text_digest
from data_prep.chat_table import ChatTable
from data_prep.reference.layout import SUPPORT_FIELDS
from data_prep.reference.reader import ReferenceCache, label_checksum
from data_prep.truncation import dataset_config

__all__ = ["AlignedReference", "ChatDataset", "dataset_config", "tokenizer_digest"]

MASK_POLICY = "assistant turns to their end"  # after the prompt, to the token that ends the turn; never token 0
EMITTED_DTYPES = {"ceil_n1": np.int32, "ceil_n2": np.int32}  # other scalars are float32
CHUNK_CHATS = 32  # tokenised together
Encoded = tuple[np.ndarray, np.ndarray]  # ids int32 and mask uint8, (T,) each


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that turns text into ids; padding and truncation state is left out."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content.update(padding=None, truncation=None)
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return text_digest(json.dumps(content, sort_keys=True))


class ChatDataset(Dataset):
    """Chats as token ids and masks; rows of reference caches beside them.

    A chat is one row, or several where inference would show its turns another past (`common.chats`).

    Configuration (`data.*`), beyond what verl reads itself:
        pad_mode: must be no_padding.
        max_length, truncation: error, left or right.
        apply_chat_template_kwargs, turns, prompt_mismatch, supervise_after_end: of the renderer.
        mapped: directory for memory-mapped copies of the files (`chat_table.mapped`), which training in random order
            reads; left out, the files themselves are read.
        references: mapping source -> {path, fields, top_k}. source is base, teacher or checkpoint, fields a list from
            support_ids, support_logprobs, the names of TOKEN_FIELDS and mean_loss, top_k the number of entries wanted
            (null: all that are stored). `verified: true` beside them: the checksums were compared on this machine
            already; left out, they are compared here.
        columns: names of per-token columns wanted; `critical` is 1 on tokens that overlap the chat's `critical_spans`
            ([start, end) character pairs of the last answer) and 0 elsewhere.
        train_files: references and columns belong to these files; another data set (validation) gets none.

    An item has int64 `input_ids`, `position_ids`, `loss_mask`, each (T,), and for every source and field a flat tensor
    whose row t belongs to the logits of position t, that is to the label `input_ids[t + 1]`:

        reference_<source>_packed     (T * top_k,) int32, or int64 if the cache is lossless, for support_ids and
                                      support_logprobs; `reference.codec.decode` unpacks them
        reference_<source>_<field>    (T,) float32 for label_logprob, label_mass, logsumexp, entropy, n1, n2 and
                                      mean_loss (the row's, at every position); int32 for ceil_n1, ceil_n2
        column_<name>                 (T,) float32

    Rows of positions that predict no supervised token are zero. `loss_mask` is as in verl: 1 at the supervised token
    itself, so row t counts where `loss_mask[t + 1]` is 1; `loss_mask[0]` is always 0, so that a mask rolled over packed
    rows cannot leak. Tensors are 1-D because verl's collator joins 2-D ones on the wrong axis.

    Raises:
        ConfigError: a cache was made from other data, tokens or settings (the message names them), is damaged or lacks
            a field; a chat is too long and truncation is error; or the template refuses a chat.
    """

    def __init__(self, parquet_files, tokenizer: Any, config: Any, processor=None, max_samples: int = -1):
        pad_mode = config.get("pad_mode", "no_padding")
        if pad_mode != "no_padding":
            raise ConfigError(f"data.pad_mode={pad_mode}: allowed: no_padding")
        if processor is not None:
            raise ConfigError("data: multi-modal processors are not supported; use a text model")
        self.tokenizer, self.files = tokenizer, _as_list(parquet_files)
        self.truncation, self.length_limit = config.get("truncation", "error"), config.get("max_length", 1024)
        policy = {name: config.get(name) for name in POLICY if config.get(name) is not None}
        arguments = config.get("apply_chat_template_kwargs") or {}
        self.renderer = Renderer(tokenizer, template_arguments=arguments, **policy)
        directory = config.get("mapped")
        self.table = ChatTable(self.files, None if directory is None else Path(directory), max_samples)
        self.first = self._first_rows()  # the first row of each chat, their sum last
        self.references: dict[str, AlignedReference] = {}
        self.columns: tuple[str, ...] = ()
        if self.files == _as_list(config.get("train_files")):
            wanted = config.get("references") or {}
            identity = self.identity() if wanted else {}
            for source, reference in wanted.items():
                self.references[source] = AlignedReference(source, reference, identity, len(self))
            self.columns = tuple(config.get("columns") or ())
            self._check_columns()

    def __len__(self) -> int:
        return int(self.first[-1])

    def _first_rows(self) -> np.ndarray:
        """(chats + 1,) int64: how many rows come before each chat, as `prepare` counted or as counted here."""
        counts: list[Any] = []
        if "row_tokens" in self.table.columns:
            for batch in self.table.batches(["row_tokens"]):
                lists: Any = batch.column(0)
                counts.append(lists.value_lengths().to_numpy(zero_copy_only=False))
        else:
            for chats in self.table.chats():
                number = sum(map(len, counts))
                found = self.renderer.many((chat["messages"], chat.get("tools")) for chat in chats)
                counts.append([len(self._accepted(number + place, rows)) for place, rows in enumerate(found)])
        return np.cumsum(np.concatenate([[0], *counts]).astype(np.int64))

    def _accepted(self, number: int, rows: list[Rendered] | ConfigError) -> list[Rendered]:
        if isinstance(rows, ConfigError):
            raise ConfigError(f"{self.files[0]}: chat {number}: {rows}")
        return rows

    def _prepared(self, number: int, rows: list[Rendered] | ConfigError) -> list[Rendered]:
        """A chat's rows, as many as were counted."""
        found, counted = self._accepted(number, rows), int(self.first[number + 1] - self.first[number])
        if len(found) != counted:
            raise ConfigError(
                f"{self.files[0]}: chat {number} was prepared as {counted} rows and is {len(found)} under this "
                "model's chat template; run prepare again with it"
            )
        return found

    def encoded(self) -> Iterator[Encoded]:
        """ids and mask of every item in order; each chat is rendered once, by chunks on all cores of this process.

        Afterwards the digest of the rows is known, and `identity` reads nothing.
        """
        threads = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(threads, "encode") as pool:
            waiting: deque[Future[list[Encoded]]] = deque()
            number = 0
            for chats in self.table.chats():
                for start in range(0, len(chats), CHUNK_CHATS):
                    chunk = chats[start : start + CHUNK_CHATS]
                    waiting.append(pool.submit(self._encode, number, chunk))
                    number += len(chunk)
                    if len(waiting) > 2 * threads:
                        yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _encode(self, first: int, chats: list[dict[str, Any]]) -> list[Encoded]:
        """The items of consecutive chats; `first` is the number of the first."""
        items = []
        found = self.renderer.many((chat["messages"], chat.get("tools")) for chat in chats)
        for number, rows in enumerate(found, first):
            for row in self._prepared(number, rows):
                kept = self._kept(len(row.ids), number)
                mask = np.array(row.supervised[kept], np.uint8)
                mask[:1] = 0
                items.append((np.array(row.ids[kept], np.int32), mask))
        return items

    def identity(self) -> dict[str, Any]:
        """What decides the tokens and masks of this data set; part of a reference cache's identity."""
        policy = {name: getattr(self.renderer, name) for name in POLICY}
        return {
            "tokenizer": tokenizer_digest(self.tokenizer),
            "chat_template": text_digest(str(self.tokenizer.chat_template)),
            "chat_template_arguments": self.renderer.template.arguments,
            "data_rows": self.table.digest(),
            "truncation": self.truncation,
            "max_length": self.length_limit,
            "mask_policy": {"supervised": MASK_POLICY, **policy},
        }

    def _check_columns(self) -> None:
        if unknown := set(self.columns) - {"critical"}:
            raise ConfigError(f"data.columns: {', '.join(sorted(unknown))} unknown; allowed: critical")
        if self.columns:
            given = "critical_spans" in self.table.columns
            if not given or any(batch.column(0).null_count for batch in self.table.batches(["critical_spans"])):
                raise ConfigError(f"{self.files[0]}: critical_spans is missing; the objective needs it in every row")
            if not self.tokenizer.is_fast:
                raise ConfigError("data.columns=critical: only fast tokenizers tell where a token begins")

    def _critical(self, chat: dict[str, Any], number: int, row: Rendered) -> torch.Tensor:
        """(T,) float32, 1 at the critical tokens of the whole row; they are in the row with the chat's last answer."""
        critical = np.zeros(len(row.ids), np.float32)
        if row.last:
            encoded = self.tokenizer(row.text, add_special_tokens=False, return_offsets_mapping=True)
            start = row.text.rfind(chat["messages"][-1]["content"])
            if start < 0 or encoded["input_ids"][: len(row.ids)] != row.ids:
                raise ConfigError(
                    f"chat {number}: the chat template changes the answer, so critical_spans have no place in it"
                )
            bounds = np.asarray(encoded["offset_mapping"][: len(row.ids)]) - start
            for first, last in chat["critical_spans"]:
                critical[(bounds[:, 0] < last) & (bounds[:, 1] > first)] = 1
        return torch.from_numpy(critical)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        if not 0 <= item < len(self):
            raise IndexError(item)
        number = int(np.searchsorted(self.first, item, side="right")) - 1
        chat = self.table.chat(number)
        (rows,) = self.renderer.many([(chat["messages"], chat.get("tools"))])
        found = self._prepared(number, rows)
        rendered = found[item - int(self.first[number])]
        row = {
            "input_ids": torch.tensor(rendered.ids, dtype=torch.long),
            "position_ids": torch.arange(len(rendered.ids), dtype=torch.long),
            "loss_mask": torch.tensor(rendered.supervised, dtype=torch.long),
        }
        if self.columns:
            row["column_critical"] = self._critical(chat, number, rendered)
        row = self._truncate(row, number)
        if self.columns:
            row["column_critical"] = torch.cat([row["column_critical"][1:], torch.zeros(1)])
        if self.references:
            ids, mask = row["input_ids"].numpy(), row["loss_mask"].numpy()
            for reference in self.references.values():
                row.update(reference.rows(item, ids, mask))
        return row

    def _truncate(self, row: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
        kept = self._kept(len(row["input_ids"]), number)
        row = {name: value[kept] for name, value in row.items()}
        row["position_ids"] = torch.arange(len(row["input_ids"]), dtype=torch.long)
        row["loss_mask"][:1] = 0
        return row

    def _kept(self, length: int, number: int) -> slice:
        """What of a row's tokens is trained on. Raises ConfigError where a long one is an error."""
        if length <= self.length_limit:
            return slice(None)
        if self.truncation == "error":
            limit = f"data.max_length={self.length_limit}"
            raise ConfigError(f"chat {number}: {length} tokens, {limit}; raise it or set data.on_long_row")
        return slice(-self.length_limit, None) if self.truncation == "left" else slice(self.length_limit)


class AlignedReference:
    """One cache, checked against the data set, whose rows are spread over the positions of a chat."""

    def __init__(self, source: str, reference: Mapping[str, Any], identity: Mapping[str, Any], sequences: int):
        self.prefix = f"reference_{source}_"
        self.fields = tuple(reference["fields"])
        self.cache = ReferenceCache(reference["path"])
        self.top_k = reference["top_k"] or self.cache.layout.top_k
        self.cache.require(self.fields)
        self.cache.check_identity(identity)
        if self.top_k > self.cache.layout.top_k:
            raise ConfigError(
                f"{reference['path']}: top_k {self.top_k} asked, {self.cache.layout.top_k} stored; raise cache.top_k"
            )
        if self.cache.sequences != sequences:
            raise ConfigError(f"{reference['path']}: {self.cache.sequences} chats, the data set has {sequences}")
        if not reference.get("verified"):
            self.cache.verify()
        self.emitted = tuple(dict.fromkeys("packed" if name in SUPPORT_FIELDS else name for name in self.fields))
        self.names = (*self.emitted, "label_checksum")

    def rows(self, item: int, ids: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor]:
        """Tensors of one chat; `ids` and `mask` (T,) are those of the data set's item."""
        labels = np.flatnonzero(mask)
        stored = self.cache.read(item, self.names)
        checksum = label_checksum(ids[labels])
        if stored["label_checksum"] != checksum:
            raise ConfigError(
                f"{self.cache.directory}: chat {item} was made from other tokens; run the cache stage again"
            )
        tensors = {}
        for name in self.emitted:
            if name == "mean_loss":
                spread = np.full(len(ids), stored[name], np.float32)
            elif name == "packed":
                spread = _spread(stored[name][:, : self.top_k], labels, len(ids), stored[name].dtype).reshape(-1)
            else:
                spread = _spread(stored[name], labels, len(ids), EMITTED_DTYPES.get(name, np.float32))
            tensors[self.prefix + name] = torch.from_numpy(spread)
        return tensors


def _spread(values: np.ndarray, labels: np.ndarray, length: int, dtype: Any) -> np.ndarray:
    """(length, ...) zeros but for `values`, which go one position before their `labels` (n,)."""
    shape = (length, *values.shape[1:])
    if len(labels) and labels[-1] - labels[0] + 1 == len(labels):  # one answer: no index for each row
        first, end = labels[0] - 1, labels[-1]
        spread = np.empty(shape, dtype)
        spread[:first], spread[first:end], spread[end:] = 0, values, 0
        return spread
    spread = np.zeros(shape, dtype)
    spread[labels - 1] = values
    return spread


def _as_list(files: Any) -> list[str]:
    return [files] if isinstance(files, str) else [str(file) for file in files or []]
