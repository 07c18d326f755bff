"""A data set's own test text in one process, the program that a model wrote in another, and the calls across.

Arguments and results cross as the bytes of `values`. What is not plain stays where it is and crosses as a number; a
test may call it, read and set its attributes and hand it back (objects of the program's own classes), and no more: its
methods for `==`, `<`, `bool`, `len`, iteration are never asked, as they could say whatever a test wants to hear.
"""

from __future__ import annotations

import asyncio
import builtins
import datetime
import importlib
import inspect
import itertools
import json
import os
import socket
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from evaluation.sandbox.frames import Garbage, frame, receive
from evaluation.sandbox.guest import REQUEST_BYTES, Program, definitions, describe, more_time, namespace, streams
from evaluation.sandbox.values import Other, Untrusted, decode, encode

MOST_ITEMS = 100_000
# What a test may mean by a name: never an object of the program's.
LIBRARIES = {**{name: name for name in sys.stdlib_module_names}, "numpy": "numpy", "np": "numpy"}
GONE = "the program ended its process"
# Of Python's own, by exact class: the plain value that crosses, and what a test gets for it.
COPIES: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    range: (lambda value: (value.start, value.stop, value.step), lambda parts: range(*parts)),
    bytearray: (bytes, lambda data: bytearray(memoryview(data))),
    deque: (lambda value: (list(value), value.maxlen), lambda parts: deque(*parts)),
    type({}.keys()): (list, lambda keys: dict.fromkeys(keys).keys()),
    type({}.values()): (list, lambda values: dict(enumerate(values)).values()),
    type({}.items()): (list, lambda pairs: dict(pairs).items()),
    datetime.date: (lambda day: (day.year, day.month, day.day), lambda parts: datetime.date(*parts)),
    datetime.timedelta: (
        lambda span: (span.days, span.seconds, span.microseconds),
        lambda parts: datetime.timedelta(*parts),
    ),
    datetime.datetime: (lambda moment: moment.isoformat(), datetime.datetime.fromisoformat),
    datetime.time: (lambda moment: moment.isoformat(), datetime.time.fromisoformat),
}
NAMED = {kind.__name__: made for kind, (_, made) in COPIES.items()}


class Ungradable(BaseException):
    """A test looks into a value that does not cross. No test catches it."""


def serve(peer: socket.socket, program: Program, seconds: int) -> None:
    """Answer the calls of a `Caller`, each with `seconds` of processor time, until it is gone; never returns."""
    kept: list[Any] = []

    def keep(value: Any) -> Any:
        kind = type(value)
        if kind in COPIES:
            return {"k": [kind.__name__, json.loads(encode(COPIES[kind][0](value), keep))]}
        kept.append(value)
        own = kind.__module__ != "builtins" or callable(value)
        return {"r" if own else "o": len(kept) - 1 if own else str(kind.__name__)[:80]}

    def plain(value: Any) -> bytes:
        if inspect.iscoroutine(value):
            return b'{"a":' + plain(asyncio.run(value)) + b"}"  # type: ignore[arg-type]
        if isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools"):
            items = list(itertools.islice(value, MOST_ITEMS + 1))
            if len(items) <= MOST_ITEMS:
                return b'{"g":' + encode(items, keep) + b"}"
        return encode(value, keep)

    def answer(what: list) -> Any:
        kind, target, *rest = what
        if kind == "names":
            return [name in program for name in target]
        if kind == "find":
            return program.find(target)
        if kind == "call":
            return kept[target](*rest[0], **rest[1])
        if kind == "get":
            return getattr(kept[target], rest[0])
        return setattr(kept[target], *rest)

    while True:
        try:
            _, content = receive(peer, REQUEST_BYTES)
        except EOFError:
            os._exit(0)
        more_time(seconds)
        try:
            reply = frame(b"V", plain(answer(decode(content, lambda tag, number, _: kept[number]))))
        except BaseException as error:
            reply = frame(b"X", encode([type(error).__name__, describe(error)]))
        peer.sendall(reply)


