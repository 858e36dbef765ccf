"""Which fault strikes when: drawn from a seed. The choice is the same every time, real time is not.

Two hands strike, one at nodes and their disks, one at broker and network, so that a node may die while the network is cut. Each
takes its kinds from a shuffled deck, which is shuffled again when it is empty: in a short run no kind is forgotten.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.nemesis.faults import KINDS, Kind, Scene
from tests.nemesis.field import Field

PAUSE_S = (1.0, 5.0)
"""Of a hand between two faults, in which clients may find out that all is well."""

EXTRA_S = 60.0
"""How much longer a run may go on for kinds that did not strike."""


@dataclass
class Tally:
    """How often each kind was tried, how often it struck, and in all how much (messages, connections, processes)."""

    tried: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    effect: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """What the cluster did not come back from."""

    def silent(self, kinds: Sequence[Kind]) -> list[str]:
        """Those that never struck."""
        return [kind.name for kind in kinds if not self.fired[kind.name]]


def chosen(names: Sequence[str], place: Field) -> tuple[list[Kind], list[str]]:
    """The kinds that are wanted and possible here; and why others are not."""
    wanted = [kind for kind in KINDS if "all" in names or kind.name in names]
    unknown = set(names) - {"all"} - {kind.name for kind in KINDS}
    if unknown:
        raise ValueError(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(kind.name for kind in KINDS)}")
    reasons = {
        "disks": "" if place.disks else "needs root, mkfs.ext4 and loop devices",
        "rejoining": "" if place.rejoining else "this version of the node does not rejoin",
        "repair": "" if place.repair else "this version of the node does not repair itself",
        "clocks": "" if place.clocks else "needs a C compiler, for wall_clock.c",
    }
    possible = [kind for kind in wanted if not reasons.get(kind.needs)]
    return possible, [f"{kind.name}: {reasons[kind.needs]}" for kind in wanted if kind not in possible]


def deck(rng: Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Each kind as often as it says, in an order that is drawn anew each time."""
    cards = [kind for kind in kinds for _ in range(kind.times)]
    while True:
        yield from rng.sample(cards, len(cards))


async def strike(
    hand: str, kinds: Sequence[Kind], place: Field, seed: int, until: float, tally: Tally, say: Callable[[str], None]
) -> None:
    """One fault after the other, each mended before the next, until that moment (``time.monotonic``); then, for a while, only
    those that have not struck yet."""
    mine = [kind for kind in kinds if kind.hand == hand]
    if not mine:
        return
    rng = Random(f"{seed}/hand/{hand}")
    for kind in deck(rng, mine):
        if time.monotonic() >= until:
            if not tally.silent(mine) or time.monotonic() >= until + EXTRA_S:
                return
            if tally.fired[kind.name]:
                continue
        await asyncio.sleep(rng.uniform(*PAUSE_S))
        began = time.monotonic()
        tally.tried[kind.name] += 1
        try:
            effect = await kind.act(Scene(place, Random(f"{seed}/{kind.name}/{tally.tried[kind.name]}")))
        except RuntimeError as error:  # the cluster did not come back from it: what was seen until now is judged all the same
            tally.broken.append(f"{kind.name}: {error}")
            say(tally.broken[-1])
            return
        tally.fired[kind.name] += effect > 0
        tally.effect[kind.name] += effect
        say(f"{kind.name} ({effect}), {time.monotonic() - began:.1f} s")
