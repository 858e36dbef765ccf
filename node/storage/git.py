"""Starting git safely: a cleaned environment, hard limits, pipes with back-pressure, and nothing left running.

What a git process may see is listed here in full: no ``GIT_*`` of ours, no system or user configuration, no replace
objects, an empty home. Its limits (address space, CPU, no core file) are set with ``prlimit`` right after the spawn and
before its input is fed: ``preexec_fn`` would forbid vfork (2.5 ms against 1.7 a spawn) and is unsafe beside threads. The
spawn itself runs in a worker thread; the pipes belong to the loop.

Whoever starts a process ends it: ``GitProcess`` is an async context manager that terminates the whole process group
(``upload-pack`` has a child), kills it after a grace, and reaps it, cancelled or not.
"""

import asyncio
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, ParamSpec

from node.ports.errors import StorageError
from node.storage.threads import Threads, outlast

P = ParamSpec("P")

READ_BYTES = 64 * 1024
"""One read from a pipe: a pipe's usual capacity."""

STDERR_BYTES_MAX = 16 * 1024
END_GRACE_S = 2.0

VERSION_MIN = (2, 31)
"""An older one does not know ``GIT_CONFIG_COUNT``, and so ignores every limit and safeguard that is configuration."""


def version_of(said: str) -> tuple[int, int] | None:
    """From the output of ``git --version``; vendors append words of their own."""
    match = re.match(r"git version (\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class GitLimits:
    """What git and its clients may use; ``Config`` documents each field."""

    memory_bytes_max: int = 512 * 1024**2
    cpu_s_max: int = 600
    inflated_bytes_max: int = 4 * 1024**3
    pack_bytes_max: int = 2 * 1024**3
    free_bytes_min: int = 256 * 1024**2
    pushes_max: int = 8
    fetches_max: int = 16
    warm_max: int = 4
    """Processes of ``git index-pack`` kept waiting for the next small push, one per repository; 0 turns it off."""
    warm_idle_s: float = 20.0
    """How long one waits before it is ended."""


class Git:
    """Where git is, and how it is started."""

    def __init__(self, home: Path, limits: GitLimits, threads: Threads) -> None:
        found = shutil.which("git")
        if found is None:
            raise StorageError("git is not installed; install it, for example with: apt-get install git")
        _check_version(found)
        self._binary = found
        self._limits = limits
        self.threads = threads
        self._environment = {
            "PATH": os.pathsep.join(dict.fromkeys((os.path.dirname(found), "/usr/bin", "/bin"))),
            "HOME": str(home),
            "LC_ALL": "C",
            "MALLOC_ARENA_MAX": "2",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
        }

    def environment(self, settings: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of a process; ``settings`` are git configuration that nothing on disk can override."""
        settings = {
            # The folder is this node's own, whichever user made it (a volume mounted into a container).
            "safe.directory": "*",
            # git maps a gigabyte at a time otherwise, which the limit on address space would refuse.
            "core.packedGitWindowSize": "32m",
            "core.packedGitLimit": "256m",
            **settings,
        }
        numbered = {"GIT_CONFIG_COUNT": str(len(settings))}
        for number, (key, value) in enumerate(settings.items()):
            numbered |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return {**self._environment, **numbered, **extra}

    def spawn(self, args: Sequence[str], environment: Mapping[str, str], folder: Path) -> "Spawned":
        """Start ``git args…``; runs in a worker thread."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - Spawned.end closes it
        try:
            process = subprocess.Popen(
                [self._binary, *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=folder,
                bufsize=0,
                process_group=0,
            )
        except BaseException:
            errors.close()
            raise
        spawned = Spawned(process, errors)
        try:
            self._limit(process.pid)
        except BaseException:
            spawned.end()
            raise
        return spawned

    async def start(self, spawn: Callable[P, "Spawned"], *args: P.args, **kwargs: P.kwargs) -> "GitProcess":
        """Call ``spawn`` (which ends in ours) in a thread, then join the pipes to the loop. A caller that is cancelled
        meanwhile, or fails, leaves no process behind."""
        spawning = asyncio.ensure_future(self.threads.run(spawn, *args, **kwargs))
        try:
            spawned = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await outlast(spawning)
            if not spawning.cancelled() and spawning.exception() is None:
                await self.threads.finish(spawning.result().end)
            raise
        try:
            return await GitProcess.connect(spawned, self.threads)
        except BaseException:
            await self.threads.finish(spawned.end)
            raise

    def _limit(self, pid: int) -> None:
        limits = self._limits
        for what, soft, hard in (
            (resource.RLIMIT_AS, limits.memory_bytes_max, limits.memory_bytes_max),
            (resource.RLIMIT_CPU, limits.cpu_s_max, limits.cpu_s_max + 1),
            (resource.RLIMIT_CORE, 0, 0),
        ):
            resource.prlimit(pid, what, (soft, hard))


class Spawned:
    """A running process whose pipes are not yet on the loop; used in worker threads only."""

    def __init__(self, process: "subprocess.Popen[bytes]", errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors

    def end(self, grace_s: float = END_GRACE_S) -> None:
        """Terminate the group if it still runs, reap, close what is ours. May be called again."""
        process = self.process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for pipe in (process.stdin, process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def wait(self) -> tuple[int, str]:
        """(return code, stderr), when the process has closed its output and so is about to exit."""
        code = self.process.wait()
        self._errors.seek(0)
        errors = self._errors.read(STDERR_BYTES_MAX)
        self.end()
        return code, errors.decode("utf-8", "replace")


class GitProcess:
    """A git process with its pipes on the loop."""

    def __init__(
        self,
        spawned: Spawned,
        threads: Threads,
        stdin: asyncio.StreamWriter,
        out: asyncio.ReadTransport,
        reader: asyncio.StreamReader,
    ) -> None:
        self.spawned = spawned
        self._threads = threads
        self._stdin = stdin
        self._out = out
        self._reader = reader

    @classmethod
    async def connect(cls, spawned: Spawned, threads: Threads) -> "GitProcess":
        loop = asyncio.get_running_loop()
        assert spawned.process.stdin is not None
        assert spawned.process.stdout is not None
        reader = asyncio.StreamReader(limit=READ_BYTES)
        out, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), spawned.process.stdout)
        # The protocol of a write pipe only has to know flow control, which this one does.
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        try:
            transport, _ = await loop.connect_write_pipe(lambda: protocol, spawned.process.stdin)
        except BaseException:
            out.close()
            raise
        return cls(spawned, threads, asyncio.StreamWriter(transport, protocol, None, loop), out, reader)

    async def feed(self, chunk: bytes) -> bool:
        """Write and wait until the pipe has room; False when git has stopped reading."""
        if self._stdin.transport.is_closing():
            return False
        self._stdin.write(chunk)
        try:
            await self._stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def end_input(self) -> None:
        """No more input: what is buffered is still written."""
        self._stdin.close()

    async def read(self) -> bytes:
        """The next output, empty at its end."""
        return await self._reader.read(READ_BYTES)

    @property
    def running(self) -> bool:
        """Whether it still takes input and has said nothing."""
        return not self._stdin.transport.is_closing() and not self._reader.at_eof()

    async def end(self) -> None:
        """End it, if that is not done, and let go of the pipes."""
        self.release()
        await self._threads.finish(self.spawned.end)

    def release(self) -> None:
        """Take the pipes off the loop, so that their descriptors may be closed elsewhere. May be called again."""
        transport = self._stdin.transport
        # One that is closing with nothing left to write is off the loop already; aborting it again is an error.
        if not transport.is_closing() or transport.get_write_buffer_size():
            transport.abort()
        self._out.close()

    async def __aenter__(self) -> "GitProcess":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()


def _check_version(binary: str) -> None:
    """Once per start. Raises ``StorageError``."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"{binary} does not run: {error}") from error
    version = version_of(said)
    if version is None or version < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise StorageError(f"{binary} says {said!r}; a node needs git {wanted} or newer (clients may be older)")
