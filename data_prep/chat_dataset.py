"""verl's multi-turn SFT data set, with the rows of reference caches aligned to its tokens.

Give it to verl as `data.custom_cls={path: pkg://data_prep.chat_dataset, name: ChatDataset}`; with
`data.references` empty it is verl's data set with truncation on either side and a mask that cannot leak.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from common.errors import ConfigError
from common.files import text_digest
from data_prep.reference.layout import SUPPORT_FIELDS
from data_prep.reference.reader import ReferenceCache, label_checksum
from data_prep.truncation import TRUNCATION

MASK_POLICY = "assistant"  # every token of an assistant turn after its generation prompt; never token 0
EMITTED_DTYPES = {"ceil_n1": np.int32, "ceil_n2": np.int32}  # other scalars are float32


def dataset_config(data: Any) -> dict[str, Any]:
    """verl's `data.*` entries that decide tokens and masks, from the recipe's `data` section."""
    return {"pad_mode": "no_padding", "max_length": data.max_length, "truncation": TRUNCATION[data.on_long_row]}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that turns text into ids; padding and truncation state is left out."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content.update(padding=None, truncation=None)
    else:
        content = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return text_digest(json.dumps(content, sort_keys=True))


class ChatDataset(MultiTurnSFTDataset):
    """Chats as token ids and masks; rows of reference caches beside them.

    Configuration beyond verl's (`data.*`):
        pad_mode: must be no_padding.
        truncation: error, left or right; verl's own class cuts on the right whatever it says.
        references: mapping source -> {path, fields, top_k}. source is base, teacher or checkpoint, fields a list from
            support_ids, support_logprobs, the names of TOKEN_FIELDS and mean_loss, top_k the number of entries wanted
            (null: all that are stored).
        columns: names of per-token columns wanted; `critical` is 1 on tokens that overlap the row's `critical_spans`
            ([start, end) character pairs of the last answer) and 0 elsewhere.
        train_files: references and columns belong to these files; another data set (validation) gets none.

    An item has int64 `input_ids`, `position_ids`, `loss_mask`, each (T,), and for every source and field a flat tensor
    whose row t belongs to the logits of position t, that is to the label `input_ids[t + 1]`:

        reference_<source>_packed     (T * top_k,) int32, or int64 if the cache is lossless, for support_ids and
                                      support_logprobs; `reference.codec.decode` unpacks them
        reference_<source>_<field>    (T,) float32 for label_logprob, label_mass, logsumexp, entropy, n1, n2 and
                                      mean_loss (the chat's, at every position); int32 for ceil_n1, ceil_n2
        column_<name>                 (T,) float32

    Rows of positions that predict no supervised token are zero. `loss_mask` stays verl's: 1 at the supervised token
    itself, so row t counts where `loss_mask[t + 1]` is 1; `loss_mask[0]` is always 0, so that a mask rolled over packed
    chats cannot leak. Tensors are 1-D because verl's collator joins 2-D ones on the wrong axis.

    Raises:
        ConfigError: a cache was made from other data, tokens or settings (the message names them), is damaged or lacks
            a field; or a chat is too long and truncation is error.
    """

    def __init__(self, parquet_files, tokenizer: Any, config: Any, processor=None, max_samples: int = -1):
        super().__init__(parquet_files, tokenizer, config, processor, max_samples)
        if self.pad_mode != "no_padding":
            raise ConfigError(f"data.pad_mode={self.pad_mode}: allowed: no_padding")
        if processor is not None:
            raise ConfigError("data: multi-modal processors are not supported; use a text model")
        self.length_limit = self.max_length
        self.max_length = sys.maxsize  # verl must not cut; `_truncate` does
        self.references: dict[str, AlignedReference] = {}
        self.columns: tuple[str, ...] = ()
        if _as_list(parquet_files) == _as_list(config.get("train_files")):
            wanted = config.get("references") or {}
            identity = self.identity() if wanted else {}
            for source, reference in wanted.items():
                self.references[source] = AlignedReference(source, reference, identity, len(self))
            self.columns = tuple(config.get("columns") or ())
            self._check_columns()

    def identity(self) -> dict[str, Any]:
        """What decides the tokens and masks of this data set; part of a reference cache's identity."""
        rows = hashlib.sha256()
        for index, messages in enumerate(self.messages):
            tools = self.tools[index] if self.tools is not None else None
            thinking = self.enable_thinking[index] if self.enable_thinking is not None else self.enable_thinking_default
            thinking = None if thinking is None else bool(thinking)
            row = {"messages": messages, "tools": tools, "enable_thinking": thinking}
            rows.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        return {
            "tokenizer": tokenizer_digest(self.tokenizer),
            "chat_template": text_digest(str(self.tokenizer.chat_template)),
            "chat_template_arguments": dict(self.apply_chat_template_kwargs),
            "data_rows": rows.hexdigest(),
            "truncation": self.truncation,
            "max_length": self.length_limit,
            "mask_policy": MASK_POLICY,
        }

    def _check_columns(self) -> None:
        if unknown := set(self.columns) - {"critical"}:
            raise ConfigError(f"data.columns: {', '.join(sorted(unknown))} unknown; allowed: critical")
        if self.columns:
            if "critical_spans" not in self.dataframe.columns or self.dataframe["critical_spans"].hasnans:
                raise ConfigError(
                    f"{self.parquet_files[0]}: critical_spans is missing; the objective needs it in every row"
                )
            if not self.tokenizer.is_fast:
                raise ConfigError("data.columns=critical: only fast tokenizers tell where a token begins")

    def _critical(self, item: int, length: int) -> torch.Tensor:
        """(length,) float32, 1 at the critical tokens of the whole chat."""
        messages = self.messages[item]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, **self.apply_chat_template_kwargs))
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        start = text.rfind(messages[-1]["content"])
        if start < 0 or len(encoded["input_ids"]) != length:
            raise ConfigError(
                f"chat {item}: the chat template changes the answer, so critical_spans have no place in it"
            )
        bounds = np.asarray(encoded["offset_mapping"]) - start
        critical = np.zeros(length, np.float32)
        for first, last in self.dataframe["critical_spans"].iloc[item]:
            critical[(bounds[:, 0] < last) & (bounds[:, 1] > first)] = 1
        return torch.from_numpy(critical)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(item)
        if self.columns:
            row["column_critical"] = self._critical(item, len(row["input_ids"]))
        row = self._truncate(row, item)
        if self.columns:
            row["column_critical"] = torch.cat([row["column_critical"][1:], torch.zeros(1)])
        if self.references:
            ids, mask = row["input_ids"].numpy(), row["loss_mask"].numpy()
            for reference in self.references.values():
                row.update(reference.rows(item, ids, mask))
        return row

    def _truncate(self, row: dict[str, torch.Tensor], item: int) -> dict[str, torch.Tensor]:
        length = len(row["input_ids"])
        if length > self.length_limit:
            if self.truncation == "error":
                limit = f"data.max_length={self.length_limit}"
                raise ConfigError(f"chat {item}: {length} tokens, {limit}; raise it or set data.on_long_row")
            kept = slice(-self.length_limit, None) if self.truncation == "left" else slice(self.length_limit)
            row = {name: value[kept] for name, value in row.items()}
            row["position_ids"] = torch.arange(self.length_limit, dtype=torch.long)
        row["loss_mask"] = row["loss_mask"].clone()
        row["loss_mask"][:1] = 0
        return row


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