class Caller:
    """The test's side. ungradable: why a value could not be looked into, once it was; gone: the program has ended."""

    def __init__(self, peer: socket.socket, value_bytes: int):
        self._peer = peer
        self._limit = value_bytes
        self.ungradable = ""
        self.gone = False

    def names(self, entry: str, names: list[str]) -> dict[str, Any]:
        """What the program defines of `entry` and `names`; for a library that it has imported, the library itself.

        Raises NameError where it lacks `entry`.
        """
        names = [entry, *names]
        there = self.ask("names", names)
        if not isinstance(there, list) or len(there) != len(names):
            raise self._refuse("an answer to a question that was not asked")
        if entry and there[0] is not True and not hasattr(builtins, entry):
            raise NameError(f"name {entry!r} is not defined")
        return {
            name: importlib.import_module(LIBRARIES[name])
            if name in LIBRARIES and name != entry
            else self.ask("find", name)
            for name, yes in zip(names, there, strict=True)
            if yes is True
        }

    def ask(self, *what: Any) -> Any:
        """The program's answer to a question. Raises the exception that it raised, as one of Python's own."""
        try:
            self._peer.sendall(frame(b"A", encode(list(what), self._number)))
            kind, content = receive(self._peer, self._limit)
        except (OSError, EOFError):
            self.gone = True
            raise RuntimeError(GONE) from None
        except Garbage as error:
            raise self._refuse(str(error)) from None
        try:
            value = decode(content, self._unknown)
        except Untrusted as error:
            raise self._refuse(str(error)) from None
        if kind == b"V":
            return value
        name, text = value if isinstance(value, list) and len(value) == 2 else ("", "")
        found = getattr(builtins, name, None) if isinstance(name, str) else None
        # One that ends a loop would let a test end before it has looked at everything.
        ends = ("StopIteration", "StopAsyncIteration")
        if isinstance(found, type) and issubclass(found, Exception) and name not in ends:
            try:
                error: Exception = found(text)
            except TypeError:  # one that takes several arguments
                error = RuntimeError(text)
        else:
            error = RuntimeError(text)
        raise error

    def _number(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"r": object.__getattribute__(value, "_number")}
        if isinstance(value, Other):
            raise self._refuse(f"a value of the class {value.kind}")
        raise self._refuse(f"an argument of the class {type(value).__name__}")

    def _unknown(self, tag: str, content: Any, part: Callable[[Any], Any]) -> Any:
        if tag == "r" and type(content) is int:
            return Remote(self, content)
        if tag == "k" and isinstance(content, list) and content[0] in NAMED:
            return NAMED[content[0]](part(content[1]))
        if tag == "g" and isinstance(content, list):
            return iter(part(content))
        if tag == "a":
            return _ready(part(content))
        raise Untrusted(f"the tag {tag!r:.20}")

    def _refuse(self, why: str) -> Ungradable:
        self.ungradable = self.ungradable or why
        return Ungradable(why)


async def _ready(value: Any) -> Any:
    return value


class Remote:
    """Something of the program's that did not cross: it can be called, and its attributes read and set."""

    __slots__ = ("_caller", "_number")

    def __init__(self, caller: Caller, number: int):
        object.__setattr__(self, "_caller", caller)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return _ask(self, "call", list(arguments), named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)


def _ask(remote: Remote, kind: str, *rest: Any) -> Any:
    number = object.__getattribute__(remote, "_number")
    return object.__getattribute__(remote, "_caller").ask(kind, number, *rest)


def _refusing(name: str) -> Any:
    def refuse(self: Remote, *_: Any) -> Any:
        caller = object.__getattribute__(self, "_caller")
        raise caller._refuse(f"a test asks for {name} of an object of the program's own class")

    return refuse


for _name in (
    *("eq", "ne", "lt", "le", "gt", "ge", "bool", "len", "iter", "next", "contains", "getitem", "hash", "str", "repr"),
    *("int", "float", "index", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "mod", "neg", "abs"),
):
    setattr(Remote, f"__{_name}__", _refusing(f"__{_name}__"))


def check(link: socket.socket, peer: socket.socket, request: dict[str, Any], fallback: dict[str, Any]) -> None:
    """Run the data set's test text against the program at the other end of `peer`; never returns.

    Sends P with ["passed" | "failed" | "ungraded", the exception].
    """
    streams()
    caller = Caller(peer, request["value_bytes"])
    try:
        names = namespace("__main__", fallback)
        names.update(definitions(request["prefix"], request["entry"], fallback))
        code = compile(request["test"], "<test>", "exec")
        names.update(caller.names(request["entry"], sorted(_names(code) - names.keys() - fallback.keys())))
        exec(code, names)
        outcome = ["passed", ""]
    except SystemExit as left:
        outcome = ["failed" if left.code else "passed", describe(left) if left.code else ""]
    except Ungradable as error:
        outcome = ["ungraded", str(error)]
    except BaseException as error:
        outcome = ["failed", describe(error)]
    # Even where the test has caught it.
    if caller.ungradable:
        outcome = ["ungraded", caller.ungradable]
    elif caller.gone:
        outcome = ["failed", GONE]
    link.sendall(frame(b"P", json.dumps(outcome).encode()))
    os._exit(0)


def _names(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))
