"""One random schedule: a cluster, a seeded world that goes wrong for some seconds, then peace, and what must be true then.

Everything random comes from ``random.Random(seed)``, so a seed is a schedule, in any process and whatever PYTHONHASHSEED. The
machines are the real ones; disks, clocks and the network are ``tests/scenarios`` under ``weather.py``. The laws
(``tests/scenarios/laws.py``) are checked at every step. In the peace that follows nothing new goes wrong (messages that are
late still arrive), perhaps with a minority dead for good: everything must settle, all voters be equal, and any node be able
to write and read.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from random import Random

from node.protocol.change import ChangeKind
from node.protocol.coordinator_states import State as Doing
from node.protocol.ids import ZERO_OID, NodeId, RefName, TxnId
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.protocol.standing import Standing, State
from tests.scenarios.disk import Disk, new_life
from tests.scenarios.laws import Broken
from tests.scenarios.values import REPOSITORY, creation, pack, update
from tests.scenarios.world import World
from tests.simulation.faults import PROFILES, Fault, Profile
from tests.simulation.weather import Weather

PEACE_S = 20.0
"""In which everything must settle."""

Say = Callable[[float, NodeId, str], None]


class Schedule:
    """``run`` raises ``Broken`` with the seed in its text, or returns how often clients were told which outcome."""

    def __init__(self, seed: int, say: Say | None = None, profiles: tuple[Profile, ...] = PROFILES) -> None:
        self.seed = seed
        self._rng = rng = Random(seed)
        self.profile = profile = rng.choices(profiles, tuple(profile.weight for profile in profiles))[0]
        self.weather = Weather(rng, profile)
        size = rng.choice(profile.sizes)
        quorum = "all" if rng.random() < 0.08 else "majority"
        history = [creation(VoterSet.of(NodeId(f"node-{n}") for n in range(1, size + 1)))] if rng.random() < 0.9 else []
        losses = rng.choice(profile.amnesia)
        self.world = World(size, self.weather, quorum=quorum, say=say, history=history, amnesia=losses > 0)
        self._losses = losses
        self._snapshots: dict[NodeId, Disk] = {}
        self._names = self.world.voters.nodes
        self._asked: dict[TxnId, tuple[NodeId, int, float]] = {}
        self._strained: set[NodeId] = set()
        """Nodes whose clients may wait longer: paused, or with a clock of their own."""
        self.served = 0

    def run(self) -> Counter[str]:
        try:
            return self._run()
        except Exception as error:
            text = f"seed={self.seed} ({self.profile.name}) at {self.world.now:.3f}: {type(error).__name__}: {error}"
            raise Broken(text) from error

    @property
    def fired(self) -> Counter[Fault]:
        return self.weather.fired

    def _run(self) -> Counter[str]:
        self._plan()
        self.world.run(self.profile.faults_s)
        rng, world = self._rng, self.world
        spare = len(self._names) - world.voters.majority
        dead = rng.sample(self._names, spare) if world.quorum == "majority" and rng.random() < 0.3 else []
        if any(self._in_amnesia(name) for name in self._names):
            dead = []  # who has lost its disk is of the minority that may fail
        if dead:
            self._make_peace(dead)
        self._make_peace([])
        self._check_answers()
        for name in self._names:
            world.laws.kept(name, world.nodes[name].disk)
        return Counter(outcome.kind.value for told in world.laws.told.values() for outcome in told)

    # ------------------------------------------------------------ what is going to happen

    def _plan(self) -> None:
        rng, profile, weather, names = self._rng, self.profile, self.weather, self._names
        for _ in range(rng.randint(*profile.pushes)):
            self._at(self._push, rng.choice(names))
        for _ in range(rng.choice(profile.rivals)):
            self._at(self._rivals)
        for _ in range(rng.choice(profile.grudges)):
            weather.bear_grudge(names, profile.faults_s)
        plans: tuple[tuple[tuple[int, ...], tuple[Callable[[], None], ...]], ...] = (
            (profile.reads, (self._read,)),
            (profile.crashes, (self._crash,)),
            (profile.aimed, (self._aim,)),
            (profile.power, (self._power,)),
            (profile.disks, (self._fill, self._fail, self._slow)),
            (profile.pauses, (self._pause,)),
            (profile.clocks, (self._jump, self._drift, self._wall)),
            (profile.cuts, (self._cut, self._cut_one_way)),
            (profile.suspicions, (self._suspect,)),
            (profile.withheld, (self._withhold,)),
            ((0, 1), (self._gossip,)),
        )
        for counts, kinds in plans:
            for _ in range(rng.choice(counts)):
                self._at(rng.choice(kinds))
        for _ in range(self._losses):
            if rng.random() < 0.5:
                self._at(self._take_snapshot)
            self._at(self._lose_disk)
        if trouble := rng.choice(profile.broker):
            weather.brokered = True
            for _ in range(trouble):
                self._at(rng.choice((self._restart_broker, self._purge, self._stall, self._redeliver)))
        if intrusions := rng.choice(profile.intruders):
            weather.recording = self.world.forgers = True
            for _ in range(intrusions * 4):
                self.world.after(rng.uniform(0, profile.faults_s + 3.0), weather.intrude, self.world)

    def _at(self, what: Callable[..., None], *args: NodeId) -> None:
        self.world.after(self._rng.uniform(0, self.profile.faults_s), what, *args)

    def _any(self) -> NodeId:
        return self._rng.choice(self._names)

    def _crash(self) -> None:
        name = self._any()
        if self.world.nodes[name].up:
            self.weather.kill(self.world, name, self._rng.choice((Fault.CRASH, Fault.POWER_CUT, Fault.TORN)))

    def _aim(self) -> None:
        self.weather.aim(self._any())

    def _power(self) -> None:
        self.weather.cut_power_soon(self._any())

    def _take_snapshot(self) -> None:
        name = self._any()
        self._snapshots[name] = self.world.nodes[name].disk.copy()

    def _in_amnesia(self, name: NodeId) -> bool:
        disk = self.world.nodes[name].disk
        return disk.standing.state is not State.MEMBER or disk.set_back

    def _lose_disk(self) -> None:
        """A disk is lost, set back or damaged; never of more nodes at once than the guarantees allow."""
        world, rng, weather = self.world, self._rng, self.weather
        old = [name for name in self._names if name in self._snapshots]
        name = rng.choice(old) if old and rng.random() < 0.7 else self._any()
        others = sum(self._in_amnesia(other) for other in self._names if other != name)
        if others >= len(self._names) - world.voters.majority or self._in_amnesia(name):
            return
        node = world.nodes[name]
        fault = Fault.SNAPSHOT if name in self._snapshots else rng.choice((Fault.WIPE, Fault.WIPE, Fault.FLIP))
        if fault is Fault.SNAPSHOT and self._snapshots[name].life == node.disk.life:
            return  # nothing would be lost
        if node.up:
            node.crash()
        world.laws.destroyed(name, node.disk)
        if fault is Fault.SNAPSHOT:
            node.disk = self._snapshots.pop(name)
            node.disk.set_back = True
        else:
            disk = Disk(
                Register(REPOSITORY, world.voters), life=new_life(f"{name} of {world.now}"), standing=Standing(State.NEW)
            )
            if fault is Fault.FLIP:
                # The damaged rows are forgotten and learned anew; whose journal it is, is known.
                disk.life, disk.enrolled = node.disk.life, node.disk.enrolled
                disk.standing = replace(node.disk.standing, state=State.REJOINING, reason="a row is damaged")
            node.disk = disk
        weather.fired[fault] += 1
        world.tell(name, f"died: {fault.value}")
        world.after(rng.choice((0.02, 0.5, 2.0)) * rng.random(), weather.restart, world, name, node.life)

    def _fill(self) -> None:
        name = self._any()
        self.weather.full.add(name)
        self.world.after(self._rng.uniform(0.1, 2.0), self.weather.full.discard, name)

    def _fail(self) -> None:
        name = self._any()
        self.weather.failing.add(name)
        self.world.after(self._rng.uniform(0.2, 2.0), self._restart_failed, name)

    def _restart_failed(self, name: NodeId) -> None:
        """Whoever watches the process starts it anew: what the failed fsync was about is on the disk, or not."""
        node = self.world.nodes[name]
        if node.up and node.disk.failed and not self.weather.calm:
            node.crash(self._rng.randint(0, len(node.disk.tail)))
            self.weather.restart(self.world, name)

    def _slow(self) -> None:
        name = self._any()
        self.weather.slow.add(name)
        self.world.after(self._rng.uniform(0.5, 2.0), self.weather.slow.discard, name)

    def _withhold(self) -> None:
        name = self._any()
        self.weather.withheld.add(name)
        self.world.after(self._rng.uniform(0.5, 4.0), self.weather.withheld.discard, name)

    def _pause(self) -> None:
        node = self.world.nodes[self._any()]
        if node.up:
            node.paused_until = self.world.now + self._rng.choice((0.1, 1.0, 4.0)) * self._rng.random()
            self._strained.add(node.name)
            self.weather.fired[Fault.PAUSE] += 1
            self.world.tell(node.name, "PAUSED")

    def _jump(self) -> None:
        node = self.world.nodes[self._any()]
        seconds = self._rng.choice((0.3, 3.0, 100.0)) * self._rng.random()
        self._strained.add(node.name)
        self.weather.fired[Fault.CLOCK] += 1
        self.world.tell(node.name, f"its clock leaps by {seconds:.3f} s")
        if node.up:
            node.jump(seconds)
        else:
            node.skew_s += seconds

    def _drift(self) -> None:
        node, now = self.world.nodes[self._any()], self.world.now
        rate = self._rng.uniform(0.8, 1.2)
        self._strained.add(node.name)
        node.skew_s += now * (node.rate - rate)
        node.rate = rate
        self.weather.fired[Fault.DRIFT] += 1

    def _wall(self) -> None:
        self.world.nodes[self._any()].wall_skew_s = self._rng.uniform(-1e6, 1e6)
        self.weather.fired[Fault.WALL] += 1

    def _cut(self) -> None:
        names = list(self._names)
        self._rng.shuffle(names)
        side = self._rng.randint(0, len(names))
        self._sever([(one, other) for one in names[:side] for other in names[side:]], both=True)

    def _cut_one_way(self) -> None:
        one = self._any()
        others = [name for name in self._names if name != one and self._rng.random() < 0.7]
        into = self._rng.random() < 0.5
        self._sever([(other, one) if into else (one, other) for other in others], both=False)

    def _sever(self, pairs: list[tuple[NodeId, NodeId]], *, both: bool) -> None:
        cut, fault = self.weather.cut, Fault.CUT if both else Fault.ONE_WAY
        every = [*pairs, *((other, one) for one, other in pairs)] if both else pairs
        cut.update(dict.fromkeys(every, fault))
        self.world.after(self._rng.uniform(0.1, 3.0), self._mend, every)

    def _mend(self, pairs: list[tuple[NodeId, NodeId]]) -> None:
        for pair in pairs:
            self.weather.cut.pop(pair, None)

    def _restart_broker(self) -> None:
        self.weather.restart_broker(self.world)

    def _purge(self) -> None:
        self.weather.purge(self.world, self._any())

    def _stall(self) -> None:
        self.weather.stall(self.world, self._any(), self._rng.uniform(0.1, 3.0))

    def _redeliver(self) -> None:
        self.weather.redeliver(self.world, self._any())

    def _suspect(self) -> None:
        node = self.world.nodes[self._any()]
        others = [name for name in self._names if name != node.name]
        if node.open and others:
            node.suspect(frozenset(self._rng.sample(others, self._rng.randint(0, len(others)))))
            self.weather.fired[Fault.SUSPICION] += len(node.suspected)
            self.world.after(self._rng.uniform(0.1, 2.0), self._trust, node.name)

    def _trust(self, name: NodeId) -> None:
        if self.world.nodes[name].open:
            self.world.nodes[name].suspect(frozenset())

    # ------------------------------------------------------------ what clients do

    def _rivals(self) -> None:
        names = self._rng.sample(self._names, min(self._rng.choice((2, 2, 3)), len(self._names)))
        if sum(self.world.nodes[name].open for name in names) > 1:
            self.weather.fired[Fault.RIVALS] += 1
        for name in names:
            self._push(name)

    def _push(self, name: NodeId) -> None:
        node, rng = self.world.nodes[name], self._rng
        if not node.open or node.paused_until > self.world.now:
            return
        txn = TxnId(f"t{len(self._asked) + 1}")
        self._asked[txn] = (name, node.life, self.world.now)
        draw = rng.random()
        if draw < 0.06 or not node.register.exists:
            node.submit(txn, ChangeKind.CREATE if draw < 0.95 else ChangeKind.DELETE, ())
        elif draw < 0.09:
            node.submit(txn, ChangeKind.DELETE, ())
        else:
            branch = rng.choice(("main", "topic", txn))
            known = node.register.refs.get(RefName(f"refs/heads/{branch}"))
            made = update(branch, "-", f"{txn}")
            old = known.oid if known and rng.random() < 0.9 else ZERO_OID
            made = type(made)(made.ref, old, made.new)
            node.submit(txn, ChangeKind.UPDATE, (made,), (pack(txn),) if rng.random() < 0.5 else ())

    def _read(self) -> None:
        node = self.world.nodes[self._any()]
        if node.open and node.paused_until <= self.world.now:
            node.read(4.0, self._count_read)

    def _count_read(self, value: Register) -> None:
        self.served += 1

    def _gossip(self) -> None:
        self._learn_of_others(self._any())

    def _learn_of_others(self, name: NodeId) -> None:
        """What the runtime's summaries do: hear where another node's history stands, and fetch it."""
        node = self.world.nodes[name]
        other = self.world.nodes[self._any()]
        if node.open and other.open and other is not node:
            position = other.disk.register.position
            node.catch_up(position.version, (other.name,), position)

    # ------------------------------------------------------------ what must be true at last

    def _make_peace(self, dead: list[NodeId]) -> None:
        """Nothing goes wrong any more, but that ``dead`` nodes do not come back: the others settle everything and go on."""
        world, weather = self.world, self.weather
        weather.calm, weather.fragile = True, False
        weather.cut.clear()
        live = [name for name in self._names if name not in dead]
        for name in self._names:
            node = world.nodes[name]
            if node.up and (node.disk.failed or name in dead):
                node.crash()
            if name in live:
                weather.restart(world, name)
        for name in live:
            if world.nodes[name].open:
                world.nodes[name].suspect(frozenset(dead))
        began = world.now
        reason: str | None = "nobody looked"
        while reason is not None and world.now < began + PEACE_S:
            world.run(world.now + 0.5)
            for name in live:
                self._learn_of_others(name)
            reason = self._unsettled(live)
            if reason is None and world.now < weather.late_until:
                world.run(weather.late_until + 0.01)  # what was late arrives, and may begin everything anew
                reason = self._unsettled(live)
        if reason is not None:
            raise Broken(f"after {world.now - began:.1f} s of peace, with {dead or 'nobody'} dead, {reason}")
        draw = self._rng.random()
        if not dead or draw < 0.3:
            self._check_alive(live if draw < 0.05 else [self._rng.choice(live)])

    def _unsettled(self, live: list[NodeId]) -> str | None:
        """What is left to do, or ``None`` when all are equal, nothing is in doubt and nobody is busy."""
        nodes = [self.world.nodes[name] for name in live]
        first = nodes[0].disk.register
        for node in nodes:
            disk = node.disk
            if node.paused_until > self.world.now:
                return f"{node.name} stands still"  # a pause runs its time: what waits in it must keep its order
            if not node.open:
                return f"{node.name} is not back: {disk.standing}, {node.membership.machine!r}"
            if disk.tail or disk.record.in_doubt is not None or disk.register.position != first.position:
                return f"not all are settled: {[(n.disk.record, n.coordinator, n.voter) for n in nodes]}"
            if disk.register.refs != first.refs or node.register != disk.register:
                return f"{node.name} has other refs than {nodes[0].name}"
            if node.coordinator.busy or node.coordinator.state not in (Doing.IDLE, Doing.OWNING):
                return f"{node.name} is still busy: {node.coordinator!r}"
        return None

    def _check_answers(self) -> None:
        for txn, (name, life, _) in self._asked.items():
            told = self.world.laws.told.get(txn, [])
            if self.world.nodes[name].life == life and (not told or not told[-1].settled):
                raise Broken(f"{txn} of {name} has no settled answer: {told}")
        timing = self.world.timing
        for txn, at in self.world.laws.told_at.items():
            name, _, asked_at = self._asked[txn]
            if name not in self._strained and at - asked_at > timing.prepare_s + timing.abort_s + 0.2:
                raise Broken(f"{txn} waited {at - asked_at:.3f} s for its first answer")

    def _check_alive(self, names: list[NodeId]) -> None:
        """Every one of them can write, and then (now and then) serve a read that sees it."""
        world = self.world
        for name in names:
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
            if self._rng.random() < 0.7:
                continue
            before = world.laws.reads
            node.read(2.0, self._count_read)
            world.run(world.now + 0.5)
            if world.laws.reads == before:
                raise Broken(f"in peace a read at {name} is not served")
