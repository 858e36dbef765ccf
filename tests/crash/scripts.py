"""What the node does while it is made to fail: one short operation each, from a prepared disk to everything settled.

``operation`` may be called again, in the same life or the next one: it goes on from whatever it finds, and says whether it
came through.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from node.protocol.change import Change
from node.protocol.ids import Ballot, NodeId, RefName
from node.protocol.messages import Abort, Acknowledged, Claim, Commit, Prepare, Promise, Vote, VoteKind
from node.protocol.names import RepositoryName
from tests.crash.subject import Subject
from tests.crash.values import NAME, A, B, C, Chain, Packed, packed

SMALL, LARGE = 2_000, 150_000
"""Bytes of a file that does not compress: below and above what rides in messages (64 KiB)."""

PUSHES_MAX = 6
PATIENCE_S = 4.0
ALONE, THREE = (A,), (A, B, C)

Step = Callable[["Script", Subject], Awaitable[bool]]


async def _nothing(script: "Script", node: Subject) -> bool:
    return True


@dataclass
class Script:
    """``prepare`` makes the disk that every run begins with; ``operation`` is what is watched."""

    name: str
    nodes: tuple[NodeId, ...]
    operation: Step
    prepare: Step = _nothing
    large: bool = False
    chain: Chain | None = None
    packs: list[Packed] = field(default_factory=list)

    def make(self, folder: Path) -> None:
        """The packs, and history with them. Always the same."""
        parent = None
        for number in range(PUSHES_MAX):
            pack, tip = packed(folder, f"{self.name}-{number}", size=LARGE if self.large else SMALL, parent=parent)
            self.packs.append(pack)
            parent = tip if self.nodes == THREE else None
        if self.nodes == THREE:
            self.chain = Chain()
            self.chain.create()
            for pack in self.packs[:3]:
                self.chain.push(pack)

    @property
    def history(self) -> Chain:
        assert self.chain is not None
        return self.chain


# ---------------------------------------------------------------- as coordinator


async def _create(script: Script, node: Subject) -> bool:
    for number in range(PUSHES_MAX):
        name = RepositoryName("alice", f"project-{number}" if number else "project")
        replica = await node.runtime._registry.get(name.key)
        if replica.register.exists:
            continue
        if await node.create(name):
            return True
        if not replica.register.exists:
            return False
    raise AssertionError("all names are taken")


async def _created(script: Script, node: Subject) -> bool:
    return await node.create()


async def _push(script: Script, node: Subject) -> bool:
    """The next branch; if a doubt of an earlier life was settled by this very push, the one after that."""
    replica = await node.runtime._registry.get(NAME.key)
    for number, pack in enumerate(script.packs):
        ref = RefName(f"refs/heads/b{number}")
        if ref in replica.register.refs:
            continue
        if await node.push(ref, pack):
            return True
        if ref not in replica.register.refs or replica.register.refs[ref].oid != pack.tip:
            return False
    raise AssertionError("all branches are pushed")


async def _created_and_pushed(script: Script, node: Subject) -> bool:
    return await node.create() and await _push(script, node)


async def _delete(script: Script, node: Subject) -> bool:
    """Or its creation, whichever can be; perhaps a doubt of an earlier life is settled on the way."""
    replica = await node.runtime._registry.get(NAME.key)
    for _ in range(2):
        existed = replica.register.exists
        if await (node.delete() if existed else node.create()):
            return True
        if replica.register.exists == existed:
            break
    return False


# ---------------------------------------------------------------- as voter


def _prepare_of(script: Script, change: Change, round_: int) -> Prepare:
    packs = tuple(pack.inline for pack in script.packs if pack.ref in change.packs) if not script.large else ()
    voters = script.history.voters.digest
    return Prepare(NAME.key, voters, Ballot(round_, B, 1), change, 2, 15.0, packs, (B,))


async def _prepared(script: Script, node: Subject, change: Change, round_: int) -> bool:
    message = _prepare_of(script, change, round_)
    reply = await node.request(message)
    if isinstance(reply, Vote) and reply.kind is VoteKind.YES:
        node.tell("accepted", round=round_, attempt=1, digest=change.position.digest)
        return True
    node.tell("no", reason=f"{type(reply).__name__}: {getattr(reply, 'reason', '')}")
    return isinstance(reply, Vote) and reply.kind is VoteKind.ALREADY_COMMITTED


async def _committed(script: Script, node: Subject, change: Change) -> bool:
    history = script.history
    reply = await node.request(Commit(NAME.key, history.voters.digest, change.position, history.certificate(change)))
    if isinstance(reply, Acknowledged) and reply.committed.version >= change.position.version:
        node.tell("committed", version=change.position.version, digest=change.position.digest)
        replica = await node.runtime._registry.get(NAME.key)
        return await replica.wait_applied(change.position.version, PATIENCE_S)
    node.tell("no", reason=f"{type(reply).__name__}: {getattr(reply, 'reason', '')}")
    return False


async def _learned_creation(script: Script, node: Subject) -> bool:
    change = script.history.changes[0]
    return await _prepared(script, node, change, 1) and await _committed(script, node, change)


async def _vote(script: Script, node: Subject) -> bool:
    """A claim, and the prepare that comes after it."""
    claim = Claim(NAME.key, script.history.voters.digest, Ballot(2, B, 0), 15.0)
    record = (await node.runtime._registry.get(NAME.key)).voter.record
    if record.promised <= claim.ballot:
        reply = await node.request(claim)
        if not isinstance(reply, Promise):
            node.tell("no", reason=f"{type(reply).__name__}: {getattr(reply, 'reason', '')}")
            return False
        node.tell("promised", round=2, attempt=0)
    return await _prepared(script, node, script.history.changes[1], 2)


async def _accepted(script: Script, node: Subject) -> bool:
    return await _learned_creation(script, node) and await _vote(script, node)


async def _commit(script: Script, node: Subject) -> bool:
    return await _committed(script, node, script.history.changes[1])


async def _abort(script: Script, node: Subject) -> bool:
    history = script.history
    message = Abort(NAME.key, history.voters.digest, Ballot(2, B, 2), history.changes[0].position, 2, 15.0)
    reply = await node.request(message)
    if isinstance(reply, Vote) and reply.kind is VoteKind.YES:
        node.tell("accepted", round=2, attempt=2, digest="")
        return True
    node.tell("no", reason=f"{type(reply).__name__}: {getattr(reply, 'reason', '')}")
    return False


async def _catch_up(script: Script, node: Subject) -> bool:
    replica = await node.runtime._registry.get(NAME.key)
    target = script.history.position
    replica.catch_up(target.version, (B,))
    done = await replica.wait_applied(target.version, PATIENCE_S)
    if not done:
        node.tell("no", reason=f"applied {replica.applied} of {target.version}; {replica.stopped}")
        return False
    node.tell("committed", version=target.version, digest=target.digest)
    return True


def all_scripts() -> list[Script]:
    return [
        Script("create", ALONE, _create),
        Script("push-small", ALONE, _push, _created),
        Script("push-large", ALONE, _push, _created, large=True),
        Script("delete", ALONE, _delete, _created_and_pushed),
        Script("prepare-small", THREE, _vote, _learned_creation),
        Script("prepare-large", THREE, _vote, _learned_creation, large=True),
        Script("commit-small", THREE, _commit, _accepted),
        Script("commit-large", THREE, _commit, _accepted, large=True),
        Script("abort", THREE, _abort, _accepted),
        Script("catch-up-small", THREE, _catch_up, _learned_creation),
        Script("catch-up-large", THREE, _catch_up, _learned_creation, large=True),
    ]
