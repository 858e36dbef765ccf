"""Tasks for life: what one round of them meets does not end them.

A task that nobody awaits ends silently at the first exception that nobody thought of, and what it did is done no more until
the node is started again: no failure detector, no scrub. Here it is begun again after a pause, its traceback is in the log
(not every time), and /health says so for as long as it goes on.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from node.ports.surroundings import Clock

PAUSE_S = 1.0
"""Before a task that failed is begun again."""
LOG_EVERY_S = 60.0
"""The traceback of one task's faults is written once in this time; they are counted."""
SHOWN_S = 60.0
"""A fault is shown for this long; one that comes again and again, always."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Fault:
    at: float
    logged_at: float
    count: int
    text: str


class Lasting:
    """One node's tasks for life, and which of them failed a moment ago."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._faults: dict[str, _Fault] = {}

    @property
    def problem(self) -> str:
        """Empty, or which task failed last, for /health."""
        now = self._clock.now()
        fresh = {what: fault for what, fault in self._faults.items() if now - fault.at < SHOWN_S}
        if not fresh:
            return ""
        what, fault = max(fresh.items(), key=lambda item: item[1].at)
        return f"internal error in {what}, {fault.count} times since the start, see this node's log: {fault.text}"

    async def run(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do ``work`` until it returns; what it raises only interrupts it. Ends when cancelled."""
        while True:
            try:
                await work()
            except Exception as error:
                self._note(what, error)
            else:
                return
            await asyncio.sleep(PAUSE_S)

    def _note(self, what: str, error: Exception) -> None:
        now = self._clock.now()
        fault = self._faults.setdefault(what, _Fault(now, now - LOG_EVERY_S, 0, ""))
        fault.at, fault.text, fault.count = now, repr(error)[:300], fault.count + 1
        if now - fault.logged_at >= LOG_EVERY_S:
            fault.logged_at = now
            log.error("task failed", task=what, times=fault.count, again_in_s=PAUSE_S, exc_info=error)
