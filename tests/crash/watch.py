"""One run of a function in a process of its own, each of whose changes to the disk is a point at which a fault can strike.

    kill    SIGKILL before the call happens; git's processes go with it
    eio     the call fails with EIO, once. A failed fsync takes back what it was to save, as ext4 and xfs do: the pages are
            marked clean, so a later fsync succeeds, and they are gone when memory is needed (``forget``)
    enospc  the call fails with ENOSPC, once
    full    a write is taken by half; from then on all that needs room fails with ENOSPC, until the process says that room was
            made

A point is (name of the call, n): its n-th occurrence in the process, threads and children together, on a file below ``folder``.
"""

import errno
import json
import os
import select
import signal
import socket
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash import seccomp
from tests.crash.seccomp import Call

PATIENCE_S = 15.0
PAGE = 4096

BY_DESCRIPTOR = {
    "write": 0,
    "pwrite64": 0,
    "writev": 0,
    "pwritev": 0,
    "sendfile": 0,
    "fsync": 0,
    "fdatasync": 0,
    "ftruncate": 0,
    "fchmod": 0,
    "fallocate": 0,
    "sync_file_range": 0,
    "copy_file_range": 2,
}
BY_PATH = {
    "truncate": 0,
    "rename": 1,
    "mkdir": 0,
    "rmdir": 0,
    "creat": 0,
    "link": 1,
    "unlink": 0,
    "symlink": 1,
    "chmod": 0,
    "open": 0,
}
BY_DIRECTORY_AND_PATH = {
    "openat": (0, 1),
    "mkdirat": (0, 1),
    "unlinkat": (0, 1),
    "renameat": (2, 3),
    "renameat2": (2, 3),
    "linkat": (2, 3),
    "symlinkat": (1, 2),
    "fchmodat": (0, 1),
}
NEEDS_ROOM = frozenset(
    [
        "write",
        "pwrite64",
        "writev",
        "pwritev",
        "sendfile",
        "ftruncate",
        "fallocate",
        "copy_file_range",
        "mkdir",
        "mkdirat",
        "creat",
        "open",
        "openat",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "rename",
        "renameat",
        "renameat2",
    ]
)
SYNCS = frozenset(("fsync", "fdatasync"))
KINDS = ("kill", "eio", "enospc", "full")


@dataclass(frozen=True)
class Fault:
    kind: str
    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}@{self.call}:{self.number}"


@dataclass
class Seen:
    """What became of a run."""

    points: Counter[str]
    fired: str = ""
    """Path of the file at the point where the fault struck; empty if it never did."""
    told: list[dict[str, Any]] = field(default_factory=list)
    code: int = 0
    """Exit status of the process, -9 after SIGKILL."""
    lost: "Lost | None" = None


