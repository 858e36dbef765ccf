"""The voter: what this node answers to claims, prepares, aborts and commits for one repository (V1–V6, C7, R1).

Each request that comes in is a session with a phase of its own; ``session.py`` has the whole table. What is durable is
decided inside the journal's transaction (``acceptor.py``): this machine asks for a conditional write, and looks at what
became of it. So a prepare that was overtaken by a claim while it waited for objects can not take the promise back.

It refuses to know clocks, disks, sockets and keys. Its partner is ``node/runtime.py``, which performs the effects in order.

R4: every promise and vote carries the table of incarnations that are durable here. A rejoining node has no ``Voter`` at all
until its mark is cleared (``rejoin.py``).
"""

from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, PromiseOp, WriteVerdict
from node.protocol.change import Change
from node.protocol.effects import Alarm, CatchUp, Discard, Effect, Reply, Settle, StageObjects, Undone, Wake, Witness, Write
from node.protocol.events import Committed, Enrolled, Event, ObjectsStaged, Requested, SetAside, Suspected, Written
from node.protocol.ids import Ballot, Digest, NodeId, Position
from node.protocol.incarnations import Incarnations, merged
from node.protocol.messages import (
    Abort,
    Acknowledged,
    Claim,
    Commit,
    Prepare,
    Promise,
    Refused,
    TransportReply,
    Vote,
    VoteKind,
)
from node.protocol.register import Register
from node.protocol.session import Phase, Session, Trigger
from node.protocol.timing import Timing

SESSIONS_MAX = 256
"""Requests held for one repository at once; beyond, a voter answers ``lagging`` at once (they are resent)."""

JOURNAL_REFUSED = "its journal refused the write"


