"""One node's part of a state: its disk, and while it is up two machines and what it has under way.

``Step`` performs effects as ``node/replica.py`` does, one event at a time, and collects what leaves the node: messages,
answers to clients, and facts that the laws are about. It works on a copy; what it was made of stays as it was.

**The journal.** A write is *under way* from the moment it is asked for until the machines hear of it; anything may happen in
between, and a crash then decides how many of the writes under way had become durable. Until somebody looks nothing depends on
the moment at which a write became durable, so that moment is never a step of its own.

**A crash inside a step** falls between any two things that leave the node: after the first of two messages, before the answer
to the client. Each is a result of its own. What is left out as equal: a crash before the first is a crash before the step, a
crash after the last one after it.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from node.protocol.acceptor import AcceptorRecord, CommitOp, Op, PromiseOp, RejoinOp, WriteVerdict
from node.protocol.catchup import HistoryRefused, steps
from node.protocol.certificate import Certificate, SignedVote, Statement, StatementKind
from node.protocol.change import Change, ChangeKind, PackRef, Request
from node.protocol.coordinator import Coordinator
from node.protocol.effects import (
    Alarm,
    Answer,
    CatchUp,
    Decide,
    Discard,
    Effect,
    Note,
    Reply,
    Send,
    Settle,
    StageObjects,
    Undone,
    Wake,
    Witness,
    Write,
)
from node.protocol.events import (
    Committed,
    Enrolled,
    Event,
    ObjectsStaged,
    Received,
    Requested,
    SettleNow,
    Submitted,
    Tick,
    Written,
)
from node.protocol.ids import NodeId, Position, TxnId
from node.protocol.incarnations import FIRST, Incarnations, merged
from node.protocol.messages import (
    Abort,
    AcceptorPage,
    AcceptorRecords,
    Acknowledged,
    Claim,
    Commit,
    Enrol,
    Enrolment,
    HeldRecord,
    HistoryEntry,
    HistoryPage,
    Prepare,
    Promise,
    TransportReply,
    TransportRequest,
    Vote,
    VoteKind,
)
from node.protocol.register import Register
from node.protocol.rejoin import Answered, Ask, Begin, Clear, Keep, Kept, Rejoin, RejoinEvent, Restore, Restored
from node.protocol.timing import Timing
from node.protocol.voter import Voter
from tests.scenarios.laws import Broken
from tests.scenarios.values import REPOSITORY, genuine, pack, sign, update
from tests.simulation.exhaustive import happenings as hp
from tests.simulation.exhaustive.copying import FAR, NOW, Keys, copied
from tests.simulation.exhaustive.timers import fire, fire_at

TIMING = Timing(hold_s=0.0, grace_s=0.0)
"""C7's delay of a claim is a slow network's; an answer that waits for others' votes only comes later, when more is known."""

DEADLINE_S = TIMING.prepare_s
"""Deadlines that travel in messages are all taken to be this: any timer may fire at any time."""


@dataclass(frozen=True, slots=True)
class Under:
    """A write under way."""

    op: Op
    certificate: Certificate | None


