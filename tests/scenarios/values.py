"""Small values that test clusters are made of: a repository, its creation, pushes, packs, signatures that anyone can check."""

from hashlib import sha1, sha256

from node.protocol.certificate import Certificate, SignedVote, Statement, StatementKind
from node.protocol.change import Change, ChangeKind, PackRef, RefUpdate, Request
from node.protocol.ids import ZERO_OID, Ballot, Digest, NodeId, Oid, RefName, RepoId, TxnId
from node.protocol.quorum import VoterSet
from node.protocol.register import Register

REPOSITORY = RepoId("alice/project")


def sign(node: NodeId, message: bytes) -> bytes:
    return node.encode() + b" signs " + message


def genuine(node: NodeId, message: bytes, signature: bytes) -> bool:
    return signature == sign(node, message)


def founding_certificate(change: Change, voters: VoterSet) -> Certificate:
    """For history that a world begins with: all voted yes, the first node decided."""
    ballot, quorum = Ballot(1, voters.nodes[0], 1), voters.majority

    def signed(kind: StatementKind, node: NodeId) -> SignedVote:
        statement = Statement(kind, REPOSITORY, voters.digest, quorum, change.position, ballot, 1)
        return SignedVote(node, 1, sign(node, statement.encode()))

    votes = tuple(signed(StatementKind.YES_CHANGE, node) for node in voters.nodes)
    decision = signed(StatementKind.DECISION, voters.nodes[0])
    return Certificate(REPOSITORY, voters.digest, quorum, change.position, ballot, votes, decision)


def creation(voters: VoterSet) -> Change:
    """The change that every prepared world begins with."""
    request = Request(TxnId("t0"), "alice", voters.nodes[0], 0)
    origin = Register(REPOSITORY, voters).position
    return Change(REPOSITORY, origin, ChangeKind.CREATE, (request,), str(REPOSITORY), voters)


def oid(letter: str) -> Oid:
    """``a`` stands for a git commit; ``-`` for no object."""
    return ZERO_OID if letter == "-" else Oid(sha1(letter.encode()).hexdigest())


def update(branch: str, old: str, new: str) -> RefUpdate:
    return RefUpdate(RefName(f"refs/heads/{branch}"), oid(old), oid(new))


def pack(letter: str) -> PackRef:
    digest = Digest(sha256(letter.encode()).hexdigest())
    return PackRef(f"pack-{oid(letter)}", digest, 1000, digest, 1000)


def stem(txn: str) -> str:
    """``t1.2`` is the second try of ``t1``."""
    return txn.partition(".")[0]
