"""One process per data directory: an advisory lock (flock(2)) that the kernel drops when its holder dies, however it dies.

The lock file stays behind and holds the last owner's pid: only to be named in the refusal, never to decide anything.
"""

import fcntl
import os
from pathlib import Path

from node.ports.errors import DataDirectoryInUse, StorageError

LOCK_NAME = ".lock"


class DataDirectoryLock:
    """Held from ``take`` to ``release`` or to the process's end; not inherited by git (the descriptor closes on exec)."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor: int | None = descriptor
        self.path = path

    @classmethod
    def take(cls, data_dir: Path) -> "DataDirectoryLock":
        """Lock ``data_dir``, which is made if it is not there.

        Raises:
            DataDirectoryInUse: naming the process that holds it, and what to do.
            StorageError: the directory cannot be made or written to.
        """
        path = data_dir / LOCK_NAME
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StorageError(f"data directory {data_dir} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise DataDirectoryInUse(_in_use(data_dir, holder)) from error
        except OSError as error:
            os.close(descriptor)
            raise StorageError(f"data directory {data_dir} cannot be locked: {error.strerror}") from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise StorageError(f"data directory {data_dir} cannot be written to: {error.strerror}") from error
        return cls(descriptor, path)

    def release(self) -> None:
        """May be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __repr__(self) -> str:
        return f"<DataDirectoryLock {self.path} {'held' if self._descriptor is not None else 'released'}>"


def _holder(descriptor: int) -> int | None:
    """The pid in the lock file; ``None`` in the instant before its holder has written it."""
    text = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _in_use(data_dir: Path, holder: int | None) -> str:
    if holder is None:
        return f"data directory {data_dir} is in use by another process; stop it, or choose another data_dir"
    if holder == os.getpid():
        return f"data directory {data_dir} is in use by this very process (pid {holder}); close its journal first"
    return f"data directory {data_dir} is in use by process {holder}; stop it (kill {holder}), or choose another data_dir"
