"""One rank of the engine matrix (not a test): gradients of verl's engine for many objectives and ways to split a batch.

    RANK=.. WORLD_SIZE=.. python engine_matrix.py <job.json>

The job names a model, data, other models that serve as references, cases (label -> objective settings) and splits. For
each case and split one global batch goes through `ObjectiveEngine.forward_backward_batch`; rank 0 writes the flattened
gradient and the reduced metrics of training and validation to `<out>/<case>/<split>`. A split may be fused: chunks of 5
rows in the output head.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

SOURCES = ("base", "teacher", "checkpoint")
TOP_K = 24


def reference_rows(model, row, source: str) -> dict[str, torch.Tensor]:
    """What the cache would bring along for one chat, from the logits of `model`."""
    from data_prep.reference.codec import encode
    from sft_objectives import Reference

    ids = row["input_ids"]
    with torch.no_grad():
        logits = model(ids[None]).logits[0]
    reference = Reference.from_logits(logits, ids.roll(-1), top_k=TOP_K)
    words = encode(reference.support_ids, reference.support_logprobs, encoding="lossless", id_bits=18)
    rows = {f"reference_{source}_packed": words.flatten()}
    for name in ("label_logprob", "label_mass", "logsumexp", "entropy", "n1", "n2", "ceil_n1", "ceil_n2"):
        rows[f"reference_{source}_{name}"] = getattr(reference, name)
    return rows


def load(path: str):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()


def chats(job, tokenizer, config):
    """Every chat of the batch with the rows of its references and a column, the same on every rank."""
    from data_prep.chat_dataset import ChatDataset

    dataset = ChatDataset(config.data.train_files, tokenizer, config.data)
    models = {source: load(job["references"][source]) for source in SOURCES}
    rows = []
    for index in range(job["batch_size"]):
        row = dict(dataset[index])
        for source, model in models.items():
            row |= reference_rows(model, row, source)
        row["column_critical"] = (row["input_ids"] % 3 == 0).float()
        rows.append(row)
    return rows


def shadow_weights(engine, path: str):
    """Weights of another model, in the order and sharding of the engine's."""
    original = engine.weights.copy()
    state = load(path).state_dict()
    with torch.no_grad():
        for name, parameter in engine.module.named_parameters():
            full = state[name].to(torch.float32)
            local = parameter._local_tensor if isinstance(parameter, DTensor) else parameter.data
            if isinstance(parameter, DTensor):
                from torch.distributed.tensor import distribute_tensor

                full = distribute_tensor(full, parameter.device_mesh, parameter.placements)._local_tensor
            local.copy_(full)
    other = engine.weights.copy()
    for weight, value in zip(engine.weights.shards(), original, strict=True):
        weight.copy_(value)
    return other


def changed(settings, sections: dict[str, dict]):
    """The settings with other values, also such as the schema refuses on a CPU."""
    return settings.model_copy(
        update={name: getattr(settings, name).model_copy(update=values) for name, values in sections.items()}
    )


