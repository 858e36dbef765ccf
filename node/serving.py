"""What peers ask of this node: the protocol's requests, questions by direct HTTP, and bytes of packs."""

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from typing import assert_never

import structlog

from node.anti_entropy import AntiEntropy
from node.config import Config
from node.disk import Disk
from node.membership import Membership
from node.ports.errors import NodeError
from node.ports.journal import Journal
from node.ports.objects import ObjectStore
from node.ports.transport import Transport
from node.protocol.change import ChangeKind, PackRef
from node.protocol.ids import ORIGIN, Ballot, NodeId, RepoId
from node.protocol.incarnations import newest
from node.protocol.messages import (
    INLINE_PACK_BYTES_MAX,
    INLINE_TOTAL_BYTES_MAX,
    Abort,
    AcceptorPage,
    AcceptorRecords,
    Branches,
    Claim,
    Commit,
    DirectReply,
    DirectRequest,
    Enrol,
    Enrolment,
    Fetch,
    HeldRecord,
    History,
    HistoryEntry,
    HistoryPage,
    InlinePack,
    Ping,
    Pong,
    Prepare,
    Query,
    Refused,
    Stage,
    Staged,
    Summaries,
    SummaryPage,
    Transaction,
    TransactionReport,
    TransportReply,
    TransportRequest,
    Vote,
    VoteKind,
)
from node.protocol.register import Register
from node.protocol.standing import Life
from node.records import Records
from node.registry import Registry
from node.staging import Staging

log = structlog.get_logger()

SUMMARY_PAGE = 256
RECORDS_PAGE = 64


