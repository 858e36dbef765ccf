"""How many schedules it takes until the simulation finds each planted bug: ``python -m tests.simulation.planted``.

Seeds in order from 0; the first schedule that breaks a law ends the hunt for that mutation. One whose rule matters in one
profile only is hunted in that one (``Mutation.profile``). The real core passes the same schedules
(``test_random_schedules.py``), so what is found is the mutation.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.scenarios.laws import Broken
from tests.simulation.faults import PROFILES
from tests.simulation.planted.catalogue import CATALOGUE
from tests.simulation.planted.planting import Mutation
from tests.simulation.planted.stories import play
from tests.simulation.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Find:
    """What became of one hunt."""

    name: str
    schedules: int
    """Run until then; the last one found it, unless it survived."""
    seed: int | None
    """The one that found it."""
    broken: str
    seconds: float
    story: str = ""
    """The directed story that found it."""

    @property
    def survived(self) -> bool:
        return self.seed is None and not self.story


def hunt(mutation: Mutation, bound: int, *, first: int = 0, seconds_max: float = float("inf"), stories: bool = True) -> Find:
    """``stories``: whether the mutation's directed story, if it has one, is told before any schedule is run."""
    began = time.process_time()
    run = 0
    profiles = tuple(profile for profile in PROFILES if mutation.profile in ("", profile.name))
    with mutation.planted():
        if stories and mutation.story:
            try:
                play(mutation.story)
            except Broken as broken:
                return Find(mutation.name, 0, None, f"story: {broken}", time.process_time() - began, mutation.story)
        for seed in range(first, first + bound):
            run += 1
            try:
                Schedule(seed, profiles=profiles).run()
            except Broken as broken:
                return Find(mutation.name, run, seed, str(broken), time.process_time() - began)
            if time.process_time() - began > seconds_max:
                break
    return Find(mutation.name, run, None, "", time.process_time() - began)


def named(name: str) -> Mutation:
    return next(mutation for mutation in CATALOGUE if mutation.name == name)


def _hunt_named(job: tuple[str, int, int, float, bool]) -> Find:
    name, bound, first, seconds_max, stories = job
    return hunt(named(name), bound, first=first, seconds_max=seconds_max, stories=stories)


def hunt_all(
    names: Iterable[str],
    bound: int,
    *,
    first: int = 0,
    workers: int = 2,
    seconds_max: float = float("inf"),
    stories: bool = True,
    told: Callable[[Find], None] | None = None,
) -> list[Find]:
    """``seconds_max`` of processor time for each."""
    jobs = [(name, bound, first, seconds_max, stories) for name in names]
    finds = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for find in pool.imap_unordered(_hunt_named, jobs):
            finds.append(find)
            if told is not None:
                told(find)
    order = [mutation.name for mutation in CATALOGUE]
    return sorted(finds, key=lambda find: order.index(find.name))