class Local:
    """``up`` nodes have a voter and a coordinator; the rest of what is volatile is empty while it is down."""

    def __init__(self, me: NodeId, record: AcceptorRecord, register: Register, history: tuple[HistoryEntry, ...]) -> None:
        self.me = me
        self.record = record
        self.durable_register = register
        self.history = history
        self.incarnation = FIRST
        self.enrolled: tuple[tuple[NodeId, int, str], ...] = ()
        """R4, durable: the newest incarnation of each other node that ever asked for one, and its attempt."""
        self.rejoining = False
        """R4's mark, durable."""
        self.tried = 0
        """The highest incarnation it ever asked for, durable."""
        self.inputs: tuple[TxnId, ...] = ()
        """Pushes whose clients have not come yet."""
        self.lost()

    def lost(self) -> None:
        """What a crash leaves of the volatile part: nothing."""
        self.up = False
        self.voter: Voter | None = None
        self.coordinator: Coordinator | None = None
        self.rejoin: Rejoin | None = None
        self.rejoin_key: Hashable = ()
        self.restoring: tuple[Restore, ...] = ()
        self.voter_key: Hashable = ()
        self.coordinator_key: Hashable = ()
        self.register = self.durable_register
        self.writes: tuple[Under, ...] = ()
        self.staging: tuple[Change, ...] = ()
        self.catch_to = 0
        self.told: tuple[Position, ...] = ()

    @property
    def incarnations(self) -> Incarnations:
        return merged(tuple((node, number) for node, number, _ in self.enrolled))

    def wiped(self) -> None:
        """The disk is empty, the mark is on it."""
        voters = self.register.voters
        self.record = AcceptorRecord()
        self.durable_register = Register(REPOSITORY, voters)
        self.history = ()
        self.incarnation, self.enrolled, self.tried, self.rejoining = FIRST, (), 0, True
        self.lost()

    def ignores(self, parcel: hp.Parcel) -> bool:
        """Whether nothing is to be done about it: a rejoining node answers nobody but itself, and nobody else is told what
        is meant for one; and a request that waits here already is not put beside itself."""
        for_rejoining = isinstance(parcel.message, Enrolment | AcceptorPage)
        if self.rejoining != for_rejoining:
            return True
        waiting = self.voter._sessions.values() if self.voter is not None else ()
        return any(one.sender == parcel.sender and one.message == parcel.message for one in waiting)

    def twin(self) -> "Local":
        """Another one that shares everything, the machines too: who feeds a machine copies it first."""
        twin = Local.__new__(Local)
        twin.__dict__.update(self.__dict__)
        return twin

    def key(self, keys: Keys) -> tuple[Hashable, ...]:
        """What tells this node's part from others; machines are brought into their settled form."""
        if self.catch_to <= self.register.position.version:
            self.catch_to, self.told = 0, ()
        if self.voter is not None and not self.voter_key:
            renumbered(self.voter)
            self.voter_key = keys.settle(self.voter)
        if self.coordinator is not None and not self.coordinator_key:
            self.coordinator_key = keys.settle(self.coordinator)
        if self.rejoin is not None and not self.rejoin_key:
            self.rejoin_key = keys.settle(self.rejoin)
        return (
            self.me,
            self.up,
            keys.of_value(self.record),
            tuple([(entry.change.position.digest, keys.of_value(entry.certificate)) for entry in self.history]),
            self.inputs,
            self.register.position.version,
            tuple([(keys.of_value(under.op), keys.of_value(under.certificate)) for under in self.writes]),
            tuple([change.position.digest for change in self.staging]),
            self.catch_to,
            self.told,
            self.voter_key,
            self.coordinator_key,
            (self.rejoin_key, self.incarnation, self.enrolled, self.rejoining, self.tried, self.restoring),
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """A point inside a step: the node as it was, and how much had left it."""

    local: Local
    out: int
    facts: int


@dataclass(slots=True)
class Step:
    """One happening at a copy of a node, and all that left it, in order."""

    local: Local
    prompt: bool
    """Whether the machines hear of every write before anything else happens at this node (``Bound.prompt``)."""
    out: list[hp.Parcel | hp.Fact]
    facts: list[hp.Fact]
    """Facts that are nobody's message: what a journal holds, what was counted."""
    moments: list["Moment"]
    """Where a crash may fall."""
    costs: list[hp.Cost]
    senders: dict[int, NodeId]
    owns_voter: bool = False
    owns_coordinator: bool = False

    @classmethod
    def on(cls, local: Local, *, prompt: bool = False) -> "Step":
        return cls(local.twin(), prompt, [], [], [], [], {})

    @property
    def voter(self) -> Voter:
        """The voter, to be fed: a copy."""
        local = self.local
        if not self.owns_voter:
            local.voter, local.voter_key, self.owns_voter = copied(local.voter, {}), (), True
        assert local.voter is not None
        return local.voter

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator, to be fed: a copy."""
        local = self.local
        if not self.owns_coordinator:
            local.coordinator, local.coordinator_key, self.owns_coordinator = copied(local.coordinator, {}), (), True
        assert local.coordinator is not None
        return local.coordinator

    # ------------------------------------------------------------ happenings

    def take(self, happening: hp.Happening) -> None:
        self._take(happening)
        while self.prompt and self.local.up and self.local.writes:
            self._hear(refused=False)

    def _take(self, happening: hp.Happening) -> None:
        local = self.local
        match happening:
            case hp.Parcel(sender, _, message):
                self._arrive(sender, message)
            case hp.Submit(txn):
                local.inputs = tuple(name for name in local.inputs if name != txn)
                self._submit(txn)
            case hp.Hear(refused):
                self._hear(refused=refused)
            case hp.Staged(problem):
                change, *rest = local.staging
                local.staging = tuple(rest)
                self._feed_both(ObjectsStaged(change.position.digest, problem))
            case hp.Timer() if local.rejoin is not None:
                self._own_rejoin()
                fire_at(happening, local.rejoin)
                self._feed_rejoin(Tick())
            case hp.Timer():
                self._senders_of_sessions()
                self._feed(fire(happening, self.voter, self.coordinator), Tick())
            case hp.Learn(entries, floor, told):
                self._learn(entries, floor, told)
            case hp.Crash(durable):
                self._crash(durable)
            case hp.Start():
                self._start()
            case hp.Wipe():
                local.wiped()
                self._start()
            case hp.Restored(entries, floor):
                self._restore(entries, floor)

    def _arrive(self, sender: NodeId, message: hp.Letter) -> None:
        if isinstance(message, Enrol | AcceptorRecords):
            self._answer_rejoining(sender, message)
            return
        if isinstance(message, Enrolment | AcceptorPage):
            self._feed_rejoin(Answered(sender, message))
            return
        local = self.local
        if not isinstance(message, Claim | Prepare | Abort | Commit):
            self._feed(self.coordinator, Received(sender, message))
            return
        if isinstance(message, Commit) and (flaw := message.certificate.flaw(local.register.voters, genuine)):
            raise Broken(f"a commit of {sender} carries a worthless certificate: {flaw}")
        self._senders_of_sessions()
        number = len(self.senders) + 1
        self.senders[number] = sender
        self._feed(self.voter, Requested(number, sender, message))

    def _submit(self, txn: TxnId) -> None:
        packs: tuple[PackRef, ...] = (pack(txn),) if txn.endswith("p") else ()
        request = Request(txn, "alice", self.local.me, 0, (update(txn, "-", txn),), packs=packs)
        self._feed(self.coordinator, Submitted(ChangeKind.UPDATE, request, FAR))

    def _start(self) -> None:
        local = self.local
        local.up = True
        local.register = local.durable_register
        if local.rejoining:
            local.rejoin = Rejoin(local.me, local.register.voters, incarnation=local.incarnation, tried=local.tried)
            self._feed_rejoin(Begin())
            return
        number, table = local.incarnation, local.incarnations
        local.voter = Voter(local.me, number, local.record, local.register, TIMING, now=NOW, incarnations=table)
        local.coordinator = Coordinator(local.me, local.record, local.register, TIMING, incarnation=number, incarnations=table)
        self.owns_voter = self.owns_coordinator = True
        self._feed(local.voter, Tick())

    def _crash(self, durable: int) -> None:
        for under in self.local.writes[:durable]:
            self._make_durable(under)
        self.local.lost()

    def _make_durable(self, under: Under) -> tuple[AcceptorRecord, WriteVerdict]:
        local, before = self.local, self.local.record
        local.record, verdict = under.op.on(before)
        back = local.record.promised < before.promised or local.record.accepted_ballot < before.accepted_ballot
        if back or local.record.committed.version < before.committed.version:
            raise Broken(f"a record went back: {before} became {local.record}")
        if verdict is WriteVerdict.DONE and isinstance(under.op, CommitOp):
            change = under.op.change
            local.durable_register = local.durable_register.applied(change)
            local.history = (*local.history, HistoryEntry(change, under.certificate, 0))
            self.facts.append(hp.Committed(change.position, change.txns))
        return local.record, verdict

    def _hear(self, *, refused: bool) -> None:
        local = self.local
        under, *rest = local.writes
        local.writes = tuple(rest)
        self._senders_of_sessions()
        if refused:
            self.costs.append(hp.Cost.REFUSAL)
            self._feed_both(Written(under.op, WriteVerdict.REFUSED, self.voter.record))
            return
        record, verdict = self._make_durable(under)
        self._note()
        if verdict is WriteVerdict.DONE and isinstance(under.op, CommitOp):
            local.register = local.register.applied(under.op.change)
            self._feed_both(Committed(under.op.change, local.register, record, under.certificate))
        self._feed_both(Written(under.op, verdict, record))

    def _learn(self, entries: tuple[HistoryEntry, ...], floor: int, told: Position | None) -> None:
        local = self.local
        page = HistoryPage(REPOSITORY, entries, entries[-1].change.position, floor)
        known = (*local.told, told) if told else local.told
        if told is not None:
            self.costs.append(hp.Cost.GOSSIP)
        try:
            proved = steps(local.register.position, page, lambda _, c: c.flaw(local.register.voters, genuine), known)
        except HistoryRefused as error:
            raise Broken(f"{local.me} refuses a peer's history: {error}") from error
        for step in proved:
            self._write(CommitOp(REPOSITORY, step.change), step.certificate)

    # ------------------------------------------------------------ rejoining (R4)

    def _own_rejoin(self) -> None:
        local = self.local
        if local.rejoin_key:
            local.rejoin, local.rejoin_key = copied(local.rejoin, {}), ()

    def _feed_rejoin(self, event: RejoinEvent) -> None:
        """The contract of ``node/protocol/rejoin.py``; what is small and durable is done at once."""
        local = self.local
        self._own_rejoin()
        assert local.rejoin is not None
        for effect in local.rejoin.handle(event, NOW):
            match effect:
                case Ask(to, message):
                    self._leave(hp.Parcel(local.me, to, message))
                case Keep(incarnation):
                    local.tried = max(local.tried, incarnation)
                    self._note()
                    self._feed_rejoin(Kept(incarnation, f"{local.me} attempt {incarnation}"))
                case Restore():
                    local.restoring = (*local.restoring, effect)
                case Clear():
                    self._clear(effect)
                case _:
                    pass

    def _answer_rejoining(self, sender: NodeId, message: Enrol | AcceptorRecords) -> None:
        """Durable, and known to both machines, before it is granted; a mere question changes nothing."""
        local = self.local
        table = {node: (number, life) for node, number, life in local.enrolled}
        known = table.get(sender, (FIRST, ""))
        if message.incarnation > known[0]:
            known = table[sender] = (message.incarnation, message.life)
            local.enrolled = tuple(sorted((node, *value) for node, value in table.items()))
            self._feed_both(Enrolled(sender, message.incarnation))
        granted = message.incarnation > FIRST and known == (message.incarnation, message.life)
        if isinstance(message, Enrol):
            self._leave(hp.Parcel(local.me, sender, Enrolment(granted, known[0])))
            return
        record = local.record
        held = HeldRecord(REPOSITORY, local.register.voters, record.promised, record.accepted, record.committed)
        page = AcceptorPage(granted, (held,) if granted else (), False, local.incarnation, local.incarnations)
        self._leave(hp.Parcel(local.me, sender, page))

    def _restore(self, entries: tuple[HistoryEntry, ...], floor: int) -> None:
        """R4.3: history first, then ``promised`` and ``accepted``, with the ballots they had."""
        local = self.local
        wanted, *rest = local.restoring
        local.restoring = tuple(rest)
        if entries:
            page = HistoryPage(REPOSITORY, entries, entries[-1].change.position, floor)
            voters = local.register.voters
            for step in steps(local.register.position, page, lambda _, c: c.flaw(voters, genuine), {wanted.committed}):
                self._make_durable(Under(CommitOp(REPOSITORY, step.change), step.certificate))
        local.register = local.durable_register
        self._note()
        record, verdict = RejoinOp(REPOSITORY, wanted.promised, wanted.accepted).on(local.record)
        if verdict is WriteVerdict.DIVERGENT:
            raise Broken(f"{local.me} rejoins, and one ballot or one version has two values")
        if verdict is WriteVerdict.MOVED or local.register.position.version < wanted.committed.version:
            self._feed_rejoin(Restored(wanted.repository, "history is too short"))
            return
        local.record = record
        self._note()
        self._feed_rejoin(Restored(wanted.repository))

    def _clear(self, effect: Clear) -> None:
        local = self.local
        table = {node: (number, life) for node, number, life in local.enrolled}
        for peer, number in effect.incarnations:
            if number > table.get(peer, (FIRST, ""))[0]:
                table[peer] = (number, "")
        local.enrolled = tuple(sorted((node, *value) for node, value in table.items()))
        local.incarnation, local.rejoining, local.rejoin, local.rejoin_key = effect.incarnation, False, None, ()
        self._note()
        self._start()

    # ------------------------------------------------------------ machines and effects

    def _senders_of_sessions(self) -> None:
        renumbered(self.voter)
        self.senders |= {number: session.sender for number, session in self.voter._sessions.items()}

    def _feed_both(self, event: Event) -> None:
        self._senders_of_sessions()
        self._feed(self.voter, event)
        self._feed(self.coordinator, event)

    def _feed(self, machine: Voter | Coordinator, event: Event) -> None:
        later: list[tuple[str, Any]] = []
        for effect in machine.handle(event, NOW):
            self._perform(effect, machine, later)
        for what, change in later:
            if what == "staged":
                self._feed_both(ObjectsStaged(change.position.digest))
            elif machine.record.in_doubt is not None:
                self._feed(self.coordinator, SettleNow())

    def _perform(self, effect: Effect, machine: Voter | Coordinator, later: list[tuple[str, Any]]) -> None:
        local = self.local
        match effect:
            case Write(op, certificate):
                self._write(op, certificate)
                if isinstance(op, PromiseOp) and isinstance(machine, Coordinator):
                    self.costs.append(hp.Cost.CLAIM)
            case Decide():
                self._decide(effect)
            case Send(to, message):
                self._leave(hp.Parcel(local.me, to, _settled(message)))
            case Reply(number, reply):
                self._leave(hp.Parcel(local.me, self.senders.pop(number), self._finished(reply)))
            case StageObjects(change, _):
                if change.packs:
                    local.staging = (*local.staging, change)
                else:
                    later.append(("staged", change))
            case Witness(certificate):
                self._witness(certificate)
            case CatchUp(version, _, told):
                local.catch_to = max(local.catch_to, version)
                if told is not None and told not in local.told:
                    local.told = tuple(sorted((*local.told, told), key=hp.version_digest))
            case Undone(change, _):
                self.facts.append(hp.Undone(change.position))
            case Answer(submitted, outcome):
                self._leave(hp.Told(submitted, outcome.kind, outcome.position, outcome.txn, outcome.quorum))
            case Settle():
                later.append(("settle", None))
            case Alarm(reason):
                raise Broken(f"{local.me} raises an alarm: {reason}")
            case Wake() | Note() | Discard():
                pass

    def _leave(self, what: hp.Parcel | hp.Fact) -> None:
        self.out.append(what)
        self._note()

    def _note(self) -> None:
        self.moments.append(Moment(self.local.twin(), len(self.out), len(self.facts)))

    def _write(self, op: Op, certificate: Certificate | None) -> None:
        self.local.writes = (*self.local.writes, Under(op, certificate))

    def _decide(self, effect: Decide) -> None:
        local = self.local
        own = self._signed(StatementKind.YES_CHANGE, effect)
        votes = tuple(sorted((*effect.votes, own), key=lambda vote: vote.node))
        decision = self._signed(StatementKind.DECISION, effect)
        digest, position = local.register.voters.digest, effect.change.position
        certificate = Certificate(REPOSITORY, digest, effect.quorum, position, effect.ballot, votes, decision)
        if flaw := certificate.flaw(local.register.voters, genuine):
            raise Broken(f"{local.me} makes a worthless certificate: {flaw}")
        self.facts.append(hp.Decided(position, effect.quorum))
        self._write(CommitOp(REPOSITORY, effect.change), certificate)

    def _signed(self, kind: StatementKind, effect: Decide) -> SignedVote:
        digest, position = self.local.register.voters.digest, effect.change.position
        number = self.local.incarnation
        statement = Statement(kind, REPOSITORY, digest, effect.quorum, position, effect.ballot, number)
        return SignedVote(self.local.me, number, sign(self.local.me, statement.encode()))

    def _finished(self, reply: TransportReply) -> TransportReply:
        if isinstance(reply, Vote):
            reply = replace(reply, reason="because" if reply.reason else "")
            if reply.kind is VoteKind.YES:
                return replace(reply, signature=sign(self.local.me, reply.statement.encode()))
        if isinstance(reply, Promise) and reply.accepted is not None and reply.accepted.change is not None:
            return replace(reply, staged=True)
        return reply

    def _witness(self, certificate: Certificate) -> None:
        local, version = self.local, certificate.position.version
        entry = local.history[version - 1]
        if entry.change.position != certificate.position:
            raise Broken(f"version {version} is {entry.change.position} here, {certificate.position} elsewhere")
        if entry.certificate is None:
            known = replace(entry, certificate=certificate)
            local.history = (*local.history[: version - 1], known, *local.history[version:])

    # ------------------------------------------------------------ what came of it

    def cuts(self) -> Iterable[tuple[Local, list[hp.Parcel | hp.Fact], str]]:
        """Every crash on the way, with every number of writes durable by then. The last moment's is a crash after the step."""
        for moment in self.moments:
            then, last = moment.local, self.local
            if (moment.out, then.writes, then.record) == (len(self.out), last.writes, last.record):
                continue
            for durable in range(len(moment.local.writes) + 1):
                crash = Step.on(moment.local)
                crash._crash(durable)
                where = f"after {moment.out} of {len(self.out)} effects, {durable} of {len(moment.local.writes)} writes durable"
                yield crash.local, [*self.facts[: moment.facts], *crash.facts, *self.out[: moment.out]], where


def renumbered(voter: Voter) -> None:
    """Requests are numbered anew, in their order of arrival: a number is nothing but a name."""
    sessions = list(voter._sessions.values())
    voter._sessions.clear()
    for number, session in enumerate(sessions, 1):
        session.request = number
        voter._sessions[number] = session


def _settled(message: TransportRequest) -> TransportRequest:
    if isinstance(message, Commit):
        return message
    return replace(message, deadline_s=DEADLINE_S)


def ignored(message: hp.Letter) -> bool:
    """No machine looks at it: the sender of a commit does not wait for anybody to hear it."""
    return isinstance(message, Acknowledged)
