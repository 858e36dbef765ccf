"""A connection to the broker that is kept up for ever: connect, set up, live, lose it, wait a little, again.

The URL may name several brokers of one RabbitMQ cluster, separated by commas: they are tried in turn, quickly, and only a
round in which none would have us makes the next wait longer.

pika is callbacks; this file is where they become futures, and the only one that knows pika's adapter. What it knows of it:
a connection built outside a running loop never opens and says nothing (so ``Link`` builds it inside its task); an exception
in a callback aborts the connection (so every callback is ``guarded``); connecting has no deadline that covers all of it (so
there is one here).

``Link`` decides nothing: its ``set_up`` declares and consumes on a fresh channel, every time.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.exceptions import AMQPError, ConnectionOpenAborted, ConnectionWrongStateError

CONNECT_TIMEOUT_S = 4.0
HANDSHAKE_TIMEOUT_S = 3.5
"""pika's own deadline for TCP and AMQP, before ours: a connection that we close in the middle of its handshake makes pika 1.4.4
fail an assertion of its own (``Session.close``), one that it gives up itself does not."""
CALL_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
HEARTBEAT_S = 6
"""A broker that is paused or cut off is noticed within two of these; requests have their own deadlines meanwhile."""
BLOCKED_TIMEOUT_S = 30.0
"""How long a broker under a memory or disk alarm may block us before the connection is given up."""
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 2.0
"""So that writes work again within 5 s of a broker's return."""

_log = logging.getLogger(__name__)
# pika reports one lost connection as up to ten errors with tracebacks; what they say arrives in our callbacks, too.
logging.getLogger("pika").setLevel(logging.CRITICAL)


class LinkLost(Exception):
    """The connection or its channel is gone, or could not be made; the text says why."""


def guarded(callback: Callable[..., None], count: Callable[[], None]) -> Callable[..., None]:
    """A callback that pika may call: an exception is logged and counted, and does not abort the connection."""

    def call(*arguments: Any) -> None:
        try:
            callback(*arguments)
        except Exception:  # whatever it is, raising it here would take down all other traffic on this connection
            count()
            _log.exception("callback failed")

    return call


