"""A small ext4 of its own on a loop device, whose power can be cut: for root.

``cut`` is the ioctl that the file system's own test suite uses (xfstests, ``src/godown.c``): everything that was not brought to
stable storage by then is gone, every later call fails, and the next mount replays ext4's log. Reference: EXT4_IOC_SHUTDOWN in
the kernel's ``fs/ext4/ioctl.c``.
"""

import contextlib
import fcntl
import os
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path
from types import TracebackType

EXT4_IOC_SHUTDOWN = 0x8004587D
GOING_FLAGS_NOLOGFLUSH = 2
SIZE_BYTES = 192 * 1024**2
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""For mount and its like: what is preloaded into this process is not for them."""


def why_not() -> str:
    """Empty if this machine can do it."""
    if os.geteuid() != 0:
        return "a loop device is mounted by root only"
    for program in ("mkfs.ext4", "mount", "umount", "losetup"):
        if shutil.which(program, path=CLEAN["PATH"]) is None:
            return f"{program} is not installed"
    if not Path("/dev/loop-control").exists():
        return "this machine has no loop devices (/dev/loop-control)"
    return ""


class Ext4:
    """Made at ``folder / "image"``, mounted at ``folder / "disk"``; nothing of it is left after the ``with``."""

    def __init__(self, folder: Path, size_bytes: int = SIZE_BYTES) -> None:
        self.image = folder / "image"
        self.path = folder / "disk"
        self.path.mkdir(parents=True)
        with self.image.open("wb") as file:
            file.truncate(size_bytes)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", self.image)

    def mount(self) -> None:
        _run("mount", "-o", "loop", self.image, self.path)

    def unmount(self) -> None:
        """Raises ``CalledProcessError`` if somebody holds it for longer than a moment."""
        for _ in range(100):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("umount", self.path)
                return
            time.sleep(0.05)
        _run("umount", self.path)

    def cut(self) -> None:
        """The power is gone, now."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(descriptor)

    def __enter__(self) -> "Ext4":
        try:
            self.mount()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        """Whatever happened: unmounted, and no loop device left on the image."""
        while os.path.ismount(self.path):
            try:
                self.unmount()
            except subprocess.CalledProcessError:
                _run("umount", "-l", self.path)
        said = subprocess.run(
            ["losetup", "-n", "-O", "NAME", "-j", self.image], capture_output=True, text=True, env=CLEAN, check=True
        )
        for device in said.stdout.split():
            _run("losetup", "-d", device)
        self.image.unlink()


def release_stale(prefix: str) -> None:
    """What runs that were killed have left mounted: their folders are called ``prefix``, their process id, and more."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        path = Path(line.split()[1])
        found = re.fullmatch(re.escape(prefix) + r"(\d+)-.*", path.parent.name)
        if found and not Path("/proc", found[1]).exists():
            _run("umount", "-l", path)  # its loop device goes with it
            shutil.rmtree(path.parent)


def _run(*command: str | Path) -> str:
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=CLEAN).stdout
