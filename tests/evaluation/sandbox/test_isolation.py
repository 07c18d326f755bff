"""What one program can take, keep and leave: calls of the kernel, threads, files, time, processes."""

import errno
import json
import os
import re
import time
from pathlib import Path

import pytest

from common.errors import ConfigError
from evaluation.grading import GradingPool
from evaluation.sandbox import Limits, Sandbox, check_sandbox, rights, run_code, sandbox
from evaluation.sandbox.usage import family, remove
from evaluation.sandbox.values import decode

HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))
# number on x86_64, arguments: each is refused with EPERM, or ENOSYS where C libraries know another way.
REFUSED = {
    "memfd_create": (319, "b'x', 0"),
    "forget the parent": (157, "1, 0, 0, 0, 0"),
    "another signal of the parent": (157, "1, 15, 0, 0, 0"),
    "undumpable": (157, "4, 0, 0, 0, 0"),
    "new user namespace": (56, "0x10000011, 0, 0, 0, 0"),
    "unshare": (272, "0x10000000"),
    "vfork": (58, ""),
    "clone3": (435, "0, 0"),
    "io_uring": (425, "1, 0"),
    "bpf": (321, "0, 0, 0"),
    "perf": (298, "0, 0, 0, 0, 0"),
    "userfaultfd": (323, "0"),
    "keys": (250, "0, 0, 0, 0, 0"),
    "memory of others": (310, "1, 0, 0, 0, 0, 0"),
    "socket": (41, "2, 1, 0"),
    "datagrams": (53, "1, 2, 0, 0"),
    "signal": (62, "0, 0"),
    "signal to a thread": (234, "1, 1, 0"),
    "new session": (112, ""),
    "new group": (109, "0, 0"),
    "device": (133, "b'x', 0o20666, 0x103"),
    "shared memory": (29, "0, 4096, 0o1600"),
    "message queue": (240, "b'q', 0x40, 0, 0"),
    "another filter": (317, "0, 0, 0"),
    "a file on its way": (46, "3, 0, 0"),
    "owner of a pipe": (72, "0, 8, 1"),
    "input to a terminal": (16, "0, 0x5412, 0"),
    "allocate": (285, "0, 0, 0, 4096"),
    "thirty-two bits' own numbers": (0x40000000 + 39, ""),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_calls_that_are_not_listed_are_refused():
    program = "import ctypes, json\nlibc = ctypes.CDLL(None, use_errno=True)\nfound = {}\n"
    for name, (number, arguments) in REFUSED.items():
        call = f"libc.syscall(ctypes.c_long({number}), {arguments})"
        program += f"ctypes.set_errno(0); found[{name!r}] = [{call}, ctypes.get_errno()]\n"
    ran = run_code(program + "print(json.dumps(found))", run_generated_code=True)
    found = json.loads(ran.output)
    assert found.keys() == REFUSED.keys()
    assert not {name: what for name, what in found.items() if what[0] != -1 or what[1] not in (1, errno.ENOSYS)}


@pytest.mark.parametrize("column", [0, 1], ids=["x86_64", "aarch64"])
def test_the_table_of_calls_is_the_kernels(column):
    if not HEADERS[column].exists():
        pytest.skip("no kernel headers")
    numbers = {}
    for name, number in re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)", HEADERS[column].read_text()):
        numbers.setdefault("newfstatat" if column and name == "fstatat" else name, int(number))
    table = {**rights.ALLOWED, **{name: one for name, (one, _) in rights.ALLOWED_WITH.items()}}
    assert {name: pair[column] for name, pair in table.items()} == {name: numbers.get(name) for name in table}
    for name in ("clone", "clone3", "seccomp"):
        assert getattr(rights, name.upper())[column] == numbers[name]
    assert not {"memfd_create", "kill", "execve", "fork", "vfork", "socket", "ptrace", "unshare"} & table.keys()


def test_threads_are_limited_and_processes_refused():
    program = (
        "import threading, time\nstarted = 0\n"
        "try:\n"
        "    for _ in range(200): threading.Thread(target=time.sleep, args=(1,), daemon=True).start(); started += 1\n"
        "except RuntimeError: pass\n"
        "print(started)"
    )
    assert int(run_code(program, run_generated_code=True, limits=Limits(threads=16)).output) == 15
    forks = (
        "import os\nrefused = 0\ndef f():\n    global refused\n    for _ in range(5):\n"
        "        try: os.fork()\n        except PermissionError: refused += 1\n    return refused"
    )
    with Sandbox(forks, run_generated_code=True) as box:
        box.load("f")
        assert decode(box.call([[]])[0].content) == 5
        assert len(family(family(box._process.pid)[-1])) == 1


