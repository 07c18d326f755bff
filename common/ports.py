"""Where processes meet: this node's address, and a TCP port that is free there."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A TCP port of this node that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def node_address() -> str:
    """This node's address in its Ray cluster; Ray must be initialised."""
    import ray

    return ray.util.get_node_ip_address()
