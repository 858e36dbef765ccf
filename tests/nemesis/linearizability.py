"""Is there an order of the operations, each at one moment between its start and its end, that one machine could have given?

The algorithm is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) as Lowe improved it ("Testing for
linearizability", 2017): *just in time*: an operation is given its moment only when some operation returns that could not
have returned otherwise; and *memoised*: a configuration is (the bit set of pending operations that have had their moment, the
state), and none is looked at twice. A history of many objects is linearizable exactly if its part on each object is
(Herlihy and Wing 1990; as a means of testing Horn and Kroening 2015, "P-compositionality"), so ``check_each`` looks at one
object at a time. An object here is a repository: that is what the protocol replicates.

An operation whose outcome is unknown never returns: it may have its moment at any time after its start, or never. A read whose
answer fits the present state takes its moment at once: that changes nothing, and can only help.

No recursion; ``CONFIGURATIONS_MAX`` bounds the work at each return, and beyond it the verdict is an honest ``UNDECIDED``.
What is sequentially possible is said by a ``Model``; nothing here knows about Git.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

CONFIGURATIONS_MAX = 200_000
"""Looked at for one return. Real histories need some hundred; this many take a few seconds."""

State = TypeVar("State", bound=Hashable)
Action = TypeVar("Action", contravariant=True)
Act = TypeVar("Act")


class Model(Protocol[State, Action]):
    """What one machine that does one thing at a time could do."""

    initial: State

    def step(self, state: State, action: Action) -> tuple[State, ...]:
        """The states that ``action``, with the answer it got, can lead to; none if it cannot have got that answer here."""

    def reads(self, action: Action) -> bool:
        """Whether it never changes the state."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Act]):
    """An action with its answer; ``end`` is infinite if there was none."""

    start: float
    end: float
    action: Act


class Verdict(Enum):
    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "undecided"
    """There were more configurations than may be looked at."""


@dataclass(frozen=True)
class Finding(Generic[Act]):
    """``stuck`` is the call that could not return; until then, all was well in one of ``states`` with ``pending`` under way."""

    verdict: Verdict
    configurations: int
    """The largest number that was looked at for one return."""
    stuck: Call[Act] | None = None
    states: tuple[object, ...] = ()
    pending: tuple[Call[Act], ...] = ()


def check(model: Model[State, Act], calls: Sequence[Call[Act]], configurations_max: int = CONFIGURATIONS_MAX) -> Finding[Act]:
    """Judge the calls on one object."""
    return _Search(model, configurations_max).run(calls)


def check_each(
    model: Model[State, Act], calls: Mapping[str, Sequence[Call[Act]]], configurations_max: int = CONFIGURATIONS_MAX
) -> dict[str, Finding[Act]]:
    """One finding for each object."""
    return {name: check(model, each, configurations_max) for name, each in calls.items()}


class _Search(Generic[State, Act]):
    """All configurations that explain what has returned so far."""

    def __init__(self, model: Model[State, Act], configurations_max: int) -> None:
        self._model = model
        self._max = configurations_max
        self._configurations: set[tuple[State, int]] = {(model.initial, 0)}
        self._writes: dict[int, Call[Act]] = {}
        """Pending ones by their bit."""
        self._reads: dict[int, Call[Act]] = {}
        self._free: list[int] = []
        self._bits = 0
        self._most = 1

    def run(self, calls: Sequence[Call[Act]]) -> Finding[Act]:
        bits: dict[int, int] = {}
        for _, returns, number in _events(calls):
            call = calls[number]
            if not returns:
                bits[number] = self._begin(call)
                continue
            before = self._configurations
            if not self._return(bits[number]):
                return self._finding(Verdict.UNDECIDED, call, before)
            if not self._configurations:
                return self._finding(Verdict.NOT_LINEARIZABLE, call, before)
            self._end(bits.pop(number))
        return Finding(Verdict.LINEARIZABLE, self._most)

    def _begin(self, call: Call[Act]) -> int:
        if self._free:
            bit = self._free.pop()
        else:
            bit = 1 << self._bits
            self._bits += 1
        if self._model.reads(call.action):
            self._reads[bit] = call
            self._configurations = {(state, self._looked(state, done)) for state, done in self._configurations}
        else:
            self._writes[bit] = call
        return bit

    def _end(self, bit: int) -> None:
        self._reads.pop(bit, None)
        self._writes.pop(bit, None)
        self._free.append(bit)

    def _looked(self, state: State, done: int) -> int:
        """Every pending read that fits the state has its moment now."""
        for bit, call in self._reads.items():
            if not done & bit and self._model.step(state, call.action):
                done |= bit
        return done

    def _return(self, bit: int) -> bool:
        """Keep what explains that this call returns; False if that were too many configurations."""
        kept: set[tuple[State, int]] = set()
        todo = list(self._configurations)
        seen = set(todo)
        while todo:
            state, done = todo.pop()
            if done & bit:
                kept.add((state, done & ~bit))
                continue
            for other, call in self._writes.items():
                if done & other:
                    continue
                for after in self._model.step(state, call.action):
                    reached = (after, self._looked(after, done | other))
                    if reached not in seen:
                        seen.add(reached)
                        todo.append(reached)
            if len(seen) > self._max:
                return False
        self._most = max(self._most, len(seen))
        self._configurations = kept
        return True

    def _finding(self, verdict: Verdict, stuck: Call[Act], before: set[tuple[State, int]]) -> Finding[Act]:
        pending = tuple(call for call in (*self._writes.values(), *self._reads.values()) if call is not stuck)
        return Finding(verdict, self._most, stuck, tuple({state for state, _ in before}), pending)


def _events(calls: Sequence[Call[Act]]) -> list[tuple[float, bool, int]]:
    """(when, whether it is a return, whose). Of the same moment starts come first: touching operations overlap."""
    starts = [(call.start, False, number) for number, call in enumerate(calls)]
    returns = [(call.end, True, number) for number, call in enumerate(calls) if not math.isinf(call.end)]
    return sorted(starts + returns)
