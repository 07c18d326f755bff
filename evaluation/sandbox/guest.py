"""What runs behind the rights that were given up: a program, or the calls of its functions.

None of it knows what a right answer is. Standard library only.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import gc
import json
import os
import resource
import socket
import sys
import threading
import traceback
import types
from typing import Any

from evaluation.sandbox import rights
from evaluation.sandbox.frames import frame, receive
from evaluation.sandbox.values import Unserialisable, encode

# LiveCodeBench puts these before every program. Here they are looked up last, after what the program defines and what
# Python has built in, so that a name that a program lacks is not found in them by a test.
_IMPORTS = """
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools, operator
import io, sys, json
"""
RECURSION_LIMIT = 50_000
REQUEST_BYTES = 1 << 30


def imported() -> dict[str, Any]:
    """The names that every program may use without importing them."""
    names: dict[str, Any] = {}
    exec(_IMPORTS, names)
    del names["__builtins__"]
    return {**names, **vars(builtins)}


def namespace(name: str, fallback: dict[str, Any]) -> dict[str, Any]:
    """The globals of a new module, which finds what it does not define in `fallback`."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    vars(module)["__builtins__"] = fallback
    return vars(module)


def streams() -> None:
    """Python's standard streams for the descriptors 0, 1 and 2 as they are now."""
    kept: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, **kept)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", **kept)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, **kept)  # noqa: SIM115


def describe(error: BaseException) -> str:
    """An exception in one line, whatever its class makes of it."""
    try:
        return "".join(traceback.format_exception_only(error)).strip()[-500:]
    except BaseException:
        return "an exception that cannot be shown"


def run(link: socket.socket, program: str, fallback: dict[str, Any]) -> None:
    """A program that reads standard input and writes standard output, as `python program.py` runs it; never returns.

    Sends P with ["passed" | "failed" | "memory", the exception]: what run_code tells, which a program can forge. The
    status of the process is what a judge goes by.
    """
    streams()
    sys.setrecursionlimit(RECURSION_LIMIT)
    status, outcome = 0, ["passed", ""]
    try:
        exec(compile(program, "<program>", "exec"), namespace("__main__", fallback))
    except SystemExit as left:
        outcome = ["failed", describe(left)]
        if left.code is not None:
            status = left.code & 0xFF if isinstance(left.code, int) else 1
    except BaseException as error:
        status, outcome = 1, ["memory" if isinstance(error, MemoryError) else "failed", describe(error)]
        del error
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # as Python does: waits for threads that are no daemons
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:  # whatever the program has made of its output
        status = status or 120
        outcome = outcome if outcome[0] != "passed" else ["failed", "standard output was broken"]
    try:
        if outcome[1] and status:
            os.write(2, f"{outcome[1]}\n".encode(errors="replace"))
        link.sendall(frame(b"P", json.dumps(outcome).encode()))
    finally:
        os._exit(status)


class Program:
    """A program whose functions are called: its globals after it ran once."""

    def __init__(self, source: str, prefix: str, entry: str, fallback: dict[str, Any], *, how: str):
        self._entry = entry
        if how == "plain":
            self._names = namespace("solution", fallback)
            exec(compile(source, "<program>", "exec"), self._names)
            return
        names = {**fallback, **definitions(prefix, entry, fallback)}
        failure: Exception | None = None
        self._names = namespace("solution", names)
        try:
            if how == "whole":
                exec(compile(source, "<program>", "exec"), self._names)
        except SystemExit:
            pass
        except MemoryError:
            raise
        except Exception as error:
            failure = error
            self._names = namespace("solution", names)
        if how == "definitions" or failure is not None or not self._has_entry():
            # EvalPlus' sanitiser keeps imports and definitions alone: a usage block cannot make them wrong.
            self._define(source)
            if failure is not None and not self._has_entry():
                raise failure

    def _has_entry(self) -> bool:
        return not self._entry or self._entry in self or "Solution" in self

    def _define(self, source: str) -> None:
        """Run the imports, definitions and assignments of the longest beginning that parses."""
        tree = _longest(source)
        for statement in tree.body if tree else ():
            if not isinstance(statement, DEFINING):
                continue
            try:
                exec(compile(ast.Module([statement], []), "<program>", "exec"), self._names)
            except (Exception, SystemExit):
                continue

    def __contains__(self, name: str) -> bool:
        return name in self._names and name != "__builtins__"

    def find(self, name: str) -> Any:
        """What the program defines under a name. Raises NameError."""
        if name not in self:
            raise NameError(f"name {name!r} is not defined")
        return self._names[name]

    def function(self, name: str) -> Any:
        """The method of `Solution`, else the function. Raises NameError."""
        if "Solution" in self:
            solution = self._names["Solution"]()
            if hasattr(solution, name):
                return getattr(solution, name)
        return self.find(name)


DEFINING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
TRIES = 200


def _longest(source: str) -> ast.Module | None:
    lines = source.splitlines()
    for end in range(len(lines), max(0, len(lines) - TRIES), -1):
        try:
            return ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError):
            continue
    return None


def definitions(prefix: str, entry: str, fallback: dict[str, Any]) -> dict[str, Any]:
    """What the prompt's own code defines, but for the function that is asked for: helpers of tests and programs."""
    for ending in ("", "    pass\n"):
        names = {"__name__": "prefix", "__builtins__": fallback}
        try:
            exec(compile(prefix + ending, "<prefix>", "exec"), names)
        except Exception:
            continue
        return {name: value for name, value in names.items() if name not in (entry, "__name__", "__builtins__")}
    return {}


def load(link: socket.socket, request: dict[str, Any], fallback: dict[str, Any]) -> Program:
    """Run a program whose functions are to be called; sends L, or F with what went wrong and ends the process."""
    streams()
    if request["recursion"]:
        sys.setrecursionlimit(RECURSION_LIMIT)
    try:
        program = Program(request["program"], request["prefix"], request["entry"], fallback, how=request["how"])
    except BaseException as error:
        link.sendall(frame(b"F", describe(error).encode(errors="replace")))
        os._exit(1)
    gc.collect()
    gc.freeze()
    link.sendall(frame(b"L"))
    return program


def serve_cases(link: socket.socket, program: Program, name: str, seconds: int) -> None:
    """Answer C, a list of argument lists as JSON, from a copy of this process; never returns.

    For each call V with the value, X with the exception, or U with the class of a value that is not plain; at the end
    E with the copy's status.
    """
    while True:
        try:
            _, content = receive(link, REQUEST_BYTES)
        except EOFError:
            os._exit(0)
        try:
            child = os.fork()
        except OSError:
            os._exit(1)
        if child == 0:
            _case(link, program, name, json.loads(content), seconds)
        _, status = os.waitpid(child, 0)
        link.sendall(frame(b"E", str(os.waitstatus_to_exitcode(status)).encode()))


def _case(link: socket.socket, program: Program, name: str, calls: list[list], seconds: int) -> None:
    try:
        function = None
        for arguments in calls:
            more_time(seconds)
            try:
                function = function or program.function(name)
                kind, content = b"V", encode(function(*arguments))
            except Unserialisable as error:
                kind, content = b"U", str(error).encode(errors="replace")
            except BaseException as error:
                kind, content = b"X", describe(error).encode(errors="replace")
            link.sendall(frame(kind, content))
    finally:
        # Threads and exit handlers of the program have no say after the last value.
        os._exit(0)


def more_time(seconds: int) -> None:
    """Allow `seconds` of processor time from now on, below the limit that was set from outside."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    rights.limit_processor(soft if hard < 0 else min(soft, hard), hard)
