"""The listening socket and the uvicorn server around the application: started, drained and ended by whoever calls ``serve``.

uvicorn runs inside the caller's event loop (the stock asyncio one: it starts git processes in half of uvloop's time). Its
habit of raising the captured signal again at the end would kill the process before the composition root has closed the
journal, so signals are taken by the loop instead, and ``serve`` simply returns.
"""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import structlog
import uvicorn

from api.connection import Connection, Crowd
from api.limits import Limits
from node.config import Config

BACKLOG = 1024
SWEEP_TICKS = 2
"""uvicorn ticks ten times a second; overdue connections are looked for every second tick."""

log = structlog.get_logger(__name__)


async def serve(
    app: Any,
    config: Config,
    *,
    limits: Limits | None = None,
    sockets: Sequence[socket.socket] | None = None,
    on_started: Callable[[], None] = lambda: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or ``stop``, then drain: no new connections, requests under way may finish.

    Raises:
        OSError: the address cannot be listened on.
    """
    limits = limits or Limits.of(config)
    listening = list(sockets) if sockets is not None else [listen(config.host, config.port)]
    server = FrontServer(app, limits, on_started)
    watcher = asyncio.create_task(server.stop_when(stop), name="serve-stop") if stop is not None else None
    try:
        await server.serve(sockets=listening)
    finally:
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        for listener in listening:
            listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; ``port`` 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


class FrontServer(uvicorn.Server):
    """uvicorn's server with our connections, our clock for them and our signals."""

    def __init__(self, app: Any, limits: Limits, on_started: Callable[[], None]) -> None:
        self._crowd = Crowd(limits)
        self._on_started = on_started
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(type[asyncio.Protocol], partial(Connection, crowd=self._crowd)),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=int(limits.keep_alive_s) + 1,
                timeout_graceful_shutdown=limits.drain_s,
            )
        )

    async def stop_when(self, event: asyncio.Event) -> None:
        await event.wait()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._crowd.served = self.server_state.connections
        self._on_started()

    async def on_tick(self, counter: int) -> bool:
        if counter % SWEEP_TICKS == 0:
            self._crowd.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining", connections=len(self.server_state.connections), requests=len(self.server_state.tasks))
        sweeper = asyncio.create_task(self._sweep_on(), name="serve-sweep")
        try:
            await super().shutdown(sockets=sockets)
        finally:
            sweeper.cancel()
            await asyncio.gather(sweeper, return_exceptions=True)
            for connection in (*self.server_state.connections, *self._crowd.leaving):
                cast(Connection, connection).transport.abort()

    async def _sweep_on(self) -> None:
        """uvicorn's ticks end when draining begins; slow clients must not outlast it."""
        while True:
            await asyncio.sleep(0.2)
            self._crowd.sweep(asyncio.get_running_loop().time())

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask_to_exit)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _ask_to_exit(self) -> None:
        self.should_exit = True
