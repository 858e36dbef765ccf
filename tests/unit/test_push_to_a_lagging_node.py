"""A load balancer shows a client one node's refs and sends its push to another, which is a moment behind."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from api import second_look
from api.git_body import BodyMalformed
from api.pkt import pkt
from api.push_pack import PushPack
from api.second_look import SecondLook
from api.smart_http import SmartHttp
from node.ports.errors import ReadUnavailable
from node.ports.service import Consistency, Service
from node.protocol.ids import ZERO_OID, Position, digest_of
from node.protocol.messages import INLINE_PACK_BYTES_MAX
from node.protocol.names import RepositoryName
from node.protocol.register import Register
from tests.unit.asgi_client import Answer, call
from tests.unit.fake_git_service import FakeGitService, config_for, git

EMPTY_PACK = bytes.fromhex("5041434b0000000200000000029d08823bd8a8eab510ad6ac75c823cfd3ed31e")
WHO = {f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


class Behind:
    """A node whose repository lacks the newest commit that the client has seen on another."""

    def __init__(self, folder: Path) -> None:
        self.service = FakeGitService(folder / "repositories")
        self.here = self.service.create("alice/project")
        self.client = folder / "client"
        git("init", "--quiet", "--bare", str(self.client))
        self.seen = self._commit("seen elsewhere")
        self.service.behind = lambda: git("fetch", "--quiet", str(self.client), f"{self.seen}:refs/heads/main", cwd=self.here)
        self.app = SmartHttp(cast(Service, self.service), config_for(folder))

    def _commit(self, text: str, *parents: str, content: bytes = b"line\n" * 200) -> str:
        blob = git("hash-object", "-w", "--stdin", cwd=self.client, stdin=content).decode().strip()
        tree = git("mktree", cwd=self.client, stdin=f"100644 blob {blob}\tfile\n".encode()).decode().strip()
        named = [word for parent in parents for word in ("-p", parent)]
        oid = git("commit-tree", "-m", text, *named, tree, cwd=self.client, env=WHO).decode().strip()
        git("update-ref", "refs/heads/main", oid, cwd=self.client)
        return oid

    def thin_pack(self, content: bytes = b"line\n" * 200 + b"one more\n") -> tuple[str, bytes]:
        """A commit on top of the one seen, and a pack that has only what is new."""
        new = self._commit("new", self.seen, content=content)
        wanted = f"{new}\n^{self.seen}\n".encode()
        return new, git("pack-objects", "--quiet", "--thin", "--revs", "--stdout", cwd=self.client, stdin=wanted)

    async def push(self, old: str, new: str, pack: bytes) -> Answer:
        line = f"{old} {new} refs/heads/x\0report-status".encode()
        header = ("Content-Type", "application/x-git-receive-pack-request")
        return await call(self.app, "POST", "/alice/project.git/git-receive-pack", pkt(line) + b"0000" + pack, (header,))

    @property
    def questions(self) -> int:
        return self.service.consistencies.count(Consistency.LINEARIZABLE)


@pytest.fixture
def node(tmp_path: Path) -> Behind:
    return Behind(tmp_path)


async def test_a_new_branch_at_a_commit_that_is_not_here_yet_is_taken(node: Behind) -> None:
    answer = await node.push(ZERO_OID, node.seen, EMPTY_PACK)
    assert pkt(b"ok refs/heads/x\n") in answer.body
    assert answer.headers["x-gitquorum-version"] == "3", "one caught up, one pushed"


@pytest.mark.parametrize("content", [b"line\n" * 200 + b"one more\n", b"something else\n"], ids=["delta", "links"])
async def test_a_small_thin_pack_on_a_commit_that_is_not_here_yet_is_looked_at_twice(node: Behind, content: bytes) -> None:
    new, pack = node.thin_pack(content)
    answer = await node.push(ZERO_OID, new, pack)
    assert pkt(b"ok refs/heads/x\n") in answer.body
    assert node.questions == 1
    assert node.service.discarded == 1
    assert git("rev-parse", "refs/heads/x", cwd=node.here).decode().strip() == new


async def test_before_a_pack_too_large_to_be_kept_the_others_are_asked(node: Behind) -> None:
    new, pack = node.thin_pack(random.Random(3).randbytes(2 * INLINE_PACK_BYTES_MAX))
    assert len(pack) > INLINE_PACK_BYTES_MAX
    assert pkt(b"ok refs/heads/x\n") in (await node.push(ZERO_OID, new, pack)).body
    assert node.questions == 1
    assert node.service.calls.count("receive") == 1, "git saw it once"


async def test_an_honest_small_push_costs_no_question(node: Behind) -> None:
    assert node.service.behind is not None
    node.service.behind()
    node.service.behind = None
    new, pack = node.thin_pack()
    assert pkt(b"ok refs/heads/x\n") in (await node.push(ZERO_OID, new, pack)).body
    assert node.questions == 0


async def test_what_is_missing_everywhere_is_refused_after_one_question_each(node: Behind) -> None:
    node.service.behind = None
    missing = "1" * 40
    answer = await node.push(ZERO_OID, missing, EMPTY_PACK)
    assert b"ng refs/heads/x missing necessary objects\n" in answer.body
    new, pack = node.thin_pack()
    assert b"unpack " in (answer := await node.push(ZERO_OID, new, pack)).body
    assert pkt(b"ok refs/heads/x\n") not in answer.body
    assert node.questions == 2
    assert node.service.submitted == []


async def test_without_a_majority_the_refusal_says_that_this_node_may_be_behind(node: Behind) -> None:
    def alone() -> None:
        raise ReadUnavailable("no answer from node-2, node-3")

    node.service.behind = alone
    answer = await node.push(ZERO_OID, node.seen, EMPTY_PACK)
    excuse = b"(this node could not compare itself with the others: no answer from node-2, node-3; try again)"
    assert b"ng refs/heads/x missing necessary objects " + excuse in answer.body
    node.service.behind = alone
    new, pack = node.thin_pack()
    answer = await node.push(ZERO_OID, new, pack)
    assert excuse in answer.body.splitlines()[0], "in git's unpack line too"


async def test_what_a_failed_look_brought_all_the_same_counts(node: Behind) -> None:
    """It caught up with the push's own history, and ran out of time over a newer change."""
    bring = node.service.behind
    assert bring is not None

    def late() -> None:
        bring()
        node.service.version += 1
        raise ReadUnavailable("a change in doubt is not settled yet")

    node.service.behind = late
    answer = await node.push(ZERO_OID, node.seen, EMPTY_PACK)
    assert pkt(b"ok refs/heads/x\n") in answer.body