@dataclass
class Lost:
    """Pages that a failed fsync did not save."""

    descriptor: int
    before: bytes
    at_failure: bytes
    dirty: set[int] = field(default_factory=set)
    """Pages that were written again, even with what they held, and not synced since."""
    saved: set[int] = field(default_factory=set)
    """… and synced."""

    def see(self, call: Call) -> None:
        """A write or a sync after the failure; of this file?"""
        place = f"/proc/{call.pid}/fd/{call.args[0]}"
        mine, there = os.fstat(self.descriptor), os.stat(place)
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            return
        if call.name in SYNCS:
            self.saved |= self.dirty
            self.dirty.clear()
            return
        at = call.args[3]
        if call.name == "write":
            with open(f"/proc/{call.pid}/fdinfo/{call.args[0]}") as file:
                at = int(file.readline().split()[1])
        self.dirty |= set(range(at // PAGE, (at + max(call.args[2], 1) - 1) // PAGE + 1))

    def forget(self) -> int:
        """Take back what was not written again since. Returns how many pages went."""
        now = _content(self.descriptor)
        gone = 0
        for at in range(0, len(now), PAGE):
            there, failed = now[at : at + PAGE], self.at_failure[at : at + PAGE]
            saved = self.before[at : at + PAGE].ljust(len(there), b"\0")
            if there == failed and there != saved and at // PAGE not in self.saved:
                os.pwrite(self.descriptor, saved, at)
                gone += 1
        return gone

    def close(self) -> None:
        os.close(self.descriptor)


def run(
    function: Callable[[Callable[..., None], Callable[[], None]], None],
    folder: Path,
    fault: Fault | None = None,
    lost: "Lost | None" = None,
) -> Seen:
    """Run ``function(tell, made_room)`` in a child. Calls before ``tell("phase", name="watched")`` are no points."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _child(function, theirs)
    theirs.close()
    try:
        return _Watch(pid, ours, folder, fault, lost).run()
    finally:
        ours.close()


def _child(function: Callable[[Callable[..., None], Callable[[], None]], None], link: socket.socket) -> None:
    """Never returns."""
    code = 3
    try:
        listener = seccomp.install()
        socket.send_fds(link, [b"\n"], [listener])
        os.close(listener)

        def tell(kind: str, **facts: Any) -> None:
            link.sendall(json.dumps({"kind": kind, **facts}).encode() + b"\n")

        def made_room() -> None:
            tell("room")
            link.recv(1)

        function(tell, made_room)
        code = 0
    except BaseException as error:
        import traceback

        link.sendall(json.dumps({"kind": "broke", "error": "".join(traceback.format_exception(error))}).encode() + b"\n")
    finally:
        os._exit(code)


class _Watch:
    def __init__(self, pid: int, link: socket.socket, folder: Path, fault: Fault | None, lost: Lost | None) -> None:
        self._pid = pid
        self._link = link
        self._folder = str(folder.resolve()) + "/"
        self._fault = fault
        self._seen = Seen(Counter(), lost=lost)
        self._striking = fault is not None
        self._sticky = False
        self._held = b""
        self._synced: dict[tuple[int, int], bytes] = {}
        if fault is not None and fault.kind == "eio" and fault.call in SYNCS:
            self._synced = _contents(folder)

    def run(self) -> Seen:
        _, descriptors, _, _ = socket.recv_fds(self._link, 1, 1)
        listener = descriptors[0]
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._link, select.POLLIN)
        open_ = {listener, self._link.fileno()}
        try:
            while open_:
                ready = poll.poll(PATIENCE_S * 1000)
                if not ready:
                    self._seen.told.append({"kind": "broke", "error": f"nothing happened for {PATIENCE_S:g} s"})
                    self._kill()
                    break
                for descriptor, events in ready:
                    if descriptor == listener:
                        alive = bool(events & select.POLLIN) and self._on_call(listener)
                        gone = not events & select.POLLIN
                        if gone:
                            poll.unregister(listener)
                            open_.discard(listener)
                        del alive
                    elif not self._hear():
                        poll.unregister(descriptor)
                        open_.discard(descriptor)
        finally:
            os.close(listener)
            _, status = os.waitpid(self._pid, 0)
        self._seen.code = os.waitstatus_to_exitcode(status)
        return self._seen

    def _hear(self) -> bool:
        data = self._link.recv(65536)
        self._held += data
        *lines, self._held = self._held.split(b"\n")
        for line in lines:
            if not line:
                continue
            message = json.loads(line)
            if message["kind"] == "room":
                self._sticky = self._striking = False
                self._link.sendall(b"\n")
            else:
                self._seen.told.append(message)
        return bool(data)

    def _on_call(self, listener: int) -> bool:
        call = seccomp.receive(listener)
        if call is None:
            return False
        path = self._path(call)
        if path is None or not (path + "/").startswith(self._folder):
            seccomp.allow(listener, call)
            return True
        points = self._seen.points
        if self._striking or self._fault is None:
            points[call.name] += 1
        fault = self._fault
        if self._sticky and call.name in NEEDS_ROOM:
            seccomp.fail(listener, call, errno.ENOSPC)
        elif self._striking and fault and not self._seen.fired and (call.name, points[call.name]) == (fault.call, fault.number):
            self._seen.fired = path
            self._strike(listener, call, fault)
        else:
            if call.name in SYNCS:
                self._note_synced(call)
            if self._seen.lost is not None and call.name in (*SYNCS, "write", "pwrite64"):
                self._seen.lost.see(call)
            seccomp.allow(listener, call)
        return True

    def _strike(self, listener: int, call: Call, fault: Fault) -> None:
        match fault.kind:
            case "kill":
                self._kill()
            case "eio":
                if call.name in SYNCS:
                    self._lose(call)
                seccomp.fail(listener, call, errno.EIO)
            case "enospc":
                seccomp.fail(listener, call, errno.ENOSPC)
            case "full":
                self._sticky = True
                if call.name in ("write", "pwrite64") and call.args[2] > 1:
                    seccomp.succeed(listener, call, self._write_half(call))
                else:
                    seccomp.fail(listener, call, errno.ENOSPC)

    def _kill(self) -> None:
        """The process, and git's: what they would still do is another story."""
        for pid in [*_children(self._pid), self._pid]:
            os.kill(pid, signal.SIGKILL)

    def _write_half(self, call: Call) -> int:
        """What a disk does on which only so much is left: it takes a part, and says so."""
        half = call.args[2] // 2
        with open(f"/proc/{call.pid}/mem", "rb", buffering=0) as memory:
            memory.seek(call.args[1])
            content = memory.read(half)
        descriptor = seccomp.descriptor_of(call.pid, call.args[0])
        try:
            return os.write(descriptor, content) if call.name == "write" else os.pwrite(descriptor, content, call.args[3])
        finally:
            os.close(descriptor)

    def _lose(self, call: Call) -> None:
        path = f"/proc/{call.pid}/fd/{call.args[0]}"
        if not stat.S_ISREG(os.stat(path).st_mode):
            return
        descriptor = os.open(path, os.O_RDWR)
        status = os.fstat(descriptor)
        before = self._synced.get((status.st_dev, status.st_ino), b"")
        self._seen.lost = Lost(descriptor, before, _content(descriptor))

    def _note_synced(self, call: Call) -> None:
        if self._fault is None or self._fault.kind != "eio" or self._fault.call not in SYNCS or self._seen.fired:
            return
        path = f"/proc/{call.pid}/fd/{call.args[0]}"
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                self._synced[status.st_dev, status.st_ino] = file.read()

    def _path(self, call: Call) -> str | None:
        """Of the file that is changed; ``None`` for a pipe, a socket, or a process that is gone."""
        try:
            if (number := BY_DESCRIPTOR.get(call.name)) is not None:
                return os.readlink(f"/proc/{call.pid}/fd/{call.args[number]}").removesuffix(" (deleted)")
            if (number := BY_PATH.get(call.name)) is not None:
                return self._named(call.pid, f"/proc/{call.pid}/cwd", call.args[number])
            directory, number = BY_DIRECTORY_AND_PATH[call.name]
            at = call.args[directory] & 0xFFFFFFFF
            place = "cwd" if at == 0xFFFFFF9C else f"fd/{at}"
            return self._named(call.pid, f"/proc/{call.pid}/{place}", call.args[number])
        except (FileNotFoundError, ProcessLookupError):
            return None

    def _named(self, pid: int, directory: str, address: int) -> str:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            text = b""
            while b"\0" not in text and len(text) < 4096:
                at = address + len(text)
                memory.seek(at)
                text += memory.read(PAGE - at % PAGE)
        path = os.fsdecode(text.partition(b"\0")[0])
        return os.path.normpath(path if path.startswith("/") else os.path.join(os.readlink(directory), path))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except FileNotFoundError:
            continue
    return found


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _contents(folder: Path) -> dict[tuple[int, int], bytes]:
    found = {}
    for here, _, files in os.walk(folder):
        for name in files:
            path = Path(here, name)
            status = path.stat()
            found[status.st_dev, status.st_ino] = path.read_bytes()
    return found
