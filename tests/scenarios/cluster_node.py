"""One node of a test cluster: a disk, and while it is up two machines whose effects it performs as ``node/replica.py`` does.

Writes, staging, catch-up and sends are jobs of their own; a journal runs its conditional writes one after another, and what
comes of them is fed to both machines, a commit before anything else.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, WriteVerdict
from node.protocol.catchup import HistoryRefused, steps
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
    HistoryPage,
    Prepare,
    Promise,
    Status,
    TransportReply,
    TransportRequest,
    Vote,
    VoteKind,
)
from node.protocol.outcome import Outcome, OutcomeKind
from node.protocol.reads import barrier
from node.protocol.register import Register
from node.protocol.voter import Voter
from tests.scenarios.conditions import Fault
from tests.scenarios.laws import Broken, Disk
from tests.scenarios.values import REPOSITORY, genuine, sign
from tests.scenarios.words import describe, describe_answer, describe_op, names

if TYPE_CHECKING:
    from tests.scenarios.world import World

TICKS_PER_SECOND_MAX = 250
"""A machine that asks to be woken more often than this does nothing useful."""

Machine = Voter | Coordinator


class Node:
    """One node: a disk, and while it is up two machines."""

    def __init__(self, name: NodeId, world: "World") -> None:
        self.name = name
        self.world = world
        self.disk = Disk(Register(REPOSITORY, world.voters))
        self.up = False
        self.life = 0
        self.suspected: frozenset[NodeId] = frozenset()
        self.requests = 0

    # ------------------------------------------------------------ life

    def start(self) -> None:
        self.life += 1
        self.up = True
        world, disk = self.world, self.disk
        spread = world.conditions.spread(self.name)
        self.voter = Voter(
            self.name, 1, disk.record, disk.register, world.timing, now=world.now, spread=spread, stopped=disk.stopped
        )
        self.coordinator = Coordinator(
            self.name, disk.record, disk.register, world.timing, quorum_rule=world.quorum, spread=spread, stopped=disk.stopped
        )
        self.register = disk.register
        self._senders: dict[int, NodeId] = {}
        self._wishes: dict[type[Machine], int] = {}
        self._ticks: Counter[tuple[type[Machine], int]] = Counter()
        self._durable_at = self._heard_at = world.now
        self._catching_up_to = 0
        self._holders: tuple[NodeId, ...] = ()
        self._told: set[Position] = set()
        self._catching_up = self._settling = False
        self.disk.failed = False
        self.suspected = frozenset()
        self.feed(self.voter, Tick())

    def crash(self) -> None:
        self.up = False
        self.life += 1
        self.world.tell(self.name, "CRASHED")

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        """Do ``what`` later, if this life lasts that long."""
        self.world.after(delay_s, self._if_alive, self.life, what, args)

    def _if_alive(self, life: int, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.up and self.life == life:
            what(*args)

    # ------------------------------------------------------------ what a node is asked

    def submit(self, txn: TxnId, kind: ChangeKind, updates: tuple[RefUpdate, ...], packs: tuple[PackRef, ...] = ()) -> None:
        world = self.world
        request = Request(txn, "alice", self.name, int(world.now * 1000), updates, packs=packs)
        self.disk.keep(txn, packs)
        name = str(REPOSITORY) if kind is ChangeKind.CREATE else ""
        self.feed(self.coordinator, Submitted(kind, request, world.now + world.timing.prepare_s, name=name))

    def suspect(self, nodes: frozenset[NodeId]) -> None:
        self.suspected = nodes
        self.feed_both(Suspected(nodes))

    def request(self, sender: NodeId, message: TransportRequest) -> None:
        if not self.up:
            return
        if isinstance(message, Commit) and (flaw := message.certificate.flaw(self.register.voters, genuine)):
            raise Broken(f"a commit of {sender} carries a worthless certificate: {flaw}")
        self.requests += 1
        self._senders[self.requests] = sender
        self.feed(self.voter, Requested(self.requests, sender, message))

    def reply(self, sender: NodeId, message: TransportReply) -> None:
        if self.up:
            self.feed(self.coordinator, Received(sender, message))

    def status(self) -> Status:
        record = self.voter.record
        held = record.accepted
        return Status(
            REPOSITORY,
            self.register.voters.digest,
            1,
            record.committed,
            record.accepted_ballot,
            held.base if held else record.committed,
            held is not None and held.change is not None,
            self.register.position.version,
        )

    def answers(self) -> list[Status]:
        """R5's question, to whoever is in reach."""
        peers = (node for node in self.world.nodes.values() if node is not self and self._reaches(node))
        found = [self.status(), *(peer.status() for peer in peers)]
        return found if len(found) >= self.register.voters.majority else []

    # ------------------------------------------------------------ machines and effects

    def feed_both(self, event: Event) -> None:
        life = self.life
        self.feed(self.voter, event)
        if self.life == life:
            self.feed(self.coordinator, event)

    def feed(self, machine: Machine, event: Event) -> None:
        life, world = self.life, self.world
        before = machine.state if isinstance(machine, Coordinator) else None
        effects = machine.handle(event, world.now)
        if world.say is not None and isinstance(machine, Coordinator) and before is not None and machine.state is not before:
            world.tell(self.name, f"coordinator {before.name} → {machine.state.name}")
        for effect in effects:
            if world.conditions.crashes(world, self.name, effect):
                self.crash()
            if self.life != life:
                return
            self._perform(effect, machine, event)

    def _perform(self, effect: Effect, machine: Machine, event: Event) -> None:
        world = self.world
        match effect:
            case Write(op, certificate):
                self._write(op, certificate)
            case Decide():
                self._decide(effect)
            case Send(to, message):
                if isinstance(message, Prepare):
                    message = replace(message, holders=(self.name, *message.holders))
                self._transmit(to, message)
            case Reply(number, reply):
                to = self._senders.pop(number)
                self._transmit(to, self._finished(reply))
            case StageObjects(change, holders):
                self.after(world.conditions.direct_delay(), self._stage, change, holders, 0)
            case Witness(certificate):
                self._witness(certificate)
            case CatchUp(version, holders, told):
                self.catch_up(version, holders, told)
            case Discard(change):
                self._discard(change)
            case Undone(change, _):
                world.laws.undone(change)
                world.tell(self.name, f"certainly aborted: {names(change)}")
            case Answer(submitted, outcome):
                self._answer(submitted, outcome)
            case Settle():
                self._settle()
            case Wake(at):
                self._wake(machine, at, after_tick=isinstance(event, Tick))
            case Alarm(reason, stop):
                world.tell(self.name, f"ALARM {reason}")
                world.laws.alarm(self.name, reason)
                if stop and not self.disk.stopped:
                    self.disk.stopped = reason
                    self.feed_both(SetAside(reason))
            case Note(reason):
                world.tell(self.name, f"nothing done: {reason}")

    def _wake(self, machine: Machine, at: float, *, after_tick: bool) -> None:
        if after_tick and at <= self.world.now:
            raise Broken(f"{self.name}: {machine!r} was woken at {self.world.now:.3f} and asks to be woken at {at:.3f}")
        kind = type(machine)
        self._wishes[kind] = wish = self._wishes.get(kind, 0) + 1
        self.after(max(0.0, at - self.world.now), self._tick, kind, wish)

    def _tick(self, kind: type[Machine], wish: int) -> None:
        if self._wishes.get(kind) != wish:
            return
        second = (kind, int(self.world.now))
        self._ticks[second] += 1
        if self._ticks[second] > TICKS_PER_SECOND_MAX:
            raise Broken(f"{self.name}: {kind.__name__} was woken {self._ticks[second]} times within one second")
        self.feed(self.voter if kind is Voter else self.coordinator, Tick())

    # ------------------------------------------------------------ the journal

    def _write(self, op: Op, certificate: Certificate | None, then: Callable[[], None] | None = None) -> None:
        """Writes are durable one after another, and their results come back one after another."""
        durable_s, heard_s = self.world.conditions.journal_delays()
        self._durable_at = max(self._durable_at, self.world.now + durable_s)
        self._heard_at = max(self._heard_at, self._durable_at + heard_s)
        self.after(self._durable_at - self.world.now, self._write_now, op, certificate, self._heard_at, then)

    def _write_now(self, op: Op, certificate: Certificate | None, heard_at: float, then: Callable[[], None] | None) -> None:
        disk, before = self.disk, self.disk.record
        fault = self.world.conditions.disk_fault(self.name)
        if disk.failed or fault is Fault.REFUSED:
            self._hear(op, certificate, WriteVerdict.REFUSED, self.voter.record, then)
            return
        disk.record, verdict = op.on(before)
        if verdict is WriteVerdict.DONE and isinstance(op, AcceptOp) and op.change is not None:
            if not disk.holds(op.change.packs):
                raise Broken(f"{self.name} accepts {names(op.change)} without its objects")
            disk.keep(op.change.position.digest, op.change.packs)
        self.world.laws.written(before, disk.record)
        if verdict is WriteVerdict.DONE and isinstance(op, CommitOp):
            self._commit_now(op.change, certificate)
        if self.world.say is not None:
            self.world.tell(self.name, f"wrote {describe_op(op)}: {verdict.value}")
        if fault is Fault.FAILED:
            disk.failed = True
            self._hear(op, certificate, WriteVerdict.REFUSED, self.voter.record, then)
            return
        if heard_at <= self.world.now:
            self._hear(op, certificate, verdict, disk.record, then)
        else:
            self.after(heard_at - self.world.now, self._hear, op, certificate, verdict, disk.record, then)

    def _commit_now(self, change: Change, certificate: Certificate | None) -> None:
        disk = self.disk
        moot = self._moot_up_to >= change.position.version
        if not moot and not disk.holds(change.packs):
            raise Broken(f"{self.name} commits {names(change)} without its objects")
        disk.objects |= {pack.sha256 for pack in change.packs}
        disk.stage.pop(change.position.digest, None)
        disk.register = disk.register.applied(change)
        disk.history.append(HistoryEntry(change, certificate, 0))
        if change.kind is ChangeKind.DELETE:
            disk.objects.clear()
        self.world.laws.committed(change)

    _moot_up_to = 0
    """Version of a deletion further on in the history that is being learned: packs below it are needed by nobody."""

    def _hear(
        self,
        op: Op,
        certificate: Certificate | None,
        verdict: WriteVerdict,
        record: AcceptorRecord,
        then: Callable[[], None] | None,
    ) -> None:
        written = Written(op, verdict, record)
        if self.world.conditions.crashes(self.world, self.name, written):
            self.crash()
            return
        life = self.life
        if verdict is WriteVerdict.DONE and isinstance(op, CommitOp):
            self.register = self.register.applied(op.change)
            self.feed_both(Committed(op.change, self.register, record, certificate))
        if self.life == life:
            self.feed_both(written)
        if self.life == life and then is not None:
            then()

    def _decide(self, effect: Decide) -> None:
        own = self._signed(StatementKind.YES_CHANGE, effect)
        decision = self._signed(StatementKind.DECISION, effect)
        position, votes = effect.change.position, (*effect.votes, own)
        digest = self.register.voters.digest
        certificate = Certificate(REPOSITORY, digest, effect.quorum, position, effect.ballot, votes, decision)
        if flaw := certificate.flaw(self.register.voters, genuine):
            raise Broken(f"{self.name} makes a worthless certificate: {flaw}")
        self.world.laws.decided(effect.change)
        self.world.tell(self.name, f"decided {names(effect.change)} at {effect.ballot}")
        self._write(CommitOp(REPOSITORY, effect.change), certificate)

    def _signed(self, kind: StatementKind, effect: Decide) -> SignedVote:
        digest, position = self.register.voters.digest, effect.change.position
        statement = Statement(kind, REPOSITORY, digest, effect.quorum, position, effect.ballot, 1)
        return SignedVote(self.name, 1, sign(self.name, statement.encode()))

    def _witness(self, certificate: Certificate) -> None:
        version = certificate.position.version
        entry = self.disk.history[version - 1]
        if entry.change.position != certificate.position:
            raise Broken(f"{self.name}: version {version} is {entry.change.position} here, {certificate.position} elsewhere")
        if entry.certificate is None:
            self.disk.history[version - 1] = replace(entry, certificate=certificate)

    # ------------------------------------------------------------ between nodes

    def _transmit(self, to: NodeId, message: TransportRequest | TransportReply) -> None:
        delays = self.world.conditions.deliveries(self.world, self.name, to, message)
        if not delays and self.world.say is not None:
            self.world.tell(self.name, f"lost on the way to {to}: {describe(message)}")
        for delay_s in delays:
            self.world.after(delay_s, self.deliver, to, message)

    def deliver(self, to: NodeId, message: TransportRequest | TransportReply) -> None:
        """The message arrives, if the receiver is up."""
        receiver = self.world.nodes[to]
        if not receiver.up:
            return
        if self.world.say is not None:
            self.world.tell(to, f"from {self.name}: {describe(message)}")
        if isinstance(message, Claim | Prepare | Abort | Commit):
            receiver.request(self.name, message)
        else:
            receiver.reply(self.name, message)

    def _finished(self, reply: TransportReply) -> TransportReply:
        """What the runtime adds on the way out: a yes is signed, a promise says whether the objects are here."""
        if isinstance(reply, Vote) and reply.kind is VoteKind.YES:
            return replace(reply, signature=sign(self.name, reply.statement.encode()))
        if isinstance(reply, Promise) and reply.accepted is not None and reply.accepted.change is not None:
            return replace(reply, staged=self.disk.holds(reply.accepted.change.packs))
        return reply

    def _reaches(self, other: "Node") -> bool:
        return other.up and self.world.conditions.reaches(self.world, self.name, other.name)

    # ------------------------------------------------------------ objects

    def _stage(self, change: Change, holders: tuple[NodeId, ...], tries: int) -> None:
        if problem := self._get(change, holders):
            if tries < 5:
                self.after(0.2, self._stage, change, holders, tries + 1)
                return
            self.world.tell(self.name, f"objects of {names(change)}: {problem}")
        elif change.packs:
            self.world.tell(self.name, f"objects of {names(change)} are here")
        self.feed_both(ObjectsStaged(change.position.digest, problem))

    def _get(self, change: Change, holders: tuple[NodeId, ...]) -> str:
        packs = change.packs
        if self.disk.holds(packs):
            self.disk.keep(change.position.digest, packs)
            return ""
        if not self.world.conditions.may_stage(self.name):
            return "nobody in reach has the objects"
        nodes = [self.world.nodes[name] for name in dict.fromkeys((*holders, *self.register.voters.nodes)) if name != self.name]
        if not any(self._reaches(node) and node.disk.holds(packs) for node in nodes):
            return "nobody in reach has the objects"
        self.disk.keep(change.position.digest, packs)
        return ""

    def _discard(self, change: Change) -> None:
        self.disk.stage.pop(change.position.digest, None)
        self.world.tell(self.name, f"drops the objects of {names(change)}")

    # ------------------------------------------------------------ clients, doubt, history

    def _answer(self, submitted: TxnId, outcome: Outcome) -> None:
        self.world.tell(self.name, describe_answer(submitted, outcome))
        if outcome.kind is not OutcomeKind.UNKNOWN:
            self.disk.stage.pop(submitted, None)
        self.world.laws.answered(submitted, outcome)

    def _settle(self) -> None:
        self.world.tell(self.name, "in doubt for too long: asks a majority")
        if not self._settling:
            self._settling = True
            self.after(self.world.conditions.direct_delay(), self._settle_doubt)

    def _settle_doubt(self) -> None:
        """R1: ask a majority and catch up; if nobody knows more, the coordinator claims and settles."""
        answers = self.answers()
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

    def catch_up(self, version: int, holders: tuple[NodeId, ...], told: Position | None) -> None:
        if version <= self.register.position.version:
            return
        self._catching_up_to = max(self._catching_up_to, version)
        self._holders = tuple(dict.fromkeys((*holders, *self._holders)))
        self._told |= {told} if told else set()
        if not self._catching_up:
            self._catching_up = True
            self.after(self.world.conditions.direct_delay(), self._learn_page, 0)

    def _learn_page(self, failures: int) -> None:
        """R2: objects first, then history, from whoever has it."""
        here = self.register.position
        if here.version >= self._catching_up_to or failures >= 5:
            self._catching_up, self._holders, self._told = False, (), set()
            return
        names_ = dict.fromkeys((*self._holders, *self.register.voters.nodes))
        for peer in (self.world.nodes[name] for name in names_ if name != self.name):
            if self._reaches(peer) and peer.register.position.version > here.version and self._learn_of(peer):
                return
        self.after(0.2 * (failures + 1), self._learn_page, failures + 1)

    def _learn_of(self, peer: "Node") -> bool:
        here, register = self.register.position, peer.disk.register
        page = HistoryPage(REPOSITORY, tuple(peer.disk.history[here.version :]), register.position, register.floor)
        try:
            proved = steps(here, page, lambda _, certificate: certificate.flaw(self.register.voters, genuine), self._told)
        except HistoryRefused as error:
            raise Broken(f"{self.name} refuses the history of {peer.name}: {error}") from error
        if not proved or any(self._get(step.change, (peer.name,)) for step in proved if step.needs_objects):
            return False
        self._moot_up_to = max(self._moot_up_to, page.floor)
        for step in proved[:-1]:
            self._write(CommitOp(REPOSITORY, step.change), step.certificate)
        self._write(CommitOp(REPOSITORY, proved[-1].change), proved[-1].certificate, lambda: self._learned(here))
        return True

    def _learned(self, before: Position) -> None:
        """Go on with the next page; a journal that took nothing is not asked again at once."""
        if self.register.position == before:
            self.after(0.5, self._learn_page, 1)
        else:
            self._learn_page(0)

    # ------------------------------------------------------------ reads

    def read(self, timeout_s: float, told: Callable[[int], None]) -> None:
        """R5; ``told`` hears the version served, or nobody does."""
        self.after(self.world.conditions.direct_delay(), self._read, self.world.laws.seen, self.world.now + timeout_s, told)

    def _read(self, seen: int, until: float, told: Callable[[int], None]) -> None:
        answers = self.answers()
        if answers:
            wall = barrier(answers)
            if self.register.position.version >= wall.applied:
                self.world.laws.served(self.name, self.register.position.version, seen)
                told(self.register.position.version)
                return
            self.catch_up(wall.applied - wall.doubtful, (), max((a.committed for a in answers), key=lambda p: p.version))
        if self.world.now < until:
            self.after(0.05, self._read, seen, until, told)
