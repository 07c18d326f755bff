"""A process of the `sft` stage: `python -m sft_objectives.trainer.rank <job.json> <descriptor>`.

It ends when the process that started it does, and writes its progress to the descriptor as lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.attention import prepare
from common.errors import ConfigError
from common.files import write_json
from common.settings import rebuild

from .config import REFERENCE_INPUTS, dataset_constants, live_sources, load_objective, verl_config
from .ranks import BAD_CONFIGURATION


def main(job_path: str, descriptor: str) -> int:
    """Train as one rank; the environment says which. Returns the exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads(Path(job_path).read_text())
    with os.fdopen(int(descriptor), "w", buffering=1) as messages:
        try:
            _train(
                rebuild(job["settings"]),
                {k: Path(v) for k, v in job["inputs"].items()},
                Path(job["scratch"]),
                messages,
            )
        except ConfigError as error:
            messages.write(json.dumps({"refused": " ".join(str(error).split())}) + "\n")
            traceback.print_exc()
            return BAD_CONFIGURATION
        except BaseException as error:  # the log may be on a disk that is full; the pipe is not
            messages.write(json.dumps({"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}) + "\n")
            raise
    return 0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _train(settings: Any, inputs: Mapping[str, Path], scratch: Path, messages: Any) -> None:
    started = time.monotonic()
    for unused in ("vllm", "sklearn"):  # verl and transformers import them where installed, for several seconds
        sys.modules[unused] = None  # pyright: ignore[reportArgumentType]
    prepare(settings.model.attention)
    if settings.platform.name == "cpu":
        from verl_cpu import plugin

        plugin.require_active()
    import torch

    if settings.platform.name == "cpu":
        torch.set_num_threads(max(1, settings.platform.threads // settings.sft.processes))
        torch.set_flush_denormal(True)  # as in RL (verl_cpu.engine)
    torch.manual_seed(settings.seed)
    from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

    from .caches import verify_caches
    from .engine import Setup
    from .trainer import ObjectiveTrainer

    initialize_global_process_group()
    verify_caches(inputs[f"{source}_cache"] for source in REFERENCE_INPUTS if f"{source}_cache" in inputs)
    objective = load_objective(settings)
    regularizer = settings.sft.regularizer
    trainer = ObjectiveTrainer(
        verl_config(settings, inputs, scratch),
        objective,
        dataset_constants=dataset_constants(objective, inputs),
        kl_from_base=settings.sft.metrics.kl_from_base,
        setup=Setup(
            live_models={source: str(inputs[source]) for source in live_sources(objective)},
            l2_to_init=regularizer.weight if regularizer.name == "l2_to_init" else 0.0,
            fused=settings.sft.fused,
            router_aux_loss=settings.sft.router_aux_loss,
        ),
        directory=scratch,
        publish=settings.sft.publish_steps,
        export_dtype=getattr(torch, settings.model.dtype),
        progress=lambda done, total, row: messages.write(
            json.dumps({"done": done, "total": total, "metrics": row}) + "\n"
        ),
    )
    ready = time.monotonic()
    outcome = trainer.fit()
    if trainer.rank == 0:
        outcome["timings"] = {"start": round(ready - started, 3), "train": round(time.monotonic() - ready, 3)}
        write_json(scratch / "result.json", outcome, durable=True)
    destroy_global_process_group()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
