"""Stage `cache`: forwards a frozen model once over the training chats and writes the reference cache.

The chats are tokenised once; shards of whole chats are then computed independently, in this process or by Ray workers,
so a killed run repeats at most the shards that were in progress. Nothing in the bytes depends on the number of workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from data_prep import reference_cache
from data_prep.chat_dataset import ChatDataset, dataset_config, tokenizer_digest
from data_prep.reference_cache import SAMPLE_FILE, SUPERVISED, TOKEN_FIELDS, Layout

STAGE_VERSION = 1
WINDOW = 30  # most probable ids over which N1 and N2 are computed (LP-SFT C.1)
# fp32 logits that one product with the output head makes, and that one pass of the statistics reads; on a CPU the first
# should be large enough for a fast product, the second should stay in its cache
LOGITS_BYTES = {"cpu": 1 << 25, "cuda": 1 << 29}
STATISTICS_BYTES = {"cpu": 1 << 22, "cuda": 1 << 29}
MASKED_LOGIT = -1e30  # finite, so that 0 * logit is 0 in the entropy
SCALED = "the model scales or caps its logits after the head; not supported"
EXAMPLES_SHOWN = 3
POLL_SECONDS = 2.0

Heartbeat = Callable[[int], None]  # called with the number of tokens done since the last call


# statistics of one distribution per row


def block_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """torch.topk over the last dimension, exact, at about the cost of one pass over `values`.

    The row is cut into strided blocks; the k largest values lie in the k blocks with the largest maxima, so only those
    are searched. Equal values at the k-th place may come from other ids than torch.topk's.

    Args:
        values: (n, V) float.
        k: at most V.

    Returns:
        values (n, k) in decreasing order and their ids (n, k) int64.
    """
    rows, width = values.shape
    block = 1 << round(math.log2(max(1.0, math.sqrt(width / k))))
    blocks = width // block
    if block < 4 or blocks <= k:
        return values.topk(k, dim=-1)
    body = values[:, : blocks * block].unflatten(-1, (block, blocks))
    chosen = body.amax(1).topk(k, dim=-1, sorted=False).indices
    candidates = body.gather(2, chosen.unsqueeze(1).expand(-1, block, -1)).flatten(1)
    ids = (chosen.unsqueeze(1) + blocks * torch.arange(block, device=values.device).view(1, -1, 1)).flatten(1)
    if blocks * block < width:
        candidates = torch.cat([candidates, values[:, blocks * block :]], -1)
        ids = torch.cat([ids, torch.arange(blocks * block, width, device=values.device).expand(rows, -1)], -1)
    top = candidates.topk(k, dim=-1)
    return top.values, ids.gather(1, top.indices)


def effective_support(top_logits: Tensor) -> tuple[Tensor, Tensor]:
    """N1 and N2 of the distribution renormalised to the given top logits (LP-SFT eq. 2-5).

    Args:
        top_logits: (n, w), logits or log-probabilities of the w most probable ids.

    Returns:
        exp of the Shannon and of the collision entropy, (n,) float64 each.
    """
    log_q = top_logits.double().log_softmax(-1)
    q = log_q.exp()
    return torch.special.entr(q).sum(-1).exp(), 1 / q.square().sum(-1)


@torch.no_grad()
def statistics(logits: Tensor, labels: Tensor, top_k: int) -> dict[str, Tensor]:
    """All that a forward pass can store of (n, V) float32 logits and (n,) int64 labels. Overwrites `logits`.

    label_mass is PriFT's u (eq. 3): the mass of all ids that are at most as probable as the label, every tie included,
    and exactly 1 for a label that no id exceeds.

    Returns:
        support_ids (n, top_k) int64, support_logprobs (n, top_k) float32, and (n,) tensors: label_logprob, label_mass,
        logsumexp, entropy float32, n1, n2 float64, ceil_n1, ceil_n2 int64.
    """
    width = logits.shape[-1]
    top, ids = block_topk(logits, min(max(top_k, WINDOW), width))
    largest = top[:, :1]
    label = logits.gather(-1, labels.unsqueeze(-1))
    q = logits.softmax(-1)
    # On a CPU each line below is one vectorised pass; comparisons that give booleans and bmm are several times slower.
    total = q.sum(-1)  # not quite 1: softmax adds up in one sequence, `sum` in pairs
    mass = logits.clone().le_(label).mul_(q).sum(-1) / total
    log_total = (total / q.amax(-1)).log().unsqueeze(-1)
    expected = logits.sub_(largest).mul_(q).sum(-1) / total
    n1, n2 = effective_support(top[:, :WINDOW])
    return {
        "support_ids": ids[:, :top_k],
        "support_logprobs": (top[:, :top_k] - largest - log_total).clamp_(max=0.0),
        "label_logprob": (label - largest - log_total).squeeze(-1).clamp_(max=0.0),
        "label_mass": torch.where((label == largest).squeeze(-1), torch.ones_like(mass), mass),
        "logsumexp": (largest + log_total).squeeze(-1),
        "entropy": (log_total.squeeze(-1) - expected).clamp_(min=0.0),
        "n1": n1,
        "n2": n2,
        "ceil_n1": n1.ceil().long(),
        "ceil_n2": n2.ceil().long(),
    }


# the training chats as tokens


@dataclass(frozen=True)
class Tokens:
    """The tokenised training set, memory-mapped: ids int32 and mask uint8 (all tokens,), offsets int64 (chats + 1,)."""

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    identity: dict[str, Any]

    @classmethod
    def write(cls, dataset: ChatDataset, directory: Path, report: Callable[..., None]) -> Tokens:
        """Tokenise every chat of `dataset` into `directory`, or reopen what an earlier attempt wrote."""
        identity, done = dataset.identity(), directory / "tokens.json"
        if not done.exists() or json.loads(done.read_text()) != identity:
            done.unlink(missing_ok=True)
            ids, mask, offsets, last = [], [], [0], time.monotonic()
            for index in range(len(dataset)):
                row = dataset[index]
                ids.append(row["input_ids"].numpy().astype(np.int32))
                mask.append(row["loss_mask"].numpy().astype(np.uint8))
                offsets.append(offsets[-1] + len(ids[-1]))
                if time.monotonic() - last > POLL_SECONDS:
                    last = time.monotonic()
                    report(0, 1, chats_tokenised=index + 1)
            np.save(directory / "ids.npy", np.concatenate(ids))
            np.save(directory / "mask.npy", np.concatenate(mask))
            np.save(directory / "offsets.npy", np.asarray(offsets, dtype=np.int64))
            done.write_text(json.dumps(identity))
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Tokens:
        ids, mask, offsets = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("ids", "mask", "offsets"))
        return cls(ids, mask, offsets, json.loads((directory / "tokens.json").read_text()))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def chat(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 and mask uint8 of one chat, (T,) each."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.mask[part]

    def supervised(self) -> np.ndarray:
        """Supervised tokens of each chat, (chats,) int64."""
        sums = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
        return sums[self.offsets[1:]] - sums[self.offsets[:-1]]


@dataclass(frozen=True)
class Job:
    """One file to compute: whole chats and, in each, the positions whose predictions are stored.

    Attributes:
        file: name of the shard.
        chats: indices into Tokens.
        every_position: all positions that have a successor, not only those that predict a supervised token.
    """

    file: str
    chats: tuple[int, ...]
    every_position: bool = False

    def positions(self, mask: np.ndarray) -> np.ndarray:
        """Positions of the labels in a chat with this mask; the prediction is made one position earlier."""
        return np.arange(1, len(mask)) if self.every_position else np.flatnonzero(mask)

    def layout(self, whole: Layout) -> Layout:
        """Layout of the file in a cache whose shards have the layout `whole`."""
        return whole.sample() if self.every_position else whole

    def size(self, tokens: Tokens) -> int:
        """Number of stored positions."""
        return sum(len(self.positions(tokens.chat(chat)[1])) for chat in self.chats)


class Progress:
    """Adds up tokens and passes the sum on."""

    def __init__(self, report: Callable[..., None], done: int, total: int):
        self.report, self.done, self.total = report, done, total
        self.add(0)

    def add(self, count: int) -> None:
        self.done += count
        self.report(self.done, self.total)


def split_shards(supervised: np.ndarray, tokens_per_shard: int) -> list[Job]:
    """Consecutive chats with at most `tokens_per_shard` supervised tokens together (a longer chat stands alone)."""
    jobs: list[Job] = []
    chats: list[int] = []
    size = 0
    for chat, count in enumerate(supervised.tolist()):
        if chats and size + count > tokens_per_shard:
            jobs.append(Job(reference_cache.shard_name(len(jobs)), tuple(chats)))
            chats, size = [], 0
        chats.append(chat)
        size += count
    return [*jobs, Job(reference_cache.shard_name(len(jobs)), tuple(chats))]


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices grouped by similar length so that length x size of a group stays within the token budget."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        size = max(1, tokens_per_batch // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


# producers


class Producer(Protocol):
    """Computes the rows of given positions of given chats."""

    vocab_size: int

    def rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], top_k: int, heartbeat: Heartbeat
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yields (indices of some chats, statistics of their positions concatenated in that order)."""
        ...


