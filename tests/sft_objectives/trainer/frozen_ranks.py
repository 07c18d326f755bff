"""One rank of `test_frozen`: load a frozen model, say how much memory that took at its peak and what it computes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (at the peak) of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def main(job_path: str) -> None:
    sys.modules["vllm"] = sys.modules["sklearn"] = None
    from verl_cpu import plugin

    plugin.require_active()
    from transformers import AutoConfig, AutoModelForCausalLM
    from verl.utils.distributed import initialize_global_process_group

    from sft_objectives.trainer.frozen import frozen_model

    job = json.loads(Path(job_path).read_text())
    torch.set_num_threads(1)
    initialize_global_process_group()
    world, rank = dist.get_world_size(), dist.get_rank()
    config = AutoConfig.from_pretrained(job["student"])
    config._attn_implementation = "sdpa"
    # what else loading takes, such as its imports, is in the peak before
    AutoModelForCausalLM.from_pretrained(job["small"], dtype=torch.float32)
    engine = SimpleNamespace(
        use_ulysses_sp=False,
        _autocast_dtype=getattr(torch, job["dtype"]),
        device_mesh=dist.init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",)),
        engine_config={},
        model_config=SimpleNamespace(local_path=job["student"], hf_config=config, trust_remote_code=False),
    )
    frozen_model(job["small"], engine)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    model = frozen_model(job["model"], engine)
    grown = resident("VmHWM") - before
    with torch.no_grad():
        logits = model(torch.arange(12)[None]).logits
    held = sum(
        (parameter.to_local() if hasattr(parameter, "to_local") else parameter).nbytes
        for parameter in model.parameters()
    )
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    found = {"peak": grown, "held": held, "tied": tied, "logits": logits[0, -1].float().tolist()}
    (Path(job["out"]) / f"{world}_{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
