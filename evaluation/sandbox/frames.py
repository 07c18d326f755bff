"""Messages on a stream: one byte that names the kind, the length, the content. Standard library only."""

from __future__ import annotations

import socket
import struct

HEAD = struct.Struct("!cI")


class Garbage(ValueError):
    """Bytes that are no message, or a message over the limit."""


def frame(kind: bytes, content: bytes = b"") -> bytes:
    """A message as bytes."""
    return HEAD.pack(kind, len(content)) + content


def take(buffer: bytearray, limit: int) -> tuple[bytes, bytes] | None:
    """The first message of `buffer`, removed from it, or None while it is incomplete. Raises Garbage."""
    if len(buffer) < HEAD.size:
        return None
    kind, length = HEAD.unpack_from(buffer)
    if length > limit:
        raise Garbage(f"a message of {length} bytes")
    if len(buffer) < HEAD.size + length:
        return None
    content = bytes(buffer[HEAD.size : HEAD.size + length])
    del buffer[: HEAD.size + length]
    return kind, content


def receive(link: socket.socket, limit: int) -> tuple[bytes, bytes]:
    """Wait for a message. Raises EOFError at the end of the stream, Garbage."""
    kind, length = HEAD.unpack(_exactly(link, HEAD.size))
    if length > limit:
        raise Garbage(f"a message of {length} bytes")
    return kind, _exactly(link, length)


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = link.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        data += part
    return bytes(data)
