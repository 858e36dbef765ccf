"""``git index-pack`` in a quarantine: the process that judges a client's pack, started cold or kept warm.

One process, one quarantine folder, which is its object directory; the repository's objects are its alternates. It runs
in a git directory of its own (``.git-home``), so that nothing in the repository but its objects can influence it.

``--strict`` does three things (git 2.39, ``builtin/index-pack.c``): fsck of every object, with the severities below; every
object that an object of the pack links to must be in the pack or in the repository, with the right type
(``did not receive expected object``); SHA-1 collision detection. Why that is a whole connectivity check here is in
docs/decisions/0004-objects.md.

A warm one is started after a small push, for the next push into the same repository, and waits at ``read(stdin)``: git
looks at alternates and packs only when an object is wanted, so it sees what was applied after it started. It saves the
spawn, about two thirds of a small pack's time. Bounded in number, ended when idle.
"""

import asyncio
import secrets
import shutil
from collections.abc import Coroutine
from pathlib import Path

from node.ports.errors import DiskRefused
from node.storage.git import Git, GitLimits, GitProcess, Spawned
from node.storage.repository import HOME, QUARANTINE
from node.storage.threads import Threads

IGNORED = ("badTimezone", "missingSpaceBeforeDate", "zeroPaddedFilemode")
"""fsck messages that honest old histories carry and every big host lets in; all others stay what git makes of them."""

PREPARE_AFTER_S = 0.05
"""A warm process is started when the push that asked for it is likely answered."""

SMALL_THREADS = 1
LARGE_THREADS = 2

_SKELETON = {
    "HEAD": b"ref: refs/heads/none\n",
    "config": b"[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
}


class Indexing:
    """A running ``git index-pack`` and the folder it writes to."""

    def __init__(self, folder: Path, process: GitProcess) -> None:
        self.folder = folder
        self.process = process


class Indexer:
    """Starts ``git index-pack``; keeps a few of them warm."""

    def __init__(self, data_dir: Path, git: Git, limits: GitLimits, threads: Threads) -> None:
        self._quarantine = data_dir / QUARANTINE
        self._home = data_dir / HOME
        self._git = git
        self._limits = limits
        self._threads = threads
        self._warm: dict[Path, tuple[Indexing, asyncio.TimerHandle]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[Path, asyncio.TimerHandle] = {}
        self._closed = False
        self.last_failure = ""

    @staticmethod
    def make_home(home: Path) -> None:
        """The git directory that index-pack runs in, also everybody's empty HOME."""
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "objects").mkdir(exist_ok=True)
        for name, content in _SKELETON.items():
            (home / name).write_bytes(content)

    async def start(self, repository: Path, name: str, *, small: bool) -> Indexing:
        """A process ready to be fed; ``name`` is the quarantine folder's, should a new one be made."""
        if small and (ready := self.take(repository)) is not None:
            return ready
        return await self._start(repository, self._quarantine / name, SMALL_THREADS if small else LARGE_THREADS)

    def take(self, repository: Path) -> Indexing | None:
        """The warm process for ``repository``, if there is one and it is well."""
        indexing, timer = self._warm.pop(repository, (None, None))
        if indexing is None or timer is None:
            return None
        timer.cancel()
        if indexing.process.running:
            return indexing
        self._background(self.discard(indexing))
        return None

    async def discard(self, indexing: Indexing) -> None:
        """End the process, remove the folder."""
        await indexing.process.end()
        await self._threads.finish(remove, indexing.folder)

    def prepare(self, repository: Path) -> None:
        """Have one warm for the next push, soon."""
        if self._closed or self._limits.warm_max == 0 or repository in self._warm or repository in self._timers:
            return
        loop = asyncio.get_running_loop()
        self._timers[repository] = loop.call_later(PREPARE_AFTER_S, self._prepare_now, repository)

    def _prepare_now(self, repository: Path) -> None:
        self._timers.pop(repository, None)
        if not self._closed and len(self._tasks) < self._limits.warm_max:
            self._background(self._warm_up(repository))

    async def _warm_up(self, repository: Path) -> None:
        indexing = await self._start(repository, self._quarantine / f".warm-{secrets.token_hex(8)}", SMALL_THREADS)
        if self._closed or repository in self._warm:
            await self.discard(indexing)
            return
        if len(self._warm) >= self._limits.warm_max:
            oldest, (other, timer) = next(iter(self._warm.items()))
            del self._warm[oldest]
            timer.cancel()
            self._background(self.discard(other))
        timer = asyncio.get_running_loop().call_later(self._limits.warm_idle_s, self._expire, repository)
        self._warm[repository] = indexing, timer

    def _expire(self, repository: Path) -> None:
        indexing, _ = self._warm.pop(repository)
        self._background(self.discard(indexing))

    def _background(self, work: Coroutine[None, None, None]) -> None:
        """Ended, and its failure looked at, by ``close`` at the latest; warm processes are a convenience."""
        task = asyncio.create_task(self._quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except DiskRefused as error:
            # Nobody waits for a warm process; the push that would have used it starts its own, and meets the reason.
            self.last_failure = str(error)

    async def _start(self, repository: Path, folder: Path, threads: int) -> Indexing:
        try:
            return Indexing(folder, await self._git.start(self._spawn, repository, folder, threads))
        except BaseException:
            await self._threads.finish(remove, folder)
            raise

    def _spawn(self, repository: Path, folder: Path, threads: int) -> Spawned:
        folder.mkdir()
        objects = repository / "objects"
        extra = {"GIT_DIR": str(self._home), "GIT_OBJECT_DIRECTORY": str(folder)}
        if objects.is_dir():
            extra["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = _quoted(objects)
        return self._git.spawn(self._arguments(), self._git.environment(self._settings(threads), extra), self._home)

    def _arguments(self) -> list[str]:
        severities = ",".join(f"{name}=ignore" for name in IGNORED)
        return [
            "index-pack",
            "--stdin",
            "--fix-thin",
            f"--strict={severities}",
            f"--max-input-size={self._limits.pack_bytes_max}",
        ]

    def _settings(self, threads: int) -> dict[str, str]:
        return {
            "pack.threads": str(threads),
            # Blobs above this are hashed as they stream by and are never whole in memory.
            "core.bigFileThreshold": "16m",
            # Small packs live in the journal; large ones are synced when they are promoted.
            "core.fsync": "none",
            "core.createObject": "rename",
            "pack.indexVersion": "2",
            "pack.writeReverseIndex": "false",
        }

    async def close(self) -> None:
        """End all that waits."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for repository in list(self._warm):
            self._warm[repository][1].cancel()
            self._expire(repository)
        while self._tasks:
            await asyncio.wait(self._tasks)


def remove(folder: Path) -> None:
    """A quarantine folder with all that is in it; it may be gone."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return


def _quoted(path: Path) -> str:
    """One entry of a list separated by colons, in C quoting."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
