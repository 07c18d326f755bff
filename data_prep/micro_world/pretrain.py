"""Stage `pretrain`: train a small Qwen2 model from nothing on the micro-world's text.

Documents of similar length share a batch, so hardly any position is padding, and every document starts at position 0 as
it does at inference. Nothing random is left after the plan of batches is drawn from the seed: a checkpoint is the
weights, the optimizer's moments and the step, and a resumed run gives the same bytes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from common.errors import ConfigError
from common.files import write_json, write_json_lines
from common.models import load_tokenizer
from common.parquet import streamed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKPOINT_EVERY = 100
LOG_EVERY = 10
WARMUP_STEPS = 30
FINAL_LR_RATIO = 0.02
BATCHES_PER_POOL = 16
INITIAL_DEVIATION = 0.08  # about 1 / sqrt(hidden): with the usual 0.02 a model this small learns to attend far too late
INITIAL_HIDDEN = 192  # hidden size up to which that holds; wider models start with less
MUON_LR_RATIO = 2.0  # of AdamW's: at equal rates the base was right on 0.35 of the target's samples, not on 0.52
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # AdamW's two, Muon's one


class Document(NamedTuple):
    """Token ids (int32) of a chat, of which the first `prompt_length` are the question and the assistant's header."""

    input_ids: np.ndarray
    prompt_length: int


def run(settings: Any, inputs: dict[str, Path], output: Path, scratch: Path, report) -> None:
    """Train a base model (or a teacher) and write it in the layout of a model artifact.

    Args:
        settings: `pretrain` (a Pretrain section) and `platform` (its `threads` are set, since sums depend on them).
        inputs: `data`, prepared pretraining text.
        output: empty directory for the artifact.
        scratch: keeps `checkpoint.safetensors` between attempts.
        report: `report(done, total, **metrics)`.

    Raises:
        ConfigError: the data has no pretraining part, or a setting does not fit.
    """
    import torch

    options = settings.pretrain
    tokenizer = load_tokenizer(inputs["data"] / "tokenizer")
    torch.set_num_threads(settings.platform.threads)
    device = torch.device("cpu" if settings.platform.name == "cpu" else "cuda")
    deterministic, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    # On a GPU some kernels have no deterministic form: there equal bits are not promised.
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else precision)
    try:
        documents = load_documents(inputs["data"] / "pretrain", options.skills)
        model, curve = train(options, documents, tokenizer, scratch, report, device)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(precision)
    write_model(model, tokenizer, curve, output)


