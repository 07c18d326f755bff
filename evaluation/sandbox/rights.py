"""What a process gives up before it runs a program that a model wrote. Standard library only.

- resource limits: processor time, address space, file size, open files, no core dumps;
- root becomes nobody, without capabilities (but to read, where only root may read this Python's own library);
- Landlock: reading below the Python installation and the system libraries, writing below one folder, nothing else;
  /proc (and with it the environment and the memory of other processes) is out of reach;
- seccomp: the system calls of the list below and no others. A new process or thread is asked for: the kernel suspends
  the call until the keeper (`jail`) has decided it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import socket
import struct
import sys
from functools import lru_cache

NOBODY = 65534
CAP_DAC_READ_SEARCH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 8, 36, 38
SIGKILL = 9
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE, REFER, IOCTL_DEVICE = 1 << 2, 1 << 3, 1 << 1, 1 << 14, 1 << 13, 1 << 15
SCOPE_ABSTRACT_SOCKET_AND_SIGNAL = 3
READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom")
OPEN_FILES = 64
# Deep recursion in C (sorting keys, cached functions) needs more than the usual 8 MiB; the kernel keeps 128 MiB free.
STACK_BYTES = 100 << 20

# name: number on x86_64, on aarch64 (None: does not exist there). What is not here fails with EPERM.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "open": (2, None), "openat": (257, 56), "close": (3, 57), "close_range": (436, 436),
    "lseek": (8, 62), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49),
    "fchdir": (81, 50), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "ftruncate": (77, 46), "fsync": (74, 82), "fdatasync": (75, 83), "flock": (73, 32), "sendfile": (40, 71),
    "statfs": (137, 43), "fstatfs": (138, 44), "umask": (95, 166), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19), "recvfrom": (45, 207),
    "shutdown": (48, 210), "getsockname": (51, 204),
    "getsockopt": (55, 209), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132), "pause": (34, None), "alarm": (37, None),
    "setitimer": (38, 103), "getitimer": (36, 102), "nanosleep": (35, 101), "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179), "getrusage": (98, 165), "getrlimit": (97, 163),
    "setrlimit": (160, 164), "getcpu": (309, 168), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "getpriority": (140, 141), "futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "rseq": (334, 293), "set_tid_address": (218, 96), "arch_prctl": (158, None), "membarrier": (324, 283),
    "restart_syscall": (219, 128), "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94),
    "wait4": (61, 260), "waitid": (247, 95),
}  # fmt: skip
# name: (numbers, the 32-bit word of the arguments that is looked at and the values it may have, ...). A pair of sockets
# is a stream: none can be given an address. Limits are one's own, and the signal that tells of a parent's death (prctl)
# stays as it was set.
STREAM_SOCKETS = (1, 1 | 0x800, 1 | 0x80000, 1 | 0x80800)
ALLOWED_WITH: dict[str, tuple[tuple[int, int], tuple[tuple[int, tuple[int, ...]], ...]]] = {
    "prctl": ((157, 167), ((0, (15, 16)),)),  # the name of a thread
    "prlimit64": ((302, 261), ((0, (0,)),)),
    "fcntl": ((72, 25), ((2, (0, 1, 2, 3, 4, 5, 6, 7, 1030)),)),  # copies, flags and locks of descriptors
    "ioctl": ((16, 29), ((2, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),)),  # terminal?, waiting bytes, flags
    "socketpair": ((53, 199), ((0, (1,)), (2, STREAM_SOCKETS))),
    "sendto": ((44, 206), ((8, (0,)), (9, (0,)))),  # both halves of an address
}
LAST_KNOWN_CALL = 451
CLONE, CLONE3, SECCOMP = (56, 220), (435, 435), (317, 277)
THREAD_FLAGS = (0x3D0F00, 0x7D0F00)  # of the two C libraries
FORK_FLAGS = 0x1200011
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
NEW_LISTENER = 1 << 3
# Of the kernel's packet filter: instructions, places in what it looks at, results.
LOAD, EQUAL, GREATER, FINISH = 0x20, 0x15, 0x25, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
ALLOW, ASK, KILL = 0x7FFF0000, 0x7FC00000, 0x80000000
REFUSE, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NOTIFICATION, ANSWER, RECEIVE, SEND, GO_ON = 80, 24, 0xC0502100, 0xC0182101, 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """`result` of a C call. Raises OSError where it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def limit_resources(limits: dict) -> None:
    """Of this process and those that it forks, but for processor time."""
    for what, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES if hard < 0 else min(STACK_BYTES, hard), hard))


def limit_processor(seconds: int, hard: int | None = None) -> None:
    """seconds: after which a signal tells the reason; hard: after which the process is killed."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard or seconds + 1))


def become_nobody(folders: list[str]) -> None:
    """Give `folders` to nobody and become that, but for the capability to read this Python's library."""
    for folder in folders:
        os.chown(folder, NOBODY, NOBODY)
    check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    # Effective capabilities are gone now; permitted ones go here. A Python below root's home stays readable, and
    # Landlock bounds what this capability can reach.
    kept = 0 if os.access(os.__file__, os.R_OK) else 1 << CAP_DAC_READ_SEARCH
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    data = ctypes.create_string_buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0))
    check(libc.capset(header, data), "capset")
    # The keeper counts what its children hold open, in /proc.
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")


