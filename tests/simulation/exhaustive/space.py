"""The space of states: which states follow a state, and what each of them breaks.

**A state** is every node's part (``parts.py``), the messages on their way, and what was said so far with what may still go
wrong (``ghost.py``, ``bounds.py``). Each is named by its number in a table, so a state is a short row of numbers, packed; equal
states are equal bytes, and no two different ones are ever taken for one.

**Reductions**, each is checked by running small bounds with and without them (``test_reductions.py``):

1. *Losses and copies are no events* (``Bound.copies``). A message once sent stays, and may be delivered at any time, any number
   of times, or never. So any losses and any copies are explored, and a state does not say which messages have arrived: what
   they did to their receivers says it. What must be possible when messages are gone is asked of every state in which no node
   has anything under way by itself: if all that is on its way were lost now, could every majority settle it? (Without
   ``copies`` a message is delivered once, and ``losses`` and ``duplicates`` are events that a budget counts: for the check.)
2. *A message that can have no effect any more is taken away*: ``dead.py``.
3. *A message to a node that is down* is not delivered; it arrives after the start, or never.
4. *A copy of a request that still waits at its voter* is not delivered beside it: both would get one answer at one moment.
"""

from bisect import insort
from struct import Struct

from tests.scenarios.laws import Broken
from tests.simulation.exhaustive import happenings as hp
from tests.simulation.exhaustive.bounds import Bound, Budget
from tests.simulation.exhaustive.dead import Dead
from tests.simulation.exhaustive.ghost import Ghost
from tests.simulation.exhaustive.parts import Parts
from tests.simulation.exhaustive.views import check

Net = tuple[int, ...]
"""The messages on their way, by number, sorted; without ``Bound.copies`` one may be there twice."""

Move = tuple[int, "hp.Happening | int", hp.Result, int, bool]
"""(at which node, what: a message by its number or anything else, what came of it, which of its messages is lost, doubled)"""

Next = tuple[bytes, str, Move]
"""(the next state, the law that is broken on the way, how)"""

_OVER = -1


