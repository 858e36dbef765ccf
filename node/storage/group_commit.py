"""One thread writes; all that waits at one moment shares one transaction and one fsync (group commit).

It knows connections, savepoints and failures, not what is written: a write is a function of the connection. While one
transaction is being synced the next ones gather; so the more writers there are, the fewer fsyncs each of them costs.

    one write fails              all are done again, each in a savepoint; its caller gets the exception, its neighbours go on
    the disk is full             the whole transaction is rolled back, its callers get ``DiskRefused``; the next one is tried
    an I/O error, damage         as above, with ``StorageError``: it is *not known* whether they are on the disk. Every later
                                 write is refused: fsync reports lost writes once only, then calls the page clean
                                 (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020)

Every call into SQLite gives the interpreter lock away, and a busy event loop may keep it for a whole switch interval: so a
write is few statements (no savepoints unless one fails), and the process that opens a journal should set a short interval
(``sys.setswitchinterval(0.0001)``). With Python's 5 ms and an event loop that never slept one push took 41 s; see
``bench/journal.py``.

What SQLite does outside of transactions only (VACUUM) has the thread for itself (``alone``): what waited before it is written
before it, what came later afterwards. It ends when the node does, or takes too long, and is not begun any more when the node is
ending. Whatever fails in it is an end of writes, as an I/O error is.

A caller that is cancelled stops waiting; its write is made all the same. Callers are woken once per transaction, by one
``call_soon_threadsafe``, not once per write.
"""

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, TypeVar

from node.ports.errors import DiskRefused, StorageError
from node.storage.deferred import Deferred, Notes
from node.storage.journal_errors import is_fatal, is_systemic, storage_error

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

WAITING_MAX = 10_000
WAITING_BYTES_MAX = 256 * 1024**2
LINGER_S = 0.05
"""How long notes wait for a transaction to ride in before they get one of their own."""
RETRY_S = 1.0
"""… and after one that carried them has failed."""
ALONE_S_MAX = 900.0
PROGRESS_OPS = 20_000
"""Instructions of SQLite's machine between two looks whether what is alone has to end."""


@dataclass(slots=True)
class _Write:
    work: Work[Any]
    size_bytes: int
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"
    alone: bool = False


Result = tuple[_Write, Any, Exception | None]


