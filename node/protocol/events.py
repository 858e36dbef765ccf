"""What the runtime tells the machines: messages, finished writes, staged objects, history that grew, time that passed."""

from dataclasses import dataclass

from node.protocol.acceptor import AcceptorRecord, Op, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import Change, ChangeKind, Request
from node.protocol.ids import Digest, NodeId
from node.protocol.messages import TransportReply, TransportRequest
from node.protocol.register import Register


@dataclass(frozen=True, slots=True)
class Requested:
    """A peer's (verified) request; ``request`` numbers it so that a reply finds its way."""

    request: int
    sender: NodeId
    message: TransportRequest


@dataclass(frozen=True, slots=True)
class Received:
    """A peer's (verified) reply."""

    sender: NodeId
    message: TransportReply


@dataclass(frozen=True, slots=True)
class Written:
    """A conditional write was tried; ``record`` is what the journal holds now. Durable before this event exists."""

    op: Op
    verdict: WriteVerdict
    record: AcceptorRecord


@dataclass(frozen=True, slots=True)
class Committed:
    """History grew by ``change``, by whatever path; told once per version, in order, to both machines."""

    change: Change
    register: Register
    """The value with the change in it."""
    record: AcceptorRecord
    certificate: Certificate | None


@dataclass(frozen=True, slots=True)
class ObjectsStaged:
    """Staging ended: ``problem`` is empty when all objects of the change at ``digest`` are durable here."""

    digest: Digest
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A client's request whose objects are checked and staged here, waiting to be part of a change."""

    kind: ChangeKind
    request: Request
    deadline_at: float
    atomic: bool = False
    name: str = ""
    """``owner/name``, for a creation."""
    inline_bytes: int = 0
    """What its small packs add to a prepare message."""


@dataclass(frozen=True, slots=True)
class SettleNow:
    """R1: a majority was asked and nobody knows more."""

    version: int | None = None
    """R5: of a reader that saw, somewhere, a change accepted on this committed version; ``None``: the own doubt."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """R4: a newer incarnation of ``node`` is durable here. Told to every machine before the node that asked is answered."""

    node: NodeId
    incarnation: int


@dataclass(frozen=True, slots=True)
class Suspected:
    """The failure detector's present opinion: who is not worth waiting for (C8)."""

    nodes: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class SetAside:
    """An alarm was raised by either machine: this replica votes and proposes no more until it is repaired."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; a wake-up asked for may be due."""


Event = (
    Requested | Received | Written | Committed | ObjectsStaged | Submitted | SettleNow | Enrolled | Suspected | SetAside | Tick
)
