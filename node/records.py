"""What is known of a transaction, here or on any live peer (``GET /transactions/{id}``, ``tx show``).

History knows every committed one on every node; the node that took the request remembers the others. What is absent on this
node is unknown here, never "aborted" (C6).
"""

import asyncio
from contextlib import suppress
from dataclasses import replace

import msgspec

from node.liveness import Liveness
from node.ports import Journal, Peers, TransactionRecord, TransportError
from node.protocol.ids import NodeId, TxnId
from node.protocol.messages import Transaction, TransactionReport
from node.protocol.outcome import OutcomeKind
from node.trace import Trace, first_try, from_history

ASK_TIMEOUT_S = 1.0


class Records:
    """Finds transactions."""

    def __init__(self, journal: Journal, peers: Peers, liveness: Liveness, trace: Trace) -> None:
        self._journal = journal
        self._peers = peers
        self._liveness = liveness
        self._trace = trace

    async def report(self, txn: TxnId) -> str:
        """The own record as JSON for a peer, or empty."""
        record = await self._own(txn)
        return msgspec.json.encode(record).decode() if record else ""

    async def find(self, txn: TxnId) -> TransactionRecord | None:
        """The own record if it is settled; else whatever a live peer knows for certain; else the own one."""
        own = await self._own(txn)
        if own is not None and own.outcome not in (None, OutcomeKind.UNKNOWN):
            return own
        answers = await asyncio.gather(*(self._of_peer(peer, txn) for peer in self._liveness.alive))
        known = [record for record in answers if record is not None]
        settled = [record for record in known if record.outcome not in (None, OutcomeKind.UNKNOWN)]
        if own is not None and settled:
            return replace(settled[0], phases_ms=own.phases_ms or settled[0].phases_ms)
        return next(iter(settled), None) or own or next(iter(known), None)

    async def _own(self, txn: TxnId) -> TransactionRecord | None:
        kept = self._trace.running(first_try(txn)) or await self._journal.transaction(txn)
        found = await self._journal.find(txn)
        if found is None:
            return kept
        told = from_history(txn, *found)
        if kept is None:
            return told
        if kept.outcome is OutcomeKind.COMMITTED:
            return kept
        return replace(told, phases_ms=kept.phases_ms, votes=told.votes or kept.votes)

    async def _of_peer(self, peer: NodeId, txn: TxnId) -> TransactionRecord | None:
        with suppress(TransportError):
            report = await self._peers.ask(peer, Transaction(txn), timeout_s=1.0)
            if isinstance(report, TransactionReport) and report.record:
                return msgspec.json.decode(report.record, type=TransactionRecord)
        return None
