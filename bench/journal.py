"""How fast the journal writes: one writer, 64 writers, a push's three writes; beside an idle and a busy event loop.

    .venv/bin/python -m bench.journal [--seconds 2] [--directory /path/on/the/disk/to/measure]

Prints a table; judges nothing. Numbers depend on the disk's fsync: it is measured first, beside them.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from node.protocol.acceptor import AcceptOp, CommitOp, PromiseOp
from node.protocol.change import Change, ChangeKind, RefUpdate, Request
from node.protocol.ids import ORIGIN, ZERO_OID, Ballot, NodeId, Oid, Position, RefName, RepoId, TxnId
from node.protocol.quorum import VoterSet
from node.storage.journal import SqliteJournal

ME = NodeId("node-1")
MEMBERS = VoterSet.of([ME, NodeId("node-2"), NodeId("node-3")])


class Repository:
    """A stream of pushes to one repository."""

    def __init__(self, name: str) -> None:
        self.key, self.tip, self.round, self.serial = RepoId(name), ZERO_OID, 0, 0
        self.position: Position = ORIGIN

    def change(self) -> Change:
        self.serial += 1
        txn = TxnId(f"{self.key.replace('/', '-')}-{self.serial}")
        if self.position == ORIGIN:
            request = Request(txn, "bench", ME, 0)
            return Change(self.key, ORIGIN, ChangeKind.CREATE, (request,), self.key, MEMBERS)
        update = RefUpdate(RefName("refs/heads/main"), self.tip, Oid(f"{self.serial:040x}"))
        self.tip = update.new
        return Change(self.key, self.position, ChangeKind.UPDATE, (Request(txn, "bench", ME, 0, (update,)),))

    async def promise(self, journal: SqliteJournal) -> None:
        self.round += 1
        await journal.write(PromiseOp(self.key, Ballot(self.round, ME, 0)), members=MEMBERS, at_ms=0)

    async def push(self, journal: SqliteJournal) -> None:
        """Accept, commit, mark: what one small push costs the coordinator."""
        change = self.change()
        ballot = Ballot(1, ME, self.serial)
        await journal.write(AcceptOp(self.key, ballot, change.base, change), members=MEMBERS, at_ms=0)
        await journal.write(CommitOp(self.key, change), members=MEMBERS, at_ms=0)
        self.position = change.position
        await journal.mark_applied(self.key, self.position.version)
        await journal.mark_synced(self.key, self.position.version)


Step = Callable[[Repository, SqliteJournal], Awaitable[None]]


async def measure(journal: SqliteJournal, name: str, step: Step, writers: int, seconds: float, writes: int) -> str:
    repositories = [Repository(f"bench/at-{journal.commits}-{n}") for n in range(writers)]
    times: list[float] = []
    before, end, began = journal.commits, time.perf_counter() + seconds, time.perf_counter()

    async def run(repository: Repository) -> None:
        while (start := time.perf_counter()) < end:
            await step(repository, journal)
            times.append(time.perf_counter() - start)

    await asyncio.gather(*(run(repository) for repository in repositories))
    wall = time.perf_counter() - began
    commits = journal.commits - before
    times.sort()
    p50, p99 = statistics.median(times) * 1000, times[int(len(times) * 0.99)] * 1000
    rate, per_commit = len(times) * writes / wall, len(times) * writes / max(commits, 1)
    return f"{name:<34} {p50:8.2f} {p99:8.2f} {rate:10.0f} {per_commit:10.1f}"


async def beside_work(journal: SqliteJournal, seconds: float, pause_s: float, interval_s: float) -> str:
    """Pushes while the event loop has other work. (Saturated, with Python's own 5 ms, a single push took 41 s: left out.)"""
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    stop = asyncio.Event()
    load = asyncio.create_task(busy(stop, pause_s))
    name = f"push, loop {'half busy' if pause_s else 'saturated'}, {interval_s * 1000:.1f} ms"
    line = await measure(journal, name, Repository.push, 1, seconds, 2)
    stop.set()
    await load
    sys.setswitchinterval(before)
    return line


async def busy(stop: asyncio.Event, pause_s: float) -> None:
    """1 ms of Python, again and again."""
    while not stop.is_set():
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            sum(range(50))
        await asyncio.sleep(pause_s)


def fsync_ms(directory: Path) -> float:
    times = []
    with (directory / "fsync").open("wb") as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


async def bench(directory: Path, seconds: float) -> list[str]:
    journal = await asyncio.to_thread(SqliteJournal.open, directory / "data", node=ME, cluster="bench")
    lines = [f"{'':<34} {'p50 ms':>8} {'p99 ms':>8} {'writes/s':>10} {'per fsync':>10}"]
    try:
        for writers in (1, 8, 64):
            lines.append(await measure(journal, f"promise by {writers}", Repository.promise, writers, seconds, 1))
        for writers in (1, 64):
            lines.append(await measure(journal, f"push by {writers}", Repository.push, writers, seconds, 2))
        for pause_s, interval_s in ((0.001, 0.005), (0.001, 0.0001), (0.0, 0.0005), (0.0, 0.0001)):
            lines.append(await beside_work(journal, seconds, pause_s, interval_s))
    finally:
        await journal.close()
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        lines = [f"fsync of 4 KiB: {fsync_ms(Path(name)):.2f} ms"]
        lines += asyncio.run(bench(Path(name), arguments.seconds))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
