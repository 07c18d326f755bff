"""Where processes of one job meet: this node's address in its Ray cluster and a port that is free on it."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A TCP port of this node that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def node_address() -> str:
    """This node's address in its Ray cluster."""
    import ray

    return ray.util.get_node_ip_address()
