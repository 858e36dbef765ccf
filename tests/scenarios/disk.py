"""What survives of one simulated node, and what of that is not fsynced yet.

A journal is SQLite in WAL mode with ``synchronous=FULL`` (docs/decisions/0003-journal.md): a write is in the log first, and
durable when fsync returns. So a disk has a durable part (the attributes) and a ``tail`` of writes that were made and not
fsynced. A process that dies loses none of it: the log is in the kernel's hands. When the power fails, any prefix of the tail
may be on the disk, and the record behind it may be torn: its frame's checksum is wrong, and SQLite drops it with everything
behind it. So a torn record is recognised, and is a lost one. What others are shown is always the durable part (readers of a
WAL see a commit after its fsync).

Refs on the disk are a view of the journal (V6): they are written after it, without an fsync, and replayed from the last mark.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum

from node.protocol.acceptor import AcceptorRecord
from node.protocol.change import ChangeKind, PackRef
from node.protocol.ids import Digest, NodeId
from node.protocol.incarnations import FIRST, Incarnations, merged
from node.protocol.messages import HistoryEntry
from node.protocol.register import Register
from node.protocol.standing import Life, Standing, State


class Loss(Enum):
    """What a power cut does to the tail."""

    NOTHING = "nothing"
    """The process died, the kernel did not: the whole tail is written in the end."""
    SUFFIX = "suffix"
    """Some of the last writes are gone."""
    TORN = "torn"
    """The first of those that are gone is half there."""


@dataclass(slots=True)
class Pending:
    """One write that is in the log and not fsynced: what the journal says with it."""

    record: AcceptorRecord
    register: Register
    entry: HistoryEntry | None = None
    stage: tuple[str, tuple[PackRef, ...]] | None = None


def new_life(journal: str) -> Life:
    """Of a journal that was just made."""
    return Life(FIRST, journal, 0, "", 0)


@dataclass(slots=True)
class Disk:
    """What survives a crash of one node: the durable part, and the tail."""

    register: Register
    record: AcceptorRecord = field(default_factory=AcceptorRecord)
    history: list[HistoryEntry] = field(default_factory=list)
    stage: dict[str, set[Digest]] = field(default_factory=dict)
    """Packs by who needs them: a change (its digest), or a request under way."""
    loose: set[str] = field(default_factory=set)
    """Stages whose files are not fsynced."""
    objects: set[Digest] = field(default_factory=set)
    """Packs of applied changes."""
    applied: int = 0
    """Version of the refs on the disk."""
    marked: int = 0
    """Version up to which the refs on the disk are fsynced: replay begins behind it."""
    stopped: str = ""
    failed: bool = False
    """After a failed fsync every later write is refused, until the next start."""
    tail: list[Pending] = field(default_factory=list)
    life: Life = field(default_factory=lambda: new_life(""))
    """R4: whose journal this is, and how much is in it."""
    standing: Standing = field(default_factory=lambda: Standing(State.MEMBER))
    enrolled: dict[NodeId, tuple[int, str]] = field(default_factory=dict)
    """Newer incarnations of other nodes, granted here, and the attempt each was granted to."""
    set_back: bool = False
    """A fault put an old copy here, and nobody knows yet: for the simulation, not for the node."""

    @property
    def incarnations(self) -> Incarnations:
        return merged(tuple((node, incarnation) for node, (incarnation, _) in self.enrolled.items()))

    def copy(self) -> "Disk":
        """A snapshot: what is durable now."""
        return replace(
            self,
            history=list(self.history),
            stage={owner: set(packs) for owner, packs in self.stage.items()},
            loose=set(),
            objects=set(self.objects),
            tail=[],
            enrolled=dict(self.enrolled),
            failed=False,
        )

    @property
    def latest(self) -> tuple[AcceptorRecord, Register]:
        """What the next transaction finds."""
        if self.tail:
            last = self.tail[-1]
            return last.record, last.register
        return self.record, self.register

    def fsync(self, upto: Pending) -> list[Pending]:
        """``upto`` in the tail, and whatever is before it, is durable; returns what became so."""
        count = next((n for n, pending in enumerate(self.tail, 1) if pending is upto), 0)
        return self._settle(count)

    def _settle(self, count: int) -> list[Pending]:
        settled, self.tail = self.tail[:count], self.tail[count:]
        for done in settled:
            self._take(done)
        return settled

    def _take(self, done: Pending) -> None:
        self.record, self.register = done.record, done.register
        life = self.life
        self.life = Life(life.incarnation, life.journal, life.boot, life.nonce, life.writes + 1, life.began)
        if done.stage is not None:
            self.keep(*done.stage)
        if done.entry is not None:
            self._add(done.entry)

    def learn(self, record: AcceptorRecord, register: Register, entry: HistoryEntry) -> None:
        """A rejoining node takes over one committed change, durably."""
        self.record, self.register = record, register
        self._add(entry)

    def _add(self, entry: HistoryEntry) -> None:
        change = entry.change
        self.history.append(entry)
        if packs := change.packs:
            self.objects |= {pack.sha256 for pack in packs}
        self.stage.pop(change.position.digest, None)
        if change.kind is ChangeKind.DELETE:
            self.objects.clear()

    def cut(self, kept: int) -> list[Pending]:
        """The node dies: the first ``kept`` writes of the tail are on the disk after all, and returned; the others never
        were."""
        settled = self._settle(kept)
        self.tail = []
        return settled

    def lose_loose(self) -> int:
        """A power cut: stages and refs that were not fsynced are gone."""
        lost = len(self.loose) + (self.applied > self.marked)
        for owner in self.loose:
            self.stage.pop(owner, None)
        self.loose.clear()
        self.applied = min(self.applied, self.marked)
        return lost

    def holds(self, packs: Iterable[PackRef]) -> bool:
        return all(pack.sha256 in self.objects or any(pack.sha256 in held for held in self.stage.values()) for pack in packs)

    def keep(self, owner: str, packs: Iterable[PackRef]) -> None:
        if wanted := {pack.sha256 for pack in packs} - self.objects:
            self.stage[owner] = wanted
