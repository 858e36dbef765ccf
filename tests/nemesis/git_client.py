"""A client that is stock git: ``ls-remote``, ``fetch``, ``push --force-with-lease``, each a process of its own."""

import asyncio
import re
from pathlib import Path

from tests.cluster.harness import GIT, git, git_environment, refs_of
from tests.nemesis.clients import Recorder, Told, told_committed, told_refused
from tests.nemesis.history import ZERO, Kind, Operation, Outcome, Update, refs

TIMEOUT_S = 20.0
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

_REFUSED = re.compile(r"^!\t.*\[(?:remote )?rejected\] \((.*)\)$", re.MULTILINE)


class GitClient:
    """With a repository of its own to keep what it knows."""

    def __init__(self, name: str, urls: dict[int, str], recorder: Recorder, folder: Path) -> None:
        self.name = name
        self._urls = urls
        self._recorder = recorder
        self._folder = folder
        self._count = 0

    def open(self) -> None:
        git("init", "--quiet", "--bare", str(self._folder), cwd=self._folder.parent)
        git("hash-object", "-w", "-t", "tree", "--stdin", cwd=self._folder)

    async def read(self, node: int, repository: str) -> Operation:
        """``git ls-remote``."""
        start = self._recorder.now()
        code, out, err = await self._git("ls-remote", self._url(node, repository))
        if code == 0:
            told = Told(Outcome.COMMITTED, value=refs(refs_of(out)))
        elif "not found" in err:
            told = Told(Outcome.COMMITTED, "not found")
        else:
            told = Told(Outcome.UNKNOWN, err[-300:])
        return self._recorder.add(self.name, Kind.READ, repository, node, start, told, "git")

    async def push(self, node: int, repository: str, ref: str) -> Operation | None:
        """Fetch the ref, commit on top of it, push that; ``None`` if there was nothing to be had."""
        url = self._url(node, repository)
        code, _, err = await self._git("fetch", "--quiet", "--no-tags", url, f"+{ref}:refs/seen")
        if code and "couldn't find remote ref" not in err:
            return None
        old = ZERO if code else (await self._git("rev-parse", "refs/seen"))[1].strip()
        self._count += 1
        parent = () if old == ZERO else ("-p", old)
        text = f"{self.name} {self._count} {self._folder}"
        new = (await self._git("commit-tree", *parent, "-m", text, EMPTY_TREE))[1].strip()
        start = self._recorder.now()
        lease = f"--force-with-lease={ref}:{'' if old == ZERO else old}"
        code, out, err = await self._git("push", "--porcelain", lease, url, f"{new}:{ref}")
        return self._recorder.add(
            self.name, Kind.PUSH, repository, node, start, _told(code, out, err), "git", (Update(ref, old, new),)
        )

    def _url(self, node: int, repository: str) -> str:
        return f"{self._urls[node]}/{repository}.git"

    async def _git(self, *arguments: str) -> tuple[int, str, str]:
        """Code, output, errors; code -1 if it took too long."""
        process = await asyncio.create_subprocess_exec(
            GIT,
            *("-c", "gc.auto=0", "-c", "maintenance.auto=false", "-c", "core.fsync=none"),
            *arguments,
            cwd=self._folder,
            env=git_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                out, err = await process.communicate()
        except TimeoutError:
            return -1, "", f"took longer than {TIMEOUT_S:g} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


def _told(code: int, out: str, err: str) -> Told:
    if code == 0:
        return told_committed(err)
    refused = _REFUSED.search(out)
    if refused:
        return told_refused(refused[1])
    if "Failed to connect" in err and "RPC failed" not in err:
        return Told(Outcome.UNSENT, err[-300:])
    return Told(Outcome.UNKNOWN, err[-300:])
