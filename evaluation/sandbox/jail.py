"""The sandboxed process: gives up its rights, runs one program, reports how it ended.

Run as `python -I jail.py <request fd> <result fd>` by `sandbox.run_code`, in the temporary folder that the program may
write to. Standard library only. Every step that fails ends the process before the program starts.

- resource limits: address space, CPU time, file size, open files, no core dumps;
- root becomes nobody, without capabilities (but to read, where only root may read this Python's own library);
- Landlock: reading below the Python installation and the system libraries, writing below the temporary folder,
  nothing else; /proc (and with it the environment of other processes) is out of reach;
- seccomp: no sockets, no new processes or programs, no signals to or tampering with others, no mounts, no namespaces,
  no change of owners, modes or times, no System V objects, no kernel interfaces younger than the list below.
"""

import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys
import traceback

NOBODY = 65534
CAP_DAC_READ_SEARCH = 2
PR_SET_KEEPCAPS, PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 8, 1, 22, 38
SIGKILL = 9
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR, WRITE_FILE, TRUNCATE, REFER, IOCTL_DEVICE = 1 << 2, 1 << 3, 1 << 1, 1 << 14, 1 << 13, 1 << 15
SCOPE_ABSTRACT_SOCKET_AND_SIGNAL = 3
READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom")

# name: number on x86_64, on aarch64 (None: does not exist there)
FORBIDDEN = {
    "socket": (41, 198), "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "process_madvise": (440, 440), "process_mrelease": (448, 448), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "truncate": (76, 45), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "capset": (126, 91), "setuid": (105, 146),
    "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147),
    "setresgid": (119, 149), "setgroups": (116, 159), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "fanotify_init": (300, 262), "personality": (135, 92),
}  # fmt: skip
LAST_KNOWN_CALL = 451
CLONE, CLONE3, PRLIMIT, FCNTL, IOCTL = (56, 220), (435, 435), (302, 261), (72, 25), (16, 29)
CLONE_THREAD = 0x10000
# Their owner gets a signal: F_SETSIG, F_SETOWN, F_SETOWN_EX, F_NOTIFY; FIOSETOWN, SIOCSPGRP, TIOCSTI.
FORBIDDEN_FCNTL = (10, 8, 15, 1026)
FORBIDDEN_IOCTL = (0x8901, 0x8902, 0x5412)
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def limit_resources(limits: dict) -> None:
    # At the soft limit the process gets a signal that tells the reason, at the hard one it is killed.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))
    for what, value in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["disk_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))


def become_nobody() -> None:
    os.chown(".", NOBODY, NOBODY)
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


def restrict_files() -> None:
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock (Linux 5.13, enabled); generated code cannot run here")
    rights = (1 << 13) - 1
    rights |= (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0) | (IOCTL_DEVICE if version >= 5 else 0)
    attributes = struct.pack("=QQQ", rights, 3 if version >= 4 else 0, SCOPE_ABSTRACT_SOCKET_AND_SIGNAL)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = check(libc.syscall(LANDLOCK_CREATE, attributes, size, 0), "landlock_create_ruleset")

    def allow(path: str, access: int) -> None:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access & rights, descriptor)
        check(libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(descriptor)

    installation = {os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    for path in {*READABLE, *installation}:
        if os.path.isdir(path):
            allow(path, READ_FILE | READ_DIR)
        elif os.path.exists(path):
            allow(path, READ_FILE)
    allow("/dev/null", READ_FILE | WRITE_FILE | TRUNCATE)
    # Everything but device nodes and sockets.
    allow(".", rights & ~(1 << 0 | 1 << 6 | 1 << 9 | 1 << 11))
    check(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def restrict_calls() -> None:
    if platform.machine() not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the sandbox knows {', '.join(ARCHITECTURES)}, this is {platform.machine()}")
    audit, column = ARCHITECTURES[platform.machine()]
    load, equal, greater, any_bit, finish = 0x20, 0x15, 0x25, 0x45, 0x06
    number, architecture, first, second = 0, 4, 16, 24
    allow, kill = 0x7FFF0000, 0x80000000
    refuse, unknown = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    program = [(load, 0, 0, architecture), (equal, 1, 0, audit), (finish, 0, 0, kill)]
    program += [(load, 0, 0, number), (greater, 0, 1, LAST_KNOWN_CALL), (finish, 0, 0, unknown)]
    # clone3 hides its flags in memory; C libraries go back to clone.
    program += [(equal, 0, 1, CLONE3[column]), (finish, 0, 0, unknown)]
    for numbers in FORBIDDEN.values():
        if numbers[column] is not None:
            program += [(equal, 0, 1, numbers[column]), (finish, 0, 0, refuse)]
    program += [(equal, 0, 4, CLONE[column]), (load, 0, 0, first), (any_bit, 1, 0, CLONE_THREAD)]
    program += [(finish, 0, 0, refuse), (finish, 0, 0, allow)]
    program += [(equal, 0, 4, PRLIMIT[column]), (load, 0, 0, first), (equal, 1, 0, 0)]
    program += [(finish, 0, 0, refuse), (finish, 0, 0, allow)]
    for call, commands in ((FCNTL, FORBIDDEN_FCNTL), (IOCTL, FORBIDDEN_IOCTL)):
        program += [(equal, 0, 2 + 2 * len(commands), call[column]), (load, 0, 0, second)]
        for command in commands:
            program += [(equal, 0, 1, command), (finish, 0, 0, refuse)]
        program += [(finish, 0, 0, allow)]
    program += [(finish, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    check(libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0), "seccomp")


def main() -> None:
    request_fd, result_fd = int(sys.argv[1]), int(sys.argv[2])
    with open(request_fd) as stream:
        request = json.load(stream)
    parent = os.getppid()
    try:
        if parent != request["parent"]:
            raise OSError(errno.ESRCH, "the parent is gone")
        limit_resources(request["limits"])
        if os.geteuid() == 0:
            become_nobody()
        check(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "prctl")
        check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        restrict_files()
        restrict_calls()
    except Exception as error:
        os.write(result_fd, json.dumps(["refused", str(error)]).encode())
        os._exit(0)
    outcome = ["passed", ""]
    try:
        exec(compile(request["program"], "<program>", "exec"), {"__name__": "__main__"})
    except MemoryError:
        outcome = ["memory", "MemoryError"]
    except BaseException as error:
        outcome = ["failed", "".join(traceback.format_exception_only(error)).strip()[-500:]]
    try:
        sys.stdout.flush()
    except BaseException:  # whatever the program has made of its output
        outcome = outcome if outcome[0] != "passed" else ["failed", "standard output was broken"]
    os.write(result_fd, json.dumps([request["token"], *outcome]).encode())
    # Threads and exit handlers of the program have no say after the verdict.
    os._exit(0)


if __name__ == "__main__":
    main()