class ForwardProducer:
    """A forward pass of a Hugging Face model that one device holds (`data_prep.sharded`: one that none holds).

    Chats of similar length share a batch, padded on the right: under a causal mask padding cannot reach a real token,
    so no attention mask is needed and the fast kernels apply. Only stored positions go through the output head.

    Args:
        directory: Hugging Face directory.
        cache: the recipe's `cache` section; `model`: its `model` section.
        allowed: (V,) bool, ids that may have probability; None: all.

    Raises:
        ValueError: the model changes its logits after the head (soft-cap, scaling), which this pass would miss.
    """

    model: Any
    head: Callable[[Tensor], Tensor]  # (n, D) to logits (n, V)
    vocab_size: int

    def __init__(self, directory: Path, cache: SimpleNamespace, model: SimpleNamespace, allowed: np.ndarray | None):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokens_per_batch = cache.tokens_per_batch
        self._load(directory, cache.dtype, model)
        self.chunk, self.rows_at_once = (
            max(1, limit[self.device.type] // (4 * self.vocab_size)) for limit in (LOGITS_BYTES, STATISTICS_BYTES)
        )
        self.allowed = None
        if allowed is not None:
            padded = np.zeros(self.vocab_size, dtype=bool)
            padded[: min(len(allowed), self.vocab_size)] = allowed[: self.vocab_size]
            self.allowed = torch.from_numpy(padded).to(self.device)
        self._check_head(directory)

    def _load(self, directory: Path, dtype: str, model: SimpleNamespace) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            attn_implementation=model.attention,
            trust_remote_code=model.trust_remote_code,
        )
        torch.nn.Module.to(self.model, self.device).eval().requires_grad_(False)
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        if not isinstance(decoder, torch.nn.Module) or not isinstance(head, torch.nn.Linear):
            raise ValueError(f"{directory}: not a causal language model with a linear output head; not supported")
        self.decoder, self.head = decoder, head
        self.vocab_size = head.weight.shape[0]

    @torch.no_grad()
    def _check_head(self, directory: Path) -> None:
        ids = torch.arange(min(8, self.vocab_size), device=self.device).unsqueeze(0)
        ours = self.head(self.hidden(ids)).float()
        theirs = self.model(input_ids=ids, use_cache=False).logits.float()
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
            raise ValueError(f"{directory}: {SCALED}")

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
        hidden = self.hidden(torch.from_numpy(padded).to(self.device)).flatten(0, 1)
        starts = [row * padded.shape[1] + positions[index] for row, index in enumerate(batch)]
        flat = torch.from_numpy(np.concatenate(starts)).to(self.device)
        labels = torch.from_numpy(padded).to(self.device).flatten()[flat]
        pieces = []
        for part in range(0, len(flat), self.chunk):
            logits = self.head(hidden[flat[part : part + self.chunk] - 1]).float()
            if self.allowed is not None:
                logits.masked_fill_(~self.allowed, MASKED_LOGIT)
            parts = zip(
                logits.split(self.rows_at_once),
                labels[part : part + self.chunk].split(self.rows_at_once),
                strict=True,
            )
            pieces += [statistics(some, some_labels, top_k) for some, some_labels in parts]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}


