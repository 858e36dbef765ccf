"""Being asked before chosen system calls of a process happen: seccomp's user notification, by ctypes.

``install`` runs in the process to be watched; its threads and children are watched with it. The listener goes to the
supervisor, which ``receive``s one call at a time, in the order in which the kernel met them, whoever made them, and lets it
happen, or makes it fail, or kills. That is one count for the whole process, which ``strace --inject`` cannot give: it counts
for every thread on its own. No privileges are needed.

Reference: seccomp_unotify(2), Documentation/userspace-api/seccomp_filter.rst of the kernel. x86_64, Linux 5.19 and later.
"""

import ctypes
import fcntl
import os
import platform
import struct
from dataclasses import dataclass

PR_SET_NO_NEW_PRIVS = 38
NR_SECCOMP = 317
NR_PIDFD_GETFD = 438
SET_MODE_FILTER = 1
FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
RET_ALLOW, RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
AUDIT_ARCH_X86_64 = 0xC000003E
IOCTL_RECEIVE, IOCTL_SEND = 0xC0502100, 0xC0182101
RESPONSE_CONTINUE = 1
O_CREAT = 0o100

NUMBERS = {
    "write": 1,
    "open": 2,
    "pwrite64": 18,
    "writev": 20,
    "sendfile": 40,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "creat": 85,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "chmod": 90,
    "fchmod": 91,
    "openat": 257,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "fchmodat": 268,
    "sync_file_range": 277,
    "fallocate": 285,
    "pwritev": 296,
    "renameat2": 316,
    "copy_file_range": 326,
}
"""Everything that changes a file system, and what makes that durable; ``open`` and ``openat`` only when they may create."""

NAMES = {number: name for name, number in NUMBERS.items()}
OPEN_FLAGS_AT = {NUMBERS["open"]: 24, NUMBERS["openat"]: 32}
"""Where in ``struct seccomp_data`` their flags are."""


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that waits for its answer."""

    id: int
    pid: int
    """The thread that made it."""
    name: str
    args: tuple[int, ...]


def why_not() -> str:
    """Empty if this machine can do it."""
    if platform.machine() != "x86_64":
        return f"the numbers of system calls are known for x86_64 only, this is {platform.machine()}"
    major, minor = (int(part) for part in platform.release().split(".")[:2])
    if (major, minor) < (5, 19):
        return f"needs Linux 5.19 for SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, this is {platform.release()}"
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            if "user_notif" not in file.read().split():
                return "this kernel has no seccomp user notification"
    except OSError as error:
        return f"this kernel has no seccomp: {error}"
    return ""


def install() -> int:
    """Watch this process from now on; returns the listener. It must be single-threaded. Raises ``OSError``."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program()
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    header = ctypes.create_string_buffer(fprog, len(fprog))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    flags = FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV
    listener = libc.syscall(NR_SECCOMP, SET_MODE_FILTER, flags, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return int(listener)


def receive(listener: int) -> Call | None:
    """The next call; ``None`` when it was gone before it could be looked at. Blocks unless the listener is readable."""
    buffer = bytearray(80)
    try:
        fcntl.ioctl(listener, IOCTL_RECEIVE, buffer)
    except FileNotFoundError:
        return None
    id_, pid, _, number, _, _, *args = struct.unpack("QIIiIQ6Q", buffer)
    return Call(id_, pid, NAMES[number], tuple(args))


def allow(listener: int, call: Call) -> None:
    _answer(listener, struct.pack("QqiI", call.id, 0, 0, RESPONSE_CONTINUE))


def fail(listener: int, call: Call, number: int) -> None:
    """The call returns -1 with this errno, and does nothing."""
    _answer(listener, struct.pack("QqiI", call.id, 0, -number, 0))


def succeed(listener: int, call: Call, value: int) -> None:
    """The call returns ``value`` and does nothing: somebody else has done it."""
    _answer(listener, struct.pack("QqiI", call.id, value, 0, 0))


def descriptor_of(pid: int, number: int) -> int:
    """A copy of another process's descriptor, sharing its offset (pidfd_getfd(2)). ``pid`` may be a thread's."""
    with open(f"/proc/{pid}/status") as file:
        group = next(int(line.split()[1]) for line in file if line.startswith("Tgid:"))
    process = os.pidfd_open(group)
    try:
        copied = ctypes.CDLL(None, use_errno=True).syscall(NR_PIDFD_GETFD, process, number, 0)
        if copied < 0:
            raise OSError(ctypes.get_errno(), f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
        return int(copied)
    finally:
        os.close(process)


def _answer(listener: int, response: bytes) -> None:
    try:
        fcntl.ioctl(listener, IOCTL_SEND, response)
    except FileNotFoundError:
        return  # the process is gone


def _program() -> bytes:
    """Classic BPF over ``struct seccomp_data``: architecture, number, and for opens whether O_CREAT is set."""
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06
    plain = [number for number in NUMBERS.values() if number not in OPEN_FLAGS_AT]
    lines: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),
        (equal, 1, 0, AUDIT_ARCH_X86_64),
        (give, 0, 0, RET_ALLOW),
        (load, 0, 0, 0),
    ]
    for number in plain:
        lines += [(equal, 0, 1, number), (give, 0, 0, RET_USER_NOTIF)]
    for number, at in OPEN_FLAGS_AT.items():
        lines += [
            (equal, 0, 4, number),
            (load, 0, 0, at),
            (bits, 0, 1, O_CREAT),
            (give, 0, 0, RET_USER_NOTIF),
            (give, 0, 0, RET_ALLOW),
        ]
    lines.append((give, 0, 0, RET_ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)
