"""What the API asks a node (``ports.Service``): a client's request becomes a submission, a read becomes a barrier.

No protocol here: the coordinator decides what becomes of a submission, ``node.reading`` when a read may be served.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from node.config import Config
from node.disk import Disk
from node.fetching import FetchTurns
from node.gates import Gate
from node.liveness import Liveness
from node.ports.errors import Busy, DiskFailed, DiskRefused, NodeError, ReadUnavailable, RepositoryAbsent, TransportError
from node.ports.journal import Journal, TransactionRecord
from node.ports.objects import ObjectStore, Quarantine, QuarantineIntake
from node.ports.service import Consistency, NodeState
from node.ports.service import Replica as ReplicaView
from node.ports.surroundings import Clock, Entropy
from node.ports.transport import Peers
from node.protocol.batch import Pending, form
from node.protocol.change import ChangeKind, RefUpdate, Request
from node.protocol.events import Submitted
from node.protocol.ids import NodeId, Oid, RefName, RepoId, TxnId
from node.protocol.messages import HistoryEntry, Query, Status
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome, OutcomeKind
from node.protocol.proposal import refusal
from node.protocol.register import Register
from node.reading import Reader
from node.records import Records
from node.registry import Registry
from node.staging import Staging
from node.trace import Trace

STALE_LOOK_S = 1.0
"""How long a large push that looks stale waits to know that it is."""


class Front:
    """One node's ``ports.Service``."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        entropy: Entropy,
        journal: Journal,
        store: ObjectStore,
        peers: Peers,
        *,
        liveness: Liveness,
        registry: Registry,
        reader: Reader,
        records: Records,
        staging: Staging,
        trace: Trace,
        state: Callable[[], NodeState],
        check: Callable[[], None],
        disk: Disk,
    ) -> None:
        """``check`` raises ``NotAMember`` while this node speaks for no repository (R4)."""
        self._check = check
        self._config = config
        self._clock = clock
        self._entropy = entropy
        self._journal = journal
        self._store = store
        self._peers = peers
        self._liveness = liveness
        self._registry = registry
        self._reader = reader
        self._records = records
        self._staging = staging
        self._trace = trace
        self._state = state
        self._disk = disk
        self._fetches = FetchTurns(config.fetches_max, clock)
        self._writes = Gate(
            "writes",
            at_once=config.writes_max,
            at_once_each=config.repository_writes_max,
            waiting=config.writes_waiting_max,
            wait_s=config.turn_wait_s,
        )
        self._reads = Gate(
            "reads",
            at_once=config.reads_max,
            at_once_each=config.repository_reads_max,
            waiting=config.reads_waiting_max,
            wait_s=config.turn_wait_s,
        )

    async def close(self) -> None:
        """When the front end has ended: nobody holds a fetch any more."""
        await self._fetches.close()

    # ------------------------------------------------------------ writes

    def new_txn(self) -> TxnId:
        return self._entropy.txn_id()

    def check_push(self, name: RepositoryName) -> None:
        self._writes.check(name.key)

    def intake(self, name: RepositoryName, txn: TxnId, shallow: Sequence[Oid]) -> QuarantineIntake:
        self._check()
        if self._disk.failed:
            raise DiskFailed(self._disk.failed)
        if self._disk.short:
            raise DiskRefused("disk full: this node takes no pushes until there is room")
        return self._store.quarantine(name, txn, shallow)

    async def create(self, name: RepositoryName, *, actor: str, head: RefName | None, key: str | None) -> Outcome:
        return await self._alone(ChangeKind.CREATE, name, actor, key, head)

    async def delete(self, name: RepositoryName, *, actor: str, key: str | None) -> Outcome:
        return await self._alone(ChangeKind.DELETE, name, actor, key, None)

    async def _alone(
        self, kind: ChangeKind, name: RepositoryName, actor: str, key: str | None, head: RefName | None
    ) -> Outcome:
        txn = self.new_txn()
        try:
            self._check()
            if key is not None and (done := await self._done_before(kind, name, key)) is not None:
                return done
            request = Request(txn, actor, self._config.me, self._clock.wall_ms(), head=head, key=key)
            outcome = await self._submit(kind, name, request, False, 0)
            if key is not None and outcome.kind is OutcomeKind.REJECTED:
                return await self._done_before(kind, name, key) or outcome
        except Busy:
            raise
        except NodeError as error:
            return Outcome(OutcomeKind.ABORTED, txn, self._config.write_quorum, reason=str(error), sent=False)
        return outcome

    async def _done_before(self, kind: ChangeKind, name: RepositoryName, key: str) -> Outcome | None:
        """A repeated ``Idempotency-Key``: the original outcome, wherever it was decided."""
        entry = await self._journal.find_key(name.key, key)
        if entry is None:
            return None
        txn = next(request.txn for request in entry.change.requests if request.key == key)
        if entry.change.kind is not kind:
            return Outcome(OutcomeKind.REJECTED, txn, reason="idempotency key was used for another request", sent=False)
        certificate = entry.certificate
        record = await self._records.find(txn)
        votes = record.votes if record else ()
        return Outcome(
            OutcomeKind.COMMITTED,
            txn,
            certificate.quorum if certificate else self._config.write_quorum,
            len(self._config.voters.nodes),
            votes,
            position=entry.change.position,
            change=entry.change,
            certificate=certificate,
        )

    async def push(
        self,
        name: RepositoryName,
        txn: TxnId,
        quarantine: Quarantine,
        updates: Sequence[RefUpdate],
        *,
        actor: str,
        atomic: bool,
        progress: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        packs = quarantine.packs
        request = Request(txn, actor, self._config.me, self._clock.wall_ms(), tuple(updates), packs=packs)
        inline = {pack.sha256: pack for pack in quarantine.inline}
        large = tuple(pack for pack in packs if pack.sha256 not in inline)
        try:
            if large and (stale := await self._stale(name, request, atomic)):
                return stale
            await quarantine.promote()
            await self._store.stage_inline([(pack, inline[pack.sha256]) for pack in packs if pack.sha256 in inline])
            if large and (problem := await self._staging.on_peers(name, large, progress)):
                return Outcome(OutcomeKind.ABORTED, txn, self._config.write_quorum, reason=problem, sent=False)
            inline_bytes = sum(len(pack.pack) + len(pack.index) for pack in inline.values())
            return await self._submit(ChangeKind.UPDATE, name, request, atomic, inline_bytes)
        except Busy:
            raise
        except NodeError as error:
            return Outcome(OutcomeKind.ABORTED, txn, self._config.write_quorum, reason=str(error), sent=False)

    async def _stale(self, name: RepositoryName, request: Request, atomic: bool) -> Outcome | None:
        """What the coordinator would say of a large push for what is committed already, so that its pack need not travel
        first, nor stay on any disk. Only what a majority confirms is said: this node may be behind, and then it asks."""
        replica = await self._registry.get(name.key)
        pending = Pending.of(Submitted(ChangeKind.UPDATE, request, self._clock.now(), atomic))
        if form(replica.register, [pending]).taken:
            return None
        try:
            async with asyncio.timeout(STALE_LOOK_S):
                register = await self._reader.linearizable(replica)
        except (ReadUnavailable, TimeoutError):
            return None
        batch = form(register, [pending])
        if batch.taken:
            return None
        (_, reason), *_ = batch.rejected
        outcome = refusal(OutcomeKind.REJECTED, pending, reason, register.voters, self._config.write_quorum)
        await self._trace.begin(name.key, ChangeKind.UPDATE, request)
        await self._trace.end(request.txn, outcome)
        return outcome

    async def _submit(
        self, kind: ChangeKind, name: RepositoryName, request: Request, atomic: bool, inline_bytes: int
    ) -> Outcome:
        replica = await self._registry.get(name.key)
        register = replica.register
        if kind is not ChangeKind.CREATE and register.exists and register.name != str(name):
            return Outcome(OutcomeKind.REJECTED, request.txn, reason="repository does not exist", sent=False)
        if self._config.me not in register.voters.nodes:
            return Outcome(OutcomeKind.ABORTED, request.txn, reason="this node is no voter of this repository", sent=False)
        if problem := self._disk.failed if kind is ChangeKind.DELETE else self._disk.problem:
            return Outcome(OutcomeKind.ABORTED, request.txn, self._config.write_quorum, reason=problem, sent=False)
        created = str(name) if kind is ChangeKind.CREATE else ""
        async with self._writes.turn(name.key):
            # The quorum's deadline counts from here: whoever waited for its turn has not asked anybody yet.
            deadline_at = self._clock.now() + self._config.prepare_timeout_s
            replica = await self._registry.get(name.key)  # anew: it may have been closed while this waited for its turn
            return await replica.submit(Submitted(kind, request, deadline_at, atomic, created, inline_bytes))

    # ------------------------------------------------------------ reads

    async def read(self, name: RepositoryName, consistency: Consistency, at_least: int = 0) -> Register:
        replica = await self._registry.get(name.key)
        try:
            if consistency is Consistency.LOCAL and replica.applied >= at_least:
                return _existing(name, await self._reader.local(replica))
            read = self._reader.linearizable if consistency is Consistency.LINEARIZABLE else self._reader.local
            async with self._reads.turn(name.key):
                replica = await self._registry.get(name.key)  # anew, as for a write
                return _existing(name, await read(replica, at_least))
        except ReadUnavailable as error:
            error.position = replica.applied_register.position
            raise

    async def look(self, name: RepositoryName, consistency: Consistency) -> Register:
        replica = await self._registry.get(name.key)
        linearizable = consistency is Consistency.LINEARIZABLE
        try:
            if linearizable:
                self._reader.check(replica)
            register = await self._reader.local(replica)
            if linearizable and not _is(name, register):
                async with self._reads.turn(name.key):
                    replica = await self._registry.get(name.key)  # anew
                    register = await self._reader.linearizable(replica)
        except ReadUnavailable as error:
            error.position = replica.applied_register.position
            raise
        return _existing(name, register)

    async def replicas(self, name: RepositoryName) -> Sequence[ReplicaView]:
        """Every voter's copy, compared with the highest committed version that anybody names."""
        replica = await self._registry.get(name.key)
        own = replica.status()
        peers = [node for node in replica.register.voters.nodes if node != self._config.me]
        async with self._reads.turn(name.key):
            answers = await asyncio.gather(*(self._status_of(peer, name.key) for peer in peers))
        statuses: dict[NodeId, Status | None] = {self._config.me: own, **dict(zip(peers, answers, strict=True))}
        known = [status.committed for status in statuses.values() if status is not None]
        top = max(known, key=lambda position: position.version)
        views = []
        for node in replica.register.voters.nodes:
            status = statuses[node]
            if status is None:
                views.append(ReplicaView(node, "offline", None))
                continue
            doubt = status.accepted_change and status.accepted_base == status.committed
            state = "current" if status.committed == top and status.applied == top.version else "lagging"
            if status.committed.version == top.version and status.committed != top:
                state = "divergent"
            elif status.set_aside:
                state = "set aside"
            elif state == "current" and doubt:
                state = "in doubt"
            views.append(ReplicaView(node, state, status.committed, status.applied))
        return views

    async def _status_of(self, peer: NodeId, repository: RepoId) -> Status | None:
        if peer in self._liveness.unanswering:
            return None
        with suppress(TransportError):
            status = await self._peers.ask(peer, Query(repository), timeout_s=1.0)
            return status if isinstance(status, Status) else None
        return None

    async def history(self, name: RepositoryName, since: int, limit: int) -> Sequence[HistoryEntry]:
        self._check()
        return await self._journal.history(name.key, since, limit)

    async def repositories(self, after: str, limit: int) -> Sequence[Register]:
        self._check()
        return await self._journal.repositories(after, limit)

    async def transaction(self, txn: TxnId) -> TransactionRecord | None:
        self._check()
        return await self._records.find(txn)

    async def upload_pack(self, register: Register, *, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        return await self._fetches.begin(lambda: self._store.upload_pack(register.name, protocol=protocol, request=request))

    async def size_bytes(self, name: RepositoryName) -> int:
        return await self._store.size_bytes(str(name))

    def path(self, register: Register) -> Path:
        return self._store.path(register.name)

    def state(self) -> NodeState:
        return self._state()


def _is(name: RepositoryName, register: Register) -> bool:
    """Whether there is a repository, under this very name: names that differ by case share one register."""
    return register.exists and register.name == str(name)


def _existing(name: RepositoryName, register: Register) -> Register:
    if not _is(name, register):
        hint = f"; there is {register.name}" if register.exists else ""
        raise RepositoryAbsent(f"repository {name} does not exist{hint}", register.position)
    return register
