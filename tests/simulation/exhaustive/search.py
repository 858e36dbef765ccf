"""Breadth first through a space of states: to the end, or as far as time and memory allow, and then it says how far.

Breadth first, the first state that breaks a law is reached by a shortest sequence of happenings, which is told step by step.
"""

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from tests.simulation.exhaustive.bounds import Bound
from tests.simulation.exhaustive.settling import Settling
from tests.simulation.exhaustive.space import Move, Space
from tests.simulation.exhaustive.story import in_order, told

PROGRESS_S = 5.0
LOOK_EVERY = 512
"""States between two looks at the clock."""


@dataclass(slots=True)
class Found:
    """What a search has seen. ``complete``: every state within the bound; else every state up to ``depth_complete``."""

    bound: str
    complete: bool = False
    states: int = 0
    transitions: int = 0
    depth_complete: int = 0
    """Every state that so many happenings can reach was expanded."""
    depth: int = 0
    """The longest of the shortest ways to a state."""
    at_rest: int = 0
    """States in which no node had anything under way: what was on its way was lost, and every majority went on alone."""
    settlings: int = 0
    """Different runs that this took, and (``rounds_most``) the most timers that one needed."""
    rounds_most: int = 0
    parts: int = 0
    """Different parts of single nodes, and (``steps``) how often a real machine was run."""
    steps: int = 0
    beyond: int = 0
    """Ways not taken since the bound allows no more of something."""
    surprises: int = 0
    """See ``dead.Dead``."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_mib: int = 0
    broken: str = ""
    path: list[int] = field(default_factory=list)
    """Which way was taken out of each state, from the first one: what ``--replay`` takes."""
    story: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


class Search:
    """One bound's search; ``run`` may be given less time than it needs."""

    def __init__(self, bound: Bound) -> None:
        self.space = Space(bound)
        self.found = Found(bound.name)
        self._settling = Settling(self.space)
        self._rest: dict[tuple[bytes, int], tuple[bool, str]] = {}
        self._parent: dict[bytes, bytes] = {}

    def run(
        self,
        seconds: float,
        memory_mib: int = 100_000,
        tell: Callable[[Found], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Found:
        """``clock`` measures ``seconds``; tests take the processor's, so that a busy machine only makes them slow."""
        began = told_at = clock()
        cpu_began = time.process_time()
        space, found, parent = self.space, self.found, self._parent
        first = space.first()
        parent[first] = b""
        level = [first]
        out_of_time = False
        while level and not found.broken and not out_of_time:
            following: list[bytes] = []
            for count, state in enumerate(level):
                if count % LOOK_EVERY == 0:
                    now = clock()
                    found.seconds, found.states = now - began, len(parent)
                    found.memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                    if now - began > seconds or found.memory_mib > memory_mib:
                        out_of_time = True
                        break
                    if tell is not None and now - told_at > PROGRESS_S:
                        told_at = now
                        tell(found)
                if problem := self._problem(state):
                    self._fail(problem, state, None)
                    break
                successors = space.successors(state)
                found.transitions += len(successors)
                for after, broken, move in successors:
                    if not broken and after not in parent:
                        parent[after] = state
                        following.append(after)
                        *nodes, _, then = space.unpacked(after)
                        broken = space.law(nodes, then)
                    if broken:
                        self._fail(broken, state, move)
                        break
                if self._broken:
                    break
            else:
                found.depth_complete += 1
                found.depth += bool(following)
                level = following
        found.complete = not (level or found.broken or out_of_time)
        found.depth += bool(out_of_time)
        found.states, found.seconds = len(parent), clock() - began
        found.cpu_seconds, found.surprises = time.process_time() - cpu_began, space.dead.surprises
        found.settlings, found.rounds_most = self._settling.runs, self._settling.rounds_most
        found.parts, found.steps, found.beyond = len(space.parts.locals), space.parts.steps, space.beyond
        found.memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        if found.broken:
            found.story = list(told(Space(self.space.bound), found.path))
        return found

    def _problem(self, state: bytes) -> str:
        """If no node has anything under way: what a majority cannot settle. States that differ in messages only share it."""
        *row, _, said = self.space.unpacked(state)
        key = (state[:-8], self.space.ghost_of[said])
        known = self._rest.get(key)
        if known is None:
            at_rest = self.space.at_rest(row)
            known = self._rest[key] = (at_rest, self._settling.problem(row, said) if at_rest else "")
        self.found.at_rest += known[0]
        return known[1]

    @property
    def _broken(self) -> bool:
        return bool(self.found.broken)

    def _fail(self, broken: str, state: bytes, move: Move | None) -> None:
        self.found.broken = broken
        chain = [state]
        while before := self._parent[chain[-1]]:
            chain.append(before)
        chain.reverse()
        for one, other in pairwise(chain):
            ways = in_order(self.space, one)
            self.found.path.append(next(n for n, (after, _, _) in enumerate(ways) if after == other))
        if move is not None:
            ways = in_order(self.space, state)
            self.found.path.append(next(n for n, (_, _, other_move) in enumerate(ways) if other_move == move))
