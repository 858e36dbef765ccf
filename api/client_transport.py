"""The socket of one client, as the protocol sees it: closing is patient, and both closing and writing have deadlines.

asyncio's transport has three habits that a public server cannot afford. ``close`` with unread input in the kernel makes TCP
send a reset, which destroys the answer on its way to the client (RFC 9112, 9.6 asks servers to linger). ``close`` with unsent
output waits for the client for ever. And so does a paused write. This wrapper keeps a deadline for each; ``overdue`` is asked
by the one sweep over all connections (``connection.Crowd``), so that no timer has to be made or cancelled per request.

And it corks: uvicorn writes an answer's head and its body one after the other, which is two system calls here, two packets
without Nagle's delay, and for a client that waits two awakenings (a quarter of what a question between nodes took).
"""

import asyncio
from typing import Any

from api.limits import Limits


class ClientTransport(asyncio.Transport):
    """Wraps the transport that asyncio made; everything not named here is passed through."""

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        super().__init__()
        self._inner = inner
        self._loop = loop
        self._limits = limits
        self._dropped_bytes = 0
        self._close_by: float | None = None
        self._stalled_since: float | None = None
        self._stalled_bytes = 0
        self._corked: bytes | None = None
        self.expects_input = False
        """Whether the client may still be sending: then closing lingers."""

    def cork(self) -> None:
        """Keep the next write, the head of an answer, for the one that follows it."""
        self._corked = b""

    def uncork(self) -> None:
        """No more is coming that the head should wait for."""
        head, self._corked = self._corked, None
        if head:
            self._inner.write(head)

    def close(self) -> None:
        """Stop: at once for the caller (``is_closing``), patiently for the client."""
        if self._close_by is not None:
            return
        self.uncork()
        now = self._loop.time()
        if not self.expects_input:
            self._close_by = now + self._limits.write_stall_s
            self._inner.close()
            return
        self._close_by = now + self._limits.linger_s
        if not self._inner.is_closing():
            if self._inner.can_write_eof():
                self._inner.write_eof()
            self._inner.resume_reading()

    def abort(self) -> None:
        self._close_by = self._close_by or self._loop.time()
        self._corked = None
        self._inner.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._corked is None:
            self._inner.write(data)
        elif not self._corked:
            self._corked = bytes(data)
        else:
            head, self._corked = self._corked, None
            # Not writelines: seen on Python 3.12.1 and 3.13.0 to leave a dead socket registered with the loop.
            self._inner.write(b"".join((head, data)))

    def drop(self, size: int) -> None:
        """Input that nobody wants came in while lingering."""
        self._dropped_bytes += size
        if self._dropped_bytes > self._limits.linger_bytes_max:
            self._inner.abort()

    def end_of_input(self) -> None:
        """The client has said all it will: lingering is over."""
        self.expects_input = False
        if self._close_by is not None:
            self._inner.close()

    def stalled(self) -> None:
        """Output piles up (``pause_writing``)."""
        self._stalled_since = self._loop.time()
        self._stalled_bytes = self._inner.get_write_buffer_size()

    def flowing(self) -> None:
        """The client reads again (``resume_writing``)."""
        self._stalled_since = None

    def overdue(self, now: float) -> bool:
        """Whether patience is at an end: then ``abort``."""
        if self._close_by is not None:
            return now >= self._close_by
        if self._stalled_since is None or now - self._stalled_since < self._limits.write_stall_s:
            return False
        waiting = self._inner.get_write_buffer_size()
        taken, self._stalled_bytes, self._stalled_since = self._stalled_bytes - waiting, waiting, now
        return taken < self._limits.write_bytes_min

    # ------------------------------------------------------------ passed through

    def is_closing(self) -> bool:
        return self._close_by is not None or self._inner.is_closing()

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._inner.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)