def main(job_path: str) -> None:
    sys.modules["vllm"] = sys.modules["sklearn"] = None
    from verl_cpu import plugin

    plugin.require_active()
    from verl.trainer.sft_trainer import SFTTensorCollator
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.distributed import initialize_global_process_group
    from verl.workers.engine_workers import TrainingWorkerConfig

    import sft_objectives
    from common.settings import rebuild
    from sft_objectives.trainer import token_loss
    from sft_objectives.trainer.config import live_sources, verl_config
    from sft_objectives.trainer.engine import Setup
    from sft_objectives.trainer.token_loss import TokenLoss
    from sft_objectives.trainer.worker import ObjectiveWorker

    token_loss.fixed_chunk_size = lambda objective, weight: 5
    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(1)
    initialize_global_process_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    settings = rebuild(job["settings"])
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    out = Path(job["out"])
    engines, rows = {}, None
    for packed in sorted({how["packed"] for how in job["splits"].values()}, reverse=True):
        settings = changed(settings, {**job["unchecked"], "sft": {**job["unchecked"].get("sft", {}), "packed": packed}})
        config = verl_config(settings, inputs, out)
        sections = {
            f"{name}_config": omega_conf_to_dataclass(config[key])
            for name, key in (
                ("model", "model"),
                ("engine", "engine"),
                ("optimizer", "optim"),
                ("checkpoint", "checkpoint"),
            )
        }
        sections["optimizer_config"].total_training_steps = 10
        worker = ObjectiveWorker(
            config=TrainingWorkerConfig(model_type="language_model", profiler_config=None, **sections)
        )
        worker.configure(TokenLoss(sft_objectives.load("sft")), Setup(fused="on"))
        worker.reset()
        engines[packed] = worker, worker.engine.head
        rows = rows or chats(job, sections["model_config"].tokenizer, config)
    mine = rows[rank::world] if world > 1 else rows
    batch = SFTTensorCollator("no_padding")(mine)
    sequence_parallel = settings.sft.sequence_parallel
    if sequence_parallel > 1:
        share = engines[True][0].engine.get_data_parallel_rank()
        batch = SFTTensorCollator("no_padding")(rows[share :: world // sequence_parallel])
    layouts = dict.fromkeys(SOURCES, (TOP_K, 18))
    for label, case in job["cases"].items():
        constants = case.pop("dataset_constants", {})
        kl_from_base = case.pop("kl_from_base", False)
        objective = sft_objectives.load(**case)
        for split, how in job["splits"].items():
            worker, head = engines[how["packed"]]
            engine = worker.engine
            engine.head = head if how.get("fused") else None
            loss = TokenLoss(objective, constants, layouts, kl_from_base)
            live = {source: job["references"][source] for source in live_sources(objective)}
            worker.configure(loss, Setup(live_models=live, fused="on"))
            engine.prepare_objective()
            if engine.shadow is not None:
                engine.shadow.tensors = shadow_weights(engine, job["references"]["teacher"])
            given = {
                "use_remove_padding": how["packed"],
                "use_dynamic_bsz": how["tokens"] is not None,
                "max_token_len_per_gpu": how["tokens"],
                "micro_batch_size_per_gpu": len(mine) // how["micro_batches"] if how["micro_batches"] else None,
                "temperature": 1.0,
                "pad_mode": "no_padding",
                "pad_token_id": 0,
            }
            data = tu.get_tensordict(tensor_dict=dict(batch), non_tensor_dict=given)
            with engine.train_mode():
                engine.optimizer_zero_grad()
                output = engine.forward_backward_batch(data, loss)
                gradient = {
                    name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad).clone()
                    for name, p in engine.module.named_parameters()
                    if p.requires_grad
                }
            metrics = reduced(worker, output)
            with engine.eval_mode():
                data = tu.get_tensordict(tensor_dict=dict(batch), non_tensor_dict=given)
                output = engine.forward_backward_batch(data, loss, forward_only=True)
            metrics |= {f"validation_{name}": value for name, value in reduced(worker, output).items()}
            if rank == 0:
                directory = out / label
                directory.mkdir(parents=True, exist_ok=True)
                save_file({k: v.contiguous() for k, v in gradient.items()}, directory / f"{split}.safetensors")
                (directory / f"{split}.json").write_text(json.dumps(metrics))
    if rank == 0 and job["expected"]:
        expected(job, rows, out)
    dist.destroy_process_group()


def reduced(worker, output) -> dict[str, float]:
    """Means over the global batch, on the ranks that report them."""
    from verl.utils import tensordict_utils as tu

    with contextlib.suppress(KeyError):
        output.pop("model_output")
    if not worker.engine.is_mp_src_rank_with_outputs():
        return {}
    final = worker._postprocess_output(
        output, global_token_num=None, delta_time=1.0, forward_only=False, images_seqlens=None
    )
    return {k: v for k, v in tu.get(final, "metrics").items() if not k.startswith("perf/")}


def batch_normalizer(objective, logits, labels, mask, lengths, references) -> float | None:
    """What `batch_constants` says the sum of the batch is divided by."""
    from sft_objectives import Step
    from sft_objectives.student import DenseStudent

    if not objective.needs.batch:
        return None
    rows = mask.nonzero().squeeze(-1)
    student = DenseStudent(logits[rows], labels[rows])
    known = {source: reference.rows(rows) for source, reference in references.items()}
    scalars = objective.token_scalars(Step(student, known))
    sequence = torch.arange(len(lengths)).repeat_interleave(lengths)[rows]
    ones = torch.ones(len(rows), dtype=torch.bool)
    return objective.batch_constants({**scalars, "mask": ones, "sequence": sequence}, lambda local: local).normalizer


def expected(job, rows, out: Path) -> None:
    """The same gradients without verl: one forward pass a chat and `token_losses` on the whole batch."""
    import sft_objectives
    from sft_objectives import Reference

    model = load(job["inputs"]["model"])
    base = {source: load(path) for source, path in job["references"].items()}
    labels = torch.cat([row["input_ids"].roll(-1) for row in rows])
    mask = torch.cat([torch.cat([row["loss_mask"][1:], torch.zeros(1, dtype=torch.long)]) for row in rows])
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    columns = {"critical": torch.cat([row["column_critical"] for row in rows])}
    references = {}
    with torch.no_grad():
        for source, other in {**base, "ema": base["teacher"], "old": base["teacher"]}.items():
            logits = torch.cat([other(row["input_ids"][None]).logits[0] for row in rows])
            references[source] = Reference.from_logits(logits, labels, top_k=TOP_K)
    for label, case in json.loads((Path(job["out"]) / "cases.json").read_text()).items():
        constants = case.pop("dataset_constants", None)
        case.pop("kl_from_base", None)
        objective = sft_objectives.load(**case)
        logits = torch.cat([model(row["input_ids"][None]).logits[0] for row in rows])
        arguments = {"mask": mask, "sequence_lengths": lengths, "reference": references, "columns": columns}
        losses = sft_objectives.token_losses(objective, logits, labels, constants=constants, **arguments)
        loss = losses.sum() / (
            batch_normalizer(objective, logits.detach(), labels, mask, lengths, references) or mask.sum()
        )
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        names = [name for name, _ in model.named_parameters()]
        save_file(dict(zip(names, gradient, strict=True)), out / label / "expected.safetensors")
        (out / label / "expected.json").write_text(json.dumps({"loss": loss.item()}))


if __name__ == "__main__":
    main(sys.argv[1])
