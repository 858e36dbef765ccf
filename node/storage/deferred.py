"""What may wait for somebody else's fsync: applied and synced marks, late certificates, records of transactions.

None of it carries a promise: after a crash marks are found again by replay, certificates by asking a peer, and records of
transactions are for people. So these notes ride in the next transaction that has to be written anyway. Until then the
process that made them reads them here, so that it always sees its own notes; newer ones of the same thing replace older ones.

Contract: the event loop notes and looks; whoever writes transactions calls ``take``, then ``written`` or ``put_back``.
"""

from dataclasses import dataclass, field
from threading import Lock

from node.ports.errors import DiskRefused
from node.ports.journal import TransactionRecord
from node.protocol.certificate import Certificate
from node.protocol.ids import RepoId, TxnId


@dataclass(slots=True)
class Notes:
    """One load of them."""

    applied: dict[RepoId, int] = field(default_factory=dict)
    synced: dict[RepoId, int] = field(default_factory=dict)
    certificates: dict[tuple[RepoId, int], Certificate] = field(default_factory=dict)
    transactions: dict[TxnId, TransactionRecord] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.applied) + len(self.synced) + len(self.certificates) + len(self.transactions)


class Deferred:
    """Notes that wait, and notes that are being written."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._lock = Lock()
        self._waiting = Notes()
        self._taken = Notes()

    def __len__(self) -> int:
        with self._lock:
            return len(self._waiting)

    def note_applied(self, repository: RepoId, version: int) -> None:
        with self._lock:
            self._check_room(repository not in self._waiting.applied)
            _raise_to(self._waiting.applied, repository, version)

    def note_synced(self, repository: RepoId, version: int) -> None:
        """What is synced is applied."""
        with self._lock:
            self._check_room(repository not in self._waiting.synced)
            _raise_to(self._waiting.synced, repository, version)

    def note_certificate(self, certificate: Certificate) -> None:
        key = (certificate.repository, certificate.position.version)
        with self._lock:
            self._check_room(key not in self._waiting.certificates)
            self._waiting.certificates.setdefault(key, certificate)

    def note_transaction(self, record: TransactionRecord) -> None:
        with self._lock:
            self._check_room(record.txn not in self._waiting.transactions)
            self._waiting.transactions[record.txn] = record

    def applied(self, repository: RepoId) -> int:
        """The highest version noted as applied or synced and not yet written; 0 if there is none."""
        with self._lock:
            places = (self._taken.applied, self._taken.synced, self._waiting.applied, self._waiting.synced)
            return max(place.get(repository, 0) for place in places)

    def synced(self, repository: RepoId) -> int:
        """The same of those noted as synced only."""
        with self._lock:
            return max(self._taken.synced.get(repository, 0), self._waiting.synced.get(repository, 0))

    def transaction(self, txn: TxnId) -> TransactionRecord | None:
        with self._lock:
            return self._waiting.transactions.get(txn) or self._taken.transactions.get(txn)

    def take(self) -> Notes:
        """All that waits, to be written now; it stays visible until ``written``."""
        with self._lock:
            self._taken, self._waiting = self._waiting, Notes()
            return self._taken

    def written(self) -> None:
        """What was taken is durable."""
        with self._lock:
            self._taken = Notes()

    def put_back(self) -> None:
        """What was taken was not written; what was noted meanwhile is newer."""
        with self._lock:
            newer, self._waiting, self._taken = self._waiting, self._taken, Notes()
            for repository, version in newer.applied.items():
                _raise_to(self._waiting.applied, repository, version)
            for repository, version in newer.synced.items():
                _raise_to(self._waiting.synced, repository, version)
            for key, certificate in newer.certificates.items():
                self._waiting.certificates.setdefault(key, certificate)
            self._waiting.transactions.update(newer.transactions)

    def _check_room(self, grows: bool) -> None:
        if grows and len(self._waiting) >= self._waiting_max:
            raise DiskRefused("journal overloaded: too much waits to be noted; try again later")

    def __repr__(self) -> str:
        return f"<Deferred {len(self._waiting)} waiting, {len(self._taken)} being written>"


def _raise_to(marks: dict[RepoId, int], repository: RepoId, version: int) -> None:
    marks[repository] = max(version, marks.get(repository, 0))