def file_rules(writable: str, readable: str) -> int:
    """A Landlock rule set as a descriptor: everything but device nodes and sockets below `writable`, files of
    `readable`. Raises OSError where the kernel has no Landlock."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock (Linux 5.13, enabled); generated code cannot run here")
    rights = (1 << 13) - 1
    rights |= (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0) | (IOCTL_DEVICE if version >= 5 else 0)
    attributes = struct.pack("=QQQ", rights, 3 if version >= 4 else 0, SCOPE_ABSTRACT_SOCKET_AND_SIGNAL)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = check(libc.syscall(LANDLOCK_CREATE, attributes, size, 0), "landlock_create_ruleset")

    def allow(path: str, access: int) -> None:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access & rights, descriptor)
        check(libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(descriptor)

    installation = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    for path in {*READABLE, *installation}:
        if os.path.isdir(path):
            allow(path, READ_FILE | READ_DIR)
        elif os.path.exists(path):
            allow(path, READ_FILE)
    allow("/dev/null", READ_FILE | WRITE_FILE | TRUNCATE)
    allow(readable, READ_FILE)
    allow(writable, rights & ~(1 << 0 | 1 << 6 | 1 << 9 | 1 << 11))
    return rules


def restrict_files(rules: int) -> None:
    """Restrict this process to `file_rules`."""
    check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "landlock_restrict_self")


@lru_cache  # the keeper makes it once, not each of its children
def call_filter(*, forks: bool) -> bytes:
    """The seccomp program, as instructions of the kernel's packet filter. forks: a copy of the process may be asked
    for; a thread always may. Raises OSError on an architecture that has no table."""
    column, program = _beginning()
    program += [(LOAD, 0, 0, NUMBER), (GREATER, 0, 1, LAST_KNOWN_CALL), (FINISH, 0, 0, UNKNOWN)]
    # clone3 hides its flags in memory; C libraries go back to clone.
    program += [(EQUAL, 0, 1, CLONE3[column]), (FINISH, 0, 0, UNKNOWN)]
    for numbers in ALLOWED.values():
        if (this := numbers[column]) is not None:
            program += [(EQUAL, 0, 1, this), (FINISH, 0, 0, ALLOW)]
    asked = {"clone": (CLONE, ((0, (*THREAD_FLAGS, FORK_FLAGS) if forks else THREAD_FLAGS),))}
    for numbers, conditions in {**ALLOWED_WITH, **asked}.values():
        steps = []
        for word, values in conditions:
            steps += [(LOAD, 0, 0, ARGUMENTS + 4 * word)]
            steps += [(EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
            steps += [(FINISH, 0, 0, REFUSE)]
        program += [(EQUAL, 0, len(steps) + 1, numbers[column]), *steps, (FINISH, 0, 0, ALLOW)]
    return _packed([*program, (FINISH, 0, 0, REFUSE)])


@lru_cache
def _question() -> bytes:
    """Every clone is asked for. Beside `call_filter`, whose refusal counts for more than the keeper's answer."""
    column, program = _beginning()
    program += [(LOAD, 0, 0, NUMBER), (EQUAL, 0, 1, CLONE[column]), (FINISH, 0, 0, ASK), (FINISH, 0, 0, ALLOW)]
    return _packed(program)


def _beginning() -> tuple[int, list[tuple[int, int, int, int]]]:
    if platform.machine() not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the sandbox knows {', '.join(ARCHITECTURES)}, this is {platform.machine()}")
    audit, column = ARCHITECTURES[platform.machine()]
    return column, [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, audit), (FINISH, 0, 0, KILL)]


def _packed(program: list[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *step) for step in program)


def restrict_calls(link: socket.socket, *, forks: bool) -> None:
    """Install the filter for good, and send the keeper the descriptor on which it is asked for processes and threads.

    Two filters, as the process may send no descriptor once it is restricted: a file that is on its way, held open by
    nobody, would be counted by nobody.
    """
    listener = _install(_question(), NEW_LISTENER)
    socket.send_fds(link, [b"K"], [listener])
    os.close(listener)
    _install(call_filter(forks=forks), 0)
    link.sendall(b"R")


def _install(program: bytes, flags: int) -> int:
    code = ctypes.create_string_buffer(program)
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    call = SECCOMP[ARCHITECTURES[platform.machine()][1]]
    return check(libc.syscall(call, 1, flags, header), "seccomp")


def asked(listener: int) -> tuple[int, int, int]:
    """Who asks for a process or a thread: the question's number, the caller's thread id, the flags of `clone`."""
    question = bytearray(NOTIFICATION)
    fcntl.ioctl(listener, RECEIVE, question)
    number, caller = struct.unpack_from("=QI", question)
    return number, caller, struct.unpack_from("=Q", question, 32)[0]


def answer(listener: int, number: int, yes: bool) -> None:
    """Let the call go on, or fail with EPERM."""
    error, flags = (0, GO_ON) if yes else (-errno.EPERM, 0)
    try:
        fcntl.ioctl(listener, SEND, struct.pack("=QqiI", number, 0, error, flags))
    except OSError as failure:
        if failure.errno != errno.ENOENT:  # killed while it waited
            raise
