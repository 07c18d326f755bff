"""A script of this folder on several ranks of one machine."""

import subprocess
import sys
from pathlib import Path

from sft_objectives.trainer.ranks import rank_environment


def run_script(name: str, job: Path, settings, *, ranks: int, port: int, timeout: float) -> None:
    """Run `name` with the path `job` on `ranks` processes, their output in `log.txt` beside it; every status is 0."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name(name)), str(job)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    log = job.with_name("log.txt")
    with log.open("w") as output:
        processes = [
            subprocess.Popen(
                command, env=rank_environment(settings, rank, ranks) | meeting, stdout=output, stderr=subprocess.STDOUT
            )
            for rank in range(ranks)
        ]
        try:
            statuses = [process.wait(timeout=timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    assert statuses == [0] * ranks, log.read_text()[-3000:]