async def test_peers_that_say_nothing_cost_one_look_in_all(node: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    """One ref whose pack fails, once more at the look at its tip: the second look has no time left."""
    monkeypatch.setattr(second_look, "LOOK_S", 0.2)
    read = node.service.read

    async def silent(name: RepositoryName, consistency: Consistency, at_least: int = 0) -> Register:
        if consistency is Consistency.LINEARIZABLE:
            node.service.consistencies.append(consistency)
            await asyncio.Event().wait()
        return await read(name, consistency)

    node.service.read = silent  # type: ignore[method-assign]
    look = SecondLook(cast(Service, node.service), RepositoryName.parse("alice/project"), Position(1, digest_of("1")))
    began_at = asyncio.get_running_loop().time()
    assert not await look.moved()
    assert not await look.moved()
    assert 0.2 <= asyncio.get_running_loop().time() - began_at < 0.35
    assert look.excuse == " (this node could not compare itself with the others: not within 0.2 s; try again)"
    assert b"missing necessary objects" in (await node.push(ZERO_OID, node.seen, EMPTY_PACK)).body


# ---------------------------------------------------------------- PushPack


async def _pieces(*pieces: bytes, fault: Exception | None = None) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    if fault is not None:
        raise fault


class Asked:
    count = 0

    async def __call__(self) -> bool:
        self.count += 1
        return True


async def test_a_pack_within_the_bound_can_be_read_again() -> None:
    asked = Asked()
    pack = PushPack(b"PA", _pieces(b"CK", b"x" * (INLINE_PACK_BYTES_MAX - 4)), asked)
    assert not pack.repeatable
    first = b"".join([piece async for piece in pack.stream()])
    assert pack.repeatable
    assert b"".join([piece async for piece in pack.again()]) == first
    assert asked.count == 0
    pack.forget()
    assert not pack.repeatable


async def test_one_byte_more_is_not_kept_and_asks_once() -> None:
    asked = Asked()
    pack = PushPack(b"", _pieces(b"x" * INLINE_PACK_BYTES_MAX, b"y", b"z"), asked)
    assert len(b"".join([piece async for piece in pack.stream()])) == INLINE_PACK_BYTES_MAX + 2
    assert not pack.repeatable
    assert asked.count == 1


async def test_a_body_that_breaks_off_is_remembered_and_not_repeatable() -> None:
    fault = BodyMalformed("broken gzip")
    pack = PushPack(b"PACK", _pieces(b"x", fault=fault), Asked())
    with pytest.raises(BodyMalformed):
        [piece async for piece in pack.stream()]
    assert pack.fault is fault
    assert not pack.repeatable
