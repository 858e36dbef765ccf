"""The fast check: what clients were told against what every node's history holds, in one pass over each.

The history of a repository is a chain of compare-and-swaps: each change names the values it replaces. Here it is replayed
from nothing, and every operation is looked for in it. That finds a lost, doubled, resurrected or invented write, and names it.
Versions are believed for this check (they are part of what the server promises); ``linearizability.py`` does not look at them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tests.nemesis.history import Kind, Operation, Outcome, Update, Value, shown
from tests.nemesis.repository_model import pushed


class Fault(Enum):
    """What may not be. ``counted_as`` in the run's summary."""

    LOST = "lost"
    """Acknowledged, and not in a history, or not at the version that was acknowledged."""
    GHOST = "ghost"
    """In a history, though it was aborted, rejected, or in it already, or nobody asked for it."""
    DIVERGENT = "divergent"
    """Two nodes hold different histories."""
    BROKEN = "broken chain"
    """A history has a gap, or a change that does not fit on what was before it."""
    STALE = "stale"
    """A strong read, or a write, stands before something that had ended before it began."""
    FUTURE = "future"
    """A read saw what nobody had begun to write."""
    WRONG_VALUE = "wrong value"
    """A read was answered with something else than what the version it names holds."""


@dataclass(frozen=True, slots=True)
class Violation:
    fault: Fault
    text: str

    def __str__(self) -> str:
        return f"{self.fault.value}: {self.text}"


@dataclass(frozen=True, slots=True)
class Request:
    """One client's part of a change."""

    transaction: str
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of a node's history."""

    version: int
    digest: str
    base_digest: str
    kind: str
    requests: tuple[Request, ...]

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> "Change":
        """From ``GET …/history``."""
        requests = tuple(
            Request(each["transaction_id"], tuple(sorted(Update(u["ref"], u["old"], u["new"]) for u in each["updates"])))
            for each in data["requests"]
        )
        return cls(data["version"], data["digest"], data["base_digest"], data["kind"], requests)


def check_chains(operations: Sequence[Operation], histories: Mapping[int, Sequence[Change]]) -> list[Violation]:
    """Judge one repository; ``histories`` by node, all of them final. Finds all violations, not just the first."""
    found = _divergence(histories)
    if not histories:
        return found
    chain = max(histories.values(), key=len)
    states, broken = replay(chain)
    found += broken
    owners, misplaced = _owners(operations, chain)
    found += misplaced
    if not broken:
        found += _in_time(operations)
        found += _reads(operations, states, owners)
    return found


def _divergence(histories: Mapping[int, Sequence[Change]]) -> list[Violation]:
    found = []
    for node, history in histories.items():
        for other, theirs in histories.items():
            if node < other and list(history) != list(theirs):
                at = next((mine.version for mine, their in zip(history, theirs, strict=False) if mine != their), None)
                what = f"differ at version {at}" if at is not None else f"end at versions {len(history)} and {len(theirs)}"
                found.append(Violation(Fault.DIVERGENT, f"node-{node} and node-{other} {what}"))
    return found


def replay(chain: Sequence[Change]) -> tuple[list[Value], list[Violation]]:
    """The value at every version from 0, and what does not fit."""
    states: list[Value] = [None]
    found: list[Violation] = []
    digest: str | None = None
    for number, change in enumerate(chain, start=1):
        state = states[-1]
        if change.version != number:
            found.append(Violation(Fault.BROKEN, f"version {change.version} stands where {number} should"))
        if digest is not None and change.base_digest != digest:
            found.append(Violation(Fault.BROKEN, f"version {number} is not on the digest of the one before"))
        digest = change.digest
        fits, after = _applied(state, change)
        if not fits:
            found.append(Violation(Fault.BROKEN, f"version {number} ({change.kind}) does not fit on: {shown(state)}"))
        states.append(after)
    return states, found


def _applied(state: Value, change: Change) -> tuple[bool, Value]:
    match change.kind:
        case "create":
            return state is None, ()
        case "delete":
            return state is not None, None
    for request in change.requests:
        after = pushed(state, request.updates)
        if after is None:
            return False, state
        state = after
    return True, state


def base_of(transaction: str) -> str:
    """A push that is tried again after a certain abort keeps its id up to a counter."""
    return transaction.partition(".")[0]


