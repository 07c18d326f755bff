"""Ray's workers are forks of one process that has imported; what cannot be forked starts in Ray's own way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.worker_forks import client, server, start

ROOT = Path(__file__).parents[2]

RUN = """
import json, os, random
import ray
from common.ray_session import start_private_ray
from common.worker_forks.start import fork_server

class Probe:
    def look(self):
        import heavy
        return {
            "imported by": heavy.PID, "pid": os.getpid(), "parent": os.getppid(), "random": random.random(),
            "variable": os.environ.get("OF_ACTOR"), "socket": "SFT_THEN_RL_FORK_SERVER" in os.environ,
        }
    def leave(self):
        os._exit(1)

probe = ray.remote(num_cpus=0)(Probe)
with fork_server(["ray._private.workers.default_worker", "heavy"]):
    # workers that Ray starts before it knows of a job are its own
    known = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}
    start_private_ray(cpus=2, object_store_memory=100 * 2**20, _system_config=known)
    one, two = probe.remote(), probe.options(runtime_env={"env_vars": {"OF_ACTOR": "given"}}).remote()
    say = {"first": ray.get(one.look.remote()), "second": ray.get(two.look.remote())}
    one.leave.remote()
    third = probe.remote()
    say["third"] = ray.get(third.look.remote())
    print(json.dumps(say), flush=True)
    ray.shutdown()
"""
HEAVY = """
import os, threading
PID = os.getpid()
"""


def ran(tmp_path: Path, code: str, **modules: str) -> subprocess.CompletedProcess[str]:
    for name, text in modules.items():
        (tmp_path / f"{name}.py").write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        cwd=tmp_path,
    )


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_share_what_the_server_imported(tmp_path):
    found = ran(tmp_path, RUN, heavy=HEAVY)
    assert found.returncode == 0, found.stderr[-3000:]
    say = json.loads(found.stdout.splitlines()[-1])
    server = say["first"]["imported by"]
    for one in say.values():
        assert one["imported by"] == one["parent"] == server != one["pid"]
        assert not one["socket"]
    assert (say["first"]["variable"], say["second"]["variable"]) == (None, "given")
    assert len({one["random"] for one in say.values()}) == 3  # not the same numbers in every fork
    assert not Path(f"/proc/{server}").exists()


WORKER = """
import json, os, sys
import heavy
print(json.dumps({
    "imported by": heavy.PID, "parent": os.getppid(), "arguments": sys.argv, "main": __name__, "here": os.getcwd(),
    "variables": [os.environ.get("OF_ACTOR"), os.environ.get("SFT_THEN_RL_FORK_SERVER")],
}), flush=True)
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Has a worker forked, as Ray would, from a server that imports `heavy`; gives its output."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "plain.py").write_text("import sys\nprint('in its own way', sys.argv[1:])")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")

    def found(context: dict, heavy: str = HEAVY) -> subprocess.CompletedProcess[str]:
        (tmp_path / "heavy.py").write_text(heavy)
        with start.fork_server(["heavy"]):
            command = [sys.executable, client.__file__, str(tmp_path / "worker.py"), "--node-id=x", "--language=PYTHON"]
            return subprocess.run(
                [*command, f"--serialized-runtime-env-context={json.dumps(context)}"],
                env={**os.environ, "RAY_JOB_ID": client.JOB, client.PLAIN: str(tmp_path / "plain.py")},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=100,
            )

    return found


def test_a_worker_is_a_fork_with_its_own_command_line_variables_and_output(ask, tmp_path):
    ran = ask({"env_vars": {"OF_ACTOR": "given"}})
    assert ran.returncode == 0, ran.stderr
    say = json.loads(ran.stdout)
    assert say["imported by"] == say["parent"] and say["main"] == "__main__" and say["here"] == str(tmp_path)
    assert say["arguments"] == [str(tmp_path / "worker.py"), "--node-id=x"]
    assert say["variables"] == ["given", None]


def test_what_cannot_be_forked_starts_in_ray_s_own_way(ask):
    ran = ask({"command_prefix": ["nice"]})
    assert ran.stdout.startswith("in its own way") and "--node-id=x" in ran.stdout and not ran.stderr


def test_a_server_with_a_second_thread_does_not_fork(ask):
    ran = ask({}, HEAVY + "threading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    assert ran.stdout.startswith("in its own way") and "the fork server is gone" in ran.stderr


def test_nothing_is_forked_for_a_client_that_has_left():
    def received(stays: bool) -> object:
        mine, other = socket.socketpair()
        reader, writer = os.pipe()
        with mine, other:
            socket.send_fds(other, [(2).to_bytes(client.LENGTH, "big")], [reader])
            other.sendall(b"{}")
            if not stays:
                other.close()
            found = server.receive(mine)
        os.close(reader)
        os.close(writer)
        if found is not None:
            os.close(found[1][0])
            return found[0]
        return None

    assert received(stays=True) == {}
    assert received(stays=False) is None


def test_a_command_of_ray_is_taken_apart():
    context = {"env_vars": {"A": "1"}, "py_executable": sys.executable}
    arguments = [
        "-s", "/ray/default_worker.py", f"--serialized-runtime-env-context={json.dumps(context)}", "--language=PYTHON",
        "--node-id=a=b",
    ]  # fmt: skip
    assert client.split(arguments) == (["/ray/default_worker.py", "--node-id=a=b"], context)
    assert client.split(["worker.py", "--language=PYTHON"]) == (["worker.py"], {})


@pytest.mark.parametrize(
    ("context", "can"),
    [
        ({}, True),
        ({"py_executable": sys.executable, "command_prefix": []}, True),
        ({"py_executable": "/other/python"}, False),
        ({"command_prefix": ["nice"]}, False),
        ({"override_worker_entrypoint": "/in/container.py"}, False),
    ],
)
def test_only_this_interpreter_is_forked_and_only_for_the_one_job(context, can, monkeypatch):
    monkeypatch.setenv("RAY_JOB_ID", client.JOB)
    assert client.forkable(context) is can
    monkeypatch.setenv("RAY_JOB_ID", "02000000")
    assert not client.forkable(context)
    monkeypatch.delenv("RAY_JOB_ID")
    assert not client.forkable(context)


def test_variables_are_set_as_ray_sets_them(monkeypatch):
    monkeypatch.setenv("HERE", "x")
    monkeypatch.delenv("NOWHERE", raising=False)
    found = client.variables({"A": "${HERE}/y", "B": "${NOWHERE}z", "C": "${A}!"})
    assert (found["A"], found["B"], found["C"], found["HERE"]) == ("x/y", "z", "x/y!", "x")


def test_another_ray_is_refused(monkeypatch):
    monkeypatch.setattr(start.importlib.metadata, "version", lambda name: "2.99.0")
    with pytest.raises(ConfigError, match=r"forked under Ray 2\.60, found 2\.99\.0"), start.fork_server(["json"]):
        pass
