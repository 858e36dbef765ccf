"""The reductions leave nothing out: with and without them the same things come to be said, of honest machines and broken ones.

What is said (``ghost.py``) is all that the laws about clients and history look at. Losses as events, and messages that stay
though they can do nothing, must add states and no word.
"""

import time
from dataclasses import replace

import pytest

from tests.simulation.exhaustive.bounds import BOUNDS, Bound, Budget
from tests.simulation.exhaustive.ghost import Ghost
from tests.simulation.exhaustive.plants import PLANTS
from tests.simulation.exhaustive.search import Found, Search

SECONDS_MAX = 100.0

pytestmark = pytest.mark.timeout(900)

PUSH = BOUNDS["push"]
SMALL = [
    replace(PUSH, name="two voters", voters=2, crashers=(1,), budget=Budget(crashes=1, timers=2, claims=2)),
    replace(PUSH, name="a crash", crashers=(1,), budget=Budget(crashes=1, claims=1)),
    replace(PUSH, name="a timer", settlers=(1,), budget=Budget(timers=1, claims=1)),
]
each_small = pytest.mark.parametrize("bound", SMALL, ids=lambda bound: bound.name)


def _explored(bound: Bound) -> tuple[Found, set[Ghost]]:
    search = Search(bound)
    found = search.run(SECONDS_MAX, clock=time.process_time)
    return found, {ghost for ghost, _ in search.space.said}


@each_small
def test_dead_messages_add_states_and_nothing_else(bound: Bound) -> None:
    reduced, said = _explored(bound)
    whole, said_by_all = _explored(replace(bound, reduced=False))
    assert reduced.complete
    assert whole.complete
    assert reduced.states < whole.states
    assert said == said_by_all


@each_small
def test_what_losses_and_copies_can_do_is_explored_without_them(bound: Bound) -> None:
    free, said = _explored(bound)
    once, said_once = _explored(replace(bound, copies=False))
    counted, said_counted = _explored(replace(bound, copies=False, budget=replace(bound.budget, losses=1, duplicates=1)))
    assert free.complete
    assert once.complete
    assert counted.complete
    assert once.states < counted.states
    assert said_counted <= said
    assert said_once <= said


@pytest.mark.parametrize("name", ["forget-on-abort", "late-votes", "abort-alone"])
def test_planted_bugs_are_found_without_reductions_by_as_many_steps(name: str) -> None:
    with PLANTS[name].planted():
        reduced, whole = (
            Search(replace(SMALL[2], reduced=reduced)).run(SECONDS_MAX, clock=time.process_time) for reduced in (True, False)
        )
    assert reduced.broken
    assert whole.broken
    assert len(reduced.path) == len(whole.path)
