"""One repository on this node: drives its two machines and performs their effects.

Everything here runs on the event loop; the machines are fed one event at a time. Writes, staging, catch-up and sends are
tasks, and what comes of them are events again. A commit that became durable is told to both machines before anything else is,
then handed to the applier. Whoever waits for a version waits for ``applied``.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

import structlog

from node.applying import Applier
from node.catching_up import CatchingUp
from node.edges import Edges
from node.faults import FaultPoint
from node.packs import Packs
from node.ports.errors import DiskRefused, NodeError, NotAMember, PeerUnreachable, StorageError, TransportError
from node.ports.journal import Loaded
from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, WriteVerdict
from node.protocol.catchup import Step
from node.protocol.certificate import Certificate, SignedVote, Statement, StatementKind
from node.protocol.change import Change
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
    SetAside,
    SettleNow,
    Submitted,
    Suspected,
    Tick,
    Written,
)
from node.protocol.ids import Ballot, Digest, NodeId, Position, RepoId, TxnId
from node.protocol.messages import (
    Commit,
    HistoryEntry,
    InlinePack,
    Prepare,
    Promise,
    Refused,
    Status,
    TransportReply,
    TransportRequest,
    Vote,
    VoteKind,
)
from node.protocol.outcome import Outcome, OutcomeKind
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.protocol.voter import Voter

STOPPED_SHOWN_MAX = 500

log = structlog.get_logger()

STOPPING = "this node is stopping"
INTERNAL = "internal error"
"""How the reason begins for which a machine that broke off set its replica aside."""


class Replica:
    """One repository's voter, coordinator and applied state on this node."""

    def __init__(self, repository: RepoId, edges: Edges, members: VoterSet, loaded: Loaded) -> None:
        self.repository = repository
        self.register = loaded.register
        self.stopped = loaded.stopped
        self.readers = 0
        """Reads under way: they wait for this very object."""
        self._edges = edges
        self._members = members
        config = edges.config
        now = edges.clock.now()
        self.voter = Voter(
            config.me,
            edges.journal.identity.incarnation,
            loaded.record,
            loaded.register,
            config.timing,
            now=now,
            spread=edges.entropy.uniform(1.0),
            stopped=loaded.stopped,
            incarnations=edges.journal.lives.incarnations,
        )
        self.coordinator = Coordinator(
            config.me,
            loaded.record,
            loaded.register,
            config.timing,
            quorum_rule=config.quorum,
            spread=edges.entropy.uniform(1.0),
            stopped=loaded.stopped,
            incarnation=edges.journal.identity.incarnation,
            incarnations=edges.journal.lives.incarnations,
        )
        self._last_sent: dict[tuple[NodeId, type[TransportRequest]], Ballot] = {}
        self._requests: dict[int, asyncio.Future[TransportReply]] = {}
        self._request_count = 0
        self._answers: dict[TxnId, asyncio.Future[Outcome]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarms: set[asyncio.Task[None]] = set()
        """Reasons on their way to the journal; what ends this object does not end them."""
        self._closed = False
        self._broken: list[Voter | Coordinator] = []
        self._settling = False
        self._staging: dict[Digest, asyncio.Lock] = {}
        self.packs = Packs(edges, repository, lambda: self._peers)
        self._applier = Applier(edges, repository, loaded, self.packs, self._spawn, self._not_applied)
        self._catching_up = CatchingUp(
            edges,
            repository,
            self.packs,
            self._applier,
            here=lambda: self.register,
            peers=lambda: self._peers,
            stopped=lambda: bool(self.stopped),
            spawn=self._spawn,
            learn=self.learn,
            alarm=lambda reason, stop: self._alarm(reason, stop=stop),
        )
        self.suspect(edges.suspected())
        self._feed(self.voter, Tick())

    # ------------------------------------------------------------ what a node asks of it

    @property
    def busy(self) -> bool:
        """Whether forgetting this object would forget something; an alarm may not be in the journal yet."""
        waiting = bool(self._requests or self._answers or self._tasks or self._applier.busy or self.readers or self.stopped)
        return waiting or self.coordinator.busy or self.voter.record.in_doubt is not None

    @property
    def in_doubt(self) -> bool:
        return self.voter.record.in_doubt is not None

    @property
    def closed(self) -> bool:
        """Nothing is answered from this object any more."""
        return self._closed

    def status(self) -> Status:
        """The own answer to R5's question."""
        record = self.voter.record
        return Status(
            self.repository,
            self.register.voters.digest,
            self._edges.journal.identity.incarnation,
            record.committed,
            record.accepted_ballot,
            record.accepted.base if record.accepted else record.committed,
            record.accepted is not None and record.accepted.change is not None,
            self.applied,
            incarnations=self._edges.journal.lives.incarnations,
            life=self._edges.journal.lives.life,
            set_aside=self.stopped[:STOPPED_SHOWN_MAX],
        )

    async def request(self, sender: NodeId, message: TransportRequest) -> TransportReply:
        """A peer's verified claim, prepare, abort or commit; returns when the reply is due and its effects durable.

        Raises:
            NotAMember: this object is closed, now or before the answer.
        """
        self._refuse_if_closed()
        if isinstance(message, Commit) and (flaw := self._flaw(message.certificate)):
            self._alarm(f"a commit of {sender} carries a worthless certificate: {flaw}", stop=False)
            return Refused(self.repository, message.certificate.ballot, self.voter.record.promised, flaw)
        self._request_count += 1
        number = self._request_count
        future: asyncio.Future[TransportReply] = asyncio.get_running_loop().create_future()
        self._requests[number] = future
        try:
            self._feed(self.voter, Requested(number, sender, message))
            return await future
        finally:
            self._requests.pop(number, None)

    async def submit(self, submitted: Submitted) -> Outcome:
        """A client's request; returns with its outcome, at the latest at its deadline and the time for an abort.

        Raises:
            NotAMember: this object was closed before; nothing was submitted.
        """
        self._refuse_if_closed()
        txn = submitted.request.txn
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._answers[txn] = future
        try:
            await self._edges.trace.begin(self.repository, submitted.kind, submitted.request)
            self._feed(self.coordinator, submitted)
        except BaseException:
            self._answers.pop(txn, None)  # nothing was submitted
            raise
        return await asyncio.shield(future)

    def _refuse_if_closed(self) -> None:
        """Its machines hear nothing any more: whoever asked them would wait for ever."""
        if self._closed:
            raise NotAMember(self.stopped)

    def set_aside(self, reason: str) -> None:
        """No votes and no reads, until it is repaired and loaded again."""
        self._not_applied(reason)

    def alarm(self, reason: str, *, stop: bool) -> None:
        """Something that must never be; with ``stop`` this replica is set aside for good, not to be repaired from its peers."""
        self._alarm(reason, stop=stop)

    @property
    def applying(self) -> bool:
        """Whether the disk may be ahead of ``applied``."""
        return self._applier.busy

    def suspect(self, nodes: frozenset[NodeId]) -> None:
        """The failure detector's opinion changed."""
        self._feed(self.voter, Suspected(nodes))
        self._feed(self.coordinator, Suspected(nodes))

    def enrolled(self, node: NodeId, incarnation: int) -> None:
        """R4: a newer incarnation of a node is durable here; told before that node is answered."""
        self._feed_both(Enrolled(node, incarnation))

    def settle(self, version: int) -> None:
        """R5: a reader saw, somewhere, a change accepted on this committed version that stays in doubt."""
        self._feed(self.coordinator, SettleNow(version))

    def catch_up(self, version: int, holders: tuple[NodeId, ...], told: Position | None = None) -> None:
        """Learn history up to ``version`` in the background; calls join. ``told``: a verified message named it committed."""
        if not self._closed:
            self._catching_up.to(version, holders, told)

    @property
    def applied(self) -> int:
        """Version that the disk holds, objects and refs."""
        return self._applier.applied

    @property
    def applied_register(self) -> Register:
        """The value that may be served."""
        return self._applier.register

    async def wait_applied(self, version: int, timeout_s: float) -> bool:
        """Whether ``version`` is applied within ``timeout_s``; a replica that is set aside is not waited for."""
        return await self._applier.wait(version, timeout_s)

    async def close(self, reason: str = STOPPING) -> None:
        """End every task and timer; who still waits is told what is known: that nothing is."""
        self._closed = True
        self.stopped = self.stopped or reason  # a read that still holds this object is not answered from it
        for timer in self._timers.values():
            timer.cancel()
        for request in self._requests.values():
            if not request.done():
                request.set_exception(NotAMember(reason))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._alarms, return_exceptions=True)
        for txn, answer in self._answers.items():
            if not answer.done():
                answer.set_result(self._unknown(txn, reason))
        self._applier.stop()

    def _unknown(self, txn: TxnId, reason: str) -> Outcome:
        told = f"{reason}; the transaction is settled by the others, or when it is back"
        voters, quorum = self.register.voters, self.register.voters.quorum(self._edges.config.quorum)
        return Outcome(OutcomeKind.UNKNOWN, txn, quorum, len(voters.nodes), reason=told)

    def __repr__(self) -> str:
        return f"<Replica {self.repository} {self.register.position} applied {self.applied} {self.coordinator.state.name}>"

    # ------------------------------------------------------------ machines and effects

    @property
    def _peers(self) -> list[NodeId]:
        return [node for node in self.register.voters.nodes if node != self._edges.config.me]

    def _feed(self, machine: Voter | Coordinator, event: Event) -> None:
        """One event into one machine, and its effects performed in order."""
        if self._closed:
            return
        if machine in self._broken:
            if isinstance(event, Requested | Submitted):
                raise NodeError(f"this replica is set aside: {self.stopped}")
            return
        try:
            effects = machine.handle(event, self._edges.clock.now())
        except Exception as error:
            log.exception("machine failed", repository=self.repository, told=type(event).__name__)
            self._broke(machine, f"{INTERNAL}, see this node's log: {error!r}")
            return
        for effect in effects:
            self._perform(effect, machine)

    def _feed_both(self, event: Event) -> None:
        self._feed(self.voter, event)
        self._feed(self.coordinator, event)

    def _broke(self, machine: Voter | Coordinator, reason: str) -> None:
        """A machine that broke off half-way may not go on: what it would say next has no proof. It is told that it is set
        aside; one that breaks off at that, or later, hears nothing more.

        What it had to say is lost with its effects, so whoever waits is answered here: peers are refused, as by any replica
        that is set aside; clients hear what the machines still say in the time that they have, or that nothing is known."""
        if self.stopped:
            self._broken.append(machine)
        else:
            self._alarm(reason, stop=True)
        for request in self._requests.values():
            if not request.done():
                request.set_exception(NodeError(reason))
        self._spawn(self._give_up(list(self._answers), reason))

    async def _give_up(self, txns: list[TxnId], reason: str) -> None:
        config = self._edges.config
        await asyncio.sleep(config.prepare_timeout_s + config.abort_timeout_s)
        for txn in txns:
            if txn in self._answers:
                await self._answer(txn, self._unknown(txn, reason))

    def _perform(self, effect: Effect, machine: Voter | Coordinator) -> None:
        match effect:
            case Write(op, certificate):
                self._spawn(self._write(op, certificate))
            case Decide():
                self._edges.trace.mark("prepare", effect.change.txns)
                self._spawn(self._decide(effect))
            case Send(to, message):
                self._spawn(self._send(to, message))
            case Reply(number, message):
                self._reply(number, message)
            case StageObjects(change, holders, packs):
                self._spawn(self._stage(change, holders, packs))
            case CatchUp(version, holders, told):
                self.catch_up(version, holders, told)
            case Witness(certificate):
                self._spawn(self._witness(certificate))
            case Discard(change):
                self._spawn(self._edges.store.discard(change))
            case Undone(change, reason):
                self._spawn(self._edges.trace.settle(change, OutcomeKind.ABORTED, reason))
            case Answer(submitted, outcome):
                self._spawn(self._answer(submitted, outcome))
            case Settle():
                self._settle()
            case Wake(at):
                self._wake(machine, at)
            case Alarm(reason, stop):
                self._alarm(reason, stop=stop)
            case Note(reason):
                log.debug("nothing done", repository=self.repository, reason=reason)

    def _spawn(self, work: Coroutine[Any, Any, None], *, alarm: bool = False) -> None:
        task = asyncio.create_task(work)
        (self._alarms if alarm else self._tasks).add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._alarms.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", repository=self.repository, exc_info=error)

    def _wake(self, machine: Voter | Coordinator, at: float) -> None:
        """One timer a machine; a new wish replaces the old one."""
        timer = self._timers.pop(id(machine), None)
        if timer is not None:
            timer.cancel()
        delay_s = max(0.0, at - self._edges.clock.now())
        loop = asyncio.get_running_loop()
        self._timers[id(machine)] = loop.call_later(delay_s, self._feed, machine, Tick())

    # ------------------------------------------------------------ the journal

    async def _write(self, op: Op, certificate: Certificate | None, packs: tuple[InlinePack, ...] = ()) -> None:
        """One conditional write; its result is told to both machines, a commit before everything else. ``packs`` are those
        that the journal has to keep with it and does not have from an acceptance."""
        edges = self._edges
        try:
            if isinstance(op, AcceptOp) and op.change is not None and op.change.packs:
                if missing := await edges.store.missing(op.change):
                    raise DiskRefused(f"objects are missing: {missing[0].name}")
                packs = edges.store.inline(op.change.packs)
            verdict, record = await edges.journal.write(
                op, members=self._members, at_ms=edges.clock.wall_ms(), certificate=certificate, packs=packs
            )
        except StorageError as error:
            # Nothing was promised, as far as this node will ever say: both machines take it for a refusal.
            log.error("journal refused a write", repository=self.repository, op=type(op).__name__, error=str(error))
            self._feed_both(Written(op, WriteVerdict.REFUSED, self.voter.record))
            return
        except Exception as error:
            # Whether it is written is not known, and the machines wait for a word: the worst one is the true one.
            self._alarm(f"{INTERNAL} while the journal was written: {error!r}", stop=True)
            self._feed_both(Written(op, WriteVerdict.REFUSED, self.voter.record))
            raise
        if isinstance(op, AcceptOp) and verdict is WriteVerdict.DONE:
            edges.faults.hit(FaultPoint.AFTER_ACCEPT)
        if isinstance(op, CommitOp) and verdict is WriteVerdict.DONE:
            self._advance(op.change, record, certificate)
        self._feed_both(Written(op, verdict, record))

    async def _decide(self, effect: Decide) -> None:
        """C4: sign what the own vote and the decision say, then persist the commit with its certificate."""
        edges = self._edges
        edges.faults.hit(FaultPoint.BEFORE_DECISION)
        change, incarnation = effect.change, edges.journal.identity.incarnation
        certificate = Certificate(
            self.repository,
            self.register.voters.digest,
            effect.quorum,
            change.position,
            effect.ballot,
            (*effect.votes, self._signed(StatementKind.YES_CHANGE, effect, incarnation)),
            self._signed(StatementKind.DECISION, effect, incarnation),
        )
        await self._write(CommitOp(self.repository, change), certificate)

    def _signed(self, kind: StatementKind, effect: Decide, incarnation: int) -> SignedVote:
        voters = self.register.voters.digest
        position = effect.change.position
        statement = Statement(kind, self.repository, voters, effect.quorum, position, effect.ballot, incarnation)
        return SignedVote(self._edges.signer.node, incarnation, self._edges.signer.sign(statement.encode()))

    def _advance(self, change: Change, record: AcceptorRecord, certificate: Certificate | None) -> None:
        """History grew. Both machines hear of it before any other event."""
        edges = self._edges
        edges.trace.mark("decide", change.txns)
        if certificate is not None and certificate.ballot.node == edges.config.me:
            edges.faults.hit(FaultPoint.BEFORE_COMMIT_SENT)
        self.register = self.register.applied(change)
        self._applier.add(change, self.register)
        if any(request.node == edges.config.me and request.txn not in self._answers for request in change.requests):
            self._spawn(self._settle_records(change, certificate))
        self._feed_both(Committed(change, self.register, record, certificate))

    async def _settle_records(self, change: Change, certificate: Certificate | None) -> None:
        entry = HistoryEntry(change, certificate, self._edges.clock.wall_ms())
        by = f"decided by {certificate.ballot.node} at ballot {certificate.ballot}" if certificate else "found in history"
        await self._edges.trace.settle(change, OutcomeKind.COMMITTED, by, entry)

    async def _witness(self, certificate: Certificate) -> None:
        """V3: at or below the own version: the same digest is acknowledged, another one is an alarm."""
        version = certificate.position.version
        entries = await self._edges.journal.history(self.repository, version - 1, 1)
        if not entries:
            return
        if entries[0].change.position != certificate.position:
            self._alarm(
                f"version {version} is {entries[0].change.position} here and {certificate.position} elsewhere", stop=True
            )
        elif entries[0].certificate is None:
            await self._edges.journal.add_certificate(certificate)

    # ------------------------------------------------------------ between nodes

    async def _send(self, to: NodeId, message: TransportRequest) -> None:
        """One request to one peer; a verified reply is an event, anything else is silence."""
        edges = self._edges
        timeout_s = edges.config.prepare_timeout_s
        if self._repeats(to, message) and not edges.may_repeat():
            log.debug("not sent again, the retry budget is spent", peer=to, repository=self.repository)
            return
        if isinstance(message, Prepare):
            edges.trace.mark("queue", message.change.txns)
            packs = edges.store.inline(message.change.packs)
            message = replace(message, packs=packs, holders=(edges.config.me, *message.holders))
        message = replace(message, life=edges.journal.lives.life)
        if not isinstance(message, Commit):
            timeout_s = message.deadline_s
        try:
            reply = await edges.transport.request(to, message, timeout_s=timeout_s)
        except PeerUnreachable as error:
            log.debug("peer unreachable", peer=to, error=str(error))
            edges.unreachable(to)
            return
        except TransportError as error:
            log.debug("no answer", peer=to, error=str(error))
            edges.unreachable(to)
            return
        if reply.repository != self.repository or not self._genuine(to, reply):
            log.warning("reply refused", peer=to, repository=self.repository, kind=type(reply).__name__)
            return
        if isinstance(reply, Promise | Vote) and not edges.lives(to, reply.life):
            log.warning("answer of an older life", peer=to, repository=self.repository, kind=type(reply).__name__)
            return
        self._feed(self.coordinator, Received(to, reply))

    def _repeats(self, to: NodeId, message: TransportRequest) -> bool:
        """Whether it is the same request as the last one of its kind to this peer: resent, until there is an answer."""
        if isinstance(message, Commit):
            return False
        again = self._last_sent.get((to, type(message))) == message.ballot
        self._last_sent[to, type(message)] = message.ballot
        return again

    def _genuine(self, sender: NodeId, reply: TransportReply) -> bool:
        """A yes carries a statement of its sender; nothing unsigned is ever counted."""
        if not isinstance(reply, Vote) or reply.kind is not VoteKind.YES:
            return True
        return self._edges.signer.verify(sender, reply.statement.encode(), reply.signature)

    def _reply(self, number: int, message: TransportReply) -> None:
        if isinstance(message, Promise) and message.accepted is not None and message.accepted.change is not None:
            self._spawn(self._reply_promise(number, message, message.accepted.change))
            return
        if isinstance(message, Vote) and message.kind is VoteKind.YES:
            message = replace(message, signature=self._edges.signer.sign(message.statement.encode()))
        self._resolve(number, message)

    async def _reply_promise(self, number: int, message: Promise, change: Change) -> None:
        """V1: say where the accepted change's objects are; small packs ride along."""
        edges = self._edges
        try:
            packs = await self.packs.small(change)
            missing = [pack for pack in await edges.store.missing(change) if pack.sha256 not in packs]
        except NodeError as error:
            log.error("objects of a promise", repository=self.repository, error=str(error))
            self._resolve(number, message)  # promised all the same; somebody else may have the objects
            return
        self._resolve(number, replace(message, staged=not missing, packs=tuple(packs.values())))

    def _resolve(self, number: int, message: TransportReply) -> None:
        future = self._requests.get(number)
        if future is not None and not future.done():
            if isinstance(message, Promise | Vote):
                message = replace(message, life=self._edges.journal.lives.life)
            future.set_result(message)

    def _flaw(self, certificate: Certificate) -> str | None:
        return certificate.flaw(self.register.voters, self._edges.signer.verify)

    # ------------------------------------------------------------ objects

    async def _stage(self, change: Change, holders: tuple[NodeId, ...], packs: tuple[InlinePack, ...]) -> None:
        digest = change.position.digest
        lock = self._staging.setdefault(digest, asyncio.Lock())
        problem = "staging broke off"
        try:
            async with lock:
                problem = await self.packs.stage_change(change, holders, packs)
        except NodeError as error:
            problem = str(error) or type(error).__name__
        finally:
            self._staging.pop(digest, None)
            self._feed_both(ObjectsStaged(digest, problem))  # whatever happened: both machines wait for this word

    # ------------------------------------------------------------ clients

    async def _answer(self, submitted: TxnId, outcome: Outcome) -> None:
        """A committed change is applied here before its client hears of it, or as good as: a disk that hesitates does not
        make a decision wait. The trace is told of every answer."""
        if outcome.kind is OutcomeKind.COMMITTED and outcome.position is not None:
            await self.wait_applied(outcome.position.version, self._edges.config.abort_timeout_s)
        elif outcome.sent:
            self._edges.trace.mark("abort", (submitted,))
        future = self._answers.pop(submitted, None)
        if future is not None and not future.done():
            future.set_result(outcome)
        await self._edges.trace.end(submitted, outcome)

    # ------------------------------------------------------------ doubt, history

    def _settle(self) -> None:
        if not self._settling:
            self._settling = True
            self._spawn(self._settle_doubt())

    async def _settle_doubt(self) -> None:
        """R1: ask a majority and catch up; if nobody knows more, the coordinator claims and settles."""
        try:
            answers = await self._edges.question(self)
            highest = max(answers, key=lambda status: status.committed.version, default=None)
            if highest is not None and highest.committed.version > self.register.position.version:
                self.catch_up(highest.committed.version, (), highest.committed)
                await self.wait_applied(highest.committed.version, self._edges.config.prepare_timeout_s)
            if self.in_doubt:
                log.info("settling a doubt", repository=self.repository, accepted=str(self.voter.record.accepted_ballot))
                self._feed(self.coordinator, SettleNow())
        except NodeError as error:
            log.info("a doubt cannot be settled yet", repository=self.repository, reason=str(error))
        finally:
            self._settling = False

    async def learn(self, proved: Sequence[Step]) -> None:
        """R2: proved changes whose objects are here, in order. The journal takes its writes in the order in which they are
        asked for, and those that wait together share one fsync; one that no longer fits (a commit came meanwhile) is refused
        there, and so are those that stand on it."""
        store = self._edges.store
        writes = []
        for step in proved:
            if step.change.position.version <= self.register.position.version:
                continue
            if step.needs_objects and (missing := await store.missing(step.change)):
                raise DiskRefused(f"objects are missing: {missing[0].name}")
            packs = store.inline(step.change.packs) if step.needs_objects else ()
            writes.append((CommitOp(self.repository, step.change), step.certificate, packs))
        await asyncio.gather(*(self._write(op, certificate, packs) for op, certificate, packs in writes))

    def _not_applied(self, reason: str) -> None:
        """Nothing but the disk is wrong: set aside until the node starts again and replays."""
        self._alarm(reason, stop=True, until_restart=True)

    def _alarm(self, reason: str, *, stop: bool, until_restart: bool = False) -> None:
        log.error("alarm", repository=self.repository, reason=reason, stops_voting=stop)
        self._edges.alarms(self.repository, reason)
        if not stop:
            return
        if not until_restart:  # also of a replica that is set aside: a repair ends what it knew of, and not this
            self._spawn(self._edges.journal.stop_voting(self.repository, reason), alarm=True)
        if not self.stopped:
            self.stopped = reason
            self._feed_both(SetAside(reason))
            self._applier.stop()