class Session:
    """One life of a connection: open until ``lost`` is done."""

    def __init__(self, parameters: pika.ConnectionParameters, on_blocked: Callable[[str], None]) -> None:
        """Must run inside the loop."""
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = loop.create_future()
        self.callback_errors = 0
        self._opened: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._connection = AsyncioConnection(
            parameters,
            on_open_callback=self.guard(lambda _: _resolve(self._opened, None)),
            on_open_error_callback=self.guard(self._on_gone),
            on_close_callback=self.guard(self._on_gone),
            custom_ioloop=loop,
        )
        self._connection.add_on_connection_blocked_callback(
            self.guard(lambda _, frame: on_blocked(f"blocked by the broker: {frame.method.reason}"))
        )
        self._connection.add_on_connection_unblocked_callback(self.guard(lambda _, frame: on_blocked("")))

    def guard(self, callback: Callable[..., None]) -> Callable[..., None]:
        def count() -> None:
            self.callback_errors += 1

        return guarded(callback, count)

    async def opened(self) -> None:
        await self._first(self._opened, CONNECT_TIMEOUT_S, "connecting")

    async def channel(self, *, spare: bool = False) -> Any:
        """Open a channel. When it closes the session is lost, unless it is a ``spare`` one for something that may fail."""
        channel = await self.call(
            lambda callback: self._connection.channel(on_open_callback=callback), what="opening a channel"
        )
        if not spare:
            channel.add_on_close_callback(self.guard(lambda _, reason: self.lose(_describe(reason))))
        return channel

    async def call(
        self, method: Callable[..., Any], *, what: str, channel: Any = None, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """Run one AMQP method that answers by ``method(callback)``; with a spare ``channel``, also fail when that closes."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if channel is not None:
            channel.add_on_close_callback(self.guard(lambda _, reason: _resolve(answer, LinkLost(_describe(reason)))))
        try:
            method(self.guard(lambda frame: _resolve(answer, frame)))
        except AMQPError as error:
            raise LinkLost(f"{what}: {_describe(error)}") from error
        result = await self._first(answer, timeout_s, what)
        if isinstance(result, LinkLost):
            raise LinkLost(f"{what}: {result}")
        return result

    async def _first(self, wanted: "asyncio.Future[Any]", timeout_s: float, what: str) -> Any:
        waiting: set[asyncio.Future[Any]] = {wanted, self.lost}
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        if self.lost.done():
            raise LinkLost(self.lost.result())
        raise LinkLost(f"{what} took longer than {timeout_s:.0f} s")

    def lose(self, why: str) -> None:
        _resolve(self.lost, why)

    async def close(self) -> None:
        """Close in good order, bounded; every callback has run when it returns.

        In the middle of a handshake pika reports the abort by a class instead of an exception, and then fails an assertion in
        ``_on_connection_workflow_done``, which asyncio logs. By then it has told ``_on_gone``, and it closes its socket all the
        same: nothing is lost by it.
        """
        with suppress(ConnectionWrongStateError):  # closed or closing already
            if not (self._connection.is_closed or self._connection.is_closing):
                self._connection.close()
        await asyncio.wait({self._gone}, timeout=CLOSE_TIMEOUT_S)
        if not self._gone.done():
            # A paused broker: nothing more can be said to it, and pika's missed heartbeats end the socket soon.
            _log.warning("the broker did not answer a close within %.0f s", CLOSE_TIMEOUT_S)
        self.lose("closed")

    def _on_gone(self, connection: object, reason: BaseException) -> None:
        self.lose(_describe(reason))
        _resolve(self._gone, None)


class Link:
    """Keeps a ``Session`` up. ``up`` is true after ``set_up`` returned and until the session is lost or blocked."""

    def __init__(self, url: str, name: str, set_up: Callable[[Session], Awaitable[None]]) -> None:
        """``name`` is what RabbitMQ's management UI shows for the connection; ``url`` one broker, or several with commas."""
        self.name = name
        self.reconnects = 0
        self.callback_errors = 0
        self.available = asyncio.Event()
        self._brokers = tuple((place_of(each), _parameters(each, name)) for each in split(url))
        self._turn = 0
        self._place = self._brokers[0][0]
        self._set_up = set_up
        self._problem = "not started"
        self._blocked = ""
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Link {self.name}: {self.problem or 'up'}>"

    @property
    def up(self) -> bool:
        return not self.problem

    @property
    def problem(self) -> str:
        """Why it is not up, or empty."""
        return self._problem or self._blocked

    @property
    def place(self) -> str:
        """The broker that is connected to, or the one that ``problem`` was told by; the next may be being tried already."""
        return self._place

    @property
    def user(self) -> str:
        """The same for every broker: ``Config`` checks it."""
        return str(self._brokers[0][1].credentials.username)

    def start(self) -> None:
        self._say(problem="connecting")
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._say(problem="stopped")

    async def _run(self) -> None:
        delay_s = BACKOFF_FIRST_S
        refused = 0
        while True:
            try:
                lived_s = await self._live_once()
            except Exception as error:  # this task must live, or nobody connects again
                _log.exception("%s to %s broke off for a fault of ours", self.name, self.place)
                self._say(problem=f"internal error, see this node's log: {error!r}"[:300])
                lived_s = 0.0
            self.reconnects += 1
            # One that was made and lost at once, again and again, is no better than one that is never made.
            refused = 0 if lived_s > BACKOFF_LAST_S else refused + 1
            others_left = refused % len(self._brokers)
            if not refused:
                delay_s = BACKOFF_FIRST_S
            elif not others_left:
                delay_s = min(delay_s * 2, BACKOFF_LAST_S)
            await asyncio.sleep((BACKOFF_FIRST_S if others_left else delay_s) * random.uniform(0.5, 1.0))
            self._turn = (self._turn + 1) % len(self._brokers)

    async def _live_once(self) -> float:
        """One session from begin to end; for how long it was up."""
        loop = asyncio.get_running_loop()
        since: float | None = None
        session = Session(self._brokers[self._turn][1], lambda reason: self._say(blocked=reason))
        try:
            await session.opened()
            await self._set_up(session)
            since = loop.time()
            self._say(problem="", blocked="")
            why = await asyncio.shield(session.lost)
        except LinkLost as error:
            why = str(error)
        except AMQPError as error:
            # pika's own word for a connection that broke under a call: this task must live, or nobody connects again.
            why = _describe(error)
        finally:
            self._say(problem="disconnected")
            await session.close()
            self.callback_errors += session.callback_errors
        if since is None:
            _log.info("%s to %s was not made: %s", self.name, self.place, why)
        else:
            _log.warning("%s to %s is lost: %s", self.name, self.place, why)
        self._say(problem=why)
        return 0.0 if since is None else loop.time() - since

    def _say(self, *, problem: str | None = None, blocked: str | None = None) -> None:
        if problem is not None:
            self._problem, self._place = problem, self._brokers[self._turn][0]
        if blocked is not None:
            self._blocked = blocked
        if self.up:
            self.available.set()
        else:
            self.available.clear()


def split(url: str) -> list[str]:
    """The brokers of an ``amqp_url``; a comma inside a password is written ``%2C``."""
    return [each.strip() for each in url.split(",")]


def place_of(url: str) -> str:
    """One URL without its credentials, for people."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}{parts.path or '/'}"


def _parameters(url: str, name: str) -> pika.URLParameters:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = HEARTBEAT_S
    parameters.blocked_connection_timeout = BLOCKED_TIMEOUT_S
    parameters.connection_attempts = 1
    parameters.retry_delay = 0
    parameters.socket_timeout = CONNECT_TIMEOUT_S / 2
    parameters.stack_timeout = HANDSHAKE_TIMEOUT_S
    parameters.client_properties = {"connection_name": name, "product": "gitquorum"}
    return parameters


def _describe(error: BaseException) -> str:
    """pika wraps the reason in up to three exceptions; people want the innermost sentence."""
    while (inner := _inner(error)) is not None:
        error = inner
    if isinstance(error, ConnectionOpenAborted):
        return f"the broker took the connection, but the AMQP handshake did not end within {HANDSHAKE_TIMEOUT_S:g} s"
    text = getattr(error, "reply_text", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


def _inner(error: BaseException) -> BaseException | None:
    """What a pika exception was made of: its workflow's attempts, a phase's exception, or its first argument."""
    attempts = getattr(error, "exceptions", None)
    found = attempts[-1] if attempts else getattr(error, "exception", None) or next(iter(error.args), None)
    return found if isinstance(found, BaseException) else None


def _resolve(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)
