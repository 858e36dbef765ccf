"""Processes of git: what they see, what limits them, that none outlives its owner; and fetches that stream."""

import asyncio
import os
import re
import resource
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dulwich.protocol import pkt_line

from node.ports.errors import DiskRefused, RepositoryAbsent, StorageError
from node.storage.git import Git, GitLimits, Spawned
from node.storage.objects import DiskObjects
from node.storage.quarantine import git_words
from node.storage.threads import Threads
from node.storage.upload import CHUNK_BYTES, safe_protocol
from tests.unit.storage_kit import MAIN, NAME, created, history, pack_of, pushed

MIB = 1024**2


@pytest.fixture
async def git(tmp_path: Path) -> AsyncIterator[Git]:
    threads = Threads(2)
    yield Git(tmp_path, GitLimits(memory_bytes_max=300 * MIB, cpu_s_max=7), threads)
    threads.close()


@pytest.fixture
async def objects(tmp_path: Path) -> AsyncIterator[DiskObjects]:
    store = DiskObjects(tmp_path / "data", GitLimits(warm_max=0, free_bytes_min=0))
    yield store
    await store.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter when it ends between the opening and the reading
        return False


def shell(git: Git, script: str, folder: Path) -> Spawned:
    """git running a shell, as an alias may."""
    environment = git.environment({"alias.run": f"!{script}"}, {})
    return git.spawn(["run"], environment, folder)


async def output(git: Git, script: str, folder: Path) -> str:
    async with await git.start(lambda: shell(git, script, folder)) as process:
        process.end_input()
        text = b""
        while chunk := await process.read():
            text += chunk
    return text.decode()


async def test_the_environment_is_ours_alone(git: Git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/somewhere")
    monkeypatch.setenv("GIT_SSH_COMMAND", "evil")
    monkeypatch.setenv("LD_PRELOAD", "")
    text = await output(git, "env", tmp_path)
    assert "/somewhere" not in text
    assert "evil" not in text
    assert "LD_PRELOAD" not in text
    for line in ("GIT_NO_REPLACE_OBJECTS=1", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "LC_ALL=C"):
        assert line in text.splitlines()


async def test_limits_are_set_before_anything_is_fed(git: Git, tmp_path: Path) -> None:
    """git forks nothing before it has read something, so what it starts inherits them."""
    async with await git.start(lambda: shell(git, "read line", tmp_path)) as process:
        pid = process.spawned.process.pid
        assert resource.prlimit(pid, resource.RLIMIT_AS) == (300 * MIB, 300 * MIB)
        assert resource.prlimit(pid, resource.RLIMIT_CPU) == (7, 8)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


async def test_the_end_takes_the_children_too_even_those_that_ignore_it(git: Git, tmp_path: Path) -> None:
    process = await git.start(lambda: shell(git, "trap : TERM; echo $$; sleep 1000 & echo $!; read x; wait; wait", tmp_path))
    pids: list[int] = []
    while len(pids) < 2:
        pids += [int(pid) for pid in (await process.read()).split()]
    assert all(map(alive, pids))
    await process.end()
    for _ in range(500):
        if not any(map(alive, pids)):
            break
        await asyncio.sleep(0.02)
    assert not any(map(alive, pids))
    await process.end()


async def test_a_start_that_is_cancelled_leaves_no_process(git: Git, tmp_path: Path) -> None:
    started: list[Spawned] = []

    def spawn() -> Spawned:
        started.append(shell(git, "sleep 1000", tmp_path))
        return started[0]

    task = asyncio.create_task(git.start(spawn))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [spawned.process.returncode is not None for spawned in started] == [True]


async def test_input_that_git_does_not_want_blocks_nobody(git: Git, tmp_path: Path) -> None:
    async with await git.start(lambda: shell(git, "exec <&-; echo done", tmp_path)) as process:
        assert await process.read() == b"done\n"
        for _ in range(100):
            if not await process.feed(bytes(MIB)):
                break
        else:
            raise AssertionError("the pipe was never found closed")


async def test_a_slow_reader_holds_git_back(git: Git, tmp_path: Path) -> None:
    async with await git.start(lambda: shell(git, "cat /dev/zero", tmp_path)) as process:
        await asyncio.sleep(0.3)
        assert len(process._reader._buffer) < MIB  # type: ignore[attr-defined]


def test_errors_of_the_disk_are_said_without_paths() -> None:
    text = "error: object 12ab: hasDotgit: contains '.git'\nfatal: cannot open '/srv/data/.quarantine/x/pack/tmp_1': No"
    assert git_words(text) == "object 12ab: hasDotgit: contains '.git'; cannot open tmp_1: No"
    assert git_words("") == ""


async def test_an_os_error_in_a_thread_is_a_refusal() -> None:
    threads = Threads(1)
    with pytest.raises(DiskRefused, match="No such file"):
        await threads.run(os.stat, "/nowhere")
    threads.close()


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("version=2", "version=2"),
        ("version=1:agent=git/2.39", "version=1:agent=git/2.39"),
        ("version=3", ""),
        ("version=2\nX=1", ""),
        ("version=2:" + "a" * 300, ""),
        ("$(evil)", ""),
        ("", ""),
    ],
)
def test_only_a_git_protocol_header_becomes_one(text: str, safe: str) -> None:
    assert safe_protocol(text) == safe


