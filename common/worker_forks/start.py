"""Starts the fork server of this process's private Ray, and has Ray ask it for workers."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.worker_forks.client import JOB, PLAIN, SOCKET

SUPPORTED = "2.60"  # of Ray, whose parameter below is not public
# Libraries that start threads when they are loaded: numpy's and scipy's OpenBLAS, and pyarrow's allocator.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
PATIENCE = 10.0  # seconds for the server to end


@contextlib.contextmanager
def fork_server(modules: Sequence[str]) -> Iterator[None]:
    """A process that imports `modules` beside the caller; a private Ray started within has its workers forked from it.

    It takes over this process's variables: those that the modules read at import hold for all workers. Raises
    ConfigError for a version of Ray that this was not written for.
    """
    found = importlib.metadata.version("ray")
    if not found.startswith(f"{SUPPORTED}."):
        raise ConfigError(f"workers are forked under Ray {SUPPORTED}, found {found}: install requirements/cpu.txt")
    # Nobody else may enter. Beside Ray's own files, which whoever ends this process without a word takes away.
    folder = Path(tempfile.mkdtemp(prefix="f", dir=os.environ.get("RAY_TMPDIR")))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "s"))
        listener.listen(64)  # who connects during the imports waits for their end
        command = [sys.executable, "-m", "common.worker_forks.server", str(listener.fileno()), ",".join(modules)]
        # Ray reads both once, when it is imported. A worker ends when the process of that number has ended: the raylet,
        # which is not there yet; its own starter will do.
        ray = {"RAY_JOB_ID": JOB, "RAY_RAYLET_PID": str(os.getpid())}
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=os.environ | ONE_THREAD | ray)
    os.environ[SOCKET] = str(folder / "s")
    try:
        yield
    finally:
        process.kill()
        process.wait(PATIENCE)
        for name in (SOCKET, PLAIN):
            os.environ.pop(name, None)
        shutil.rmtree(folder)


@contextlib.contextmanager
def workers_from_server() -> Iterator[None]:
    """While open, a Ray that is started here asks the fork server for its workers, if there is one.

    ray/_private/node.py `ray_params.update_if_absent(..., setup_worker_path=...)`: the script that starts a worker is a
    parameter of a node that `ray.init` does not hand on.
    """
    if SOCKET not in os.environ:
        yield
        return
    from ray._private.parameter import RayParams

    original = RayParams.update_if_absent

    def with_client(self: Any, **given: Any) -> None:
        if "setup_worker_path" in given:
            os.environ[PLAIN] = given["setup_worker_path"]
            given["setup_worker_path"] = str(Path(__file__).with_name("client.py"))
        original(self, **given)

    RayParams.update_if_absent = with_client
    try:
        yield
    finally:
        RayParams.update_if_absent = original
