"""Files written whole, under another name first: whoever looks sees the old content or the new one.

A disk that is nearly full takes a part of what is written and says how much; only the next write fails. So everything is
written by ``write_all``, and a file that could not be written whole never gets its name.
"""

import os
from pathlib import Path


def write_all(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    """Raises ``OSError`` when not all of it could be written."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_anew(path: Path, temporary: Path, content: bytes, mode: int = 0o644) -> None:
    """``path`` with this content in a file of its own, by way of ``temporary`` beside it; nothing is synced.

    What a crash leaves of ``temporary`` is overwritten by the next try and swept at start. After an error it is removed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode)
    try:
        try:
            write_all(descriptor, content)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def fsync(path: Path) -> None:
    """fsync a file or directory; one that is gone needs none (its directory is synced too)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
