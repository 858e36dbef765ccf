"""Messages and keys that the broker's tests share."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.keys import Keyring, public_text
from node.protocol.acceptor import Accepted
from node.protocol.certificate import Certificate, SignedVote
from node.protocol.change import Change, ChangeKind, PackRef, RefUpdate, Request
from node.protocol.hash_tree import Branch, Leaf
from node.protocol.ids import ORIGIN, ZERO_OID, Ballot, Digest, NodeId, Oid, RefName, RepoId, TxnId
from node.protocol.messages import (
    Abort,
    AcceptorPage,
    AcceptorRecords,
    Acknowledged,
    Branches,
    BranchPage,
    Claim,
    Commit,
    Enrol,
    Enrolment,
    Fetch,
    HeldRecord,
    History,
    HistoryEntry,
    HistoryPage,
    InlinePack,
    Message,
    Ping,
    Pong,
    Prepare,
    Promise,
    Query,
    Refused,
    Stage,
    Staged,
    Status,
    Summaries,
    Summary,
    SummaryPage,
    Transaction,
    TransactionReport,
    Vote,
    VoteKind,
)
from node.protocol.quorum import VoterSet
from node.protocol.standing import Life, Standing, State

REPO = RepoId("alice/project")


def keyrings(*names: str) -> dict[NodeId, Keyring]:
    """One key each, everybody knows everybody's public half."""
    keys = {NodeId(name): Ed25519PrivateKey.generate() for name in names}
    public = {node: [public_text(key)] for node, key in keys.items()}
    return {node: Keyring(node, key, public) for node, key in keys.items()}


def prepare(sender: str = "node-1", txn: str = "tx-1", pack_bytes: int = 0) -> Prepare:
    node = NodeId(sender)
    update = RefUpdate(RefName("refs/heads/main"), ZERO_OID, Oid("1" * 40))
    change = Change(REPO, ORIGIN, ChangeKind.UPDATE, (Request(TxnId(txn), "Ünïcode \n user", node, 1, (update,)),))
    packs = (InlinePack(Digest("a" * 64), b"\x00\xff" * (pack_bytes // 2), b"index"),) if pack_bytes else ()
    return Prepare(REPO, VOTERS.digest, Ballot(3, node, 1), change, 2, 2.0, packs, (node,))


def claim(sender: str = "node-1", round_: int = 1) -> Claim:
    return Claim(REPO, VOTERS.digest, Ballot(round_, NodeId(sender), 0), 2.0)


def refused(round_: int = 9) -> Refused:
    return Refused(REPO, Ballot(1, NODE, 0), Ballot(round_, NodeId("node-2"), 0), "taken")


NODE = NodeId("node-1")
VOTERS = VoterSet.of([NODE, NodeId("node-2"), NodeId("node-3")])
BALLOT = Ballot(3, NODE, 1)
PACK = PackRef("pack-" + "2" * 40, Digest("b" * 64), 1000, Digest("c" * 64), 2000)
PREPARE = prepare(pack_bytes=100)
CHANGE = PREPARE.change
SIGNED = SignedVote(NODE, 1, b"\x01" * 64)
CERTIFICATE = Certificate(REPO, VOTERS.digest, 2, CHANGE.position, BALLOT, (SIGNED,), SIGNED)
CREATION = Change(
    REPO, ORIGIN, ChangeKind.CREATE, (Request(TxnId("tx-0"), "anonymous", NODE, 1),), name="Alice/Project", voters=VOTERS
)

LIFE = Life(1, "journal", 3, "nonce", 40)

EVERY_KIND: tuple[Message, ...] = (
    claim(),
    PREPARE,
    Abort(REPO, VOTERS.digest, BALLOT, ORIGIN, 2, 2.0),
    Commit(REPO, VOTERS.digest, CHANGE.position, CERTIFICATE),
    Promise(
        REPO, VOTERS.digest, BALLOT, 1, Accepted(BALLOT, ORIGIN, CREATION), ORIGIN, True, PREPARE.packs, ((NODE, 2),), LIFE
    ),
    refused(),
    Vote(REPO, VOTERS.digest, BALLOT, 2, VoteKind.YES, CHANGE.position, ORIGIN, 1, signature=b"\x02" * 64, life=LIFE),
    Acknowledged(REPO, CHANGE.position),
    Stage(REPO, (PACK,), (NODE,)),
    Ping(LIFE, LIFE),
    Query(REPO),
    History(REPO, 0),
    Summaries(0),
    Branches(("", "0a")),
    Transaction(TxnId("tx-1")),
    Fetch(REPO, PACK, True, 10),
    Enrol(2, "a-life"),
    AcceptorRecords(2, "a-life", "alice/a"),
    Staged(REPO, False, "no room"),
    Pong("journal", 1, 2, True, LIFE, None, Standing(State.MEMBER, ("journal",))),
    Status(REPO, VOTERS.digest, 1, ORIGIN, BALLOT, ORIGIN, True, 0),
    HistoryPage(REPO, (HistoryEntry(CREATION, CERTIFICATE, 5), HistoryEntry(CHANGE, None, 6)), CHANGE.position, 0),
    SummaryPage("journal", 7, (Summary(REPO, CHANGE.position),)),
    BranchPage((Branch("", hashes=("1:ab",) * 16), Branch("0a", (Leaf(REPO, CHANGE.position),)))),
    TransactionReport(TxnId("tx-1"), '{"a": 1}'),
    Enrolment(True, 2),
    Enrolment(True, 2, LIFE),
    AcceptorPage(True, (HeldRecord(REPO, VOTERS, BALLOT, Accepted(BALLOT, ORIGIN, CREATION), ORIGIN),), False, 1, ((NODE, 2),)),
    AcceptorPage(True, (HeldRecord(REPO, VOTERS, BALLOT, None, ORIGIN, True),), False, 1, (), LIFE, ((NODE, LIFE),)),
)