def _owners(operations: Sequence[Operation], chain: Sequence[Change]) -> tuple[dict[int, list[Operation]], list[Violation]]:
    """Whose every version is; and who is not where they were told they are."""
    found: list[Violation] = []
    named = {base_of(each.transaction): each for each in operations if each.writes and each.transaction}
    nameless: dict[tuple[str, tuple[Update, ...]], list[Operation]] = {}
    for each in operations:
        if each.writes and not each.transaction:
            nameless.setdefault(_content(each), []).append(each)
    owners: dict[int, list[Operation]] = {}
    times: Counter[int] = Counter()
    for change in chain:
        for request in change.requests:
            owner = named.get(base_of(request.transaction))
            if owner is None:
                owner = _claim(nameless.get((change.kind, request.updates), []), change.version)
            if owner is None:
                found.append(Violation(Fault.GHOST, f"version {change.version}: nobody asked for {request.transaction}"))
                continue
            times[owner.number] += 1
            owners.setdefault(change.version, []).append(owner)
            found += _misplaced(owner, change, request, times[owner.number])
    for each in operations:
        if each.writes and each.outcome is Outcome.COMMITTED and not times[each.number]:
            found.append(Violation(Fault.LOST, f"in no history: {each}"))
    return owners, found


def _content(operation: Operation) -> tuple[str, tuple[Update, ...]]:
    kind = "update" if operation.kind is Kind.PUSH else operation.kind.value
    return kind, tuple(sorted(operation.updates))


def _claim(candidates: list[Operation], version: int) -> Operation | None:
    """Who is told to be there rather than who may be, and who may be rather than who may not. Each is claimed once; the last
    one again and again."""
    if not candidates:
        return None
    best = max(candidates, key=lambda each: (each.version == version, each.outcome is Outcome.COMMITTED, each.may_have_effect))
    if len(candidates) > 1:
        candidates.remove(best)
    return best


def _misplaced(owner: Operation, change: Change, request: Request, time: int) -> Iterable[Violation]:
    if time > 1:
        yield Violation(Fault.GHOST, f"once more at version {change.version}: {owner}")
        return
    if not owner.may_have_effect:
        yield Violation(Fault.GHOST, f"at version {change.version}, though {owner.outcome.value}: {owner}")
    if _content(owner) != (change.kind, request.updates):
        yield Violation(Fault.LOST, f"version {change.version} holds something else under the name of: {owner}")
    if owner.outcome is Outcome.COMMITTED and owner.version is not None and owner.version != change.version:
        yield Violation(Fault.LOST, f"at version {change.version}, not where it was acknowledged: {owner}")


def _in_time(operations: Sequence[Operation]) -> list[Violation]:
    """Whoever begins after another has ended stands behind it."""
    strong = [each for each in operations if each.outcome is Outcome.COMMITTED and each.version is not None]
    ended = sorted((each for each in strong if each.kind is not Kind.LOCAL_READ), key=lambda each: each.end)
    found: list[Violation] = []
    at, floor, last = 0, 0, None
    for each in sorted(strong, key=lambda each: each.start):
        while at < len(ended) and ended[at].end < each.start:
            if (ended[at].version or 0) > floor:
                floor, last = ended[at].version or 0, ended[at]
            at += 1
        needed = floor + 1 if each.writes else floor
        if each.kind is not Kind.LOCAL_READ and (each.version or 0) < needed:
            found.append(Violation(Fault.STALE, f"{each} began after the end of {last}"))
    return found


def _reads(operations: Sequence[Operation], states: Sequence[Value], owners: Mapping[int, list[Operation]]) -> list[Violation]:
    found = []
    for each in operations:
        if each.writes or each.outcome is not Outcome.COMMITTED or each.version is None:
            continue
        if each.version >= len(states):
            found.append(Violation(Fault.LOST, f"the history ends at version {len(states) - 1}, which was seen beyond: {each}"))
        elif states[each.version] != each.value:
            found.append(Violation(Fault.WRONG_VALUE, f"version {each.version} is {shown(states[each.version])}: {each}"))
        elif any(owner.start > each.end for owner in owners.get(each.version, [])):
            found.append(Violation(Fault.FUTURE, f"{each} ended before {owners[each.version][0]} began"))
    return found
