"""Where no node has anything under way: can any live majority settle what is left, without another fault?

Whatever is on its way is lost then. Every majority of the voters goes on alone: who is down starts, whoever is no member is
gone for good. One thing happens after another, messages in the order they were sent, and when nothing moves, one timer fires,
the members taking turns. Nobody may stay in doubt or busy, and all must end at one position.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import combinations

from tests.simulation.exhaustive import happenings as hp
from tests.simulation.exhaustive.parts import Way
from tests.simulation.exhaustive.space import Space

ROUNDS_MAX = 120
"""Timers that may fire before a cluster is said to be blocked; ``Found.rounds_most`` says how many were needed."""


class Settling:
    """Remembers what was tried: many states differ only in what no longer matters."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._known: dict[tuple[object, ...], str] = {}
        self.good: set[tuple[object, ...]] = set()
        """Where a run stood between two timers, and ended well."""
        self.runs = 0
        self.rounds_most = 0

    def problem(self, row: Sequence[int], said: int) -> str:
        """What stays unsettled from here, or what is broken on the way; empty if every majority settles everything."""
        members = range(len(row))
        least = len(row) // 2 + 1
        for size in sorted({least, len(row)}):
            for live in combinations(members, size):
                if sum(not self._space.parts.locals[row[n]].rejoining for n in live) < least:
                    continue  # R4: a rejoining voter counts among the failed, until a majority of the others is there
                if problem := self._of(row, said, live):
                    return f"with only {', '.join(self._space.parts.names[n] for n in live)} left: {problem}"
        return ""

    def _of(self, row: Sequence[int], said: int, live: tuple[int, ...]) -> str:
        ghost = self._space.ghost_of[said]
        view_of = self._space.parts.view_of  # of the others only the disks matter, and what they show
        key = (live, tuple(number if n in live else view_of[number] for n, number in enumerate(row)), ghost)
        known = self._known.get(key)
        if known is None:
            self.runs += 1
            known = self._known[key] = _Run(self._space, row, said, live, self).problem()
        return known


class _Run:
    """One run to the end."""

    def __init__(self, space: Space, row: Sequence[int], said: int, live: tuple[int, ...], known: Settling) -> None:
        self._space = space
        self._row = list(row)
        self._said = said
        self._live = live
        self._flying: deque[int] = deque()
        self._known = known

    def problem(self) -> str:
        space = self._space
        for n in self._live:
            number = self._row[n]
            if not space.parts.up[number] and (broken := self._take(n, space.parts.beyond(number, hp.Start()))):
                return broken
        passed: list[tuple[object, ...]] = []
        for turn in range(ROUNDS_MAX):
            if broken := self._drain():
                return broken
            self._known.rounds_most = max(self._known.rounds_most, turn)
            place = (turn, self._live, *self._row, self._space.ghost_of[self._said])
            if place in self._known.good or not self._unsettled():
                self._known.good.update(passed)  # nothing is under way here: from here on, every run is the same
                return ""
            passed.append(place)
            if broken := self._nudge(turn):
                return broken
        return self._unsettled()

    def _take(self, n: int, results: tuple[hp.Result, ...]) -> str:
        """The first result is the one without a crash."""
        result = results[0]
        if result.broken:
            return result.broken
        self._row[n] = result.node
        after = self._space.told(self._said, result.facts, ())
        if not isinstance(after, int):
            return str(after)
        self._said = after
        self._flying += (p for p in result.parcels if self._space.parts.receiver[p] in self._live)
        return self._space.law(self._row, self._said)

    def _drain(self) -> str:
        space = self._space
        while True:
            broken = ""
            if self._flying:
                parcel = self._flying.popleft()
                n = space.parts.receiver[parcel]
                results = space.parts.deliver(self._row[n], parcel)
                broken = self._take(n, results) if results else ""
            else:
                own = next(self._under_way(), None)
                if own is None:
                    return ""
                n, way = own
                broken = self._take(n, space.parts.results(self._row[n], way))
            if broken:
                return broken

    def _under_way(self) -> Iterator[tuple[int, Way]]:
        space = self._space
        for n in self._live:
            for way in space.parts.ways(self._row[n]):
                if way.happening in (hp.Hear(), hp.Staged()):
                    yield n, way
            for way in space.parts.learns(self._row[n], [self._row[m] for m in self._live], gossip=False):
                yield n, way
            for way in space.parts.restores(self._row[n], [self._row[m] for m in self._live]):
                yield n, way

    def _nudge(self, turn: int) -> str:
        """Nothing moves: hear of a higher version (summaries), or else let one timer fire."""
        space = self._space
        for n in self._live:
            for way in space.parts.learns(self._row[n], [self._row[m] for m in self._live], gossip=True):
                return self._take(n, space.parts.results(self._row[n], way))
        for ahead in range(len(self._live)):
            n = self._live[(turn + ahead) % len(self._live)]
            local = space.parts.locals[self._row[n]]
            timers = space.parts.timers(local)
            if timers:
                timer = timers[turn // len(self._live) % len(timers)]
                return self._take(n, space.parts.beyond(self._row[n], timer))
        return ""

    def _unsettled(self) -> str:
        locals_ = [self._space.parts.locals[self._row[n]] for n in self._live]
        for local in locals_:
            if local.rejoining:
                return f"{local.me} stays rejoining: {local.rejoin!r}"
            assert local.voter is not None
            assert local.coordinator is not None
            if local.record.in_doubt is not None:
                return f"{local.me} stays in doubt: {local.coordinator!r}, {local.voter!r}"
            if local.register.position != locals_[0].register.position:
                return f"{local.me} stands at {local.register.position}, {locals_[0].me} at {locals_[0].register.position}"
            if local.coordinator.busy:
                return f"{local.me} stays busy: {local.coordinator!r}"
        return ""
