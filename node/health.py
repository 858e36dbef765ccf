"""How busy this machine is: CPU and memory, sampled by psutil in a thread, read without waiting.

psutil reads ``/proc``; that is quick, but it is a file system, and the event loop waits for no file system. So a sample is
taken every ``INTERVAL_S`` by a worker thread, and whoever asks gets the last one, with the time at which it was taken.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil

from node.lasting import Lasting
from node.system import SystemClock

INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Whole machine, 0 to 100."""

    cpu_percent: float
    memory_percent: float
    at: datetime


class Sampler:
    """Takes samples between ``start`` and ``stop``; ``last`` never waits and never fails."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None
        self.last = Sample(0.0, 0.0, datetime.now(UTC))

    async def start(self) -> None:
        """Take the first sample, then go on in the background."""
        if self._task is not None:
            return
        self.last = await asyncio.to_thread(take)
        self._task = asyncio.create_task(
            Lasting(SystemClock()).run("the sampling of this machine", self._run), name="health-sampler"
        )

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self.last = await asyncio.to_thread(take)


def take() -> Sample:
    """One sample. CPU is the mean since the sample before; the very first one of a process is 0."""
    return Sample(
        cpu_percent=min(100.0, max(0.0, psutil.cpu_percent(interval=None))),
        memory_percent=psutil.virtual_memory().percent,
        at=datetime.now(UTC),
    )
