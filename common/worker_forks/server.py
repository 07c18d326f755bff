"""A process that imports modules once and forks a Ray worker for each connection.

`python -m common.worker_forks.server <number of the listening socket> <module,...>`. Forking is safe while there is one
thread, so the server starts none, and refuses to serve if an import did.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import socket
import sys
from typing import Any

from common.processes import end_with_parent
from common.worker_forks.client import LENGTH, PLAIN, SOCKET

ASKED_WITHIN = 10.0  # seconds that a client may take to say what it wants
LOOK = 0.5  # seconds between two looks for workers that have ended


def threads() -> int:
    """Threads of this process."""
    return len(os.listdir("/proc/self/task"))


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """A client's request and its standard descriptors; None where it has left: Ray may have lost patience with it."""
    head, body, length, descriptors = b"", b"", 0, []
    connection.settimeout(ASKED_WITHIN)
    with contextlib.suppress(TimeoutError):
        head, descriptors, _, _ = socket.recv_fds(connection, LENGTH, 3)
        with connection.makefile("rb") as file:
            head += file.read(LENGTH - len(head))
            length = int.from_bytes(head, "big")
            body = file.read(length)
    connection.settimeout(None)
    if len(head) < LENGTH or len(body) < length or left(connection):
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    return json.loads(body), descriptors


def left(connection: socket.socket) -> bool:
    """Whether the other end is closed, of a client that sends nothing more."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


def serve(listener: socket.socket) -> dict[str, Any]:
    """Fork for each connection, for ever. Returns in the forks alone."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not select.select([listener], [], [], LOOK)[0]:
            continue
        connection, _ = listener.accept()
        asked = receive(connection)
        if asked is not None:
            request, descriptors = asked
            sys.stdout.flush()
            sys.stderr.flush()
            if os.fork() == 0:
                listener.close()
                connection.sendall(b"+")
                connection.detach()  # open until this process ends, which its client waits for
                for number, descriptor in enumerate(descriptors):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
                return request
            for descriptor in descriptors:
                os.close(descriptor)
        connection.close()


def become(request: dict[str, Any]) -> None:
    """Turn this fork into the worker whose command line it was given."""
    end_with_parent()
    os.environ.clear()
    os.environ.update({name: value for name, value in request["environment"].items() if name not in (SOCKET, PLAIN)})
    os.chdir(request["directory"])
    if "ray._raylet" in sys.modules:
        raylet: Any = sys.modules["ray._raylet"]
        raylet.Config.initialize("")  # made of the server's variables, which did not say yet how Ray authenticates
        raylet.AuthenticationTokenLoader.instance().reset_cache()
    random.seed()
    if "numpy" in sys.modules:  # equal in all forks otherwise, as torch's is in all processes
        sys.modules["numpy"].random.seed()
    sys.argv = list(request["arguments"])
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    """Import, then serve who has connected meanwhile."""
    number, modules = sys.argv[1:]
    end_with_parent()
    if os.getppid() != int(os.environ["RAY_RAYLET_PID"]):
        sys.exit("who started this server has ended")
    listener = socket.socket(fileno=int(number))
    for module in modules.split(","):
        importlib.import_module(module)
    if threads() != 1:
        raise RuntimeError(f"importing {modules} started {threads() - 1} threads: no worker can be forked from here")
    gc.collect()
    gc.freeze()  # what is shared stays shared: collections do not write to it
    become(serve(listener))


if __name__ == "__main__":
    main()