class VllmProducer:
    """vLLM's prompt log-probabilities, for models that vLLM serves better than a plain forward pass.

    They cover the most probable ids and the label, so label_mass, logsumexp and entropy are not among the fields.

    Raises:
        ValueError: some ids must be left out (`allowed`), which log-probabilities of the whole vocabulary cannot do.
    """

    chats_per_call = 64

    def __init__(self, directory: Path, settings: SimpleNamespace, allowed: np.ndarray | None):
        if allowed is not None:
            raise ValueError(
                "cache.producer=vllm: the teacher knows ids that the student lacks and vLLM cannot leave them out; "
                "set cache.producer=forward"
            )
        self.vocab_size = _vocab_size(directory)
        self.width = min(max(settings.cache.top_k, WINDOW), self.vocab_size)
        if settings.platform.name == "cpu":
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            from verl_cpu.patches import alias_vllm_metadata

            alias_vllm_metadata()
        from vllm import LLM

        self.engine = LLM(
            str(directory),
            dtype=settings.cache.dtype,
            max_model_len=settings.data.max_length + 1,  # vLLM always writes one token
            max_logprobs=self.width,
            max_num_batched_tokens=max(settings.cache.tokens_per_batch, settings.data.max_length + 1),
            gpu_memory_utilization=settings.cache.gpu_memory,
            tensor_parallel_size=settings.cache.tensor_parallel,
            trust_remote_code=settings.model.trust_remote_code,
            enable_prefix_caching=False,
            enforce_eager=settings.platform.name == "cpu",  # compiling costs more than it saves there
            seed=0,
        )

    def rows(
        self, chats: Sequence[np.ndarray], positions: Sequence[np.ndarray], top_k: int, heartbeat: Heartbeat
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        from vllm import SamplingParams, TokensPrompt

        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=self.width, flat_logprobs=True, detokenize=False
        )
        for start in range(0, len(chats), self.chats_per_call):
            batch = list(range(start, min(start + self.chats_per_call, len(chats))))
            prompts = [TokensPrompt(prompt_token_ids=chats[index].tolist()) for index in batch]
            ids, logprobs = [], []
            for index, answer in zip(batch, self.engine.generate(prompts, sampling, use_tqdm=False), strict=True):
                found: Any = answer.prompt_logprobs
                shape = (len(chats[index]) - 1, 1 + self.width)  # the label, then the most probable ids
                ids.append(torch.tensor(found.token_ids).view(shape)[positions[index] - 1])
                logprobs.append(torch.tensor(found.logprobs).view(shape)[positions[index] - 1])
            yield batch, self._statistics(torch.cat(ids), torch.cat(logprobs), top_k)
            heartbeat(sum(len(positions[index]) for index in batch))

    @staticmethod
    def _statistics(ids: Tensor, logprobs: Tensor, top_k: int) -> dict[str, Tensor]:
        n1, n2 = effective_support(logprobs[:, 1 : 1 + WINDOW])
        return {
            "support_ids": ids[:, 1 : 1 + top_k],
            "support_logprobs": logprobs[:, 1 : 1 + top_k],
            "label_logprob": logprobs[:, 0],
            "n1": n1,
            "n2": n2,
            "ceil_n1": n1.ceil().long(),
            "ceil_n2": n2.ceil().long(),
        }


