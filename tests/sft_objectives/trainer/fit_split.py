"""One rank of a fit whose sequences are spread over ranks, as the stage's own ranks run it.

The recipe's checks want flash attention for that, which a CPU does not have: here each rank attends to its own share.
"""

import io
import json
import sys
from pathlib import Path


def main(job_path: str) -> None:
    from common.settings import rebuild
    from sft_objectives.trainer import rank, trainer

    job = json.loads(Path(job_path).read_text())
    settings = rebuild(job["settings"])
    split = settings.sft.model_copy(update={"sequence_parallel": job["sequence_parallel"]})
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    fit, outcomes = trainer.ObjectiveTrainer.fit, []

    def kept(self):
        outcomes.append((self.rank, fit(self)))
        return outcomes[-1][1]

    trainer.ObjectiveTrainer.fit = kept
    scratch = Path(job["scratch"])
    rank._train(settings.model_copy(update={"sft": split}), inputs, scratch, io.StringIO())
    ((own, outcome),) = outcomes
    (scratch / f"outcome_{own}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1])