class Space:
    """All that one bound can reach; the tables grow while it is explored."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.parts = Parts(bound)
        self.nets: list[Net] = []
        self.said: list[tuple[Ghost, Budget]] = []
        self.beyond = 0
        """Ways that were not taken since the bound allows no more claims."""
        self.dead = Dead(self.parts, restarts=bound.restarts, prompt=bound.prompt)
        self._net_of: dict[Net, int] = {}
        self._said_of: dict[tuple[Ghost, Budget], int] = {}
        self.ghost_of: list[int] = []
        """The number of the ghost alone, by that of it with what is left."""
        self._ghosts: dict[Ghost, int] = {}
        self._law_of: list[int] = []
        self._laws: dict[object, int] = {}
        self._after_saying: dict[tuple[int, int], int | str] = {}
        self._effects: list[tuple[tuple[hp.Fact, ...], tuple[hp.Cost, ...]]] = []
        self._effect_of: dict[tuple[tuple[hp.Fact, ...], tuple[hp.Cost, ...]], int] = {}
        self._effects_of: dict[int, tuple[int, int, int, int]] = {}
        self._kept: list[hp.Result] = []
        self._merged: dict[tuple[int, tuple[int, ...]], int] = {}
        self._checked: dict[tuple[int, ...], str] = {}
        row = Struct(f">{bound.voters + 2}I")
        self._pack, self.unpacked = row.pack, row.unpack

    def first(self) -> bytes:
        local = self.parts.first()
        position = self.parts.locals[0].record.committed
        ghost = Ghost(history=((position.version, position.digest),), placed=(("t0", 1),))
        return self._pack(*local, self._keep_net(()), self._keep_said(ghost, self.bound.budget))

    def _keep_net(self, net: Net) -> int:
        number = self._net_of.get(net)
        if number is None:
            self._net_of[net] = number = len(self.nets)
            self.nets.append(net)
        return number

    def _keep_said(self, ghost: Ghost, budget: Budget) -> int:
        number = self._said_of.get((ghost, budget))
        if number is None:
            self._said_of[ghost, budget] = number = len(self.said)
            self.said.append((ghost, budget))
            self.ghost_of.append(self._ghosts.setdefault(ghost, len(self._ghosts)))
            self._law_of.append(self._laws.setdefault((ghost.decided, ghost.seen), len(self._laws)))
        return number

    # ------------------------------------------------------------ what follows

    def successors(self, state: bytes) -> list[Next]:
        """In the order in which their parts were first seen; ``story.in_order`` has one that depends on the state alone."""
        *row, net, said = self.unpacked(state)
        parts, copies = self.parts, self.bound.copies
        _, budget = self.said[said]
        up, receiver = parts.up, parts.receiver
        out: list[Next] = []
        previous = -1
        flying = self.nets[net]
        there = set(flying)
        for parcel in flying:
            if parcel == previous:
                continue
            previous = parcel
            n = receiver[parcel]
            if not up[row[n]]:
                continue
            rest = net if copies else self._without(net, parcel)
            for result in parts.deliver(row[n], parcel):
                if copies and result.node == row[n] and not result.facts and there.issuperset(result.parcels):
                    continue  # nothing that was not so already
                self._take(out, row, n, rest, said, result, parcel, doubled=False)
                if not copies and budget.duplicates:
                    self._take(out, row, n, net, said, result, parcel, doubled=True)
        gossip = budget.gossips > 0
        for n, number in enumerate(row):
            for way in parts.ways(number):
                if way.cost is not None and not getattr(budget, way.cost.value):
                    continue
                for result in parts.results(number, way):
                    self._take(out, row, n, net, said, result, way.happening, doubled=False)
            if parts.restoring[number]:
                for way in parts.restores(number, row):
                    for result in parts.results(number, way):
                        self._take(out, row, n, net, said, result, way.happening, doubled=False)
            if gossip or parts.wants[number]:
                for way in parts.learns(number, row, gossip=gossip):
                    for result in parts.results(number, way):
                        self._take(out, row, n, net, said, result, way.happening, doubled=False)
        return out

    def _take(
        self,
        out: list[Next],
        row: list[int],
        n: int,
        net: int,
        said: int,
        result: hp.Result,
        what: hp.Happening | int,
        *,
        doubled: bool,
    ) -> None:
        if result.broken:
            out.append((b"", result.broken, (n, what, result, -1, doubled)))
            return
        effects = self._effects_of.get(id(result)) or self._reckon(result)
        effect = effects[doubled]
        after: int | str = said
        if effect:
            known = self._after_saying.get((said, effect))
            after = self._say(said, effect) if known is None else known
            if after.__class__ is str:
                out.append((b"", str(after), (n, what, result, -1, doubled)))
                return
            if after == _OVER:
                self.beyond += hp.Cost.CLAIM in result.costs
                return
        nodes = row.copy()
        nodes[n] = result.node
        parcels = result.parcels
        flying = self._fly(nodes, n, net, parcels)
        out.append((self._pack(*nodes, flying, after), "", (n, what, result, -1, doubled)))
        if parcels and self.said[int(after)][1].losses:
            lost = self._say(said, effects[2 + doubled])
            for at in range(len(parcels)):
                flying = self._fly(nodes, n, net, parcels[:at] + parcels[at + 1 :])
                out.append((self._pack(*nodes, flying, lost), "", (n, what, result, at, doubled)))

    def _fly(self, nodes: list[int], n: int, net: int, parcels: tuple[int, ...]) -> int:
        """What is on its way now, without the messages that can have no effect any more: node ``n`` has changed."""
        if parcels:
            merged = self._merged.get((net, parcels))
            net = self._merge(net, parcels) if merged is None else merged
        if not self.bound.reduced:
            return net
        dead, receiver, sender, known = self.dead, self.parts.receiver, self.parts.sender, self.dead.known
        flying = self.nets[net]
        alive = []
        for p in flying:
            to, of = receiver[p], sender[p]
            if to == n or of == n:
                key = (p, nodes[to], nodes[of])
                over = known.get(key)
                if dead.tried(key) if over is None else over:
                    continue
            alive.append(p)
        return net if len(alive) == len(flying) else self._keep_net(tuple(alive))

    def _merge(self, net: int, parcels: tuple[int, ...]) -> int:
        flying = list(self.nets[net])
        for parcel in parcels:
            if not self.bound.copies or parcel not in flying:
                insort(flying, parcel)
        merged = self._merged[net, parcels] = self._keep_net(tuple(flying))
        return merged

    def _without(self, net: int, parcel: int) -> int:
        flying = list(self.nets[net])
        flying.remove(parcel)
        return self._keep_net(tuple(flying))

    # ------------------------------------------------------------ what is said

    def _reckon(self, result: hp.Result) -> tuple[int, int, int, int]:
        """Numbers of its effect on what is said and left: as it is, doubled, with a loss, with both; 0 is none."""
        costs = ((), (hp.Cost.DUPLICATE,), (hp.Cost.LOSS,), (hp.Cost.DUPLICATE, hp.Cost.LOSS))
        first, second, third, fourth = (self._effect(result.facts, (*result.costs, *more)) for more in costs)
        self._kept.append(result)
        self._effects_of[id(result)] = first, second, third, fourth
        return first, second, third, fourth

    def _effect(self, facts: tuple[hp.Fact, ...], costs: tuple[hp.Cost, ...]) -> int:
        if not facts and not costs:
            return 0
        effect = (facts, tuple(sorted(costs, key=lambda cost: cost.value)))
        number = self._effect_of.get(effect)
        if number is None:
            self._effects.append(effect)
            self._effect_of[effect] = number = len(self._effects)
        return number

    def _say(self, said: int, effect: int) -> int | str:
        """What is said and left afterwards, a text if a law is broken, ``_OVER`` if the bound does not allow it."""
        after = self._after_saying.get((said, effect))
        if after is None:
            facts, costs = self._effects[effect - 1]
            after = self._after_saying[said, effect] = self.told(said, facts, costs)
        return after

    def told(self, said: int, facts: tuple[hp.Fact, ...], costs: tuple[hp.Cost, ...]) -> int | str:
        """The same, not by number."""
        ghost, budget = self.said[said]
        left = budget.less(costs)
        if left is None:
            return _OVER
        try:
            return self._keep_said(ghost.after(facts), left)
        except Broken as error:
            return str(error)

    # ------------------------------------------------------------ what must be true

    def law(self, row: list[int], said: int) -> str:
        """What the nodes together break, or nothing."""
        view_of, views = self.parts.view_of, self.parts.views
        key = (self._law_of[said], *[view_of[n] for n in row])
        known = self._checked.get(key)
        if known is None:
            known = ""
            try:
                check([views[v] for v in key[1:]], self.said[said][0])
            except Broken as error:
                known = str(error)
            self._checked[key] = known
        return known

    def at_rest(self, row: list[int]) -> bool:
        """Whether no node has anything under way by itself: no write, no staging, no catch-up. Messages may be lost."""
        parts = self.parts
        if any(parts.under_way[n] for n in row):
            return False
        if any(parts.restoring[n] and any(parts.restores(n, row)) for n in row):
            return False
        return not any(parts.wants[n] and any(parts.learns(n, row, gossip=False)) for n in row)
