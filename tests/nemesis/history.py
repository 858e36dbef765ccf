"""What clients did and were told: one ``Operation`` each, in memory and as JSON lines.

All clients of a run live in one process, so ``start`` and ``end`` are of one monotonic clock, and "ended before the other
began" means what it says. Every push brings a new object, so a value (an oid) is written at most once by one operation;
the checkers rely on that to know whose write they look at.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

ZERO = "0" * 40
"""As an old value: the ref does not exist; as a new one: it is deleted."""

Refs = tuple[tuple[str, str], ...]
"""A ref table: (ref, oid), sorted."""

Value = Refs | None
"""Of a repository; ``None``: there is no such repository."""


class Kind(Enum):
    """What was asked for."""

    PUSH = "push"
    """Atomic compare-and-swap of one or several refs; by stock git or by hand."""
    CREATE = "create"
    DELETE = "delete"
    READ = "read"
    """Linearizable: the whole ref table at one moment."""
    LOCAL_READ = "local-read"
    """May be old, but must have been true once."""


class Outcome(Enum):
    """What the client was told."""

    COMMITTED = "committed"
    """Of a read: it was answered."""
    ABORTED = "aborted"
    """Tried, and certainly without effect."""
    REJECTED = "rejected"
    """Refused before any vote (stale old value, name, missing objects, no quorum in reach): certainly without effect."""
    UNKNOWN = "unknown"
    """Said so, or the client heard nothing: it may have taken effect at any time after its start, or may yet, or never."""
    UNSENT = "unsent"
    """Nobody took the connection: nothing was asked."""


@dataclass(frozen=True, slots=True, order=True)
class Update:
    """One ref of a push."""

    ref: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One request of one client, from the moment before it was sent to the moment after its answer was read (seconds)."""

    number: int
    client: str
    kind: Kind
    repository: str
    node: int
    start: float
    end: float
    outcome: Outcome
    updates: tuple[Update, ...] = ()
    value: Value = None
    """What a read was answered."""
    version: int | None = None
    """Committed at, or served at."""
    transaction: str | None = None
    reason: str = ""
    via: str = "rest"
    """``git``, ``raw`` or ``rest``."""

    @property
    def writes(self) -> bool:
        return self.kind in (Kind.PUSH, Kind.CREATE, Kind.DELETE)

    @property
    def may_have_effect(self) -> bool:
        return self.writes and self.outcome in (Outcome.COMMITTED, Outcome.UNKNOWN)

    def __str__(self) -> str:
        what = " ".join(f"{each.ref} {short(each.old)}→{short(each.new)}" for each in self.updates)
        if self.kind in (Kind.READ, Kind.LOCAL_READ) and self.outcome is Outcome.COMMITTED:
            what = shown(self.value)
        at = f" v{self.version}" if self.version is not None else ""
        return (
            f"#{self.number} {self.start:.3f}–{self.end:.3f} {self.client} node-{self.node} {self.kind.value} "
            f"{self.repository} {what} {self.outcome.value}{at}"
        )


def short(oid: str) -> str:
    return "none" if oid == ZERO else oid[:8]


def shown(value: Value) -> str:
    """A value for people."""
    if value is None:
        return "no repository"
    return " ".join(f"{ref}={short(oid)}" for ref, oid in value) or "no refs"


def refs(mapping: Iterable[tuple[str, str]] | dict[str, str]) -> Refs:
    return tuple(sorted(mapping.items() if isinstance(mapping, dict) else mapping))


@dataclass
class History:
    """The operations of a run; each is also written to ``file`` at once, so that it survives the run's own death."""

    file: Path | None = None
    operations: list[Operation] = field(default_factory=list)

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(as_json(operation)) + "\n")

    def by_repository(self) -> dict[str, list[Operation]]:
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            found.setdefault(operation.repository, []).append(operation)
        return found


def as_json(operation: Operation) -> dict[str, Any]:
    return asdict(operation) | {"kind": operation.kind.value, "outcome": operation.outcome.value}


def read(file: Path) -> Iterator[Operation]:
    """What ``History`` wrote."""
    for line in file.read_text().splitlines():
        data = json.loads(line)
        yield Operation(
            **data
            | {
                "kind": Kind(data["kind"]),
                "outcome": Outcome(data["outcome"]),
                "updates": tuple(Update(**each) for each in data["updates"]),
                "value": None if data["value"] is None else refs((ref, oid) for ref, oid in data["value"]),
            }
        )
