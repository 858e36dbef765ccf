"""What peers ask of this node: the protocol's requests, questions by direct HTTP, and bytes of packs."""

from collections.abc import AsyncIterator
from typing import assert_never

import structlog

from node.disk import Disk
from node.ports import Journal, NodeError, ObjectStore, Transport
from node.protocol.change import ChangeKind
from node.protocol.ids import Ballot, NodeId, RepoId
from node.protocol.messages import (
    Abort,
    Claim,
    Commit,
    DirectReply,
    DirectRequest,
    Fetch,
    History,
    HistoryPage,
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
from node.records import Records
from node.registry import Registry
from node.staging import Staging

log = structlog.get_logger()

SUMMARY_PAGE = 256


class Serving:
    """``ports.Handler``, ``ports.DirectHandler`` and ``ports.FetchHandler`` of one node."""

    def __init__(
        self,
        disk: Disk,
        journal: Journal,
        store: ObjectStore,
        transport: Transport,
        registry: Registry,
        records: Records,
        staging: Staging,
    ) -> None:
        self._disk = disk
        self._journal = journal
        self._store = store
        self._transport = transport
        self._registry = registry
        self._records = records
        self._staging = staging

    async def on_request(self, sender: NodeId, message: TransportRequest) -> TransportReply:
        """Claim, prepare, abort, commit; the effects are durable when this returns."""
        if isinstance(message, Prepare) and (reason := self._objection(message)):
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
                identity = self._journal.identity
                return Pong(identity.journal, identity.incarnation, self._journal.sequence, self._transport.up)
            case Query(repository):
                return (await self._registry.get(repository)).status()
            case History(repository, since, limit):
                return await self._history_page(repository, since, limit)
            case Summaries(since):
                sequence, summaries = await self._journal.summaries(since, SUMMARY_PAGE)
                return SummaryPage(self._journal.identity.journal, sequence, tuple(summaries))
            case Stage(repository, packs, holders):
                problem = await (await self._registry.get(repository)).packs.stage(packs, (*holders, sender))
                return Staged(repository, not problem, problem)
            case Transaction(txn):
                return TransactionReport(txn, await self._records.report(txn))
            case Fetch():
                raise TypeError("a fetch is answered by on_fetch")
        assert_never(message)

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
        entries = await self._journal.history(repository, since, limit)
        return HistoryPage(repository, entries, replica.register.position, replica.register.floor)


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