class Serving:
    """``ports.Handler``, ``ports.DirectHandler`` and ``ports.FetchHandler`` of one node."""

    def __init__(
        self,
        config: Config,
        disk: Disk,
        journal: Journal,
        store: ObjectStore,
        transport: Transport,
        registry: Registry,
        records: Records,
        staging: Staging,
        membership: Membership,
        *,
        anti_entropy: AntiEntropy,
        lives: Callable[[NodeId, Life | None], bool],
    ) -> None:
        """``lives``: whether a life of a node is no older than what was seen of it (``seen.SeenLives.accept``)."""
        self._membership = membership
        self._lives = lives
        self._config = config
        self._disk = disk
        self._journal = journal
        self._store = store
        self._transport = transport
        self._registry = registry
        self._records = records
        self._staging = staging
        self._anti_entropy = anti_entropy

    async def on_request(self, sender: NodeId, message: TransportRequest) -> TransportReply:
        """Claim, prepare, abort, commit; the effects are durable when this returns. What the sender's journal held when it sent
        this, its own vote included, is remembered before anything else: it may be all that is left of it (R4)."""
        if not self._lives(sender, message.life):
            log.warning("request of an older life", sender=sender, kind=type(message).__name__)
            ballot = _ballot_of(message)
            return Refused(message.repository, ballot, ballot, f"a newer life of {sender} is known")
        if self._registry.open and isinstance(message, Prepare) and (reason := self._objection(message)):
            return _no(message, self._journal.identity.incarnation, reason)
        try:
            replica = await self._registry.get(message.repository)
            return await replica.request(sender, message)
        except NodeError as error:
            log.error("request failed", sender=sender, kind=type(message).__name__, error=str(error))
            ballot = _ballot_of(message)
            return Refused(message.repository, ballot, ballot, str(error))

    def _objection(self, message: Prepare) -> str:
        """A deletion makes room, and is as small as a record: a disk that is short of room has it."""
        short = self._disk.short and message.change.kind is not ChangeKind.DELETE
        return self._disk.failed or ("disk full" if short else "")

    async def on_question(self, sender: NodeId, message: DirectRequest) -> DirectReply:
        """Everything that is asked by direct HTTP and answered by a message."""
        match message:
            case Ping():
                return await self._pong(sender, message)
            case Query(repository):
                return (await self._registry.get(repository)).status()
            case History(repository, since, limit):
                return await self._history_page(repository, since, limit)
            case Summaries(since):
                self._registry.check()
                sequence, summaries = await self._journal.summaries(since, SUMMARY_PAGE)
                return SummaryPage(self._journal.identity.journal, sequence, tuple(summaries))
            case Branches(prefixes):
                self._registry.check()
                return await self._anti_entropy.page(prefixes)
            case Stage(repository, packs, holders):
                problem = await (await self._registry.get(repository)).packs.stage(packs, (*holders, sender))
                return Staged(repository, not problem, problem)
            case Transaction(txn):
                self._registry.check()
                return TransactionReport(txn, await self._records.report(txn))
            case Enrol(incarnation, life):
                return await self._enrol(sender, incarnation, life)
            case AcceptorRecords():
                return await self._records_page(sender, message)
            case Fetch():
                raise TypeError("a fetch is answered by on_fetch")
        assert_never(message)

    async def _pong(self, sender: NodeId, message: Ping) -> Pong:
        """A heartbeat is answered whatever this node is worth: it says so."""
        mine = self._membership.ping(sender)
        self._membership.met(sender, message)
        identity = self._journal.identity
        return Pong(
            identity.journal,
            identity.incarnation,
            self._journal.sequence,
            self._transport.up,
            mine.life,
            mine.seen,
            mine.standing,
            root=await self._anti_entropy.root() if self._registry.open else "",
            granted=mine.granted,
        )

    async def _enrol(self, node: NodeId, incarnation: int, life: str) -> Enrolment:
        """R4, step 1: durable, and known to every machine, before it is granted; by members only."""
        self._registry.check()
        lives = self._journal.lives
        known = newest(lives.incarnations, node)
        enrolment = await lives.enrol(node, incarnation, life)
        if enrolment.newest > known:
            self._registry.enrolled(node, enrolment.newest)
            log.warning("incarnation granted", peer=node, incarnation=enrolment.newest)
        self._registry.check()
        return replace(enrolment, life=lives.life)

    async def _records_page(self, node: NodeId, message: AcceptorRecords) -> AcceptorPage:
        """R4, step 2: to nobody but who is enrolled so; asked anew, because another process may have enrolled meanwhile."""
        lives = self._journal.lives
        granted = (await self._enrol(node, message.incarnation, message.life)).granted
        records, more = await lives.records(message.after, RECORDS_PAGE, self._config.voters) if granted else ((), False)
        self._registry.check()
        seen = self._membership.seen_but(node) if granted else ()
        incarnation = self._journal.identity.incarnation
        held = tuple(self._as_it_answers(record) for record in records)
        return AcceptorPage(granted, held, more, incarnation, lives.incarnations, lives.life, seen)

    def _as_it_answers(self, record: HeldRecord) -> HeldRecord:
        """A replica may be set aside in memory only: its disk refused to note it."""
        replica = self._registry.peek(record.repository)
        return replace(record, set_aside=True) if replica is not None and replica.stopped else record

    async def on_fetch(self, sender: NodeId, message: Fetch) -> AsyncIterator[bytes] | None:
        """Bytes of a pack, from memory, journal, stage or repository."""
        replica = await self._registry.get(message.repository)
        inline = next(iter(self._store.inline([message.pack])), None) or await self._journal.inline_pack(message.pack)
        if inline is not None:
            return _once((inline.index if message.index else inline.pack)[message.offset :])
        stream = await self._store.open_pack(replica.register.name, message.pack, message.index, message.offset)
        return None if stream is None else self._watched(stream, sender, message.pack.sha256)

    async def _watched(self, stream: AsyncIterator[bytes], sender: NodeId, sha256: str) -> AsyncIterator[bytes]:
        """O3: a transfer that moves is progress of the push that waits for it."""
        try:
            async for chunk in stream:
                self._staging.moved(sender, sha256)
                yield chunk
        finally:
            if (close := getattr(stream, "aclose", None)) is not None:
                await close()

    async def _history_page(self, repository: RepoId, since: int, limit: int) -> HistoryPage:
        replica = await self._registry.get(repository)
        register = replica.register
        if replica.stopped:  # what is wrong with it may be its history
            return HistoryPage(repository, (), ORIGIN, 0)
        entries = await self._journal.history(repository, since, limit)
        packs = await self._riding_along(register, entries)
        return HistoryPage(repository, entries, register.position, register.floor, packs)

    async def _riding_along(self, register: Register, entries: Iterable[HistoryEntry]) -> tuple[InlinePack, ...]:
        """Small packs of these changes: one answer instead of two requests for each of them. A convenience: what cannot be
        had this way is fetched."""
        chosen: list[PackRef] = []
        left = INLINE_TOTAL_BYTES_MAX
        for pack in (p for entry in entries if entry.change.position.version > register.floor for p in entry.change.packs):
            size = pack.size_bytes + pack.index_size_bytes
            if size <= min(left, INLINE_PACK_BYTES_MAX):
                chosen.append(pack)
                left -= size
        try:
            return await self._store.read_small(register.name, chosen) if chosen else ()
        except NodeError as error:
            log.info("packs do not ride along", repository=register.repository, error=str(error))
            return ()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _ballot_of(message: TransportRequest) -> Ballot:
    match message:
        case Claim() | Prepare() | Abort():
            return message.ballot
        case Commit():
            return message.certificate.ballot


def _no(message: Prepare, incarnation: int, reason: str) -> Vote:
    return Vote(
        message.repository,
        message.voters,
        message.ballot,
        message.quorum,
        VoteKind.NO,
        message.change.position,
        message.change.base,
        incarnation,
        reason=reason,
    )
