"""The process that imports a stage's function and calls it: run(settings, inputs, output, scratch, report).

It runs requests in turn, so that stages with equal settings can share what one of them has loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from common.errors import ConfigError
from common.files import write_json
from common.models import model_directory
from common.registry import check_origin
from common.settings import rebuild
from launch.execution.outcomes import DISK_FULL, Stopped, classify, is_full, traceback_digest
from launch.execution.progress import Reporter
from launch.execution.requests import BEGIN_NO_MORE, read_request, request_file
from launch.fingerprint import MEMORY, verify_outside

POSITION = struct.Struct("qq")  # shared with the guard: index of the request in work, peak bytes since it began


def input_paths(
    inputs: Mapping[str, str], models: Mapping[str, Mapping[str, str | None]], scratch: Path
) -> dict[str, Path]:
    """The inputs as paths; a model from outside becomes a directory, with another EOS if one is asked for.

    Args:
        inputs: input name -> path, or a hub name where `models` has the input.
        models: input name -> {"revision", "eos"} of the inputs that are models from outside.
        scratch: where a directory with another EOS is made, under the input's name.

    Raises:
        ConfigError: the EOS is not a token of the model.
    """
    return {
        name: model_directory(path, models[name]["revision"], models[name]["eos"], scratch / name)
        if name in models
        else Path(path)
        for name, path in inputs.items()
    }


def settings_of(description: dict[str, Any]) -> Any:
    """A request's settings as their class; the values of `platform.env`, which no file holds, come from the process.

    Raises ConfigError where they do not fit their class: the driver runs other code than this node.
    """
    try:
        settings = rebuild(description)
    except ValidationError as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"settings of the stage: {text}; install one version of the code on every node") from error
    env = {name: os.environ.get(name, value) for name, value in settings.platform.env.items()}
    return settings.model_copy(update={"platform": settings.platform.model_copy(update={"env": env})})


def load_call(
    function: str,
    description: dict[str, Any],
    inputs: Mapping[str, str],
    digests: Mapping[str, str],
    models: Mapping[str, Mapping[str, str | None]],
    memory: Path,
    scratch: Path,
) -> Callable[[Path, Callable[..., None]], None]:
    """A stage's function, its settings and its inputs, to be called as (output, report).

    Args:
        function: "module:function".
        description: of the settings, as `settings_of` takes it.
        inputs, models, scratch: as `input_paths` takes them; digests, memory: as `verify_outside` does.

    Raises:
        ConfigError: the settings do not fit, an input has changed since it was planned, or a model has no such EOS.
    """
    module, _, name = function.partition(":")
    run: Callable[..., None] = getattr(importlib.import_module(module), name)
    settings = settings_of(description)
    check_origin()
    verify_outside(inputs, digests, models, memory)
    paths = input_paths(inputs, models, scratch)
    return lambda output, report: run(settings, paths, output, scratch, report)


def _call(request: dict[str, Any]) -> None:
    scratch, output = Path(request["scratch"]), Path(request["output"])
    for directory in (scratch, output):  # made by the driver, on a node whose directories we may see late
        directory.mkdir(parents=True, exist_ok=True)
    call = load_call(
        request["function"],
        request["settings"],
        request["inputs"],
        request.get("digests", {}),
        request["models"],
        Path(request["logs"]).parent.parent / MEMORY,
        scratch,
    )
    report = Reporter(Path(request["logs"]) / "progress.json", request["attempt"])
    report(0, 1)
    call(output, report)
    check_origin()


def work(paths: Sequence[str], shared: mmap.mmap) -> int:
    """Runs the requests (JSON files) in turn and writes the result of each beside its log; 0 if the last one ran.

    Returns DISK_FULL where a result found no space.
    """

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped

    try:
        signal.signal(signal.SIGTERM, stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        for index, path in enumerate(paths):
            request = read_request(Path(path))
            # the first is what the child was started for: it may be asked before it has begun anything
            if index and request_file(request, BEGIN_NO_MORE).exists():
                break
            POSITION.pack_into(shared, 0, index, 0)
            _log_to(request_file(request, "log"))
            begun = time.monotonic()
            result: dict[str, Any] = {"outcome": "ok", "message": ""}
            try:
                _call(request)
            except BaseException as error:
                with contextlib.suppress(OSError):  # the log may be on the disk that is full
                    traceback.print_exc()
                outcome, message = classify(error)
                result = {"outcome": outcome, "message": message, "traceback": traceback_digest(error)}
            with contextlib.suppress(OSError):
                _flush()
            peak = max(POSITION.unpack_from(shared, 0)[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            result |= {"seconds": time.monotonic() - begun, "peak_memory_bytes": peak}
            try:
                write_json(request_file(request, "child.json"), result)
            except OSError as error:
                return DISK_FULL if is_full(error) else 1
            if result["outcome"] not in ("ok", "config"):  # an engine shared with the next request may be broken
                return 1
        return 0
    except Stopped:
        return 1


def _log_to(path: Path) -> None:
    """Sends this process's output, and that of what it starts, to the end of a file."""
    with path.open("ab", buffering=0) as log:
        _flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