def fill_shard(
    job: Job, tokens: Tokens, producer: Producer, layout: Layout, heartbeat: Heartbeat = lambda count: None
) -> dict[str, np.ndarray]:
    """Arrays of one shard, as `reference_cache.write_shard` takes them."""
    chats = [tokens.chat(chat) for chat in job.chats]
    positions = [job.positions(mask) for _, mask in chats]
    counts = [len(kept) for kept in positions]
    arrays = layout.allocate(sum(counts), len(chats))
    arrays["offsets"][1:] = np.cumsum(counts)
    for index, (ids, _) in enumerate(chats):
        arrays["label_checksum"][index] = reference_cache.label_checksum(ids[positions[index]])
    if SUPERVISED in layout.fields:
        arrays[SUPERVISED][:] = np.concatenate([mask[kept] for (_, mask), kept in zip(chats, positions, strict=True)])
    for batch, found in producer.rows([ids for ids, _ in chats], positions, layout.top_k, heartbeat):
        if not found:
            continue
        spans = [(int(arrays["offsets"][index]), int(arrays["offsets"][index + 1])) for index in batch]
        target = np.concatenate([np.arange(*span) for span in spans])
        words = reference_cache.encode(
            found["support_ids"], found["support_logprobs"], encoding=layout.encoding, id_bits=layout.id_bits
        )
        arrays["words"][target] = words.cpu().numpy()
        for name in set(layout.fields) & set(TOKEN_FIELDS):
            arrays[name][target] = found[name].cpu().numpy()
        losses = -found["label_logprob"].double().cpu().numpy()
        ends = np.cumsum([end - start for start, end in spans])
        for index, (start, end), last in zip(batch, spans, ends, strict=True):
            if end > start:
                arrays["mean_loss"][index] = losses[last - (end - start) : last].mean()
    return arrays