async def test_a_fetch_is_answered_in_large_chunks(objects: DiskObjects) -> None:
    things = history(1, os.urandom(MIB))
    await pushed(objects, await created(objects), pack_of(*things), {MAIN: things[-1].oid}, "one")
    lines = [b"command=fetch", None, f"want {things[-1].oid}\n".encode(), b"done\n", None]
    request = b"".join(b"0001" if line is None and number == 1 else pkt_line(line) for number, line in enumerate(lines))
    answer = await objects.upload_pack(str(NAME), protocol="version=2", request=request)
    chunks = [chunk async for chunk in answer]
    assert sum(map(len, chunks)) > MIB
    assert all(len(chunk) >= CHUNK_BYTES for chunk in chunks[:-1])
    assert b"packfile" in chunks[0]


async def test_what_git_cannot_answer_is_an_err_packet(objects: DiskObjects) -> None:
    await created(objects)
    for request in (b"zzzz", b"0032want " + b"12" * 20 + b"\n0000"):
        answer = await objects.upload_pack(str(NAME), protocol="", request=request)
        text = b"".join([chunk async for chunk in answer])
        assert b"ERR upload-pack" in text


async def test_an_absent_repository_is_said_before_anything_starts(objects: DiskObjects) -> None:
    with pytest.raises(RepositoryAbsent):
        await objects.upload_pack(str(NAME), protocol="version=2", request=b"0000")


async def test_a_client_that_stops_reading_ends_the_process(objects: DiskObjects) -> None:
    things = history(1, os.urandom(4 * MIB))
    await pushed(objects, await created(objects), pack_of(*things), {MAIN: things[-1].oid}, "one")
    request = pkt_line(f"want {things[-1].oid} side-band-64k\n".encode()) + b"0000" + pkt_line(b"done\n")
    answer = await objects.upload_pack(str(NAME), protocol="", request=request)
    assert await anext(answer)
    before = _children()
    assert before
    await answer.aclose()
    assert _children() == []
    unread = await objects.upload_pack(str(NAME), protocol="", request=request)
    await unread.aclose()
    assert _children() == []


def _children() -> list[str]:
    found: list[str] = []
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"upload-pack" in command:
                found.append(pid)
    return found


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo git version 2.30.2", "says 'git version 2.30.2'; a node needs git 2.31 or newer"),
        ("echo hello", "says 'hello'; a node needs git 2.31"),
        ("exit 3", "does not run"),
    ],
)
def test_a_git_that_would_ignore_the_limits_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    """Before 2.31 git knows no GIT_CONFIG_COUNT."""
    (tmp_path / "git").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StorageError, match=re.escape(reason)):
        Git(tmp_path, GitLimits(), Threads(1))
