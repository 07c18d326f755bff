"""Peak memory of one rank of supervised fine-tuning on a CPU, from before its model is built to its last update.

Large blocks go back to the system when they are freed (MALLOC_MMAP_THRESHOLD_), so that the resident size is what is in
use. Usage: peak_of_training.py <job.json>...; each becomes <job>.peak.json. One process takes them in turn: most of its
time goes into imports.
"""

import gc
import io
import json
import os
import sys
from pathlib import Path

from common.ports import free_port


def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def measure(path):
    from common.settings import rebuild
    from sft_objectives.trainer import engine, rank, trainer

    job = json.loads(path.read_text())
    os.environ["MASTER_PORT"] = str(free_port())
    found = {}
    make, update = trainer.ObjectiveTrainer.__init__, engine.ObjectiveEngine.optimizer_step

    def made(self, *given, **named):
        import transformers.models.qwen2.modeling_qwen2  # noqa: F401

        gc.collect()
        found["before"] = resident("VmRSS")
        make(self, *given, **named)
        found["model"] = resident("VmRSS") - found["before"]
        forget_peak()  # the host reads the files through a copy that no device holds

    def updated(self):
        norm = update(self)
        found["peak"] = resident("VmHWM") - found["before"]
        return norm

    trainer.ObjectiveTrainer.__init__, engine.ObjectiveEngine.optimizer_step = made, updated
    try:
        inputs = {name: Path(given) for name, given in job["inputs"].items()}
        rank._train(rebuild(job["settings"]), inputs, Path(job["scratch"]), io.StringIO())
    finally:
        trainer.ObjectiveTrainer.__init__, engine.ObjectiveEngine.optimizer_step = make, update
    path.with_suffix(".peak.json").write_text(json.dumps(found))


if __name__ == "__main__":
    for given in sys.argv[1:]:
        measure(Path(given))
