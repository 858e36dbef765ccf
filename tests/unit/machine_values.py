"""Values for the tests of the two machines: three voters, a repository at version 1, changes on it, a look at effects."""

from collections.abc import Sequence
from typing import TypeVar

from node.protocol.acceptor import AcceptorRecord, CommitOp
from node.protocol.change import Change, ChangeKind, Request
from node.protocol.effects import Effect
from node.protocol.events import Submitted
from node.protocol.ids import Ballot, NodeId, Position, TxnId
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.protocol.timing import Timing
from tests.scenarios.values import REPOSITORY, creation, pack, update

A, B, C = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
VOTERS = VoterSet.of((A, B, C))
TIMING = Timing()
CREATION = creation(VOTERS)
REGISTER = Register(REPOSITORY, VOTERS).applied(CREATION)
BASE = REGISTER.position
RECORD, _ = CommitOp(REPOSITORY, CREATION).on(AcceptorRecord())

E = TypeVar("E")


def ballot(round_: int, node: NodeId = A, attempt: int = 1) -> Ballot:
    return Ballot(round_, node, attempt)


def change(txn: str, base: Position = BASE, branch: str | None = None, *, packed: bool = False) -> Change:
    """A push of one new branch, named after the transaction."""
    packs = (pack(txn),) if packed else ()
    request = Request(TxnId(txn), "alice", A, 0, (update(branch or txn, "-", txn),), packs=packs)
    return Change(REPOSITORY, base, ChangeKind.UPDATE, (request,))


def submitted(
    txn: str, deadline_at: float = 2.0, branch: str | None = None, old: str = "-", *, atomic: bool = False
) -> Submitted:
    request = Request(TxnId(txn), "alice", A, 0, (update(branch or txn, old, txn),))
    return Submitted(ChangeKind.UPDATE, request, deadline_at, atomic=atomic)


def only(kind: type[E], effects: Sequence[Effect]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]
