"""One repository on this node: drives its two machines, performs their effects, applies what is committed.

Everything here runs on the event loop; the machines are fed one event at a time. Writes, staging, catch-up and sends are
tasks, and what comes of them are events again. A commit that became durable is told to both machines before anything else is,
then applied to the disk in order (V6); whoever waits for a version waits for ``applied``.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import structlog

from node.catching_up import CatchUpFailed, fetch_history, fetch_packs
from node.config import Config
from node.faults import FaultPoint, Faults
from node.ports import (
    Clock,
    DiskRefused,
    Entropy,
    Journal,
    Loaded,
    NodeError,
    ObjectStore,
    PackRefused,
    Peers,
    PeerUnreachable,
    Signer,
    StorageError,
    Transport,
    TransportError,
)
from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, WriteVerdict
from node.protocol.catchup import HistoryRefused
from node.protocol.certificate import Certificate, SignedVote, Statement, StatementKind
from node.protocol.change import Change, ChangeKind, PackRef
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
from node.protocol.ids import Digest, NodeId, Position, RepoId, TxnId
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
from node.trace import Trace

log = structlog.get_logger()

COMMIT_GRACE_S = 0.05
"""How long a commit that is probably on its way is waited for before history is fetched."""

SYNC_DELAY_S = 1.0
"""Applied changes are brought to stable storage at most this much later; until then the journal keeps their packs."""

CATCH_UP_PAUSE_S_MAX = 5.0
"""Between tries while nobody can give what a peer says there is. A replica that is behind never stops trying."""

TOLD_MAX = 256
"""Positions remembered as told by a peer while catching up to them."""

APPLY_TRIES = 5
APPLY_PAUSE_S = 0.2
"""A disk that refuses to apply is asked again, after this long and each time twice as long, before the replica is set aside."""


@dataclass(frozen=True, slots=True)
class Edges:
    """What a replica needs of its node."""

    config: Config
    clock: Clock
    entropy: Entropy
    signer: Signer
    journal: Journal
    store: ObjectStore
    transport: Transport
    peers: Peers
    trace: Trace
    faults: Faults
    suspected: Callable[[], frozenset[NodeId]]
    unreachable: Callable[[NodeId], None]
    question: Callable[["Replica"], Coroutine[Any, Any, list[Status]]]
    """R5: the answers of a majority about this repository, the own one included."""
    alarms: Callable[[RepoId, str], None]


class Replica:
    """One repository's voter, coordinator and applied state on this node."""

    def __init__(self, repository: RepoId, edges: Edges, members: VoterSet, loaded: Loaded) -> None:
        self.repository = repository
        self.register = loaded.register
        self.applied_register = loaded.register
        self.applied = loaded.applied
        """Version that the disk holds, objects and refs."""
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
        )
        self.coordinator = Coordinator(
            config.me,
            loaded.record,
            loaded.register,
            config.timing,
            quorum_rule=config.quorum,
            spread=edges.entropy.uniform(1.0),
            stopped=loaded.stopped,
        )
        self._requests: dict[int, asyncio.Future[TransportReply]] = {}
        self._request_count = 0
        self._answers: dict[TxnId, asyncio.Future[Outcome]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._to_apply: deque[tuple[Register, Change, Register]] = deque()
        self._applying = False
        self._applied_changed = asyncio.Event()
        self._catching_up_to = 0
        self._catch_up_holders: tuple[NodeId, ...] = ()
        self._told: set[Position] = set()
        self._moot_to = 0
        """Version of the last deletion that is known: packs of changes below it are gone everywhere, nobody needs them."""
        self._catching_up = False
        self._settling = False
        self._syncing = False
        self._staging: dict[Digest, asyncio.Lock] = {}
        self.suspect(edges.suspected())
        self._feed(self.voter, Tick())

    # ------------------------------------------------------------ what a node asks of it

    @property
    def busy(self) -> bool:
        """Whether forgetting this object would forget something; an alarm may not be in the journal yet."""
        waiting = bool(self._requests or self._answers or self._tasks or self._to_apply or self.readers or self.stopped)
        return waiting or self.coordinator.busy or self.voter.record.in_doubt is not None

    @property
    def in_doubt(self) -> bool:
        return self.voter.record.in_doubt is not None

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
        )

    async def request(self, sender: NodeId, message: TransportRequest) -> TransportReply:
        """A peer's verified claim, prepare, abort or commit; returns when the reply is due and its effects durable."""
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
        """A client's request; returns with its outcome, at the latest at its deadline and the time for an abort."""
        txn = submitted.request.txn
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._answers[txn] = future
        try:
            await self._edges.trace.begin(self.repository, submitted.kind, submitted.request)
        except BaseException:
            del self._answers[txn]  # nothing was submitted
            raise
        self._feed(self.coordinator, submitted)
        return await asyncio.shield(future)

    def suspect(self, nodes: frozenset[NodeId]) -> None:
        """The failure detector's opinion changed."""
        self._feed(self.voter, Suspected(nodes))
        self._feed(self.coordinator, Suspected(nodes))

    def settle(self, version: int) -> None:
        """R5: a reader saw, somewhere, a change accepted on this committed version that stays in doubt."""
        self._feed(self.coordinator, SettleNow(version))

    def catch_up(self, version: int, holders: tuple[NodeId, ...], told: Position | None = None) -> None:
        """Learn history up to ``version`` in the background; calls join. ``told``: a verified message named it committed."""
        if version <= self.register.position.version or self._closed:
            return
        if told is not None and len(self._told) < TOLD_MAX:
            self._told.add(told)
        self._catching_up_to = max(self._catching_up_to, version)
        self._catch_up_holders = tuple(dict.fromkeys((*holders, *self._catch_up_holders)))
        if not self._catching_up:
            self._catching_up = True
            self._spawn(self._catch_up())

    async def wait_applied(self, version: int, timeout_s: float) -> bool:
        """Whether ``version`` is applied within ``timeout_s``; a replica that is set aside is not waited for."""
        if self.applied >= version:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                while self.applied < version:
                    if self.stopped:
                        return False
                    await self._applied_changed.wait()
        except TimeoutError:
            return False
        return True

    async def stage(self, packs: tuple[PackRef, ...], holders: tuple[NodeId, ...], inline: tuple[InlinePack, ...] = ()) -> str:
        """Make these packs durable here, or hold them if they are small; empty when all are here, else why not."""
        edges = self._edges
        along = {pack.sha256: pack for pack in inline}
        try:
            for pack in packs:
                if pack.sha256 not in along and (kept := await edges.journal.inline_pack(pack)) is not None:
                    along[pack.sha256] = kept
            await edges.store.stage_inline([(pack, along[pack.sha256]) for pack in packs if pack.sha256 in along])
            live = tuple(peer for peer in self._peers if peer not in edges.suspected())
            others = tuple(pack for pack in packs if pack.sha256 not in along)
            await fetch_packs(edges, self.repository, others, tuple(dict.fromkeys((*holders, *live))))
        except NodeError as error:
            return str(error) or type(error).__name__
        return ""

    async def stage_change(self, change: Change, holders: tuple[NodeId, ...], inline: tuple[InlinePack, ...] = ()) -> str:
        """The same for all packs of ``change``; from then on the store knows that it needs them (O4)."""
        known = {pack.sha256 for pack in inline}
        along = tuple(pack for pack in change.packs if pack.sha256 in known)
        missing = await self._edges.store.missing(change)
        wanted = tuple(dict.fromkeys((*along, *missing)))
        if wanted and (problem := await self.stage(wanted, holders, inline)):
            return problem
        missing = await self._edges.store.missing(change) if wanted else ()
        return f"{missing[0].name} was staged and is gone" if missing else ""

    async def close(self) -> None:
        """End every task and timer; clients that still wait are told what is known: that nothing is."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for txn, answer in self._answers.items():
            if not answer.done():
                reason = "this node is stopping; the transaction is settled by the others, or when it is back"
                voters, quorum = self.register.voters, self.register.voters.quorum(self._edges.config.quorum)
                answer.set_result(Outcome(OutcomeKind.UNKNOWN, txn, quorum, len(voters.nodes), reason=reason))
        for request in self._requests.values():
            request.cancel()

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
        try:
            effects = machine.handle(event, self._edges.clock.now())
        except Exception as error:
            # A machine that broke off half-way may not go on: what it would say next has no proof.
            log.exception("machine failed", repository=self.repository, told=type(event).__name__)
            if self.stopped:
                raise
            self._alarm(f"internal error, see this node's log: {error!r}", stop=True)
            return
        for effect in effects:
            self._perform(effect, machine)

    def _feed_both(self, event: Event) -> None:
        self._feed(self.voter, event)
        self._feed(self.coordinator, event)

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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
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

    async def _write(self, op: Op, certificate: Certificate | None) -> None:
        """One conditional write; its result is told to both machines, a commit before everything else."""
        edges = self._edges
        packs: tuple[InlinePack, ...] = ()
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
            self._alarm(f"internal error while the journal was written: {error!r}", stop=True)
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
        before, self.register = self.register, self.register.applied(change)
        self._to_apply.append((before, change, self.register))
        if not self._applying:
            self._applying = True
            self._spawn(self._apply())
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
        if isinstance(message, Prepare):
            edges.trace.mark("queue", message.change.txns)
            packs = edges.store.inline(message.change.packs)
            message = replace(message, packs=packs, holders=(edges.config.me, *message.holders))
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
        self._feed(self.coordinator, Received(to, reply))

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
            packs = await self._small_packs(change)
            missing = [pack for pack in await edges.store.missing(change) if pack.sha256 not in packs]
        except NodeError as error:
            log.error("objects of a promise", repository=self.repository, error=str(error))
            self._resolve(number, message)  # promised all the same; somebody else may have the objects
            return
        self._resolve(number, replace(message, staged=not missing, packs=tuple(packs.values())))

    async def _small_packs(self, change: Change) -> dict[Digest, InlinePack]:
        """Those that are held in memory or in the journal."""
        edges = self._edges
        packs = {pack.sha256: pack for pack in edges.store.inline(change.packs)}
        for pack in change.packs:
            if pack.sha256 not in packs and (kept := await edges.journal.inline_pack(pack)) is not None:
                packs[pack.sha256] = kept
        return packs

    def _resolve(self, number: int, message: TransportReply) -> None:
        future = self._requests.get(number)
        if future is not None and not future.done():
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
                problem = await self.stage_change(change, holders, packs)
        except NodeError as error:
            problem = str(error) or type(error).__name__
        finally:
            self._staging.pop(digest, None)
            self._feed_both(ObjectsStaged(digest, problem))  # whatever happened: both machines wait for this word

    async def _apply(self) -> None:
        """V6, in order, one at a time. A disk that refuses is asked again, then the replica is set aside until the node starts
        again and replays: the journal stays the truth, and nothing but the disk is wrong."""
        tries = 0
        try:
            while self._to_apply and tries < APPLY_TRIES:
                try:
                    await self._apply_one(*self._to_apply[0])
                    tries = 0
                except (NodeError, OSError) as error:
                    tries += 1
                    await self._apply_failed(error, tries)
        finally:
            self._applying = False
        if not self._syncing:
            self._syncing = True
            self._spawn(self._sync())

    async def _apply_failed(self, error: Exception, tries: int) -> None:
        version = self._to_apply[0][2].position.version
        log.error("cannot be applied", repository=self.repository, version=version, tries=tries, error=str(error))
        if tries < APPLY_TRIES:
            await asyncio.sleep(APPLY_PAUSE_S * 2 ** (tries - 1))
        else:
            self._alarm(f"version {version} cannot be applied: {error}", stop=True, until_restart=True)

    async def _apply_one(self, before: Register, change: Change, after: Register) -> None:
        edges = self._edges
        if change.kind is not ChangeKind.UPDATE or after.position.version > self._moot_to:
            packs = await self._small_packs(change)
            await edges.store.apply(before, change, after, tuple(packs.values()))
        self._to_apply.popleft()
        self.applied_register, self.applied = after, after.position.version
        edges.trace.mark("apply", change.txns)
        self._wake_waiters()
        try:
            await edges.journal.mark_applied(self.repository, after.position.version)
        except StorageError as error:
            log.warning("not noted as applied", repository=self.repository, error=str(error))  # replayed at the next start

    def _wake_waiters(self) -> None:
        changed, self._applied_changed = self._applied_changed, asyncio.Event()
        changed.set()

    async def _sync(self) -> None:
        """Bring what is applied to stable storage, then let the journal drop its copies of small packs."""
        pause_s = SYNC_DELAY_S
        while True:
            await asyncio.sleep(pause_s)
            version, name = self.applied, self.applied_register.name
            try:
                if self.applied_register.exists:
                    await self._edges.store.sync(name)
                await self._edges.journal.mark_synced(self.repository, version)
            except (NodeError, OSError) as error:
                log.error("sync failed", repository=self.repository, error=str(error))
                pause_s = min(pause_s * 2, 60.0)
                continue
            if self.applied == version:
                self._syncing = False
                return

    # ------------------------------------------------------------ clients

    async def _answer(self, submitted: TxnId, outcome: Outcome) -> None:
        """A committed change is applied here before its client hears of it, or as good as: a disk that hesitates does not
        make a decision wait. The trace is told of every answer."""
        if outcome.kind is OutcomeKind.COMMITTED and outcome.position is not None:
            await self.wait_applied(outcome.position.version, self._edges.config.abort_timeout_s)
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

    async def _catch_up(self) -> None:
        """R2: objects first, then history, from whoever has it; goes on until the target is reached."""
        try:
            await asyncio.sleep(COMMIT_GRACE_S if self._catching_up_to == self.register.position.version + 1 else 0)
            failures = 0
            while self.register.position.version < self._catching_up_to and not self.stopped:
                here = self.register.position.version
                await self._catch_up_once()
                failures = 0 if self.register.position.version > here else failures + 1
                if failures:
                    await asyncio.sleep(min(0.2 * failures, CATCH_UP_PAUSE_S_MAX))
        finally:
            self._catching_up = False
            self._catch_up_holders = ()
            self._told.clear()

    async def _catch_up_once(self) -> None:
        edges = self._edges
        live = [peer for peer in self._peers if peer not in edges.suspected()]
        holders = tuple(dict.fromkeys((*self._catch_up_holders, *live)))
        try:
            await fetch_history(edges, self.repository, self.register, holders, self._told, self._stage_learned, self.learn)
        except HistoryRefused as error:
            self._alarm(str(error), stop=error.divergent)
        except (CatchUpFailed, TransportError, StorageError, PackRefused) as error:
            log.info("catch-up goes on elsewhere", repository=self.repository, error=str(error))

    async def _stage_learned(self, change: Change, holders: tuple[NodeId, ...], floor: int) -> str:
        """Objects come before history, but for what a later deletion has made moot."""
        self._moot_to = max(self._moot_to, floor)
        if change.position.version <= floor:
            return ""
        return await self.stage_change(change, holders)

    async def learn(self, change: Change, certificate: Certificate | None) -> None:
        """R2: one proved change whose objects are here. Raises ``StorageError``."""
        if change.base == self.register.position:
            await self._write(CommitOp(self.repository, change), certificate)

    def _alarm(self, reason: str, *, stop: bool, until_restart: bool = False) -> None:
        log.error("alarm", repository=self.repository, reason=reason, stops_voting=stop)
        self._edges.alarms(self.repository, reason)
        if stop and not self.stopped:
            self.stopped = reason
            self._feed_both(SetAside(reason))
            self._wake_waiters()
            if not until_restart:
                self._spawn(self._edges.journal.stop_voting(self.repository, reason))
