"""Short ways to write the values that journal tests need."""

from hashlib import sha256

from node.protocol.acceptor import AcceptOp, CommitOp, PromiseOp
from node.protocol.certificate import Certificate, SignedVote
from node.protocol.change import Change, ChangeKind, PackRef, RefUpdate, Request
from node.protocol.ids import ORIGIN, ZERO_OID, Ballot, Digest, NodeId, Oid, Position, RefName, RepoId, TxnId
from node.protocol.messages import InlinePack
from node.protocol.quorum import VoterSet

ME = NodeId("node-1")
MEMBERS = VoterSet.of([ME, NodeId("node-2"), NodeId("node-3")])
OTHERS = VoterSet.of([NodeId("node-7"), NodeId("node-8")])
"""Not the configured members: what a register keeps must come from its creation change."""
REPO = RepoId("alice/project")
MAIN = RefName("refs/heads/main")


def oid(number: int) -> Oid:
    return Oid(f"{number:040x}")


def ballot(round_: int, attempt: int = 0, node: NodeId = ME) -> Ballot:
    return Ballot(round_, node, attempt)


def request(txn: str, *updates: RefUpdate, key: str | None = None, packs: tuple[PackRef, ...] = ()) -> Request:
    return Request(TxnId(txn), "tester", ME, 1, updates, packs=packs, key=key)


def create(txn: str = "t-create", base: Position = ORIGIN, repository: RepoId = REPO, key: str | None = None) -> Change:
    return Change(repository, base, ChangeKind.CREATE, (request(txn, key=key),), str(repository), OTHERS)


def update(base: Change | Position, txn: str, *updates: RefUpdate, packs: tuple[PackRef, ...] = ()) -> Change:
    repository = base.repository if isinstance(base, Change) else REPO
    position = base.position if isinstance(base, Change) else base
    return Change(repository, position, ChangeKind.UPDATE, (request(txn, *updates, packs=packs),))


def delete(base: Change, txn: str) -> Change:
    return Change(base.repository, base.position, ChangeKind.DELETE, (request(txn),))


def point(ref: RefName = MAIN, new: int = 1, old: int = 0) -> RefUpdate:
    return RefUpdate(ref, oid(old) if old else ZERO_OID, oid(new) if new else ZERO_OID)


def pack(number: int) -> tuple[PackRef, InlinePack]:
    body, index = f"PACK {number}".encode() * 8, f"index {number}".encode() * 8
    named = Digest(sha256(body).hexdigest())
    ref = PackRef(f"pack-{oid(number)}", named, len(body), Digest(sha256(index).hexdigest()), len(index))
    return ref, InlinePack(named, body, index)


def certificate(change: Change, at: Ballot | None = None) -> Certificate:
    signed = tuple(SignedVote(node, 1, b"\x00\xffsigned by " + node.encode()) for node in OTHERS.nodes)
    return Certificate(change.repository, OTHERS.digest, 2, change.position, at or ballot(1, 1), signed, signed[0])


def promise(at: Ballot, repository: RepoId = REPO) -> PromiseOp:
    return PromiseOp(repository, at)


def accept(at: Ballot, change: Change) -> AcceptOp:
    return AcceptOp(change.repository, at, change.base, change)


def accept_none(at: Ballot, base: Position, repository: RepoId = REPO) -> AcceptOp:
    return AcceptOp(repository, at, base, None)


def commit(change: Change) -> CommitOp:
    return CommitOp(change.repository, change)
