"""What jailed processes use, read from outside them: whether they run, their threads, their files. Standard library
only; also the removal of what they leave, by the keeper and by whoever is above it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

# Of folders in folders. More is a program that hides files from whoever counts them.
DEEPEST = 64
ENTRY_BYTES = 4096
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and those that it has forked."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found = [pid]
    for thread in threads:
        try:
            found += [int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
        except OSError:
            continue
    return found


def busy(pid: int) -> bool:
    """Whether a thread of a process runs, could run, waits for a disk, or was stopped from outside."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return any(
            Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] in "RDTt"
            for thread in threads
        )
    except OSError:
        return False


def processor_seconds(pid: int) -> float:
    """What a process and its children that have ended have used; 0 for one that is gone."""
    try:
        values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(value) for value in values[11:15]) / CLOCK_TICKS


def threads(pid: int) -> int:
    """How many threads the process of a thread has."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("Threads:")[2].split()[0])


def below(folder: str) -> int:
    """Bytes of all files below a folder, and a block for each; -1 if it is too deep to count."""
    total = 0
    waiting = [(folder, 0)]
    while waiting:
        path, depth = waiting.pop()
        if depth > DEEPEST:
            return -1
        try:
            entries = list(os.scandir(path))
        except PermissionError:  # made without rights by the program
            try:
                os.chmod(path, 0o700)
                entries = list(os.scandir(path))
            except OSError:
                continue
        except OSError:
            continue
        for entry in entries:
            total += ENTRY_BYTES
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, depth + 1))
                else:
                    total += _bytes(entry.stat(follow_symlinks=False))
            except OSError:
                continue
    return total


def unlinked(pid: int) -> dict[tuple[int, int], int]:
    """(device, inode) of files that a process holds open or mapped and that no folder lists, to their bytes."""
    found: dict[tuple[int, int], int] = {}
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            try:
                about = os.stat(f"/proc/{pid}/fd/{number}")
            except OSError:
                continue
            if stat.S_ISREG(about.st_mode) and about.st_nlink == 0:
                found[about.st_dev, about.st_ino] = _bytes(about)
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if line.endswith(" (deleted)"):
                addresses, _, _, device, inode, *_ = line.split()
                start, end = (int(part, 16) for part in addresses.split("-"))
                major, minor = (int(part, 16) for part in device.split(":"))
                key = os.makedev(major, minor), int(inode)
                found[key] = max(found.get(key, 0), end - start)
    except OSError:
        pass
    return found


def _bytes(about: os.stat_result) -> int:
    return max(about.st_size, 512 * about.st_blocks)


def empty(folder: str, but: frozenset[str] = frozenset()) -> None:
    """Remove everything in a folder except the entries named `but`. Raises OSError, RecursionError."""
    for entry in os.scandir(folder):
        if entry.name in but:
            continue
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)
            below(entry.path)  # lets the removal into folders without rights
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def remove(folder: Path | str) -> bool:
    """Remove a folder whatever a program has made in it; whether it is gone."""
    try:
        below(str(folder))
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except (OSError, RecursionError):
        subprocess.run(["rm", "-rf", "--", str(folder)], stderr=subprocess.DEVNULL, check=False)
    return not os.path.lexists(folder)