class Voter:
    """One repository's voter on this node. ``spread`` in [0, 1) sets it apart from other nodes' (R1)."""

    def __init__(
        self,
        me: NodeId,
        incarnation: int,
        record: AcceptorRecord,
        register: Register,
        timing: Timing,
        *,
        now: float,
        spread: float = 0.0,
        stopped: str = "",
        incarnations: Incarnations = (),
    ) -> None:
        """``incarnations`` are those of other nodes that are durable here."""
        self.me = me
        self.record = record
        self.register = register
        self.stopped = stopped
        self._incarnation = incarnation
        self._incarnations = incarnations
        self._timing = timing
        self._spread = spread
        self._sessions: dict[int, Session] = {}
        self._staged: dict[Digest, tuple[Change, Ballot]] = {}
        """Changes whose objects are durable here and that are neither committed nor given up, and the highest ballot each
        was prepared at: an abort gives up lower ones only (V4), a write under way may still accept a higher one."""
        self._suspected: frozenset[NodeId] = frozenset()
        self._held: dict[tuple[int, NodeId], float] = {}
        """C7: until when each round's claim waits, reckoned from its first arrival; a duplicate is not let through sooner."""
        self._accepted_at = now
        self._settle_at = self._next_settle(now)
        self._out: list[Effect] = []

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; return what to do, in order."""
        self._out = []
        match event:
            case Requested():
                self._on_request(event, now)
            case Written():
                self._on_written(event, now)
            case Committed():
                self._on_committed(event, now)
            case ObjectsStaged():
                self._on_staged(event, now)
            case Enrolled(node, incarnation):
                self._incarnations = merged(self._incarnations, ((node, incarnation),))
            case SetAside(reason):
                self.stopped = self.stopped or reason
                for session in list(self._sessions.values()):
                    self._refuse(session, f"not voting: {self.stopped}")
            case Suspected():
                self._suspected = event.nodes
                self._release_held(now)
            case _:
                pass
        self._on_time(now)
        out, self._out = self._out, []
        return out

    def __repr__(self) -> str:
        doubt = "in doubt" if self.record.in_doubt else "settled"
        return f"<Voter {self.register.repository} {self.register.position} promised {self.record.promised} {doubt}>"

    # ------------------------------------------------------------ requests

    def _on_request(self, event: Requested, now: float) -> None:
        message = event.message
        wait_s = self._timing.prepare_s
        if not isinstance(message, Commit):
            wait_s = min(max(message.deadline_s, 0.0), wait_s)
        session = Session(event.request, event.sender, message, now + wait_s)
        self._sessions[session.request] = session
        if self.stopped:
            self._refuse(session, f"not voting: {self.stopped}")
        elif message.voters != self.register.voters.digest:
            self._out.append(Alarm(f"{event.sender} names another voter set"))
            self._refuse(session, "the voter set differs")
        elif len(self._sessions) > SESSIONS_MAX and not isinstance(message, Claim):
            self._too_late(session, "too many requests wait here")
        else:
            self._look(session, now)

    def _look(self, session: Session, now: float) -> None:
        match session.message:
            case Claim():
                self._look_at_claim(session, session.message, now)
            case Prepare() | Abort():
                self._look_at_prepare(session, session.message)
            case Commit():
                self._look_at_commit(session, session.message)

    def _look_at_claim(self, session: Session, claim: Claim, now: float) -> None:
        """V1, and C7's delay."""
        if claim.ballot < self.record.promised:
            self._refuse(session)
        elif (until := self._hold_until(claim.ballot)) > now:
            session.held_until = min(until, session.deadline_at)
            self._held[claim.ballot.round, claim.ballot.node] = until
            session.move(Trigger.HOLD)
        else:
            session.move(Trigger.PROMISE)
            self._out.append(Write(PromiseOp(claim.repository, claim.ballot)))

    def _hold_until(self, claim: Ballot) -> float:
        """C7: until when a claim waits for the change in doubt; at most once, and never for a dead or for the same owner."""
        accepted = self.record.accepted
        if accepted is None or self.record.in_doubt is None:
            return 0.0
        owner = accepted.ballot.node
        if owner == claim.node or owner in self._suspected:
            return 0.0
        return self._held.get((claim.round, claim.node), self._accepted_at + self._timing.hold_s)

    def _release_held(self, now: float) -> None:
        if not self._sessions:
            return
        for session in self._in_phase(Phase.HELD):
            if self.stopped:
                self._refuse(session, f"not voting: {self.stopped}")
            elif self._hold_until_passed(session, now):
                session.move(Trigger.PROMISE)
                ballot = session.message.ballot if isinstance(session.message, Claim) else None
                assert ballot is not None
                self._out.append(Write(PromiseOp(self.register.repository, ballot)))

    def _hold_until_passed(self, session: Session, now: float) -> bool:
        accepted = self.record.accepted
        dead = accepted is not None and accepted.ballot.node in self._suspected
        return self.record.in_doubt is None or dead or now >= session.held_until

    def _look_at_prepare(self, session: Session, message: Prepare | Abort) -> None:
        """V2 and V4: everything that is checked before the write; the write checks it again."""
        record, ballot = self.record, message.ballot
        change = message.change if isinstance(message, Prepare) else None
        base = change.base if change else message.base if isinstance(message, Abort) else record.committed
        position = self.register.position
        if ballot < record.promised:
            self._refuse(session)
        elif record.accepted is not None and ballot == record.accepted.ballot:
            self._repeat(session, base, change)
        elif position.version > base.version:
            already = change is not None and change.position == position
            self._vote(session, VoteKind.ALREADY_COMMITTED if already else VoteKind.BEHIND_COORDINATOR)
        elif position.version == base.version and position != base:
            self._diverged(session, f"{session.sender} stands at {base}, this node at {position}")
        elif position.version < base.version:
            self._grow(session, base)
        elif change is not None and (reason := self._objection(change, message.quorum)):
            self._vote(session, VoteKind.NO, reason)
        elif change is not None and change.packs and change.position.digest not in self._staged:
            assert isinstance(message, Prepare)
            session.move(Trigger.FETCH)
            self._out.append(StageObjects(change, (*message.holders, session.sender), message.packs))
        else:
            if change is not None and (staged := self._staged.get(change.position.digest)):
                self._staged[change.position.digest] = (change, max(staged[1], ballot))
            session.move(Trigger.ACCEPT)
            self._out.append(Write(AcceptOp(message.repository, ballot, base, change)))

    def _objection(self, change: Change, quorum: int) -> str | None:
        voters = self.register.voters
        if not voters.majority <= quorum <= len(voters.nodes):
            return f"a quorum of {quorum} is no majority of {len(voters.nodes)}"
        return self.register.refuses(change)

    def _repeat(self, session: Session, base: Position, change: Change | None) -> None:
        """The same ballot again: the same vote, or two values at one ballot, which must never be."""
        held = self.record.accepted
        assert held is not None
        if held.base == base and held.change == change:
            self._vote(session, VoteKind.YES)
        else:
            self._diverged(session, f"{session.sender} uses ballot {held.ballot} for two values")

    def _grow(self, session: Session, base: Position) -> None:
        """V2: the base is ahead. The own accepted change may lead exactly there; then the base proves it committed."""
        own = self.record.in_doubt
        if own is not None and own.base == self.register.position and own.position == base:
            session.move(Trigger.INFER)
            self._out.append(Write(CommitOp(own.repository, own)))
        else:
            session.move(Trigger.LAG)
            self._out.append(CatchUp(base.version, (session.sender,), told=base))

    def _look_at_commit(self, session: Session, commit: Commit) -> None:
        """V3. The ballots of the certificate and of the own acceptance are not compared."""
        position = self.register.position
        own = self.record.in_doubt
        if commit.position.version <= position.version:
            if commit.position.version == position.version and commit.position != position:
                self._diverged(session, f"{session.sender} committed {commit.position}, this node {position}")
                return
            self._out.append(Witness(commit.certificate))
            self._acknowledge(session)
        elif own is not None and own.base == position and own.position == commit.position:
            session.move(Trigger.COMMIT)
            self._out.append(Write(CommitOp(own.repository, own), commit.certificate))
        else:
            session.move(Trigger.LAG)
            self._out.append(CatchUp(commit.position.version, (session.sender,), told=commit.position))

    # ------------------------------------------------------------ what became of it

    def _on_written(self, event: Written, now: float) -> None:
        self._adopt(event.record)
        match event.op:
            case PromiseOp():
                self._on_promise_written(event)
            case AcceptOp():
                self._on_accept_written(event, event.op, now)
            case CommitOp():
                self._on_commit_written(event, now)

    def _on_promise_written(self, event: Written) -> None:
        assert isinstance(event.op, PromiseOp)
        for session in self._in_phase(Phase.PROMISING):
            if isinstance(session.message, Claim) and session.message.ballot == event.op.ballot:
                if event.verdict is WriteVerdict.REFUSED:
                    self._refuse(session, promised=event.record.promised)
                else:
                    self._promise(session, event.op.ballot, event.record)

    def _on_accept_written(self, event: Written, op: AcceptOp, now: float) -> None:
        if event.verdict is WriteVerdict.DONE:
            self._accepted_at = now
            self._settle_at = self._next_settle(now)
            if op.change is None:
                self._drop_stages(op.base, op.ballot)
        for session in self._in_phase(Phase.ACCEPTING):
            if not isinstance(session.message, Prepare | Abort) or session.message.ballot != op.ballot:
                continue
            match event.verdict:
                case WriteVerdict.DONE | WriteVerdict.REPEATED:
                    self._vote(session, VoteKind.YES)
                case WriteVerdict.REFUSED if event.record.promised <= op.ballot:
                    self._vote(session, VoteKind.NO, JOURNAL_REFUSED)
                case WriteVerdict.REFUSED:
                    self._refuse(session, promised=event.record.promised)
                case WriteVerdict.DIVERGENT:
                    self._diverged(session, f"ballot {op.ballot} or version {op.base.version} has two values")
                case WriteVerdict.MOVED if self.register.position == event.record.committed:
                    self._again(session, now)
                case WriteVerdict.MOVED:
                    # History grew, and the event that says so is on its way: wait for it instead of asking again at once.
                    session.move(Trigger.LAG)

    def _on_commit_written(self, event: Written, now: float) -> None:
        assert isinstance(event.op, CommitOp)
        if event.verdict is WriteVerdict.DIVERGENT:
            self._stop(f"version {event.op.change.position.version} has two digests")
        for session in self._in_phase(Phase.COMMITTING, Phase.INFERRING):
            if event.verdict is WriteVerdict.REFUSED:
                self._too_late(session, JOURNAL_REFUSED)  # to ask again at once would only spin
            else:
                self._again(session, now)

    def _on_committed(self, event: Committed, now: float) -> None:
        self._adopt(event.record)
        self.register = event.register
        self._staged.pop(event.change.position.digest, None)
        own = self.record.accepted.change if self.record.accepted else None
        if own is not None and own.base == event.change.base and own.position != event.change.position:
            self._out.append(Undone(own, f"another change took its place at version {event.register.position.version}"))
        self._held.clear()
        self._drop_stages(event.change.base)
        self._release_held(now)
        for session in self._in_phase(Phase.CATCHING_UP, Phase.COMMITTING, Phase.INFERRING):
            self._again(session, now)

    def _on_staged(self, event: ObjectsStaged, now: float) -> None:
        for session in self._in_phase(Phase.STAGING):
            if isinstance(session.message, Prepare) and session.message.change.position.digest == event.digest:
                if event.problem:
                    self._vote(session, VoteKind.NO, event.problem)
                else:
                    known = self._staged.get(event.digest)
                    ballot = max(known[1], session.message.ballot) if known else session.message.ballot
                    self._staged[event.digest] = (session.message.change, ballot)
                    self._again(session, now)

    def _on_time(self, now: float) -> None:
        """Deadlines: whoever still waits is told ``lagging``, held claims go on, a doubt that lasts is settled (R1)."""
        doubts = not self.stopped and self.record.in_doubt is not None
        if not doubts and not self._sessions:
            return
        self._release_held(now)
        for session in list(self._sessions.values()):
            if now >= session.deadline_at and session.phase not in (Phase.HELD, Phase.PROMISING):
                self._too_late(session, f"still {session.phase.value} at the deadline")
        if doubts and now >= self._settle_at:
            self._settle_at = self._next_settle(now)
            self._out.append(Settle())
        waiting = [session for session in self._sessions.values() if session.phase is not Phase.PROMISING]
        wishes = [session.held_until if session.phase is Phase.HELD else session.deadline_at for session in waiting]
        if doubts:
            wishes.append(self._settle_at)
        if wishes:
            self._out.append(Wake(min(wishes)))

    def _too_late(self, session: Session, reason: str) -> None:
        if isinstance(session.message, Commit):
            self._acknowledge(session)
        else:
            self._vote(session, VoteKind.LAGGING, reason)

    # ------------------------------------------------------------ helpers

    def _drop_stages(self, base: Position, below: Ballot | None = None) -> None:
        """V4 allows it, and a commit makes it certain: other changes on this base are given up."""
        for digest, (change, ballot) in list(self._staged.items()):
            if change.base.version <= base.version and (below is None or ballot < below):
                del self._staged[digest]
                self._out.append(Discard(change))

    def _adopt(self, record: AcceptorRecord) -> None:
        """Results may come back out of order; a record only ever grows."""
        older = record.promised < self.record.promised or record.committed.version < self.record.committed.version
        if not older:
            self.record = record

    def _next_settle(self, now: float) -> float:
        return now + self._timing.prepare_s + self._spread * self._timing.doubt_jitter_s

    def _in_phase(self, *phases: Phase) -> list[Session]:
        return [session for session in self._sessions.values() if session.phase in phases]

    def _again(self, session: Session, now: float) -> None:
        session.move(Trigger.LOOK_AGAIN)
        if self.stopped:
            self._refuse(session, f"not voting: {self.stopped}")
        else:
            self._look(session, now)

    def _answer(self, session: Session, reply: TransportReply) -> None:
        session.move(Trigger.ANSWER)
        del self._sessions[session.request]
        self._out.append(Reply(session.request, reply))

    def _acknowledge(self, session: Session) -> None:
        self._answer(session, Acknowledged(self.register.repository, self.register.position))

    def _promise(self, session: Session, ballot: Ballot, record: AcceptorRecord) -> None:
        register = self.register
        self._answer(
            session,
            Promise(
                register.repository,
                register.voters.digest,
                ballot,
                self._incarnation,
                record.accepted,
                record.committed,
                staged=False,
                incarnations=self._incarnations,
            ),
        )

    def _vote(self, session: Session, kind: VoteKind, reason: str = "") -> None:
        message = session.message
        if not isinstance(message, Prepare | Abort):
            self._refuse(session, reason)
            return
        none = isinstance(message, Abort)
        position = message.base if isinstance(message, Abort) else message.change.position
        self._answer(
            session,
            Vote(
                message.repository,
                message.voters,
                message.ballot,
                message.quorum,
                kind,
                position,
                self.register.position,
                self._incarnation,
                none,
                reason,
                incarnations=self._incarnations,
            ),
        )

    def _refuse(self, session: Session, reason: str = "", promised: Ballot | None = None) -> None:
        message = session.message
        ballot = message.certificate.ballot if isinstance(message, Commit) else message.ballot
        self._answer(session, Refused(message.repository, ballot, promised or self.record.promised, reason))

    def _diverged(self, session: Session, reason: str) -> None:
        self._stop(reason)
        self._refuse(session, f"not voting: {reason}")

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        self._out.append(Alarm(reason, stop=True))
