"""One random schedule: a cluster, a seeded world that goes wrong for some seconds, then peace, and what must be true then.

Everything random comes from ``random.Random(seed)``, so a seed is a schedule. Faults: messages lost, doubled, overtaken and
late by seconds, nodes cut off from each other, crashes before any effect and between a write and its result, restarts,
wrong suspicions, objects out of reach, slow journals; several coordinators write, delete and create meanwhile.
"""

from collections.abc import Callable
from random import Random

from node.protocol.change import ChangeKind
from node.protocol.coordinator_states import State
from node.protocol.effects import Effect, Wake
from node.protocol.events import Written
from node.protocol.ids import ZERO_OID, NodeId, RefName, TxnId
from node.protocol.messages import TransportReply, TransportRequest
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from tests.scenarios.conditions import Conditions, Fault
from tests.scenarios.laws import Broken
from tests.scenarios.values import creation, pack, update
from tests.scenarios.world import World

FAULTS_S = 6.0
PEACE_S = 20.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Weather(Conditions):
    """How bad it is, drawn once a schedule; ``calm`` ends it."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self.calm = False
        self.cut: set[frozenset[NodeId]] = set()
        self._loss = rng.choice((0.0, 0.02, 0.1, 0.3))
        self._double = rng.choice((0.0, 0.05, 0.3))
        self._late = rng.choice((0.0, 0.02, 0.1))
        self._crash = rng.choice((0.0, 0.0, 0.002, 0.01))
        self._unstaged = rng.choice((0.0, 0.0, 0.2))
        self._journal_s = rng.choice((0.0, 0.001, 0.02))
        self._heard_s = rng.choice((0.0, 0.0, 0.01))
        self._full_disk = rng.choice((0.0, 0.0, 0.02))
        self._failing_disk = rng.choice((0.0, 0.0, 0.002))
        self._network_s = rng.choice((0.002, 0.02, 0.2))

    def deliveries(self, world: World, sender: NodeId, to: NodeId, message: TransportRequest | TransportReply) -> list[float]:
        rng = self._rng
        if self.calm:
            return [0.005 * rng.random()]
        if not self.reaches(world, sender, to) or rng.random() < self._loss:
            return []
        copies = 2 if rng.random() < self._double else 1
        late_s = 8.0 * rng.random() if rng.random() < self._late else 0.0
        return [late_s + self._network_s * rng.random() for _ in range(copies)]

    def reaches(self, world: World, one: NodeId, other: NodeId) -> bool:
        return self.calm or frozenset((one, other)) not in self.cut

    def journal_delays(self) -> tuple[float, float]:
        return self._journal_s * self._rng.random(), self._heard_s * self._rng.random()

    def disk_fault(self, node: NodeId) -> Fault:
        if self.calm:
            return Fault.NONE
        draw = self._rng.random()
        if draw < self._full_disk:
            return Fault.REFUSED
        return Fault.FAILED if draw > 1.0 - self._failing_disk else Fault.NONE

    def direct_delay(self) -> float:
        return 0.01 * self._rng.random()

    def may_stage(self, node: NodeId) -> bool:
        return self.calm or self._rng.random() >= self._unstaged

    def crashes(self, world: World, node: NodeId, before: Effect | Written) -> bool:
        if self.calm or not self._crash or isinstance(before, Wake) or self._rng.random() >= self._crash:
            return False
        world.after(2.0 * self._rng.random(), restart, world, node, world.nodes[node].life + 1)
        return True

    def spread(self, node: NodeId) -> float:
        return self._rng.random()


def restart(world: World, name: NodeId, life: int = 0) -> None:
    """Unless it was started, or died again, meanwhile (``life``)."""
    if life and world.nodes[name].life != life:
        return
    if not world.nodes[name].up:
        world.tell(name, "STARTED")
        world.nodes[name].start()


class Schedule:
    """``run`` raises ``Broken`` with the seed in its text, or returns how many requests had which outcome."""

    def __init__(self, seed: int, say: Callable[[float, NodeId, str], None] | None = None) -> None:
        self.seed = seed
        self._rng = rng = Random(seed)
        self._weather = Weather(rng)
        size = rng.choice((1, 2, 3, 3, 3, 3, 3, 4, 5, 5))
        quorum = rng.choice(("majority",) * 9 + ("all",))
        history = [creation(VoterSet.of(NodeId(f"node-{n}") for n in range(1, size + 1)))] if rng.random() < 0.9 else []
        self.world = World(size, self._weather, quorum=quorum, say=say, history=history)
        self._asked: dict[TxnId, tuple[NodeId, int, float]] = {}
        self.served = 0

    def run(self) -> dict[str, int]:
        try:
            return self._run()
        except Exception as error:
            raise Broken(f"seed={self.seed} at {self.world.now:.3f}: {type(error).__name__}: {error}") from error

    def _run(self) -> dict[str, int]:
        world, rng = self.world, self._rng
        for _ in range(rng.randint(2, 10)):
            world.after(rng.uniform(0, FAULTS_S), self._push, rng.choice(world.voters.nodes))
        for _ in range(rng.randint(0, 2)):
            at = rng.uniform(0, FAULTS_S)
            for name in rng.sample(world.voters.nodes, min(2, len(world.voters.nodes))):
                world.after(at, self._push, name)
        for what in (self._crash, self._suspect, self._cut, self._read, self._gossip):
            for _ in range(rng.choice((0, 0, 1, 3, 6))):
                world.after(rng.uniform(0, FAULTS_S), what)
        world.run(FAULTS_S)
        spare = len(world.voters.nodes) - world.voters.majority
        dead = rng.sample(world.voters.nodes, spare) if world.quorum == "majority" and rng.random() < 0.4 else []
        if dead:
            self._make_peace(dead)
        self._make_peace([])
        self._check_answers()
        outcomes = [told[-1].kind.value for told in world.laws.told.values()]
        return {kind: outcomes.count(kind) for kind in set(outcomes)}

    # ------------------------------------------------------------ what happens

    def _push(self, name: NodeId) -> None:
        node, rng = self.world.nodes[name], self._rng
        if not node.up:
            return
        txn = TxnId(f"t{len(self._asked) + 1}")
        self._asked[txn] = (name, node.life, self.world.now)
        draw = rng.random()
        if draw < 0.08 or not node.register.exists:
            node.submit(txn, ChangeKind.CREATE if draw < 0.9 else ChangeKind.DELETE, ())
        elif draw < 0.12:
            node.submit(txn, ChangeKind.DELETE, ())
        else:
            branch = rng.choice(("main", "topic", txn))
            known = node.register.refs.get(RefName(f"refs/heads/{branch}"))
            made = update(branch, "-", f"{txn}")
            old = known.oid if known and rng.random() < 0.9 else ZERO_OID
            made = type(made)(made.ref, old, made.new)
            node.submit(txn, ChangeKind.UPDATE, (made,), (pack(txn),) if rng.random() < 0.6 else ())

    def _crash(self) -> None:
        node = self.world.nodes[self._rng.choice(self.world.voters.nodes)]
        if node.up:
            node.crash()
            self.world.after(self._rng.uniform(0.01, 3.0), restart, self.world, node.name, node.life)

    def _suspect(self) -> None:
        node = self.world.nodes[self._rng.choice(self.world.voters.nodes)]
        others = [name for name in self.world.voters.nodes if name != node.name]
        if node.up and others:
            node.suspect(frozenset(self._rng.sample(others, self._rng.randint(0, len(others)))))
            self.world.after(self._rng.uniform(0.1, 2.0), self._trust, node.name)

    def _trust(self, name: NodeId) -> None:
        if self.world.nodes[name].up:
            self.world.nodes[name].suspect(frozenset())

    def _cut(self) -> None:
        names = list(self.world.voters.nodes)
        self._rng.shuffle(names)
        side = self._rng.randint(0, len(names))
        pairs = {frozenset((one, other)) for one in names[:side] for other in names[side:]}
        self._weather.cut |= pairs
        self.world.after(self._rng.uniform(0.1, 3.0), self._weather.cut.difference_update, pairs)

    def _read(self) -> None:
        node = self.world.nodes[self._rng.choice(self.world.voters.nodes)]
        if node.up:
            node.read(4.0, self._count_read)

    def _count_read(self, version: int) -> None:
        self.served += 1

    def _gossip(self) -> None:
        self._learn_of_others(self._rng.choice(self.world.voters.nodes))

    def _learn_of_others(self, name: NodeId) -> None:
        """What the runtime's summaries do: hear where another node's history stands, and fetch it."""
        node = self.world.nodes[name]
        other = self.world.nodes[self._rng.choice(self.world.voters.nodes)]
        if node.up and other.up and other is not node:
            position = other.register.position
            node.catch_up(position.version, (other.name,), position)

    # ------------------------------------------------------------ what must be true at last

    def _make_peace(self, dead: list[NodeId]) -> None:
        """Nothing goes wrong any more, but that ``dead`` nodes do not come back: the others settle everything and go on."""
        world = self.world
        self._weather.calm = True
        live = [name for name in world.voters.nodes if name not in dead]
        for name in world.voters.nodes:
            node = world.nodes[name]
            if node.up and (node.disk.failed or name in dead):
                node.crash()
            if name in live:
                restart(world, name)
        for name in live:
            world.nodes[name].suspect(frozenset(dead))
        began = until = world.now
        while until < began + PEACE_S and not (until > began + 3.0 and self._unsettled(live) is None):
            until += 0.5
            world.run(until)
            for name in live:
                self._learn_of_others(name)
        if reason := self._unsettled(live):
            raise Broken(f"after {until - began:.1f} s of peace, with {dead or 'nobody'} dead, {reason}")
        self._check_alive(live)

    def _unsettled(self, live: list[NodeId]) -> str | None:
        """What is left to do, or ``None`` when all are equal, nothing is in doubt and nobody is busy."""
        nodes = [self.world.nodes[name] for name in live]
        for node in nodes:
            if node.disk.record.in_doubt is not None or node.disk.register.position != nodes[0].disk.register.position:
                return f"not all are settled: {[(n.disk.record, n.coordinator, n.voter) for n in nodes]}"
            if node.disk.register.refs != nodes[0].disk.register.refs or node.register != node.disk.register:
                return f"{node.name} has other refs than {nodes[0].name}"
            if node.coordinator.busy or node.coordinator.state not in (State.IDLE, State.OWNING):
                return f"{node.name} is still busy: {node.coordinator!r}"
        return None

    def _check_answers(self) -> None:
        for txn, (name, life, _) in self._asked.items():
            told = self.world.laws.told.get(txn, [])
            if self.world.nodes[name].life == life and (not told or not told[-1].settled):
                raise Broken(f"{txn} of {name} has no settled answer: {told}")
        timing = self.world.timing
        for txn, at in self.world.laws.told_at.items():
            if at - self._asked[txn][2] > timing.prepare_s + timing.abort_s + 0.2:
                raise Broken(f"{txn} waited {at - self._asked[txn][2]:.3f} s for its first answer")

    def _check_alive(self, live: list[NodeId]) -> None:
        """Every node can write."""
        world = self.world
        for name in live:
            txn = TxnId(f"t{len(self._asked) + 1}")
            node = world.nodes[name]
            self._asked[txn] = (name, node.life, world.now)
            exists = node.register.exists
            made = (update(txn, "-", txn),) if exists else ()
            node.submit(txn, ChangeKind.UPDATE if exists else ChangeKind.CREATE, made, (pack(txn),) if exists else ())
            world.run(world.now + 1.0)
            told = world.laws.told.get(txn, [])
            if not told or told[-1].kind is not OutcomeKind.COMMITTED:
                raise Broken(f"in peace {txn} of {name} is told {told}")
