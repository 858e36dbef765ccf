"""Every different part of a node, every different message, and what a happening makes of a part: reckoned once, then looked up.

What a happening does to a node depends on that node's part alone. So the real machines run once for each (part, happening), not
once for each state of the cluster; parts and messages are named by their numbers here, in the order they were first seen. That
order depends on nothing but the bound.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from node.protocol.acceptor import AcceptorRecord, CommitOp
from node.protocol.ids import NodeId, TxnId
from node.protocol.messages import HistoryEntry
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from tests.scenarios.laws import Broken
from tests.scenarios.values import REPOSITORY, creation, founding_certificate
from tests.simulation.exhaustive import happenings as hp
from tests.simulation.exhaustive.bounds import Bound
from tests.simulation.exhaustive.copying import Keys
from tests.simulation.exhaustive.local import Local, Step, ignored
from tests.simulation.exhaustive.timers import pending, pending_at
from tests.simulation.exhaustive.views import View, view_of


@dataclass(slots=True)
class Way:
    """Something that may happen to one part by itself, and what comes of it once that was reckoned."""

    happening: hp.Happening
    cost: hp.Cost | None
    results: tuple[hp.Result, ...] | None = None


class Parts:
    """The tables of one search."""

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.names = tuple(NodeId(f"node-{n}") for n in range(1, bound.voters + 1))
        self.voters = VoterSet.of(self.names)
        self.locals: list[Local] = []
        self.up: list[bool] = []
        self.under_way: list[bool] = []
        """Whether a write or a staging has not ended."""
        self.wants: list[bool] = []
        """Whether it is catching up, and may take the next page."""
        self.restoring: list[bool] = []
        """Whether it is rejoining, and may take over what its sources hold."""
        self.view_of: list[int] = []
        self.views: list[View] = []
        self.parcels: list[hp.Parcel] = []
        self.receiver: list[int] = []
        self.sender: list[int] = []
        self.steps = 0
        """How often a real machine was run."""
        self._keys = Keys()
        self._number = {name: n for n, name in enumerate(self.names)}
        self._local_of: dict[object, int] = {}
        self._view_number: dict[View, int] = {}
        self._ways_of: list[list[Way] | None] = []
        self._restores: dict[tuple[int, int], Way] = {}
        self._learning: dict[tuple[int, int, bool], Way] = {}
        self._parcel_of: dict[hp.Parcel, int] = {}
        self._deliveries: dict[tuple[int, int], tuple[hp.Result, ...]] = {}
        self._beyond: dict[tuple[int, hp.Happening], tuple[hp.Result, ...]] = {}
        self._timed = {n - 1 for n in bound.settlers} or set(range(bound.voters))
        self._wipers = {n - 1 for n in bound.wipers}
        self._crashers = {n - 1 for n in bound.crashers} if bound.budget.crashes else set()

    def first(self) -> list[int]:
        """Every node after its first start: the repository exists, everything else is still to come."""
        change = creation(self.voters)
        certificate = founding_certificate(change, self.voters)
        record, _ = CommitOp(REPOSITORY, change).on(AcceptorRecord())
        register = Register(REPOSITORY, self.voters).applied(change)
        row = []
        for n, name in enumerate(self.names, 1):
            local = Local(name, record, register, (HistoryEntry(change, certificate, 0),))
            local.inputs = tuple(TxnId(txn) for at, txn in self.bound.pushes if at == n)
            step = Step.on(local, prompt=self.bound.prompt)
            step.take(hp.Start())
            row.append(self._keep(step.local))
        return row

    def _keep(self, local: Local) -> int:
        key = local.key(self._keys)
        number = self._local_of.get(key)
        if number is not None:
            return number
        self._local_of[key] = number = len(self.locals)
        self.locals.append(local)
        self.up.append(local.up)
        self.under_way.append(bool(local.writes or local.staging))
        learning = any(isinstance(under.op, CommitOp) for under in local.writes)
        self.wants.append(local.up and local.catch_to > local.register.position.version and not learning)
        view = view_of(local)
        seen = self._view_number.setdefault(view, len(self.views))
        if seen == len(self.views):
            self.views.append(view)
        self.view_of.append(seen)
        self.restoring.append(bool(local.restoring))
        self._ways_of.append(None)
        return number

    def _keep_parcel(self, parcel: hp.Parcel) -> int:
        number = self._parcel_of.get(parcel)
        if number is None:
            self._parcel_of[parcel] = number = len(self.parcels)
            self.parcels.append(parcel)
            self.receiver.append(self._number[parcel.to])
            self.sender.append(self._number[parcel.sender])
        return number

    # ------------------------------------------------------------ what comes of it

    def deliver(self, local: int, parcel: int) -> tuple[hp.Result, ...]:
        found = self._deliveries.get((local, parcel))
        if found is None:
            ignores = self.locals[local].ignores(self.parcels[parcel])
            found = () if ignores else self._step(local, self.parcels[parcel], None)
            self._deliveries[local, parcel] = found
        return found

    def results(self, local: int, way: Way) -> tuple[hp.Result, ...]:
        if way.results is None:
            way.results = self._step(local, way.happening, way.cost)
        return way.results

    def beyond(self, local: int, happening: hp.Happening) -> tuple[hp.Result, ...]:
        """What comes of anything, whether the bound has it or not."""
        found = self._beyond.get((local, happening))
        if found is None:
            found = self._beyond[local, happening] = self._step(local, happening, None)
        return found

    def _step(self, number: int, happening: hp.Happening, cost: hp.Cost | None) -> tuple[hp.Result, ...]:
        """The first result is the one without a crash."""
        self.steps += 1
        local = self.locals[number]
        step = Step.on(local, prompt=self.bound.prompt)
        try:
            step.take(happening)
        except Exception as error:
            text = str(error) if isinstance(error, Broken) else f"a machine failed: {error!r}"
            return (hp.Result(number, (), (), (), broken=f"{local.me}: {text}"),)
        costs = (*step.costs, cost) if cost else tuple(step.costs)
        found = {self._result(step.local, [*step.facts, *step.out], "", costs): None}
        if self._number[local.me] in self._crashers:
            found |= {self._result(*cut, (*costs, hp.Cost.CRASH)): None for cut in step.cuts()}
        return tuple(found)

    def _result(self, local: Local, out: Sequence[hp.Parcel | hp.Fact], cut: str, costs: tuple[hp.Cost, ...]) -> hp.Result:
        parcels = [self._keep_parcel(one) for one in out if isinstance(one, hp.Parcel) and self._wanted(one)]
        facts = tuple(one for one in out if not isinstance(one, hp.Parcel))
        return hp.Result(self._keep(local), tuple(parcels), facts, costs, cut)

    def _wanted(self, parcel: hp.Parcel) -> bool:
        return not (self.bound.reduced and ignored(parcel.message))

    # ------------------------------------------------------------ what may happen

    def ways(self, number: int) -> list[Way]:
        """What may happen to a node by itself."""
        found = self._ways_of[number]
        if found is None:
            found = self._ways_of[number] = list(self._find_ways(self.locals[number]))
        return found

    def _find_ways(self, local: Local) -> Iterator[Way]:
        n, budget = self._number[local.me], self.bound.budget
        if not local.up:
            if self.bound.restarts:
                yield Way(hp.Start(), None)
            return
        if local.writes:
            yield Way(hp.Hear(), None)
            if budget.refusals:
                yield Way(hp.Hear(refused=True), hp.Cost.REFUSAL)
        if local.staging:
            yield Way(hp.Staged(), None)
            if budget.refusals:
                yield Way(hp.Staged("nobody in reach has the objects"), hp.Cost.REFUSAL)
        for txn in local.inputs if not local.rejoining else ():
            yield Way(hp.Submit(txn), None)
        if n in self._timed and budget.timers:
            yield from (Way(timer, hp.Cost.TIMER) for timer in self.timers(local) if timer.name not in self.bound.unsettled)
        if n in self._wipers:
            yield Way(hp.Wipe(), hp.Cost.WIPE)
        if n in self._crashers:
            yield from (Way(hp.Crash(durable), hp.Cost.CRASH) for durable in range(len(local.writes) + 1))

    @staticmethod
    def timers(local: Local) -> list[hp.Timer]:
        if local.rejoin is not None:
            return list(pending_at(local.rejoin))
        assert local.voter is not None
        assert local.coordinator is not None
        return list(pending(local.voter, local.coordinator))

    def learns(self, number: int, row: Iterable[int], *, gossip: bool) -> Iterator[Way]:
        """R2, from every peer that is up and has heard of more."""
        local = self.locals[number]
        wants = self.wants[number]
        if (
            not local.up
            or local.rejoining
            or not (wants or gossip)
            or any(isinstance(under.op, CommitOp) for under in local.writes)
        ):
            return
        here = local.register.position.version
        for other in dict.fromkeys(row):
            peer = self.locals[other]
            if other != number and peer.up and not peer.rejoining and peer.register.position.version > here:
                if wants:
                    yield self._learn(number, other, told=False)
                if gossip:
                    yield self._learn(number, other, told=True)

    def restores(self, number: int, row: Iterable[int]) -> Iterator[Way]:
        """R4.3: from every peer that is a member, is up and has as much history as is wanted."""
        local = self.locals[number]
        if not local.restoring:
            return
        wanted, here = local.restoring[0].committed.version, local.register.position.version
        for other in dict.fromkeys(row):
            peer = self.locals[other]
            if other == number or not peer.up or peer.rejoining or peer.register.position.version < wanted:
                continue
            way = self._restores.get((number, other))
            if way is None:
                entries = peer.history[here : peer.register.position.version]
                way = self._restores[number, other] = Way(hp.Restored(entries, peer.register.floor), None)
            yield way

    def _learn(self, number: int, other: int, *, told: bool) -> Way:
        way = self._learning.get((number, other, told))
        if way is None:
            here, register = self.locals[number].register.position.version, self.locals[other].register
            entries = self.locals[other].history[here : register.position.version]
            learn = hp.Learn(entries, register.floor, register.position if told else None)
            way = self._learning[number, other, told] = Way(learn, hp.Cost.GOSSIP if told else None)
        return way
