"""A ``ports.Service`` in memory: real registers and changes, no peers, no disk; what the quorum does is a test's choice.

It obeys the port's contract (idempotency keys, absent repositories, positions that chain), so that what the API makes of a
real node and of this one is the same.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from node.config import Config, Member
from node.ports.errors import ReadUnavailable, RepositoryAbsent, VersionNotReached
from node.ports.journal import TransactionRecord
from node.ports.objects import Quarantine, QuarantineIntake
from node.ports.service import Consistency, NodeState, PeerState, Replica
from node.protocol.certificate import Certificate, SignedVote
from node.protocol.change import Change, ChangeKind, RefUpdate, Request
from node.protocol.ids import Ballot, NodeId, Oid, RefName, RepoId, TxnId
from node.protocol.messages import HistoryEntry
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome, OutcomeKind, VoterReport
from node.protocol.quorum import VoterSet
from node.protocol.register import Register

ME, SECOND, THIRD = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
VOTERS = VoterSet.of((ME, SECOND, THIRD))
NOW_MS = 1_795_000_000_000


def make_config(tmp_path: Path, **settings: Any) -> Config:
    """Three members; ``settings`` override."""
    members = tuple(
        Member(id=node, url=f"http://127.0.0.1:{3001 + n}", public_keys=("key",)) for n, node in enumerate(VOTERS.nodes)
    )
    return Config(**{"node_id": ME, "members": members, "data_dir": tmp_path, "private_key": tmp_path / "key", **settings})


@dataclass
class FakeService:
    """See the module's docstring. ``fate`` is what becomes of the next writes; ``reads_fail`` takes the majority away."""

    fate: OutcomeKind = OutcomeKind.COMMITTED
    reads_fail: bool = False
    node: NodeState | None = None
    error: Exception | None = None
    """Raised by every call, if set."""
    calls: list[str] = field(default_factory=list)
    registers: dict[RepoId, Register] = field(default_factory=dict)
    entries: dict[RepoId, list[HistoryEntry]] = field(default_factory=dict)
    records: dict[TxnId, TransactionRecord] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def state(self) -> NodeState:
        peers = tuple(PeerState(node, f"http://127.0.0.1:300{node[-1]}", "alive", last_seen_s=0.1) for node in (SECOND, THIRD))
        return self.node or NodeState(ME, "test", 1, 2, VOTERS.nodes, peers, "direct", True, "no broker", True, True)

    async def create(self, name: RepositoryName, *, actor: str, head: RefName | None, key: str | None) -> Outcome:
        register = self._register(name.key)
        if register.exists:
            if again := self._original(name.key, key):
                return again
            return self._outcome(OutcomeKind.REJECTED, f"{register.name} exists")
        return self._write(register, ChangeKind.CREATE, actor=actor, head=head, key=key, name=str(name))

    async def delete(self, name: RepositoryName, *, actor: str, key: str | None) -> Outcome:
        register = self._register(name.key)
        if not register.exists or register.name != str(name):
            if again := self._original(name.key, key):
                return again
            return self._outcome(OutcomeKind.REJECTED, "repository does not exist")
        return self._write(register, ChangeKind.DELETE, actor=actor, head=None, key=key)

    def update(self, name: str, updates: Sequence[RefUpdate]) -> Outcome:
        """For tests: a push that was committed."""
        register = self._register(RepositoryName.parse(name).key)
        return self._write(register, ChangeKind.UPDATE, actor="anonymous", head=None, key=None, updates=tuple(updates))

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
        raise NotImplementedError("REST never pushes")

    async def read(self, name: RepositoryName, consistency: Consistency, at_least: int = 0) -> Register:
        self._called(f"read {name} {consistency.value}")
        register = self._register(name.key)
        if self.reads_fail and consistency is Consistency.LINEARIZABLE:
            raise ReadUnavailable("no majority answered within 2 s", register.position)
        if register.position.version < at_least:
            raise VersionNotReached(f"version {at_least} is not here yet", register.position)
        if not register.exists or register.name != str(name):
            raise RepositoryAbsent(str(name), register.position)
        return register

    async def look(self, name: RepositoryName, consistency: Consistency) -> Register:
        return await self.read(name, consistency)

    def check_push(self, name: RepositoryName) -> None:
        raise NotImplementedError("REST never pushes")

    def intake(self, name: RepositoryName, txn: TxnId, shallow: Sequence[Oid]) -> QuarantineIntake:
        raise NotImplementedError("REST never pushes")

    async def upload_pack(self, register: Register, *, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        raise NotImplementedError("REST never fetches")

    async def replicas(self, name: RepositoryName) -> Sequence[Replica]:
        position = self._register(name.key).position
        return [
            Replica(ME, "current", position, position.version),
            Replica(SECOND, "lagging", position, 0),
            Replica(THIRD, "offline", None),
        ]

    async def history(self, name: RepositoryName, since: int, limit: int) -> Sequence[HistoryEntry]:
        return self.entries.get(name.key, [])[since : since + limit]

    async def repositories(self, after: str, limit: int) -> Sequence[Register]:
        self._called("repositories")
        found = sorted(key for key, register in self.registers.items() if register.exists and key > after)
        return [self.registers[key] for key in found[:limit]]

    async def transaction(self, txn: TxnId) -> TransactionRecord | None:
        self._called(f"transaction {txn}")
        return self.records.get(txn)

    async def size_bytes(self, name: RepositoryName) -> int:
        return 4096

    def new_txn(self) -> TxnId:
        return TxnId(f"tx-{next(self._numbers)}")

    def path(self, register: Register) -> Path:
        return Path("/data") / f"{register.name}.git"

    # ------------------------------------------------------------ inside

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.error is not None:
            raise self.error

    def _register(self, key: RepoId) -> Register:
        return self.registers.get(key) or Register(key, VOTERS)

    def _write(
        self,
        register: Register,
        kind: ChangeKind,
        *,
        actor: str,
        head: RefName | None,
        key: str | None,
        name: str = "",
        updates: tuple[RefUpdate, ...] = (),
    ) -> Outcome:
        self._called(f"{kind.value} {register.repository}")
        txn = self.new_txn()
        request = Request(txn, actor, ME, NOW_MS, updates, head, key=key)
        voters = VOTERS if kind is ChangeKind.CREATE else None
        change = Change(register.repository, register.position, kind, (request,), name, voters)
        outcome = self._outcome(self.fate, "quorum not reached (1/2): node-2 no answer", txn=txn, change=change)
        self.records[txn] = TransactionRecord(
            txn,
            register.repository,
            kind.value,
            ME,
            actor,
            NOW_MS,
            outcome.kind,
            outcome.reason,
            outcome.position,
            "1.node-1.1",
            2,
            outcome.votes,
            (),
            {"prepare": 3.25},
            None,
            NOW_MS + 4,
        )
        if outcome.kind is OutcomeKind.COMMITTED:
            self.registers[register.repository] = register.applied(change)
            entry = HistoryEntry(change, _certificate(change), NOW_MS + 3)
            self.entries.setdefault(register.repository, []).append(entry)
        return outcome

    def _original(self, key: RepoId, idempotency_key: str | None) -> Outcome | None:
        for entry in self.entries.get(key, []):
            for request in entry.change.requests:
                if idempotency_key is not None and request.key == idempotency_key:
                    outcome = self._outcome(OutcomeKind.COMMITTED, txn=request.txn, change=entry.change)
                    return replace(outcome, votes=(), certificate=entry.certificate)
        return None

    def _outcome(
        self, kind: OutcomeKind, reason: str = "", *, txn: TxnId | None = None, change: Change | None = None
    ) -> Outcome:
        committed = kind is OutcomeKind.COMMITTED
        votes = (
            VoterReport(ME, "yes"),
            VoterReport(SECOND, "yes" if committed else "no answer"),
            VoterReport(THIRD, "no", "full"),
        )
        return Outcome(
            kind,
            txn or self.new_txn(),
            quorum=2,
            voters=3,
            votes=votes if kind is not OutcomeKind.REJECTED else (),
            position=change.position if committed and change else None,
            change=change,
            reason="" if committed else reason,
        )


def _certificate(change: Change) -> Certificate:
    votes = tuple(SignedVote(node, 1, b"signature") for node in (ME, SECOND))
    return Certificate(change.repository, VOTERS.digest, 2, change.position, Ballot(1, ME, 1), votes, votes[0])
