"""A repository as one machine would keep it: a ref table, or nothing; and a run's operations as calls on it.

What was aborted, rejected or never sent changes nothing and is left out: a value that it brought is then nobody's, and a read
of it cannot be explained. A refusal is not held against the server: it may refuse for its own reasons, being behind among them.
"""

import math
from collections.abc import Iterable, Sequence

from tests.nemesis.history import ZERO, Kind, Operation, Outcome, Refs, Update, Value
from tests.nemesis.linearizability import Call


class RepositoryModel:
    """Sequential meaning of pushes, creations, deletions and reads. Nothing exists before it is created."""

    initial: Value = None

    def step(self, state: Value, action: Operation) -> tuple[Value, ...]:
        match action.kind:
            case Kind.READ:
                return (state,) if action.value == state else ()
            case Kind.CREATE:
                return ((),) if state is None else ()
            case Kind.DELETE:
                return (None,) if state is not None else ()
            case Kind.PUSH:
                after = pushed(state, action.updates)
                return (after,) if after is not None else ()
            case Kind.LOCAL_READ:
                raise ValueError("a local read promises no moment")

    def reads(self, action: Operation) -> bool:
        return action.kind is Kind.READ


def pushed(state: Value, updates: Sequence[Update]) -> Value:
    """The ref table after an atomic push, each ref named once; ``None`` where it does not fit on ``state``."""
    if state is None or not all(_fits(state, update) for update in updates):
        return None
    table = dict(state) | {update.ref: update.new for update in updates}
    return tuple(sorted((ref, oid) for ref, oid in table.items() if oid != ZERO))


def _fits(state: Refs, update: Update) -> bool:
    """Asked for every pending push again and again: no table is built for it."""
    if update.old != ZERO:
        return (update.ref, update.old) in state
    return all(ref != update.ref for ref, _ in state)


def calls_of(operations: Iterable[Operation]) -> list[Call[Operation]]:
    """Those that a linearizable history has to explain."""
    return [
        Call(each.start, each.end if each.outcome is Outcome.COMMITTED else math.inf, each)
        for each in operations
        if each.may_have_effect or (each.kind is Kind.READ and each.outcome is Outcome.COMMITTED)
    ]