HIDDEN = {
    "unlinked": "f = open(str(i), 'wb'); f.write(bytes(500_000)); f.flush(); os.unlink(str(i)); kept.append(f)",
    "nameless": (
        "f = open(os.open('.', os.O_TMPFILE | os.O_RDWR), 'wb'); f.write(bytes(500_000)); f.flush(); kept.append(f)"
    ),
    "mapped": (
        "f = open(str(i), 'w+b'); f.write(bytes(500_000)); f.flush();"
        "libc.mmap(0, 500_000, 1, 1, f.fileno(), 0); f.close(); os.unlink(str(i))"
    ),
    "on the way through a socket": (
        "f = open(str(i), 'wb'); f.write(bytes(500_000)); f.flush(); os.unlink(str(i)); pair = socket.socketpair();"
        "pair[0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [f.fileno()]))]);"
        "f.close(); kept.append(pair)"
    ),
    "in deep folders": "[(os.mkdir('d'), os.chdir('d')) for _ in range(20)]",
    "in folders without rights": (
        "os.mkdir(str(i)); open(f'{i}/f', 'wb').write(bytes(500_000)); os.rename(str(i), f'x{i}'); os.umask(0o777);"
        "os.mkdir(f'y{i}'); os.umask(0)"
    ),
}


@pytest.mark.parametrize("step", HIDDEN.values(), ids=HIDDEN)
def test_files_are_counted_wherever_they_are(step, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o711)
    program = (
        "import array, ctypes, os, socket, time\nlibc = ctypes.CDLL(None)\nkept = []\n"
        f"for i in range(10):\n    {step}\ntime.sleep(20)"
    )
    ran = run_code(program, run_generated_code=True, limits=Limits(disk_bytes=2 << 20))
    assert ran.status == "disk" or "PermissionError" in ran.error  # no descriptor can be sent
    assert list(tmp_path.iterdir()) == []


def test_each_case_has_its_own_state_files_and_time():
    program = (
        "import os, time\nseen = []\nopen('loaded', 'w').close()\n"
        "def f(x):\n"
        "    seen.append(x)\n"
        "    files = sorted(os.listdir('.'))\n"
        "    open(f'left-{x}', 'w').close()\n"
        "    os.environ['LEFT'] = os.environ.get('LEFT', '') + 'x'\n"
        "    began = time.process_time()\n"
        "    while time.process_time() - began < 0.7: pass\n"
        "    return len(seen), files, os.environ['LEFT']\n"
    )
    with Sandbox(program, Limits(cpu_seconds=1), run_generated_code=True) as box:
        assert box.load("f").kind == "value"
        for x in range(4):
            assert decode(box.call([[x]])[0].content) == (1, ["loaded"], "x")
        together = [decode(answer.content)[0] for answer in box.call([[8], [9]])]
    assert together == [1, 2]


def test_time_is_counted_for_each_case_and_not_by_the_machines_load():
    program = "def f(x):\n    while x: pass\n    return x\n"
    with Sandbox(program, Limits(cpu_seconds=1), run_generated_code=True) as box:
        box.load("f")
        assert [answer.kind for answer in box.call([[0], [1]])] == ["value", "timeout"]
        assert box.call([[0]])[0].kind == "value"
    waiting = "import time\ndef f(x):\n    time.sleep(x)\n    return x\n"
    with Sandbox(waiting, Limits(seconds=1.0), run_generated_code=True) as box:
        box.load("f")
        assert [box.call([[x]])[0].kind for x in (0.5, 0.8, 60)] == ["value", "value", "timeout"]


def test_a_case_costs_little():
    """5 ms of processor time at most, of all processes together."""

    def used(pids):
        seconds = 0
        for pid in pids:
            values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds += sum(int(value) for value in values[11:15]) / os.sysconf("SC_CLK_TCK")
        return seconds

    with Sandbox("def add(a, b):\n    return a + b", run_generated_code=True) as box:
        box.load("add")
        pids = family(box._process.pid)
        costs = []
        for _ in range(3):
            before = used(pids) + time.process_time()
            for number in range(200):
                assert box.call([[number, 1]])[0].kind == "value"
            costs.append((used(pids) + time.process_time() - before) / 200)
    assert min(costs) <= 0.005


def test_a_program_that_ignores_the_signal_of_its_limit_is_stopped():
    program = (
        "import signal, time\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        "def f(x):\n"
        "    began = time.process_time()\n"
        "    while time.process_time() - began < x: pass\n"
        "    return 1\n"
    )
    with Sandbox(program, Limits(cpu_seconds=1), run_generated_code=True) as box:
        assert box.load("f").kind == "value"
        assert [box.call([[x]])[0].kind for x in (0.1, 4)] == ["value", "timeout"]


