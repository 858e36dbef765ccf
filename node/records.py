"""What is known of a transaction, here or on any live peer (``GET /transactions/{id}``, ``tx show``).

History knows every committed one on every node; the node that took the request remembers the others. What is absent on this
node is unknown here, never "aborted" (C6).
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from node.liveness import Liveness
from node.ports.errors import StorageError, TransportError
from node.ports.journal import Journal, TransactionRecord
from node.ports.transport import Peers
from node.protocol.ids import NodeId, TxnId
from node.protocol.messages import Transaction, TransactionReport
from node.protocol.outcome import OutcomeKind
from node.trace import Trace, certain, first_try, from_history

ASK_TIMEOUT_S = 1.0

_FORGOTTEN: Mapping[str, Any] = {
    "outcome": OutcomeKind.UNKNOWN,
    "reason": "its node stopped before it was decided; what is still to be found of it is settled, else it never was sent",
}
"""What an earlier life of this node left without an outcome: it may stand on another voter, so it is not "aborted" (C6)."""


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
        """The fullest certain record there is: the taker's own, with all votes and phases; else what history tells."""
        own = await self._own(txn)
        if own is not None and own.phases_ms and certain(own):
            return own
        answers = await asyncio.gather(*(self._of_peer(peer, txn) for peer in self._liveness.alive))
        known = [record for record in (own, *answers) if record is not None]
        best = max(known, key=lambda record: (certain(record), bool(record.phases_ms), len(record.votes)), default=None)
        if own is None or best is None or certain(own) or not certain(best):
            return best
        # This node took it, or saw it, and did not know how it ended: now it does.
        best = replace(best, phases_ms=best.phases_ms or own.phases_ms, votes=best.votes or own.votes)
        if self._trace.running(first_try(txn)) is None:
            with suppress(StorageError):
                await self._journal.keep_transaction(best)
        return best

    async def _own(self, txn: TxnId) -> TransactionRecord | None:
        running = self._trace.running(first_try(txn))
        kept = running or await self._journal.transaction(txn)
        found = await self._journal.find(txn)
        if found is None:
            return kept if running or kept is None or kept.outcome is not None else replace(kept, **_FORGOTTEN)
        told = from_history(txn, *found)
        if kept is None:
            return told
        if kept.outcome is OutcomeKind.COMMITTED:
            return kept
        return replace(told, phases_ms=kept.phases_ms, votes=told.votes or kept.votes)

    async def _of_peer(self, peer: NodeId, txn: TxnId) -> TransactionRecord | None:
        with suppress(TransportError, msgspec.MsgspecError):
            report = await self._peers.ask(peer, Transaction(txn), timeout_s=ASK_TIMEOUT_S)
            if isinstance(report, TransactionReport) and report.record:
                return msgspec.json.decode(report.record, type=TransactionRecord)
        return None
