"""One machine on a desk: its writes are performed at once on a record in memory, or kept until told; the rest is looked at."""

from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import Change
from node.protocol.coordinator import Coordinator
from node.protocol.effects import Decide, Effect, Reply, Send, Wake, Write
from node.protocol.events import Committed, Event, Received, Requested, Tick, Written
from node.protocol.ids import NodeId, Position
from node.protocol.messages import (
    Abort,
    Acknowledged,
    Claim,
    Commit,
    Prepare,
    Promise,
    Refused,
    TransportReply,
    TransportRequest,
    Vote,
    VoteKind,
)
from node.protocol.voter import Voter
from tests.scenarios.values import REPOSITORY, founding_certificate
from tests.unit.machine_values import BASE, RECORD, REGISTER, TIMING, VOTERS, A, B, ballot


class Desk:
    """``machine`` and its journal. ``slow``: writes wait until ``write``."""

    def __init__(self, machine: Voter | Coordinator, record: AcceptorRecord = RECORD) -> None:
        self.machine = machine
        self.record = record
        self.register = machine.register
        self.now = 0.0
        self.slow = False
        self.waiting: list[Op] = []
        self.requests = 0

    def feed(self, event: Event, now: float | None = None) -> list[Effect]:
        """Everything but writes that came of it."""
        self.now = self.now if now is None else now
        out: list[Effect] = []
        for effect in self.machine.handle(event, self.now):
            if isinstance(effect, Write):
                self.waiting.append(effect.op)
            elif isinstance(effect, Decide):
                self.waiting.append(CommitOp(REPOSITORY, effect.change))
                out.append(effect)
            else:
                out.append(effect)
        return out if self.slow else out + self.write()

    def write(self) -> list[Effect]:
        out: list[Effect] = []
        while self.waiting:
            op = self.waiting.pop(0)
            self.record, verdict = op.on(self.record)
            if verdict is WriteVerdict.DONE and isinstance(op, CommitOp):
                out += self._grow(op.change)
            out += self.feed(Written(op, verdict, self.record))
        return out

    def learn(self, change: Change) -> list[Effect]:
        """Catch-up brought ``change``."""
        self.record, _ = CommitOp(REPOSITORY, change).on(self.record)
        return self._grow(change)

    def _grow(self, change: Change) -> list[Effect]:
        self.register = self.register.applied(change)
        certificate: Certificate = founding_certificate(change, VOTERS)
        return self.feed(Committed(change, self.register, self.record, certificate))

    def foreign(self, op: Op) -> list[Effect]:
        """The own voter's write, of which the coordinator hears, too."""
        self.record, verdict = op.on(self.record)
        return self.feed(Written(op, verdict, self.record))

    def ask(self, message: TransportRequest, sender: NodeId = A, now: float | None = None) -> list[Effect]:
        self.requests += 1
        return self.feed(Requested(self.requests, sender, message), now)

    def hear(self, message: TransportReply, sender: NodeId = B, now: float | None = None) -> list[Effect]:
        return self.feed(Received(sender, message), now)

    def tick(self, now: float) -> list[Effect]:
        return self.feed(Tick(), now)


def voter_desk(record: AcceptorRecord = RECORD, me: NodeId = B) -> Desk:
    return Desk(Voter(me, 1, record, REGISTER, TIMING, now=0.0), record)


def coordinator_desk(record: AcceptorRecord = RECORD, quorum: str = "majority") -> Desk:
    return Desk(Coordinator(A, record, REGISTER, TIMING, quorum_rule=quorum, spread=0.5), record)


def claim(round_: int, node: NodeId = A) -> Claim:
    return Claim(REPOSITORY, VOTERS.digest, ballot(round_, node, 0), 2.0)


def prepare(
    change: Change, round_: int = 1, attempt: int = 1, node: NodeId = A, quorum: int = 2, deadline_s: float = 2.0
) -> Prepare:
    return Prepare(REPOSITORY, VOTERS.digest, ballot(round_, node, attempt), change, quorum, deadline_s, holders=(node,))


def abort(round_: int = 1, attempt: int = 2, base: Position = BASE, node: NodeId = A) -> Abort:
    return Abort(REPOSITORY, VOTERS.digest, ballot(round_, node, attempt), base, 2, 2.0)


def commit(change: Change) -> Commit:
    return Commit(REPOSITORY, VOTERS.digest, change.position, founding_certificate(change, VOTERS))


def promise(record: AcceptorRecord = RECORD, round_: int = 1) -> Promise:
    return Promise(REPOSITORY, VOTERS.digest, ballot(round_, A, 0), 1, record.accepted, record.committed, staged=True)


def vote(change: Change | None, round_: int = 1, attempt: int = 1, kind: VoteKind = VoteKind.YES, reason: str = "") -> Vote:
    position = change.position if change else BASE
    at = ballot(round_, A, attempt)
    return Vote(REPOSITORY, VOTERS.digest, at, 2, kind, position, BASE, 1, change is None, reason, b"signed")


def refused(
    round_: int, attempt: int, promised_round: int, promised_node: NodeId, promised_attempt: int = 0, reason: str = ""
) -> Refused:
    promised = ballot(promised_round, promised_node, promised_attempt)
    return Refused(REPOSITORY, ballot(round_, A, attempt), promised, reason)


def replies(effects: list[Effect]) -> list[TransportReply]:
    return [effect.message for effect in effects if isinstance(effect, Reply)]


def sent(effects: list[Effect]) -> list[tuple[str, NodeId]]:
    return [(type(effect.message).__name__.lower(), effect.to) for effect in effects if isinstance(effect, Send)]


def wishes(effects: list[Effect]) -> list[float]:
    return [effect.at for effect in effects if isinstance(effect, Wake)]


__all__ = ["AcceptOp", "Acknowledged", "Desk"]
