"""Worker threads of the object store: everything that touches the disk, hashes or spawns runs here, never on the loop.

The contract: ``run`` turns the operating system's errors into ``DiskRefused``, so nothing above sees an ``OSError``. A
cancelled caller does not stop a thread; ``finish`` is for clean-ups, which must end before their caller does.
"""

import asyncio
import contextlib
import errno
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from node.ports.errors import DiskFailed, DiskFull, DiskRefused, WrongKind

P = ParamSpec("P")
T = TypeVar("T")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SPENT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
"""Descriptors, memory, processes: the disk was not even asked, and nothing on it was lost."""
_KIND = {errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY}


class Threads:
    """A bounded pool, ended by ``close``."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix="objects")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """``function`` in a thread.

        Raises:
            DiskRefused: for any ``OSError`` of it.
        """
        try:
            return await asyncio.wrap_future(self.submit(function, *args, **kwargs))
        except OSError as error:
            raise refusal(error) from error

    async def finish(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, but seen to its end even when the caller is cancelled meanwhile; the cancellation comes after."""
        work = asyncio.ensure_future(self.run(function, *args, **kwargs))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await outlast(work)
            raise

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """In the background; whoever calls looks at the future or does not need to."""
        return self._pool.submit(function, *args, **kwargs)

    def close(self) -> None:
        """Wait for what is under way; nothing starts any more."""
        self._pool.shutdown(wait=True, cancel_futures=False)


async def outlast(work: "asyncio.Future[T]") -> None:
    """Wait for the end of ``work``, which is bounded, through any cancellation; the caller passes that on.

    Its failure is looked at and dropped: who would have heard of it is gone.
    """
    while not work.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if not work.cancelled():
        work.exception()


def refusal(error: OSError) -> DiskRefused:
    """In words that name no path of this machine."""
    if error.errno in _FULL:
        return DiskFull("disk full")
    if error.errno in _SPENT:
        return DiskRefused(f"this process has no more: {error.strerror}")
    if error.errno in _KIND:
        return WrongKind(f"something else is where a file or a folder should be: {error.strerror}")
    return DiskFailed(f"disk failure: {error.strerror or type(error).__name__}")
