"""verl's SPMD trainer for one objective: exact validation, Hugging Face exports, checkpoints that survive a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData
from torch import Tensor
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.fsdp_utils import get_fsdp_full_state_dict
from verl.workers.config import TrainingWorkerConfig

from common.errors import ConfigError

from ..contract import Objective
from .checkpoints import Checkpoints
from .curve import Curve
from .engine import ObjectiveEngine, Setup
from .export import export_huggingface
from .token_loss import TokenLoss
from .worker import ObjectiveWorker


class ObjectiveTrainer(SFTTrainer):
    """verl's SPMD trainer for one objective. Every rank constructs it and calls `fit`.

    config: what `sft_objectives.trainer.config.verl_config` makes. dataset_constants, kl_from_base: see `TokenLoss`.
    directory: of `curve.jsonl` and `exports/step_<n>`; it survives a kill and is never shared between runs.
    progress: called on rank 0 after each step with (step, total, row of the curve).
    Steps of `publish` are exported, and the last one, and the one of the lowest validation loss.
    """

    engine: ObjectiveEngine
    training_client: ObjectiveWorker

    def __init__(
        self,
        config,
        objective: Objective,
        *,
        dataset_constants: Mapping[str, float],
        kl_from_base: bool,
        setup: Setup,
        directory: Path,
        publish: list[int],
        export_dtype: torch.dtype,
        progress: Callable[[int, int, dict[str, float]], None],
    ) -> None:
        self.objective, self.dataset_constants, self.kl_from_base = objective, dataset_constants, kl_from_base
        self.setup = setup
        self.directory, self.publish, self.export_dtype, self.progress = directory, publish, export_dtype, progress
        super().__init__(config)

    def _build_engine(self) -> None:
        self.training_client = ObjectiveWorker(
            config=TrainingWorkerConfig(
                model_type="language_model",
                model_config=self.model_config,
                engine_config=self.engine_config,
                optimizer_config=self.optimizer_config,
                checkpoint_config=self.checkpoint_config,
                profiler_config=self.profiler_config,
            )
        )
        self.engine = self.training_client.engine
        token_loss = TokenLoss(self.objective, self.dataset_constants, self._layouts(), self.kl_from_base)
        self.training_client.configure(token_loss, self.setup)

    def _layouts(self) -> dict[str, tuple[int, int]]:
        """Source -> (top_k, id_bits) of the packed ids of the training set."""
        layouts = {}
        for source, aligned in getattr(self.train_dataset, "references", {}).items():
            wanted = self.objective.needs.references.get(source)
            needed = 0 if wanted is None else wanted.top_k
            if aligned.top_k < min(needed, self.model_config.hf_config.vocab_size):
                raise self.objective.error(
                    f"needs {needed} ids per position of reference {source!r}; cached: {aligned.top_k}; "
                    f"set cache.top_k={needed} or more"
                )
            layouts[source] = (aligned.top_k, aligned.cache.layout.id_bits)
        return layouts

    def _build_dataloader(self) -> None:
        super()._build_dataloader()
        self.train_sampler.seed = self.config.trainer.seed
        if len(self.train_dataloader) == 0:
            raise ConfigError(
                f"{self.config.data.train_files}: {len(self.train_dataset)} chats are fewer than one batch; "
                f"set sft.batch_size to at most {len(self.train_dataset)}"
            )

    def _build_ckpt_handler(self) -> None:
        trainer = self.config.trainer
        self.ckpt_handler = Checkpoints(
            engine=self.engine,
            train_dataloader=self.train_dataloader,
            default_local_dir=trainer.default_local_dir,
            resume_mode=trainer.resume_mode,
            resume_from_path=trainer.resume_from_path,
            lora_train_meta=self._get_lora_train_meta(),
            steps_per_epoch=self.steps_per_epoch,
            keep=trainer.max_ckpt_to_keep,
        )

    def fit(self) -> dict[str, Any]:
        """Train to the last step, from the newest checkpoint if there is one.

        Returns {"final", "best", "steps", "metrics"}: published steps and the last row of the curve. Unlike verl's, a
        finished run does not train another step when it is started again.
        """
        late = [step for step in self.publish if step > self.total_training_steps]
        if late:
            raise ConfigError(
                f"sft.publish_steps={late}: training has {self.total_training_steps} steps; leave them out"
            )
        curve = Curve(self.directory / "curve.jsonl", self.resume_global_step, self.rank == 0)
        step = self.resume_global_step
        for step, batch in self._batches(self.resume_global_step):
            row = {"step": step, **self._train(batch)}
            is_last = step == self.total_training_steps
            if self.val_dataset and (is_last or (self.test_freq > 0 and step % self.test_freq == 0)):
                row.update(self._validate())
            curve.append(row)
            if is_last or step in self.publish or step == curve.best_step():
                self._export(step)
                self._drop_superseded(curve)
            if self.save_freq > 0 and step % self.save_freq == 0 and not is_last:
                self.ckpt_handler.save_checkpoint(step)
            if self.rank == 0:
                self.progress(step, self.total_training_steps, row)
        if not (self._exports() / f"step_{step}").exists():  # it was killed between its last checkpoint and its export
            self._export(step)
        best = curve.best_step() or step
        steps = sorted({best, step, *(s for s in self.publish if s < step)})
        return {"final": step, "best": best, "steps": steps, "metrics": curve.last()}

    def _meta(self, dynamic: bool) -> dict[str, Any]:
        data = self.config.data
        return {
            "use_remove_padding": self.config.model.use_remove_padding,
            "use_dynamic_bsz": dynamic,
            "max_token_len_per_gpu": data.max_token_len_per_gpu,
            "micro_batch_size_per_gpu": data.micro_batch_size_per_gpu,
            "temperature": 1.0,
            "global_batch_size": self.global_batch_size,
            "pad_mode": data.pad_mode,
            "pad_token_id": self.model_config.tokenizer.pad_token_id,
        }

    def _batches(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(step, collated batch of this rank) after step `start`, over as many epochs as the steps need."""
        step = start
        while step < self.total_training_steps:
            self.train_sampler.set_epoch(step // self.steps_per_epoch)
            for batch in self.train_dataloader:
                step += 1
                yield step, batch
                if step == self.total_training_steps:
                    return

    def _tensordict(self, batch: dict[str, Any], dynamic: bool) -> TensorDict:
        data = tu.get_tensordict(tensor_dict=batch, non_tensor_dict=self._meta(dynamic))
        tu.assign_non_tensor(data, global_token_num=NonTensorData(self._get_batch_seqlens(data)))
        return data

    def _train(self, batch: dict[str, Any]) -> dict[str, float]:
        data = self._tensordict(batch, self.config.data.use_dynamic_bsz)
        tu.assign_non_tensor(data, update_lr_scheduler=True)
        assert self.engine.lr_scheduler is not None
        lr = float(self.engine.lr_scheduler.get_last_lr()[0])
        output = self.training_client.train_batch(data)
        if output is None:  # a sequence-parallel rank whose group reports through another
            return {}
        metrics: dict[str, float] = tu.get(output, "metrics")
        kept = {k: v for k, v in metrics.items() if not k.startswith("perf/") and k not in ("mfu", "lr", "loss_sum")}
        return {**kept, "lr": lr}

    def _validate(self) -> dict[str, float]:
        """Cross-entropy and entropy over every supervised token of the held-out chats."""
        totals = {"loss_sum": 0.0, "entropy": 0.0, "tokens": 0.0}
        for batch in self._validation_batches():
            output = self.training_client.infer_batch(self._tensordict(batch, dynamic=True))
            if output is not None:
                metrics = tu.get(output, "metrics")
                totals["loss_sum"] += metrics["loss_sum"]
                totals["entropy"] += metrics.get("entropy", 0.0) * metrics["tokens"]
                totals["tokens"] += metrics["tokens"]
        tokens = max(totals["tokens"], 1.0)
        means = {"val_loss": totals["loss_sum"] / tokens, "val_entropy": totals["entropy"] / tokens}
        # all ranks decide alike what is exported, also those of a sequence-parallel group that see no result
        shared = [means]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]

    def _validation_batches(self) -> Iterator[dict[str, Any]]:
        """This rank's share of the held-out chats; ranks without a chat left get one that supervises nothing."""
        chats: Any = self.val_dataset
        rank, size = self.engine.get_data_parallel_rank(), self.engine.get_data_parallel_size()
        for start in range(0, len(chats), self.global_batch_size):
            end = min(start + self.global_batch_size, len(chats))
            rows = []
            for index in range(start, end, size):
                mine = index + rank < end
                row = dict(chats[index + rank if mine else index])
                if not mine:
                    row["loss_mask"] = torch.zeros_like(row["loss_mask"])
                rows.append(row)
            yield self.collate_fn(rows)

    def _drop_superseded(self, curve: Curve) -> None:
        """Remove the export of an earlier best step."""
        if self.rank == 0:
            for path in self._exports().glob("step_*"):
                step = int(path.name.removeprefix("step_"))
                if step not in (*self.publish, curve.best_step(), curve.last()["step"]):
                    shutil.rmtree(path)

    def _exports(self) -> Path:
        return self.directory / "exports"

    def _export(self, step: int) -> None:
        target = self._exports() / f"step_{step}"
        state = get_fsdp_full_state_dict(self.engine.module, offload_to_cpu=True, rank0_only=True)
        if self.rank == 0:
            temporary = target.with_name(f".{target.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            state = cast("dict[str, Tensor]", state)
            export_huggingface(state, self.model_config, self.train_dataset[0], self.export_dtype, temporary)
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
        dist.barrier()
