"""An address at which no Ray cluster answers: one line, soon, with the address that was given."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import toy

from launch.check import check
from launch.execution import cluster
from launch.execution.cluster import Refused, join
from launch.execution.run import run


@pytest.fixture
def nobody():
    """An address of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def refused(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    begun = time.monotonic()
    with pytest.raises(Refused) as found:
        join()
    assert time.monotonic() - begun < 30
    text = str(found.value)
    assert text.startswith(f"RAY_ADDRESS={address}: no Ray cluster") and "\n" not in text and "or unset it" in text
    return text


def test_nothing_at_the_address(monkeypatch, nobody):
    assert "Connection refused" in refused(monkeypatch, nobody)
    assert "Connection refused" in refused(monkeypatch, f"ray://{nobody}")
    assert "Connection refused" in refused(monkeypatch, nobody.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize("address", ["somewhere", "host:port", ":", "127.0.0.1:99999999", "no-such-host.invalid:6379"])
def test_no_address_at_all(monkeypatch, address):
    refused(monkeypatch, address)


def test_another_program_at_the_address(monkeypatch):
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert "another program answers" in refused(monkeypatch, f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_another_program_that_speaks_rays_protocol(monkeypatch, scheme):
    """A proxy or another service: Ray would ask it for minutes."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert "another program answers" in refused(monkeypatch, f"{scheme}127.0.0.1:{port}")
    finally:
        server.stop(None)


@pytest.mark.e2e
def test_rays_own_server_is_told_from_others(ray_session):
    import ray

    assert cluster._unanswered(ray.get_runtime_context().gcs_address) is None


def test_one_that_accepts_and_is_silent(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "timed out" in refused(monkeypatch, f"127.0.0.1:{server.getsockname()[1]}")


def test_auto_without_a_cluster(monkeypatch, nobody):
    services = "ray._private.services.canonicalize_bootstrap_address"
    monkeypatch.setattr(services, lambda address: None)
    assert "none is known on this machine" in refused(monkeypatch, "auto")
    monkeypatch.setattr(services, lambda address: nobody)  # of a cluster that has ended
    assert f"{nobody}: Connection refused" in refused(monkeypatch, "auto")


def test_run_and_check_say_it_in_one_line(tmp_path, monkeypatch, nobody, capsys):
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    plan = toy.plan(tmp_path, toy.steps())
    assert run(plan) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: RAY_ADDRESS={nobody}: ") and len(captured.err.splitlines()) == 1
    assert not list(tmp_path.glob("*/.lease-*")) and not list((tmp_path / ".drivers").iterdir())
    assert check(plan) == 1
    assert capsys.readouterr().out.startswith(f"FAIL cluster: RAY_ADDRESS={nobody}: ")


SIGNALS = """
import os, signal
from launch.execution.cluster import shielded
before = signal.getsignal(signal.SIGTERM)
with shielded():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))  # as ray.init does
    os.kill(os.getpid(), signal.SIGTERM)
    child = os.popen("grep SigBlk /proc/self/status").read().split()[1]
    assert int(child, 16) >> (signal.SIGTERM - 1) & 1
"""


def test_what_starts_shielded_blocks_sigterm_and_the_handler_is_kept():
    code = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))" + SIGNALS
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 3
