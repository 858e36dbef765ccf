"""One node of a test cluster: a disk, and while it is up two machines whose effects it performs as ``node/replica.py`` does.

Writes, staging, catch-up and sends are jobs of their own; a journal runs its conditional writes one after another
(``disk.py``), and what comes of them is fed to both machines, a commit before anything else. Reads and catch-up are
``reader.py`` and ``learner.py``. A node has a clock of its own, which may run fast or jump, and may be paused: then
everything waits, and its clock goes on.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, WriteVerdict
from node.protocol.certificate import Certificate, SignedVote, Statement, StatementKind
from node.protocol.change import Change, ChangeKind, PackRef, RefUpdate, Request
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
    Event,
    ObjectsStaged,
    Received,
    Requested,
    SetAside,
    SettleNow,
    Submitted,
    Suspected,
    Tick,
    Written,
)
from node.protocol.ids import NodeId, Position, TxnId
from node.protocol.messages import (
    Abort,
    Claim,
    Commit,
    HistoryEntry,
    Prepare,
    Promise,
    Refused,
    Status,
    TransportReply,
    TransportRequest,
    Vote,
    VoteKind,
)
from node.protocol.outcome import OutcomeKind
from node.protocol.register import Register
from node.protocol.voter import Voter
from tests.scenarios.conditions import Fault
from tests.scenarios.disk import Disk, Pending, new_life
from tests.scenarios.laws import Broken
from tests.scenarios.learner import Learner
from tests.scenarios.membership import Membership
from tests.scenarios.reader import Answers, Reader
from tests.scenarios.values import REPOSITORY, sign
from tests.scenarios.words import describe, describe_answer, describe_op, names

if TYPE_CHECKING:
    from tests.scenarios.world import World

TICKS_PER_SECOND_MAX = 250
"""A machine that asks to be woken more often than this does nothing useful."""

Machine = Voter | Coordinator
Then = Callable[[], None] | None


class Node:
    """One node: a disk, and while it is up two machines."""

    def __init__(self, name: NodeId, world: "World") -> None:
        self.name = name
        self.world = world
        self.disk = Disk(Register(REPOSITORY, world.voters), life=new_life(f"{name}-1"))
        self.up = self.open = False
        """Whether the process runs, and whether it may speak for its repository (R4)."""
        self.life = 0
        self.requests = 0
        self.rate, self.skew_s, self.wall_skew_s = 1.0, 0.0, 0.0
        self.paused_until = 0.0

    # ------------------------------------------------------------ life

    def start(self) -> None:
        self.life += 1
        self.up = True
        self.suspected: frozenset[NodeId] = frozenset()
        self._wish_at: dict[type[Machine], float] = {}
        self._armed_at: dict[type[Machine], float] = {}
        self.disk.failed = False
        self.membership = Membership(self)
        self.membership.start()

    def begin(self) -> None:
        """It may speak: its machines are made of what is on the disk."""
        self.open = True
        world, disk = self.world, self.disk
        world.laws.woken(self.name, self.incarnation, disk.record)
        spread = world.conditions.spread(self.name)
        self.voter = Voter(
            self.name,
            self.incarnation,
            disk.record,
            disk.register,
            world.timing,
            now=self.clock(),
            spread=spread,
            stopped=disk.stopped,
            incarnations=disk.incarnations,
        )
        self.coordinator = Coordinator(
            self.name,
            disk.record,
            disk.register,
            world.timing,
            quorum_rule=world.quorum,
            spread=spread,
            stopped=disk.stopped,
            incarnation=self.incarnation,
            incarnations=disk.incarnations,
        )
        self.register = self.applied = disk.register
        disk.applied = disk.register.position.version
        """V6: what the refs on the disk lack is replayed before anything else."""
        self._senders: dict[int, NodeId] = {}
        self._ticks: Counter[tuple[type[Machine], int]] = Counter()
        self._written_at = self._synced_at = world.now
        self._settling = False
        self._prepare: tuple[Prepare, Prepare] | None = None
        self.moot_up_to = 0
        """Version of a deletion further on in the history that is being learned: packs below it are needed by nobody."""
        self.learner, self.reader = Learner(self), Reader(self)
        self.feed(self.voter, Tick())

    def crash(self, kept: int | None = None) -> None:
        """The process dies, and the whole tail is on the disk in the end; or the power fails, and ``kept`` writes of it are."""
        self.up = self.open = False
        self.life += 1
        self.paused_until = 0.0
        if kept is not None:
            self.disk.lose_loose()
        if self.disk.tail:
            self._durable(self.disk.cut(len(self.disk.tail) if kept is None else kept))
        self.world.tell(self.name, "CRASHED")

    @property
    def incarnation(self) -> int:
        return self.disk.life.incarnation

    def clock(self) -> float:
        """Monotonic seconds, as this node counts them."""
        return self.world.now * self.rate + self.skew_s

    def jump(self, seconds: float) -> None:
        """The clock leaps forward: what waits for a time is due that much earlier."""
        self.skew_s += seconds
        for kind, at in self._armed_at.items():
            self.after(max(0.0, (at - self.clock()) / self.rate), self._ring, kind, at)

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        """Do ``what`` later, if this life lasts that long."""
        self.world.after(delay_s, self.if_alive, self.life, what, args)

    def if_alive(self, life: int, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.up and self.life == life:
            if self.paused_until > self.world.now:
                self.world.after(self.paused_until - self.world.now, self.if_alive, life, what, args)
            else:
                what(*args)

    # ------------------------------------------------------------ what a node is asked

    def submit(self, txn: TxnId, kind: ChangeKind, updates: tuple[RefUpdate, ...], packs: tuple[PackRef, ...] = ()) -> None:
        world = self.world
        request = Request(txn, "alice", self.name, int((world.now + self.wall_skew_s) * 1000), updates, packs=packs)
        self.disk.keep(txn, packs)
        name = str(REPOSITORY) if kind is ChangeKind.CREATE else ""
        self.feed(self.coordinator, Submitted(kind, request, self.clock() + world.timing.prepare_s, name=name))

    def suspect(self, nodes: frozenset[NodeId]) -> None:
        self.suspected = nodes
        self.feed_both(Suspected(nodes))

    def request(self, sender: NodeId, message: TransportRequest) -> None:
        if isinstance(message, Commit) and (flaw := self.world.flaw(message.certificate, self.register.voters)):
            if not self.world.forgers:
                raise Broken(f"a commit of {sender} carries a worthless certificate: {flaw}")
            self._transmit(sender, Refused(REPOSITORY, message.certificate.ballot, self.voter.record.promised, flaw))
            return
        self.requests += 1
        self._senders[self.requests] = sender
        self.feed(self.voter, Requested(self.requests, sender, message))

    def status(self) -> Status:
        record = self.voter.record
        held = record.accepted
        return Status(
            REPOSITORY,
            self.register.voters.digest,
            self.incarnation,
            record.committed,
            record.accepted_ballot,
            held.base if held else record.committed,
            held is not None and held.change is not None,
            self.applied.position.version,
            self.disk.incarnations,
            self.disk.life,
        )

    def read(self, timeout_s: float, told: Callable[[Register], None]) -> None:
        """R5; ``told`` hears the value served, or nobody does."""
        self.reader.read(timeout_s, told)

    def catch_up(self, version: int, holders: tuple[NodeId, ...], told: Position | None) -> None:
        self.learner.to(version, holders, told)

    # ------------------------------------------------------------ machines and effects

    def feed_both(self, event: Event) -> None:
        life = self.life
        self.feed(self.voter, event)
        if self.life == life:
            self.feed(self.coordinator, event)

    def feed(self, machine: Machine, event: Event) -> None:
        life, world = self.life, self.world
        if world.say is None:
            effects = machine.handle(event, self.clock())
        else:
            before = machine.state if isinstance(machine, Coordinator) else None
            effects = machine.handle(event, self.clock())
            if isinstance(machine, Coordinator) and before is not None and machine.state is not before:
                world.tell(self.name, f"coordinator {before.name} → {machine.state.name}")
        fragile = world.conditions.fragile
        for effect in effects:
            if fragile and world.conditions.crashes(world, self.name, effect) and self.life == life:
                self.crash()
            if self.life != life:
                return
            PERFORM[type(effect)](self, effect, machine, event)

    def _perform_write(self, effect: Write, *_: object) -> None:
        self.write(effect.op, effect.certificate)

    def _perform_send(self, effect: Send, *_: object) -> None:
        message = effect.message
        if isinstance(message, Prepare):
            if self._prepare is None or self._prepare[0] is not message:
                self._prepare = (message, replace(message, holders=(self.name, *message.holders)))
            message = self._prepare[1]
        self._stamp(message)
        self._transmit(effect.to, message)

    def _perform_reply(self, effect: Reply, *_: object) -> None:
        to = self._senders.pop(effect.request)
        reply = self._finished(effect.message)
        self._stamp(reply)
        self.world.laws.said(self.name, self.incarnation, reply)
        self._transmit(to, reply)

    def _stamp(self, message: TransportRequest | TransportReply) -> None:
        """R4: where this journal stands goes with every message, own votes and promises included, as it is when that leaves."""
        if self.world.amnesia:
            self.world.lives.setdefault(id(message), (message, self.disk.life))

    def _perform_stage(self, effect: StageObjects, *_: object) -> None:
        self.after(self.world.conditions.direct_delay(), self._stage, effect.change, effect.holders, 0)

    def _perform_witness(self, effect: Witness, *_: object) -> None:
        self._witness(effect.certificate)

    def _perform_catch_up(self, effect: CatchUp, *_: object) -> None:
        self.catch_up(effect.version, effect.holders, effect.told)

    def _perform_discard(self, effect: Discard, *_: object) -> None:
        self.disk.stage.pop(effect.change.position.digest, None)
        if self.world.say is not None:
            self.world.tell(self.name, f"drops the objects of {names(effect.change)}")

    def _perform_undone(self, effect: Undone, *_: object) -> None:
        self.world.laws.undone(effect.change)
        if self.world.say is not None:
            self.world.tell(self.name, f"certainly aborted: {names(effect.change)}")

    def _perform_answer(self, effect: Answer, *_: object) -> None:
        if self.world.say is not None:
            self.world.tell(self.name, describe_answer(effect.submitted, effect.outcome))
        if effect.outcome.kind is not OutcomeKind.UNKNOWN:
            self.disk.stage.pop(effect.submitted, None)
        self.world.laws.answered(effect.submitted, effect.outcome)

    def _perform_settle(self, *_: object) -> None:
        self.world.tell(self.name, "in doubt for too long: asks a majority")
        if not self._settling:
            self._settling = True
            self.reader.ask(self._settle_doubt)

    def _perform_alarm(self, effect: Alarm, *_: object) -> None:
        reason = effect.reason
        self.world.tell(self.name, f"ALARM {reason}")
        self.world.laws.alarm(self.name, reason)
        if effect.stop and not self.disk.stopped:
            self.disk.stopped = reason
            self.feed_both(SetAside(reason))

    def _perform_note(self, effect: Note, *_: object) -> None:
        if self.world.say is not None:
            self.world.tell(self.name, f"nothing done: {effect.reason}")

    # ------------------------------------------------------------ timers

    def _perform_wake(self, effect: Wake, machine: Machine, event: Event) -> None:
        """One timer a machine; a new wish replaces the old one. Only an earlier one needs a new place in the queue."""
        at, kind, now = effect.at, type(machine), self.clock()
        if at <= now and isinstance(event, Tick):
            raise Broken(f"{self.name}: {machine!r} was woken at {now:.3f} and asks to be woken at {at:.3f}")
        self._wish_at[kind] = at
        armed_at = self._armed_at.get(kind)
        if armed_at is None or at < armed_at:
            self._arm(kind, at, now)

    def _arm(self, kind: type[Machine], at: float, now: float) -> None:
        self._armed_at[kind] = at
        self.after(max(0.0, (at - now) / self.rate), self._ring, kind, at)

    def _ring(self, kind: type[Machine], armed_at: float) -> None:
        if self._armed_at.get(kind) != armed_at:
            return
        del self._armed_at[kind]
        at, now = self._wish_at[kind], self.clock()
        if at > now + 1e-6:
            self._arm(kind, at, now)
            return
        second = (kind, int(self.world.now))
        self._ticks[second] += 1
        if self._ticks[second] > TICKS_PER_SECOND_MAX:
            raise Broken(f"{self.name}: {kind.__name__} was woken {self._ticks[second]} times within one second")
        self.feed(self.voter if kind is Voter else self.coordinator, Tick())

    # ------------------------------------------------------------ the journal

    def write(self, op: Op, certificate: Certificate | None, then: Then = None) -> None:
        """Writes are in the log one after another, fsynced one after another, and their results come back one after another."""
        written_s, synced_s = self.world.conditions.journal_delays(self.name)
        now = self.world.now
        self._written_at = max(self._written_at, now + written_s)
        self._synced_at = max(self._synced_at, self._written_at + synced_s)
        self.after(self._written_at - now, self._write_now, op, certificate, self._synced_at, then)

    def _write_now(self, op: Op, certificate: Certificate | None, synced_at: float, then: Then) -> None:
        disk, world = self.disk, self.world
        fault = world.conditions.disk_fault(self.name)
        pending: Pending | None = None
        if disk.failed or fault is Fault.REFUSED:
            verdict, record = WriteVerdict.REFUSED, self.voter.record
        else:
            before, register = disk.latest
            record, verdict = op.on(before)
            if verdict is WriteVerdict.DONE:
                pending = self._pending(op, record, register, certificate)
                disk.tail.append(pending)
                world.laws.written(self.name, before, record)
            if world.say is not None:
                world.tell(self.name, f"wrote {describe_op(op)}: {verdict.value}")
            if fault is Fault.FAILED:
                disk.failed, pending = True, None
                verdict, record = WriteVerdict.REFUSED, self.voter.record
        if synced_at <= world.now:
            self._synced(op, certificate, verdict, record, pending, then)
            return
        if pending is not None and world.conditions.fragile:
            life = self.life
            if world.conditions.crashes(world, self.name, pending) and self.life == life:
                self.crash()
        self.after(synced_at - world.now, self._synced, op, certificate, verdict, record, pending, then)

    def _pending(self, op: Op, record: AcceptorRecord, register: Register, certificate: Certificate | None) -> Pending:
        if isinstance(op, AcceptOp) and op.change is not None:
            packs = op.change.packs
            self.world.laws.named(op.change)
            if packs and not self.disk.holds(packs):
                raise Broken(f"{self.name} accepts {names(op.change)} without its objects")
            return Pending(record, register, stage=(op.change.position.digest, packs) if packs else None)
        if isinstance(op, CommitOp):
            change = op.change
            if change.packs and self.moot_up_to < change.position.version and not self.disk.holds(change.packs):
                raise Broken(f"{self.name} commits {names(change)} without its objects")
            return Pending(record, self.world.value(register, change), HistoryEntry(change, certificate, 0))
        return Pending(record, register)

    def _synced(
        self,
        op: Op,
        certificate: Certificate | None,
        verdict: WriteVerdict,
        record: AcceptorRecord,
        pending: Pending | None,
        then: Then,
    ) -> None:
        if pending is not None:
            self._durable(self.disk.fsync(pending))
        self._hear(op, certificate, verdict, record, then)

    def _durable(self, settled: list[Pending]) -> None:
        for done in settled:
            if done.entry is not None:
                self.world.laws.committed(done.entry.change)

    def _hear(self, op: Op, certificate: Certificate | None, verdict: WriteVerdict, record: AcceptorRecord, then: Then) -> None:
        written = Written(op, verdict, record)
        life, conditions = self.life, self.world.conditions
        if conditions.fragile and conditions.crashes(self.world, self.name, written):
            if self.life == life:
                self.crash()
            return
        if verdict is WriteVerdict.DONE and isinstance(op, CommitOp):
            self.register = register = self.world.value(self.register, op.change)
            delay_s = conditions.apply_delay()
            if delay_s > 0:
                self.after(delay_s, self._apply, register)
            self.feed_both(Committed(op.change, register, record, certificate))
            if delay_s <= 0 and self.life == life:
                self._apply(register)
        if self.life == life:
            self.feed_both(written)
        if self.life == life and then is not None:
            then()

    def _apply(self, register: Register) -> None:
        """V6: the refs on the disk follow the journal; the fsync of the version before is done by now."""
        if register.position.version <= self.applied.position.version:
            return
        self.disk.marked, self.disk.applied = self.disk.applied, register.position.version
        self.applied = register
        self.reader.applied()

    def _decide(self, effect: Decide, *_: object) -> None:
        own = self._signed(StatementKind.YES_CHANGE, effect)
        decision = self._signed(StatementKind.DECISION, effect)
        position, votes = effect.change.position, (*effect.votes, own)
        digest = self.register.voters.digest
        certificate = Certificate(REPOSITORY, digest, effect.quorum, position, effect.ballot, votes, decision)
        if flaw := self.world.flaw(certificate, self.register.voters):
            raise Broken(f"{self.name} makes a worthless certificate: {flaw}")
        self.world.laws.decided(effect.change, effect.quorum)
        if self.world.say is not None:
            self.world.tell(self.name, f"decided {names(effect.change)} at {effect.ballot}")
        self.write(CommitOp(REPOSITORY, effect.change), certificate)

    def _signed(self, kind: StatementKind, effect: Decide) -> SignedVote:
        digest, position = self.register.voters.digest, effect.change.position
        incarnation = self.incarnation
        statement = Statement(kind, REPOSITORY, digest, effect.quorum, position, effect.ballot, incarnation)
        return SignedVote(self.name, incarnation, sign(self.name, statement.encode()))

    def _witness(self, certificate: Certificate) -> None:
        history, version = self.disk.history, certificate.position.version
        if version > len(history):
            return
        entry = history[version - 1]
        if entry.change.position != certificate.position:
            raise Broken(f"{self.name}: version {version} is {entry.change.position} here, {certificate.position} elsewhere")
        if entry.certificate is None:
            history[version - 1] = replace(entry, certificate=certificate)

    # ------------------------------------------------------------ between nodes

    def _transmit(self, to: NodeId, message: TransportRequest | TransportReply) -> None:
        self.world.conditions.transmit(self.world, self, to, message)

    def deliver(self, to: NodeId, message: TransportRequest | TransportReply) -> None:
        """The message arrives, if the receiver is up."""
        world = self.world
        receiver = world.nodes[to]
        if not receiver.up:
            world.conditions.absent(world, self, to, message)
            return
        if receiver.paused_until > world.now:
            world.after(receiver.paused_until - world.now, self.deliver, to, message)
            return
        older = world.amnesia and not receiver.membership.hears(self, message)
        if not receiver.open:
            return
        if world.say is not None:
            world.tell(to, f"from {self.name}: {describe(message)}")
        if isinstance(message, Claim | Prepare | Abort | Commit):
            if older:
                ballot = message.certificate.ballot if isinstance(message, Commit) else message.ballot
                receiver._transmit(self.name, Refused(REPOSITORY, ballot, ballot, f"a newer life of {self.name} is known"))
            else:
                receiver.request(self.name, message)
        elif not older:
            receiver.feed(receiver.coordinator, Received(self.name, message))

    def _finished(self, reply: TransportReply) -> TransportReply:
        """What the runtime adds on the way out: a yes is signed, a promise says whether the objects are here."""
        if isinstance(reply, Vote) and reply.kind is VoteKind.YES:
            return replace(reply, signature=sign(self.name, reply.statement.encode()))
        if isinstance(reply, Promise) and reply.accepted is not None and reply.accepted.change is not None:
            return replace(reply, staged=self.disk.holds(reply.accepted.change.packs))
        return reply

    def reaches(self, other: "Node") -> bool:
        return other.open and self.world.conditions.reaches(self.world, self.name, other.name)

    # ------------------------------------------------------------ objects

    def _stage(self, change: Change, holders: tuple[NodeId, ...], tries: int) -> None:
        if problem := self.get(change, holders):
            if tries < 5:
                self.after(0.2, self._stage, change, holders, tries + 1)
                return
            self.world.tell(self.name, f"objects of {names(change)}: {problem}")
        elif change.packs:
            self.world.tell(self.name, f"objects of {names(change)} are here")
        self.feed_both(ObjectsStaged(change.position.digest, problem))

    def get(self, change: Change, holders: tuple[NodeId, ...]) -> str:
        """Have the objects of ``change`` here, fsynced; or why not."""
        packs = change.packs
        if self.disk.holds(packs):
            self._keep(change.position.digest, packs)
            return ""
        if not self.world.conditions.may_stage(self.name):
            return "nobody in reach has the objects"
        nodes = [self.world.nodes[name] for name in dict.fromkeys((*holders, *self.register.voters.nodes)) if name != self.name]
        if not any(self.reaches(node) and node.disk.holds(packs) for node in nodes):
            return "nobody in reach has the objects"
        self._keep(change.position.digest, packs)
        return ""

    def _keep(self, owner: str, packs: tuple[PackRef, ...]) -> None:
        self.disk.keep(owner, packs)
        self.sync_stage(owner)

    def sync_stage(self, owner: str) -> None:
        """The files of a stage and their folder are fsynced before anybody hears that they are here."""
        self.disk.loose.discard(owner)

    # ------------------------------------------------------------ doubt

    def _settle_doubt(self, answers: Answers) -> None:
        """R1: ask a majority and catch up; if nobody knows more, the coordinator claims and settles."""
        if not answers:
            self._settling = False
            return
        highest = max((status.committed for status in answers), key=lambda position: position.version)
        if highest.version > self.register.position.version:
            self.catch_up(highest.version, (), highest)
            self.after(1.0, self._settle_now)
        else:
            self._settle_now()

    def _settle_now(self) -> None:
        self._settling = False
        if self.voter.record.in_doubt is not None:
            self.feed(self.coordinator, SettleNow())


PERFORM: dict[type[Effect], Callable[..., None]] = {
    Write: Node._perform_write,
    Decide: Node._decide,
    Send: Node._perform_send,
    Reply: Node._perform_reply,
    StageObjects: Node._perform_stage,
    Witness: Node._perform_witness,
    CatchUp: Node._perform_catch_up,
    Discard: Node._perform_discard,
    Undone: Node._perform_undone,
    Answer: Node._perform_answer,
    Settle: Node._perform_settle,
    Wake: Node._perform_wake,
    Alarm: Node._perform_alarm,
    Note: Node._perform_note,
}