# Both take the one copy that the keeper allows for a case, and keep it.
COPIES = {
    "a thread that is faster": (
        "import os, threading, time\n"
        "def copy():\n"
        "    while True:\n"
        "        try:\n"
        "            if os.fork() == 0: time.sleep(600)\n"
        "            os._exit(0)\n"
        "        except OSError: pass\n"
        "threading.Thread(target=copy, daemon=True).start()\n"
    ),
    "a fork of its own": (
        "import os, time\nfork = os.fork\n"
        "def copy():\n"
        "    if fork() == 0: time.sleep(600)\n"
        "    return fork()\n"
        "os.fork = copy\n"
    ),
    "a case that is answered without one": (
        "import os, struct, time\nfork = os.fork\n"
        "def copy():\n"
        "    if fork() == 0: time.sleep(600)\n"
        "    os.write(3, struct.pack('!cI', b'V', 1) + b'1' + struct.pack('!cI', b'E', 1) + b'0')\n"
        "    time.sleep(600)\n"
        "os.fork = copy\n"
    ),
}


@pytest.mark.parametrize("program", COPIES.values(), ids=COPIES)
def test_no_copy_of_a_program_outlives_its_case(program):
    with Sandbox(program + "def f():\n    return 1\n", Limits(seconds=2.0), run_generated_code=True) as box:
        box.load("f")
        kinds = [box.call([[]])[0].kind for _ in range(3)]
        assert kinds[1:] == ["ended", "ended"] and family(box._process.pid) == [box._process.pid]


def test_what_ends_without_a_word_is_known():
    with Sandbox("import os\ndef f(x):\n    os._exit(x)", run_generated_code=True) as box:
        box.load("f")
        assert [box.call([[x]])[0].kind for x in (0, 3)] == ["ended", "ended"]
    with Sandbox("def f(x):\n    return bytearray(x)", Limits(memory_bytes=1 << 29), run_generated_code=True) as box:
        box.load("f")
        assert box.call([[1 << 30]])[0].kind == "raised"
    with Sandbox(
        "def f():\n    while True: print('x' * 9999)", Limits(output_bytes=99999), run_generated_code=True
    ) as box:
        box.load("f")
        assert box.call([[]])[0].kind == "output"
        assert box.call([[]])[0].kind == "ended"
    with Sandbox("def f():\n    return 'x' * 9999", Limits(value_bytes=999), run_generated_code=True) as box:
        box.load("f")
        assert box.call([[]])[0].kind == "output"


def processes_in(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes() and b"sandbox-" in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def until(done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("program", ["import time\ntime.sleep(600)", "while True: open('x', 'a').write('x')"])
def test_the_server_removes_what_a_killed_worker_leaves(program, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tmp_path.chmod(0o711)
    answer = '{"cases": [["", "x"]]}'
    with GradingPool(workers=1) as pool:
        arguments = ("evaluation.grading.pool:grade_as_json", program, answer, "code", True)
        future = pool.submit(*arguments, timeout_seconds=4.0)
        until(lambda: list(tmp_path.glob("grading-*/*/sandbox-*")))
        assert future.result().status == "timeout"
        until(lambda: not list(tmp_path.glob("grading-*/*/sandbox-*")) and not processes_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_next_server_removes_what_a_killed_one_has_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tmp_path.chmod(0o711)
    pool = GradingPool(workers=1)
    pool.submit(
        "evaluation.grading.pool:grade_as_json", "input()\nwhile True: pass", '{"cases": [["\\n", "x"]]}', "code", True
    )
    until(lambda: processes_in(tmp_path))
    pool._process.kill()
    pool._process.wait()
    until(lambda: not processes_in(tmp_path))
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    with GradingPool(workers=1) as pool:
        assert pool.grade("1", "1").correct
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_removed_whatever_is_in_it(tmp_path):
    deep = tmp_path / "deep"
    deep.mkdir()
    here = os.getcwd()
    try:
        os.chdir(deep)
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    assert remove(deep) and not deep.exists() and remove(deep)


@pytest.fixture
def no_landlock(monkeypatch):
    """A kernel without Landlock, as the keeper sees it."""
    hidden = "from evaluation.sandbox import rights; rights.LANDLOCK_CREATE = 99999; "
    monkeypatch.setattr(sandbox, "START", sandbox.START.replace("main()", hidden + "main()"))
    check_sandbox.cache_clear()
    yield
    check_sandbox.cache_clear()


def test_without_a_sandbox_nothing_runs(no_landlock):
    with pytest.raises(RuntimeError, match=r"sandbox: .*this kernel has no Landlock"):
        run_code("pass", run_generated_code=True)
    with pytest.raises(ConfigError, match=r"run_generated_code: .*Landlock.*leave out"):
        check_sandbox()


def test_without_a_sandbox_rl_refuses_before_it_starts(no_landlock):
    from rl_stage.rewards import load_reward

    with pytest.raises(ConfigError, match="no Landlock"):
        load_reward("code", {"run_generated_code": True})


def test_with_a_sandbox_the_check_says_nothing():
    check_sandbox.cache_clear()
    assert check_sandbox() is None
