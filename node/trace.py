"""What this node saw of its clients' transactions: outcome, votes, and how long each phase took.

Kept in memory while a transaction runs, in the journal afterwards. Committed history knows every committed transaction on
every node; this knows the others too, but only on the node that took the request.
"""

from collections.abc import Iterable
from dataclasses import replace

from node.ports.journal import Journal, TransactionRecord
from node.ports.surroundings import Clock
from node.protocol.change import Change, ChangeKind, Request
from node.protocol.ids import RepoId, TxnId
from node.protocol.messages import HistoryEntry
from node.protocol.outcome import Outcome, OutcomeKind, VoterReport

RUNNING_MAX = 100_000


class Trace:
    """Records of the transactions that this node took."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._running: dict[TxnId, TransactionRecord] = {}
        self._marked_at: dict[TxnId, float] = {}

    def running(self, txn: TxnId) -> TransactionRecord | None:
        return self._running.get(txn)

    async def begin(self, repository: RepoId, kind: ChangeKind, request: Request) -> None:
        """A client's request is about to be submitted."""
        record = _record(repository, kind, request)
        if len(self._running) < RUNNING_MAX:
            self._running[request.txn] = record
            self._marked_at[request.txn] = self._clock.now()
        try:
            await self._journal.keep_transaction(record)
        except BaseException:
            self._running.pop(request.txn, None)
            self._marked_at.pop(request.txn, None)
            raise

    def mark(self, phase: str, txns: Iterable[TxnId]) -> None:
        """``phase`` of these transactions ends now."""
        now = self._clock.now()
        for tried in txns:
            txn = first_try(tried)
            record = self._running.get(txn)
            if record is not None:
                spent_ms = round((now - self._marked_at[txn]) * 1000, 3)
                phases = {**record.phases_ms, phase: round(record.phases_ms.get(phase, 0.0) + spent_ms, 3)}
                self._running[txn] = replace(record, phases_ms=phases)
                self._marked_at[txn] = now

    async def end(self, submitted: TxnId, outcome: Outcome) -> None:
        """The client is told ``outcome``; after an unknown one this is called again when it is settled."""
        record = self._running.pop(submitted, None) or await self._journal.transaction(submitted)
        self._marked_at.pop(submitted, None)
        if record is None:
            return
        was_unknown = record.outcome is OutcomeKind.UNKNOWN
        record = replace(
            record,
            outcome=outcome.kind,
            reason=outcome.reason,
            position=outcome.position,
            ballot=str(outcome.certificate.ballot) if outcome.certificate else record.ballot,
            quorum=outcome.quorum,
            votes=outcome.votes,
            rejections=outcome.rejections,
            settled_at_ms=self._clock.wall_ms() if was_unknown and outcome.settled else record.settled_at_ms,
            settled_by="its coordinator" if was_unknown and outcome.settled else record.settled_by,
        )
        if outcome.txn != submitted:
            await self._journal.keep_transaction(replace(record, txn=outcome.txn, retry_of=submitted))
            record = replace(record, reason=f"{record.reason or outcome.kind.value}; tried again as {outcome.txn}")
        await self._journal.keep_transaction(record)

    async def settle(self, change: Change, kind: OutcomeKind, by: str, entry: HistoryEntry | None = None) -> None:
        """History, or a settled doubt, tells what became of transactions that nobody here waits for any more.

        A certain abort is noted for strangers' transactions too: it is in no history, and the node that took the request may
        be gone, or may never hear of it.
        """
        for request in change.requests:
            submitted = first_try(request.txn)
            if submitted in self._running:
                continue
            first = await self._journal.transaction(submitted)
            record = first if submitted == request.txn else await self._journal.transaction(request.txn)
            if record is None and first is not None:
                record = replace(first, txn=request.txn, retry_of=submitted, outcome=None)
            if record is None and kind is OutcomeKind.ABORTED:
                record = _record(change.repository, change.kind, request)
            if record is None or certain(record):
                continue
            told = self._told(record, change, kind, by, entry)
            await self._journal.keep_transaction(told)
            if submitted != request.txn and first is not None and not certain(first):
                reason = f"{kind.value}; tried again as {request.txn}"
                await self._journal.keep_transaction(replace(told, txn=submitted, retry_of=None, reason=reason))

    def _told(
        self, record: TransactionRecord, change: Change, kind: OutcomeKind, by: str, entry: HistoryEntry | None
    ) -> TransactionRecord:
        certificate = entry.certificate if entry else None
        votes = tuple(VoterReport(vote.node, "yes") for vote in certificate.votes) if certificate else record.votes
        return replace(
            record,
            outcome=kind,
            position=change.position if kind is OutcomeKind.COMMITTED else None,
            votes=votes,
            quorum=certificate.quorum if certificate else record.quorum,
            ballot=str(certificate.ballot) if certificate else record.ballot,
            settled_at_ms=self._clock.wall_ms(),
            settled_by=by,
        )


def certain(record: TransactionRecord) -> bool:
    """Whether its outcome will never be another."""
    return record.outcome not in (None, OutcomeKind.UNKNOWN)


def _record(repository: RepoId, kind: ChangeKind, request: Request) -> TransactionRecord:
    return TransactionRecord(request.txn, repository, kind.value, request.node, request.actor, request.at_ms)


def first_try(txn: TxnId) -> TxnId:
    """``20261123-ab12.3`` was tried again from ``20261123-ab12`` (replication.md C6)."""
    return TxnId(txn.partition(".")[0])


def from_history(txn: TxnId, repository: RepoId, entry: HistoryEntry) -> TransactionRecord:
    """What any node can tell of a committed transaction."""
    request = next(request for request in entry.change.requests if request.txn == txn)
    certificate = entry.certificate
    return TransactionRecord(
        txn,
        repository,
        entry.change.kind.value,
        request.node,
        request.actor,
        request.at_ms,
        OutcomeKind.COMMITTED,
        position=entry.change.position,
        ballot=str(certificate.ballot) if certificate else "",
        quorum=certificate.quorum if certificate else 0,
        votes=tuple(VoterReport(vote.node, "yes") for vote in certificate.votes) if certificate else (),
        settled_at_ms=entry.committed_at_ms,
        settled_by=f"decided by {certificate.ballot.node} at ballot {certificate.ballot}" if certificate else "",
    )