class GroupCommit:
    """The writer thread and its queue. Started by its maker, ended by ``close``."""

    commits: int
    """Transactions that wrote something: as many fsyncs, checkpoints apart."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        deferred: Deferred,
        keep: Callable[[sqlite3.Connection, Notes], None],
        committed: Callable[[sqlite3.Connection], None] = lambda connection: None,
        closing: Callable[[sqlite3.Connection], None] = lambda connection: None,
        *,
        waiting_max: int = WAITING_MAX,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
        linger_s: float = LINGER_S,
    ) -> None:
        """``keep`` writes notes inside a transaction; ``committed`` is told, in this thread, when one is durable; ``closing``
        may write last, if nothing has failed."""
        self.commits = 0
        self.failure: str | None = None
        self._connection = connection
        self._deferred = deferred
        self._keep = keep
        self._committed = committed
        self._closing_write = closing
        self._waiting_max = waiting_max
        self._waiting_bytes_max = waiting_bytes_max
        self._linger_s = linger_s
        self._wake = Condition()
        self._writes: deque[_Write] = deque()
        self._waiting_bytes = 0
        self._flush_at: float | None = None
        self._closing = self._closed = False
        self._thread = Thread(target=self._serve, name="journal-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T], size_bytes: int = 0) -> "asyncio.Future[T]":
        """Queue a write; the future is done when it is durable, or has failed.

        Raises:
            DiskRefused: the queue is full, or the journal has failed before; nothing was written.
        """
        return self._queue(work, size_bytes, alone=False)

    def alone(self, work: Work[T]) -> "asyncio.Future[T]":
        """As ``submit``, outside of any transaction, which ``work`` may begin and end itself. If it fails, the journal has."""
        return self._queue(work, 0, alone=True)

    def _queue(self, work: Work[T], size_bytes: int, *, alone: bool) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._wake:
            self._check_open()
            if len(self._writes) >= self._waiting_max or self._waiting_bytes + size_bytes > self._waiting_bytes_max:
                raise DiskRefused("journal overloaded: too many writes wait; try again later")
            self._writes.append(_Write(work, size_bytes, loop, future, alone))
            self._waiting_bytes += size_bytes
            self._wake.notify()
        return future

    def flush_later(self) -> None:
        """Something was deferred: write it within ``linger_s``, even if nothing else is to be written."""
        with self._wake:
            self._check_open()
            if self._flush_at is None:
                self._flush_at = time.monotonic() + self._linger_s
                self._wake.notify()

    def fail(self, reason: str) -> None:
        """Refuse every write from now on, those that wait included."""
        self.failure = self.failure or f"no more writes are taken until the node is started again: {reason}"

    def close(self) -> None:
        """Write what waits, end the thread, close the connection. Blocking; may be called again."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        try:
            if not self.failure and not self._closed:
                self._closing_write(self._connection)
        except sqlite3.Error as error:
            self.failure = f"the journal could not be closed cleanly: {error}"
        finally:
            self._closed = True
            self._connection.close()

    def _check_open(self) -> None:
        if self.failure:
            raise DiskRefused(self.failure)
        if self._closing:
            raise StorageError("the journal is closed")

    def _serve(self) -> None:
        while not self._closing or self._writes:
            self._transaction(self._gather())
        self._transaction(self._gather())

    def _gather(self) -> Sequence[_Write]:
        """Wait until something is to be written, and take all of it, as far as the next that has to be alone."""
        with self._wake:
            while not (self._writes or self._closing):
                patience = None if self._flush_at is None else self._flush_at - time.monotonic()
                if patience is not None and patience <= 0:
                    break
                self._wake.wait(patience)
            writes: list[_Write] = []
            while self._writes and not (writes and (writes[-1].alone or self._writes[0].alone)):
                writes.append(self._writes.popleft())
            self._waiting_bytes -= sum(write.size_bytes for write in writes)
            if not (writes and writes[0].alone):
                self._flush_at = None
        return writes

    def _transaction(self, writes: Sequence[_Write]) -> None:
        """All or nothing, but for writes that fail alone. No exception may end the thread: each goes to who waits."""
        if self.failure:
            problem = DiskRefused(self.failure)
            self._tell([(write, None, problem) for write in writes])
            return
        if writes and writes[0].alone:
            self._alone(writes[0])
            return
        notes = self._deferred.take()
        if not writes and not notes:
            return
        try:
            results = self._write(writes, notes)
        except sqlite3.Error as error:
            self._fail(writes, storage_error(error), fatal=is_fatal(error))
        except Exception as error:
            self._fail(writes, StorageError(f"journal: {error!r}"), fatal=True)
        else:
            self._deferred.written()
            self._tell(results)

    def _alone(self, write: _Write) -> None:
        if self._closing:  # it would be interrupted at once, and what it begins with says that it is under way
            self._tell([(write, None, StorageError("the journal is closed"))])
            return
        connection, end_at = self._connection, time.monotonic() + ALONE_S_MAX
        connection.set_progress_handler(lambda: self._closing or time.monotonic() > end_at, PROGRESS_OPS)
        try:
            try:
                value = write.work(connection)
            finally:
                connection.set_progress_handler(None, 0)
        except sqlite3.Error as error:
            self._fail((write,), storage_error(error), fatal=True)
        except Exception as error:
            problem = error if isinstance(error, StorageError) else StorageError(f"journal: {error!r}")
            self._fail((write,), problem, fatal=True)
        else:
            self._tell([(write, value, None)])

    def _write(self, writes: Sequence[_Write], notes: Notes) -> list[Result]:
        """Nearly always nothing fails: then no savepoints are needed. If one does, all are done again, each on its own."""
        connection = self._connection
        changes = connection.total_changes
        connection.execute("BEGIN IMMEDIATE")
        try:
            results: list[Result] = [(write, write.work(connection), None) for write in writes]
        except Exception as error:
            if isinstance(error, sqlite3.Error) and (is_systemic(error) or not connection.in_transaction):
                raise
            connection.execute("ROLLBACK")
            changes = connection.total_changes
            connection.execute("BEGIN IMMEDIATE")
            results = [self._perform(write) for write in writes]
        if notes:
            self._keep(connection, notes)
        connection.execute("COMMIT")
        if connection.total_changes != changes:
            self.commits += 1
            self._committed(connection)
        return results

    def _perform(self, write: _Write) -> Result:
        connection = self._connection
        connection.execute("SAVEPOINT one")
        try:
            value = write.work(connection)
        except sqlite3.Error as error:
            if is_systemic(error) or not connection.in_transaction:
                raise
            return self._undo(write, storage_error(error))
        except Exception as error:
            return self._undo(write, error)
        connection.execute("RELEASE one")
        return write, value, None

    def _undo(self, write: _Write, error: Exception) -> Result:
        self._connection.execute("ROLLBACK TO one")
        self._connection.execute("RELEASE one")
        return write, None, error

    def _fail(self, writes: Sequence[_Write], problem: StorageError, *, fatal: bool) -> None:
        if fatal:
            self.failure = f"the journal has failed and takes no more writes until the node is started again: {problem}"
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self.failure = self.failure or f"the journal could not roll back: {error}"
        self._deferred.put_back()
        if not self.failure:
            with self._wake:
                self._flush_at = time.monotonic() + RETRY_S if len(self._deferred) else None
        self._tell([(write, None, problem) for write in writes])

    def _tell(self, results: Sequence[Result]) -> None:
        """Wake the callers: one call into each event loop (in a node there is one)."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Result]] = {}
        for result in results:
            by_loop.setdefault(result[0].loop, []).append(result)
        for loop, told in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, told)
            except RuntimeError:
                if not loop.is_closed():  # a loop that was closed has nobody left who waits
                    raise

    def __repr__(self) -> str:
        state = "failed" if self.failure else "closed" if self._closing else "open"
        return f"<GroupCommit {state} {len(self._writes)} waiting, {self.commits} commits>"


def _deliver(results: Sequence[Result]) -> None:
    for write, value, error in results:
        if write.future.done():
            continue  # cancelled: nobody waits, the write was made all the same
        if error is not None:
            write.future.set_exception(error)
        else:
            write.future.set_result(value)