# the stage


def tokenizer_of(directory: Path | str, model: SimpleNamespace, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory or name, with `model.chat_template` in place if the recipe sets one."""
    tokenizer = AutoTokenizer.from_pretrained(directory, revision=revision, trust_remote_code=model.trust_remote_code)
    if model.chat_template is not None:
        tokenizer.chat_template = Path(model.chat_template).read_text()
    return tokenizer


def common_ids(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, used: Iterable[int]
) -> np.ndarray | None:
    """Ids that mean the same token to both, (V,) bool over the student's ids; None if the tokenizers are equal.

    Raises:
        ValueError: an id that occurs in the training tokens means something else to the teacher.
    """
    if tokenizer_digest(student) == tokenizer_digest(teacher):
        return None
    ours = {index: token for token, index in student.get_vocab().items()}
    theirs = {index: token for token, index in teacher.get_vocab().items()}
    different = [index for index in used if ours.get(index) != theirs.get(index)]
    if different:
        shown = ", ".join(f"{i}: {ours.get(i)!r} / {theirs.get(i)!r}" for i in different[:EXAMPLES_SHOWN])
        raise ValueError(
            f"model.teacher: its vocabulary differs from the student's in {len(different)} ids of the training tokens "
            f"(id: student / teacher) {shown}; use a teacher with the student's tokenizer"
        )
    common = np.zeros(max(ours) + 1, dtype=bool)
    for index, token in ours.items():
        common[index] = theirs.get(index) == token
    return common


def weights_digest(directory: Path) -> str:
    """SHA-256 over names and bytes of a model's configuration and weight files."""
    digest = hashlib.sha256()
    kinds = ("config.json", "*.safetensors", "*.gguf", "pytorch_model*.bin")
    for path in sorted({path for kind in kinds for path in directory.glob(kind)}):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def make_producer(settings: SimpleNamespace, directory: Path, allowed: np.ndarray | None) -> Producer:
    """The producer that `cache.producer` names; allowed: ids that may have probability, None for all."""
    if settings.cache.producer == "vllm":
        return VllmProducer(directory, settings, allowed)
    if settings.cache.processes > 1:
        from data_prep.sharded import ShardedProducer

        return ShardedProducer(directory, settings.cache, settings.model, allowed)
    return ForwardProducer(directory, settings.cache, settings.model, allowed)


class Worker:
    """One model replica, or one process of it; a Ray actor when there are several."""

    def __init__(
        self, settings: SimpleNamespace, model: Path, scratch: Path, layout: Layout, allowed: np.ndarray | None
    ):
        torch.set_num_threads(settings.platform.threads)
        self.producer = make_producer(settings, model, allowed)
        self.tokens, self.scratch, self.layout = Tokens.open(scratch), scratch, layout
        if self.producer.vocab_size != layout.vocab_size:
            raise ValueError(f"{model}: {self.producer.vocab_size} ids, expected {layout.vocab_size}")

    def arrays(self, job: Job, heartbeat: Heartbeat = lambda count: None) -> dict[str, np.ndarray]:
        """Arrays of one file; of one process of several its rows, and zeros."""
        return fill_shard(job, self.tokens, self.producer, job.layout(self.layout), heartbeat)

    def compute(self, job: Job, heartbeat: Heartbeat = lambda count: None) -> dict[str, Any]:
        """Write one file; returns its record."""
        arrays = self.arrays(job, heartbeat)
        return reference_cache.write_shard(self.scratch, job.file, job.layout(self.layout), arrays)


def run(settings, inputs, output, scratch, report) -> None:
    """Write the reference cache of `inputs["model"]` over `inputs["data"]`'s training chats into `output`.

    Raises:
        ValueError: the data, the model or the settings cannot give a cache; the message names the field.
        RuntimeError: another producer holds `scratch`.
    """
    torch.set_num_threads(settings.platform.threads)
    with reference_cache.exclusive(scratch):
        _run(settings, inputs, output, scratch, report)


def _run(settings, inputs, output, scratch, report) -> None:
    started = time.monotonic()
    model, data = inputs["model"], inputs["data"]
    student = tokenizer_of(model, settings.model)
    allowed = None
    dataset_tokenizer = student
    if settings.role == "teacher":
        own = data / "tokenizer"
        source = own if own.is_dir() else settings.model.path
        dataset_tokenizer = tokenizer_of(source, settings.model, None if own.is_dir() else settings.model.revision)
    dataset = ChatDataset(str(data / "sft_train.parquet"), dataset_tokenizer, dataset_config(settings.data))
    tokens = Tokens.write(dataset, scratch, report)
    supervised = tokens.supervised()
    if not supervised.sum():
        raise ValueError(f"{data / 'sft_train.parquet'}: no supervised token; chats need an assistant turn")
    if settings.role == "teacher":
        teacher = AutoTokenizer.from_pretrained(model, trust_remote_code=settings.model.trust_remote_code)
        allowed = common_ids(dataset_tokenizer, teacher, np.unique(tokens.ids).tolist())

    layout = _layout(settings, model)
    jobs = split_shards(supervised, settings.cache.tokens_per_shard)
    if settings.cache.sample_sequences:
        size = min(settings.cache.sample_sequences, len(tokens))
        chosen = np.random.default_rng(settings.data.seed).choice(len(tokens), size, replace=False)
        jobs.append(Job(SAMPLE_FILE, tuple(sorted(chosen.tolist())), every_position=True))
    identity = {
        **tokens.identity,
        "role": settings.role,
        "model_weights": weights_digest(model),
        "system_prompt": settings.data.system_prompt,
        "producer": settings.cache.producer,
        "dtype": settings.cache.dtype,
        "attention": settings.model.attention,
        "stage_version": STAGE_VERSION,
    }
    reference_cache.keep_matching(scratch, identity, layout, [len(job.chats) for job in jobs])
    records = {job.file: reference_cache.finished_shard(scratch, job.file) for job in jobs}
    missing = [job for job in jobs if records[job.file] is None]
    total, kept = (sum(job.size(tokens) for job in some) for some in (jobs, [job for job in jobs if records[job.file]]))
    progress = Progress(report, kept, total)
    for record in _compute(settings, model, scratch, layout, allowed, missing, progress.add):
        records[record["file"]] = record
    shards = [record for job in jobs if not job.every_position and (record := records[job.file])]
    reference_cache.publish(scratch, output, layout, identity, shards, records.get(SAMPLE_FILE))
    _write_figures(output, started, total - kept)


def _layout(settings: SimpleNamespace, model: Path) -> Layout:
    cache = settings.cache
    vocab_size = _vocab_size(model)
    if cache.top_k > vocab_size:
        raise ValueError(f"cache.top_k={cache.top_k}: the model has {vocab_size} ids; choose at most that many")
    bits = 32 if cache.encoding == "lossless" else reference_cache.id_bits(vocab_size)
    return Layout(cache.encoding, cache.top_k, bits, vocab_size, reference_cache.PRODUCER_FIELDS[cache.producer])


def _vocab_size(model: Path) -> int:
    config = json.loads((model / "config.json").read_text())
    return (config.get("text_config") or config)["vocab_size"]


def _compute(
    settings: SimpleNamespace,
    model: Path,
    scratch: Path,
    layout: Layout,
    allowed: np.ndarray | None,
    jobs: Sequence[Job],
    heartbeat: Heartbeat,
) -> Iterator[dict[str, Any]]:
    """Records of the jobs as they finish."""
    workers = min(settings.cache.workers, len(jobs))
    if workers and settings.cache.processes > 1:
        from data_prep.sharded import compute

        yield from compute(settings, model, scratch, layout, allowed, jobs, workers, heartbeat)
    elif workers == 1:
        worker = Worker(settings, model, scratch, layout, allowed)
        for job in jobs:
            yield worker.compute(job, heartbeat)
    elif workers:
        yield from _compute_on_ray(settings, (settings, model, scratch, layout, allowed), jobs, workers, heartbeat)


def _compute_on_ray(
    settings: SimpleNamespace, arguments: tuple[Any, ...], jobs: Sequence[Job], workers: int, heartbeat: Heartbeat
) -> Iterator[dict[str, Any]]:
    import ray
    from ray.util import ActorPool

    with ray_session(workers):
        gpus = settings.cache.tensor_parallel if settings.platform.name == "gpu" else 0
        actor: Any = ray.remote(num_cpus=1, num_gpus=gpus)(Worker)
        pool = ActorPool([actor.remote(*arguments) for _ in range(workers)])
        for job in jobs:
            pool.submit(lambda worker, item: worker.compute.remote(item), job)
        while pool.has_next():
            try:
                record: Any = pool.get_next_unordered(timeout=POLL_SECONDS)
            except TimeoutError:
                heartbeat(0)
                continue
            heartbeat(record["tokens"])
            yield record


@contextlib.contextmanager
def ray_session(workers: int) -> Iterator[None]:
    """The Ray this process is in, the cluster of RAY_ADDRESS, or a private one on loopback that ends with the stage."""
    import ray

    if ray.is_initialized():
        yield
        return
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(dict.fromkeys([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    environment = {"env_vars": {"PYTHONPATH": path}}
    if address := os.environ.get("RAY_ADDRESS"):
        ray.init(address=address, runtime_env=environment, log_to_driver=False)
    else:
        os.environ["PYTHONPATH"] = path
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
    try:
        yield
    finally:
        ray.shutdown()


def _write_figures(output: Path, started: float, computed: int) -> None:
    cache = reference_cache.ReferenceCache(output)
    figures = {
        "tokens": cache.tokens,
        "sequences": cache.sequences,
        "bytes_per_token": sum(record["bytes"] for record in cache.shards) / cache.tokens,
        "mean_loss": float(-cache.column("label_logprob").mean(dtype=np.float64)),
    }
    (output / "metrics.json").write_text(json.dumps(figures, sort_keys=True, indent=1))
    seconds = time.monotonic() - started
    row = {"seconds": seconds, "tokens_computed": computed, "pid": os.getpid()}
    (output / "timings.jsonl").write_text(json.dumps(row, sort_keys=True) + "\n")
