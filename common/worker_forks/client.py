"""What Ray runs in place of its own `setup_worker.py`: has a worker forked and stays until that worker has ended.

Ray gives it the worker's command line. Imports the standard library alone: it runs once for each worker. A worker of
another interpreter or in a container, which no fork can become, is started in Ray's own way; so are, with a line in
the log, the workers of a server that is gone, and those of Ray's own that serve no job.
"""

import array
import json
import os
import re
import socket
import sys

SOCKET = "SFT_THEN_RL_FORK_SERVER"  # path of the server's socket
PLAIN = "SFT_THEN_RL_SETUP_WORKER"  # path of Ray's own setup_worker.py
JOB = (
    "01000000"  # of the first driver of a Ray cluster; Ray reads it when it is imported, so the server knows it before
)
LENGTH = 8  # bytes of the length before a request


def split(arguments: list[str]) -> tuple[list[str], dict]:
    """The worker's own command line, and its runtime environment, of what Ray's command holds."""
    kept, context = [], {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--serialized-runtime-env-context":
            context = json.loads(value or "{}")
        elif name != "--language" and argument not in ("-s", "-S"):
            kept.append(argument)
    return kept, context


def forkable(context: dict) -> bool:
    """Whether a worker of this runtime environment is this interpreter, of the one job, with other variables."""
    return (
        os.environ.get("RAY_JOB_ID") == JOB
        and not context.get("command_prefix")
        and context.get("py_executable") in (None, sys.executable)
        and not context.get("override_worker_entrypoint")
    )


def variables(given: dict[str, str]) -> dict[str, str]:
    """This process's variables and those of a runtime environment, set as Ray does: `${X}` stands for the value of X,
    or for nothing."""
    found = dict(os.environ)
    for name, value in given.items():
        found[name] = re.sub(r"\$\{([A-Z0-9_]+)\}", lambda match: found.get(match[1], ""), value)
    return found


def ask(request: bytes) -> socket.socket:
    """The connection to a worker that was forked. Raises OSError where the server is gone."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(os.environ[SOCKET])
    head = len(request).to_bytes(LENGTH, "big")
    connection.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    connection.sendall(request)
    if not connection.recv(1):
        raise ConnectionResetError("it ended before it forked")
    return connection


def main() -> None:
    """Have the worker forked, or become it."""
    arguments, context = split(sys.argv[1:])
    if forkable(context):
        given = variables(context.get("env_vars") or {})
        request = {"arguments": arguments, "environment": given, "directory": os.getcwd()}
        try:
            connection = ask(json.dumps(request).encode())
        except OSError as error:
            print(f"the fork server is gone ({error}): this worker imports by itself", file=sys.stderr, flush=True)
        else:
            while connection.recv(1):  # ends with the worker, which holds the other end
                pass
            return
    os.execv(sys.executable, [sys.executable, os.environ[PLAIN], *sys.argv[1:]])


if __name__ == "__main__":
    main()