def load_documents(folder: Path, skills: list[str]) -> list[Document]:
    """Every document of `skills` (an empty list: all), in the order of the files.

    Raises:
        ConfigError: the folder or one of the skills is missing.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ConfigError(f"{folder}: no pretraining text; model.pretrain needs data.source=microworld")
    known = [file.stem for file in files]
    unknown = sorted(set(skills) - set(known))
    if unknown:
        raise ConfigError(f"model.pretrain.skills: unknown {', '.join(unknown)}; allowed: {', '.join(known)}")
    documents = []
    for file in files:
        if skills and file.stem not in skills:
            continue
        for batch in streamed(file).iter_batches(columns=["input_ids", "prompt_length"]):
            column = batch.column("input_ids")
            values = column.values.to_numpy()
            spans = itertools.pairwise(column.offsets.to_numpy())
            prompts = batch.column("prompt_length").to_pylist()
            documents += [Document(values[a:b], prompt) for (a, b), prompt in zip(spans, prompts, strict=True)]
    return documents


def plan_batches(lengths: np.ndarray, steps: int, batch_size: int, seed: int) -> np.ndarray:
    """Choose the documents of each step: (steps, batch_size) int64 indices, documents of one row similar in length.

    Documents are shuffled once per pass and sorted by length inside pools of sixteen batches; the order of the batches
    in a pool is shuffled again.

    Raises:
        ConfigError: there are fewer documents than one batch holds.
    """
    if len(lengths) < batch_size:
        raise ConfigError(f"model.pretrain.batch_size={batch_size}: the data has only {len(lengths)} documents")
    generator = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    while len(rows) < steps:
        order = generator.permutation(len(lengths))
        for start in range(0, len(order), batch_size * BATCHES_PER_POOL):
            pool = order[start : start + batch_size * BATCHES_PER_POOL]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            whole = [pool[at : at + batch_size] for at in range(0, len(pool) - batch_size + 1, batch_size)]
            rows.extend(whole[index] for index in generator.permutation(len(whole)))
    return np.stack(rows[:steps])


def build_model(options: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A freshly initialised float32 model of `options.architecture` whose EOS and padding agree with `tokenizer`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    ids = tokenizer.get_vocab()
    eos, pad = ids[str(tokenizer.eos_token)], ids[str(tokenizer.pad_token)]
    config = AutoConfig.for_model(
        options.architecture,
        vocab_size=len(tokenizer),
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=options.tied,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        initializer_range=INITIAL_DEVIATION * min(1.0, math.sqrt(INITIAL_HIDDEN / options.hidden)),
        dtype="float32",
        use_cache=True,
        **({} if options.architecture == "qwen2" else {"head_dim": options.hidden // options.heads}),
    )
    torch.manual_seed(options.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad, do_sample=True, temperature=1.0)
    return model


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of `peak`; `step` counts from 0."""
    warmup = min(WARMUP_STEPS, max(1, steps // 10))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (FINAL_LR_RATIO + (1 - FINAL_LR_RATIO) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizers(options: Any, model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the layers' matrices and AdamW for the rest; vectors are not decayed."""
    import torch

    from data_prep.micro_world.muon import Muon

    ends = [one for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None]
    of_tokens = {parameter for one in ends for parameter in one.parameters()}
    matrices = [p for p in model.parameters() if p.dim() > 1]
    by_muon = [p for p in matrices if p not in of_tokens] if options.optimizer == "muon" else []
    taken = set(by_muon)
    decayed = [p for p in matrices if p not in taken]
    others = [p for p in model.parameters() if p.dim() <= 1]
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": options.weight_decay, "ratio": 1.0},
            {"params": others, "weight_decay": 0.0, "ratio": 1.0},
        ],
        lr=options.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    if not by_muon:
        return [adamw]
    return [adamw, Muon([{"params": by_muon, "ratio": MUON_LR_RATIO}], options.lr, options.weight_decay)]


def train(
    options: Any,
    documents: list[Document],
    tokenizer: PreTrainedTokenizerBase,
    scratch: Path,
    report,
    device: torch.device | None = None,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Minimise next-token cross-entropy over the responses; resumes from `scratch`.

    Args:
        device: where it computes; None: the CPU.

    Returns:
        the trained model and the curve: one row each ten steps with `step`, `loss` (nats per response token), `lr` and
        `tokens` (of whole documents, read so far).
    """
    import torch

    device = torch.device("cpu") if device is None else device
    model = build_model(options, tokenizer).train()
    torch.nn.Module.to(model, device)
    parameters = list(model.parameters())
    optimizers = make_optimizers(options, model)
    checkpoint = scratch / "checkpoint.safetensors"
    first, curve, tokens = load_checkpoint(checkpoint, model, optimizers) if checkpoint.exists() else (0, [], 0)
    lengths = np.array([len(document.input_ids) for document in documents])
    plan = plan_batches(lengths, options.steps, options.batch_size, options.seed)
    pad = model.config.pad_token_id
    assert pad is not None
    # Batches differ in length: dividing by each one's own count would make short styles count more.
    typical = options.batch_size * sum(len(d.input_ids) - d.prompt_length for d in documents) / len(documents)
    for step in range(first, options.steps):
        chosen = [documents[index] for index in plan[step]]
        ids, labels = (tensor.to(device) for tensor in collate(chosen, pad))
        rate = learning_rate(step, options.steps, options.lr)
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
            group["lr"] = rate * group["ratio"]
        # Padding only follows a document, so a causal mask alone keeps it out of sight.
        logits = model(input_ids=ids, use_cache=False).logits
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        model.zero_grad(set_to_none=True)
        (total / typical).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        tokens += sum(len(document.input_ids) for document in chosen)
        done = step + 1
        if done % LOG_EVERY == 0 or done == options.steps:
            loss = total.item() / int((labels != -100).sum())
            row = {"step": done, "loss": loss, "lr": rate, "tokens": tokens}
            if not math.isfinite(row["loss"]):
                raise ConfigError(f"model.pretrain.lr={options.lr}: the loss is {row['loss']} at step {done}; lower it")
            curve.append(row)
            report(done, options.steps, loss=row["loss"])
        if done % CHECKPOINT_EVERY == 0 and done < options.steps:
            save_checkpoint(checkpoint, model, optimizers, done, curve, tokens)
    torch.nn.Module.to(model, "cpu")
    return model.eval(), curve


def collate(documents: list[Document], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded inputs and next-token labels, both (batch, longest - 1) int64.

    Labels are -100 on padding and up to the assistant's header: the questions are random, and fitting them would take
    most of the gradient.
    """
    import torch

    width = max(len(document.input_ids) for document in documents) - 1
    ids = torch.full((len(documents), width), pad)
    labels = torch.full((len(documents), width), -100)
    for row, document in enumerate(documents):
        tokens = torch.from_numpy(document.input_ids.astype(np.int64))
        ids[row, : len(tokens) - 1] = tokens[:-1]
        labels[row, document.prompt_length - 1 : len(tokens) - 1] = tokens[document.prompt_length :]
    return ids, labels


def save_checkpoint(
    path: Path,
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    curve: list[dict[str, float]],
    tokens: int,
) -> None:
    """Write everything a resumed run needs into one safetensors file, replaced atomically."""
    from safetensors.torch import save_file

    states = {parameter: state for optimizer in optimizers for parameter, state in optimizer.state.items()}
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        tensors |= {f"{key}.{name}": states[parameter][key] for key in MOMENTS if key in states[parameter]}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"progress": json.dumps({"step": step, "curve": curve, "tokens": tokens})})
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(
    path: Path, model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, list[dict[str, float]], int]:
    """Restore `model` and `optimizers`; returns the steps done, the curve so far and the tokens seen."""
    import torch
    from safetensors import safe_open

    owners = {p: one for one in optimizers for group in one.param_groups for p in group["params"]}
    with safe_open(path, framework="pt") as file, torch.no_grad():
        progress, names = json.loads(file.metadata()["progress"]), set(file.keys())
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"weight.{name}"))
            stored = {key: f"{key}.{name}" for key in MOMENTS if f"{key}.{name}" in names}
            moments = {key: file.get_tensor(place).to(parameter.device, copy=True) for key, place in stored.items()}
            if "exp_avg" in moments:
                moments["step"] = torch.tensor(float(progress["step"]), device=parameter.device)
            owners[parameter].state[parameter] = moments
    return progress["step"], progress["curve"], progress["tokens"]


def write_model(model, tokenizer, curve: list[dict[str, float]], output: Path) -> None:
    """Write the model artifact: one Hugging Face checkpoint, checkpoints.json, metrics.json and curve.jsonl."""
    final = curve[-1]
    step = int(final["step"])
    directory = output / "checkpoints" / f"step_{step}"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    parameters = sum(p.numel() for p in model.parameters())
    metrics = {"loss": final["loss"], "parameters": parameters, "steps": step, "tokens": final["tokens"]}
    write_json(output / "checkpoints.json", {"best": step, "final": step, "steps": [step]})
    write_json(output / "metrics.json", metrics)
    write_json_lines(output / "curve.jsonl", curve)
