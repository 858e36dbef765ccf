"""A disk that is really full, and one below its watermark: no, with the reason; reads go on; it ends by itself."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node import applying
from node.ports.service import Consistency
from node.protocol.ids import Ballot, RefName
from node.protocol.messages import Prepare, Vote, VoteKind
from tests.crash import checks, ext4
from tests.crash.scripts import Script, _learned_creation
from tests.crash.subject import HURRY, Subject
from tests.crash.values import MAIN, NAME, A, B, C, packed

MIB = 1024**2
pytestmark = [
    pytest.mark.skipif(bool(ext4.why_not()), reason=f"no small disk of its own: {ext4.why_not()}"),
    pytest.mark.timeout(300),
]


class Told(list[dict[str, Any]]):
    def __call__(self, kind: str, **facts: Any) -> None:
        self.append({"kind": kind, **facts})

    def reasons(self) -> str:
        return "; ".join(str(one.get("reason", "")) for one in self)


class Filler:
    """Whatever else is on that disk."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "filler"
        self._disk = disk

    def leave(self, size_bytes: int) -> None:
        free = os.statvfs(self._disk).f_bavail * os.statvfs(self._disk).f_frsize
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            at = os.fstat(descriptor).st_size
            if free > size_bytes:
                os.posix_fallocate(descriptor, at, free - size_bytes)
        finally:
            os.close(descriptor)

    def fill(self) -> None:
        """To the last byte."""
        self.leave(MIB)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            for size in (65536, 4096, 512, 1):
                try:
                    while True:
                        os.write(descriptor, bytes(size))
                except OSError:
                    continue
        finally:
            os.close(descriptor)

    def go(self) -> None:
        self._path.unlink()


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HURRY.items():
        monkeypatch.setattr(applying, name, value)


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Path]:
    with ext4.Ext4(tmp_path, 48 * MIB) as made:
        yield made.path


async def until(condition: Any, what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert condition(), what


async def test_below_its_watermark_a_node_says_so_votes_no_and_recovers_without_a_restart(disk: Path, tmp_path: Path) -> None:
    told = Told()
    packs = [packed(tmp_path / "packs", f"p{n}", size=2000)[0] for n in range(4)]
    node = Subject(disk / "data", (A,), told, None, [], "watermark")
    node.free_bytes_min = 8 * MIB
    await node.start()
    filler = Filler(disk)
    try:
        assert await node.create()
        assert await node.push(MAIN, packs[0])
        state = node.runtime.state
        assert state().write_ready
        filler.leave(4 * MIB)
        await until(lambda: not state().write_ready, "the watermark is noticed")
        assert state().ready
        assert state().problem.startswith("disk full: ")
        assert "8 MiB are needed (free_bytes_min)" in state().problem
        assert not await node.push(RefName("refs/heads/b1"), packs[1])
        assert "disk full" in told.reasons()
        assert (await node.runtime.service.read(NAME, Consistency.LINEARIZABLE)).refs[MAIN].oid == packs[0].tip
        filler.go()
        await until(lambda: state().write_ready, "room is noticed")
        assert state().problem == ""
        assert await node.push(RefName("refs/heads/b1"), packs[1])
        filler.leave(4 * MIB)
        await until(lambda: not state().write_ready, "the watermark is noticed again")
        assert await node.delete(), "a deletion makes room"
    finally:
        await node.stop()


async def test_a_voter_below_its_watermark_votes_no_with_the_reason(disk: Path, tmp_path: Path) -> None:
    told = Told()
    script = Script("voter", (A, B, C), _learned_creation)
    script.make(tmp_path / "packs")
    node = Subject(disk / "data", (A, B, C), told, script.chain, script.packs, "voter")
    node.free_bytes_min = 8 * MIB
    await node.start()
    try:
        assert await _learned_creation(script, node)
        change = script.history.changes[1]
        packs = (script.packs[0].inline,)
        prepare = Prepare(NAME.key, script.history.voters.digest, Ballot(2, B, 1), change, 2, 5.0, packs, (B,))
        filler = Filler(disk)
        filler.leave(4 * MIB)
        await until(lambda: node.runtime.state().problem.startswith("disk full"), "the watermark is noticed")
        vote = await node.request(prepare)
        assert isinstance(vote, Vote)
        assert (vote.kind, vote.reason) == (VoteKind.NO, "disk full")
        filler.go()
        await until(lambda: not node.runtime.state().problem.startswith("disk"), "room is noticed")
        vote = await node.request(prepare)
        assert isinstance(vote, Vote)
        assert vote.kind is VoteKind.YES
    finally:
        await node.stop()


async def test_a_disk_full_to_the_last_byte_refuses_serves_reads_and_goes_on_when_there_is_room(
    disk: Path, tmp_path: Path
) -> None:
    told = Told()
    packs = [packed(tmp_path / "packs", f"p{n}", size=30_000)[0] for n in range(60)]
    node = Subject(disk / "data", (A,), told, None, [], "full")
    await node.start()
    try:
        assert await node.create()
        assert await node.push(MAIN, packs[0])
        filler = Filler(disk)
        filler.fill()
        refused = 0
        for number, pack in enumerate(packs[1:]):
            refused += not await node.push(RefName(f"refs/heads/b{number}"), pack)
            if refused >= 3:
                break
        assert refused >= 3, "a full disk was never met"
        assert not node.journal.failed, "full is not failed"
        assert node.runtime.state().ready
        assert (await node.runtime.service.read(NAME, Consistency.LOCAL)).refs[MAIN].oid == packs[0].tip
        filler.go()
        async with asyncio.timeout(30):
            while not await node.push(RefName("refs/heads/after"), packs[-1]):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        async with asyncio.timeout(30):
            while await node.journal.unsynced():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not await checks.visible(node, [])
    finally:
        await node.stop()
    again = Subject(disk / "data", (A,), told, None, [], "again")
    await again.start()
    try:
        assert not await checks.promises(again, told)
        assert not await checks.visible(again, [])
    finally:
        await again.stop()
