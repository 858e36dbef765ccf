"""What the world does to a simulated cluster: a network or a broker, disks, clocks and pauses, drawn from one ``Random``.

Messages go through a model of the broker: what is on its way when it restarts or when a queue is purged is gone, what was
delivered last may come again, what a stalled publisher sends leaves late, and what arrives for a node that is down waits for
its next life. Direct HTTP (questions, history, objects) obeys the partitions only. ``calm`` ends everything; ``fired`` counts
what happened.
"""

from collections import Counter, deque
from dataclasses import dataclass, replace
from random import Random

from node.protocol.effects import Decide, Effect, Reply, Send, Write
from node.protocol.events import Written
from node.protocol.ids import NodeId
from node.protocol.messages import Abort, Claim, Commit, Prepare, Promise, TransportReply, TransportRequest, Vote, VoteKind
from tests.scenarios.cluster_node import Node
from tests.scenarios.conditions import Conditions
from tests.scenarios.conditions import Fault as DiskFault
from tests.scenarios.disk import Pending
from tests.scenarios.words import describe
from tests.scenarios.world import World
from tests.simulation.faults import Fault, Profile

Message = TransportRequest | TransportReply
Pair = tuple[NodeId, NodeId]

KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in (Claim, Promise, Prepare, Vote, Commit, Abort)}
AIMS: tuple[tuple[type[Effect | Written | Pending], type[Message] | None], ...] = (
    (Decide, None),
    (Send, Claim),
    (Send, Prepare),
    (Send, Abort),
    (Send, Commit),
    (Reply, Promise),
    (Reply, Vote),
    (Write, None),
    (Written, None),
    (Pending, None),
)


def aim_name(aim: tuple[type[Effect | Written | Pending], type[Message] | None]) -> str:
    """``Decide``, ``Send Commit`` …"""
    return aim[0].__name__ + (f" {aim[1].__name__}" if aim[1] else "")


RECENT_MAX = 6
"""Deliveries that a broker may make again."""
SAMPLE_MAX = 40
"""Messages that an intruder has recorded."""
BACKLOG_MAX = 30


@dataclass(frozen=True, slots=True)
class Grudge:
    """Messages of one kind that are nearly always lost (``late_s`` negative) or late, between certain nodes, for some time."""

    sender: NodeId | None
    to: NodeId | None
    kind: type[Message]
    late_s: float
    begins_at: float
    ends_at: float


class Weather(Conditions):
    """How bad it is, drawn once a schedule."""

    fragile = False

    def __init__(self, rng: Random, profile: Profile) -> None:
        self.rng = rng
        self.fired: Counter[Fault] = Counter()
        self.calm = False
        self.late_until = 0.0
        """When the last message that is on its way arrives."""
        self.cut: dict[Pair, Fault] = {}
        self._loss = rng.choice(profile.loss)
        self._double = rng.choice(profile.double)
        self._late = rng.choice(profile.late)
        self._network_s = rng.choice(profile.network_s)
        self._sync_s = rng.choice(profile.sync_s)
        self._write_s = rng.choice((0.0, 0.001, 0.02))
        self._apply_s = rng.choice((0.0, 0.0, 0.05))
        self._unstaged = rng.choice(profile.unstaged)
        self._against, self._aimed_at, self._down_s = profile.against, profile.aimed_at, profile.down_s
        self._grudges: list[Grudge] = []
        self._aims: dict[NodeId, tuple[tuple[type[Effect | Written | Pending], type[Message] | None], int]] = {}
        self._cut_power: dict[NodeId, int] = {}
        self.full: set[NodeId] = set()
        self.failing: set[NodeId] = set()
        self.slow: set[NodeId] = set()
        self.withheld: set[NodeId] = set()
        """Nodes that get no objects from anybody for some time."""
        self.brokered = False
        self.recording = False
        self._last_at: dict[Pair, float] = {}
        self._epoch: Counter[NodeId] = Counter()
        self._lost_as: dict[NodeId, Fault] = {}
        self._stalled: dict[NodeId, float] = {}
        self._recent: dict[NodeId, deque[tuple[Node, Message]]] = {}
        self._backlog: dict[NodeId, list[tuple[Node, Message]]] = {}
        self._sample: list[tuple[NodeId, NodeId, Message]] = []

    # ------------------------------------------------------------ messages

    def transmit(self, world: World, sender: Node, to: NodeId, message: Message) -> None:
        rng = self.rng
        if self.recording and len(self._sample) < SAMPLE_MAX:
            self._sample.append((sender.name, to, message))
        if self.calm:
            world.after(0.005 * rng.random(), self._arrive, world, sender, to, message, self._epoch[to])
            return
        pair = (sender.name, to)
        fault = self.cut.get(pair)
        if fault is None and self._loss and rng.random() < self._loss:
            fault = Fault.DROP
        late_s = 0.0
        if fault is None and self._grudges and (grudge := self._grudge(world.now, sender.name, to, message)):
            self.fired[Fault.GRUDGE] += 1
            fault, late_s = (Fault.DROP, 0.0) if grudge < 0 else (None, grudge * rng.random())
        if fault is not None:
            self.fired[fault] += 1
            if world.say is not None:
                world.tell(sender.name, f"lost on the way to {to} ({fault.value}): {describe(message)}")
            return
        if self._late and rng.random() < self._late:
            late_s += 8.0 * rng.random()
            self.fired[Fault.DELAY] += 1
        copies = 1
        if self._double and rng.random() < self._double:
            copies = 2
            self.fired[Fault.DUPLICATE] += 1
        for _ in range(copies):
            self._set_out(world, sender, to, message, late_s + self._network_s * rng.random())

    def _set_out(self, world: World, sender: Node, to: NodeId, message: Message, delay_s: float) -> None:
        at = world.now + delay_s
        if (until := self._stalled.get(sender.name, 0.0)) > at:
            self.fired[Fault.STALL] += 1
            at = until + 0.001 * self.rng.random()
        pair = (sender.name, to)
        if at < self._last_at.get(pair, 0.0):
            self.fired[Fault.REORDER] += 1
        else:
            self._last_at[pair] = at
        self.late_until = max(self.late_until, at)
        world.after(at - world.now, self._arrive, world, sender, to, message, self._epoch[to])

    def _arrive(self, world: World, sender: Node, to: NodeId, message: Message, epoch: int) -> None:
        if epoch != self._epoch[to] and self.rng.random() < 0.8:
            fault = self._lost_as[to]
            self.fired[fault] += 1
            world.tell(sender.name, f"lost in the broker ({fault.value})")
            return
        if self.brokered:
            self._recent.setdefault(to, deque(maxlen=RECENT_MAX)).append((sender, message))
        sender.deliver(to, message)

    def absent(self, world: World, sender: Node, to: NodeId, message: Message) -> None:
        """A queue keeps what arrives for a node that is down."""
        if self.brokered:
            waiting = self._backlog.setdefault(to, [])
            if len(waiting) < BACKLOG_MAX:
                waiting.append((sender, message))

    def back(self, world: World, name: NodeId) -> None:
        """A node begins a new life: its queue is delivered."""
        for sender, message in self._backlog.pop(name, ()):
            self.fired[Fault.DELAY] += 1
            world.after(0.01 * self.rng.random(), sender.deliver, name, message)

    # ------------------------------------------------------------ the broker

    def restart_broker(self, world: World) -> None:
        down_s = self.rng.uniform(0.05, 1.0)
        for name in world.voters.nodes:
            self.purge(world, name, Fault.BROKER)
            self.stall(world, name, down_s)

    def purge(self, world: World, name: NodeId, fault: Fault = Fault.PURGE) -> None:
        self._epoch[name] += 1
        self._lost_as[name] = fault
        for _ in self._backlog.pop(name, ()):
            self.fired[fault] += 1

    def stall(self, world: World, name: NodeId, seconds: float) -> None:
        self._stalled[name] = max(self._stalled.get(name, 0.0), world.now + seconds)

    def redeliver(self, world: World, name: NodeId) -> None:
        for sender, message in self._recent.get(name, ()):
            self.fired[Fault.REDELIVERY] += 1
            world.after(0.05 * self.rng.random(), sender.deliver, name, message)

    # ------------------------------------------------------------ intruders

    def intrude(self, world: World) -> None:
        """Somebody on the network, without any node's key: repeats what it saw, or makes messages up."""
        if not self._sample:
            return
        sender, to, message = self.rng.choice(self._sample)
        if self.rng.random() < 0.5:
            self.fired[Fault.REPLAYED] += 1
            world.nodes[sender].deliver(to, message)
            return
        forger, target = sender, to
        if isinstance(message, Vote):
            message = replace(message, kind=VoteKind.YES, signature=b"forged")
            forger = self.rng.choice([name for name in world.voters.nodes if name != to] or [sender])
        elif isinstance(message, Prepare):
            made = replace(message.change.requests[0], txn=f"{message.change.requests[0].txn}x", packs=())
            message = replace(message, change=replace(message.change, requests=(made,)))
        elif isinstance(message, Commit):
            forged = replace(message.certificate.decision, signature=b"forged")
            message = replace(message, certificate=replace(message.certificate, decision=forged))
        else:
            target = self.rng.choice([name for name in world.voters.nodes if name != forger] or [to])
            if target == to:
                return
        if self.believes(world, target):
            world.nodes[forger].deliver(target, message)
        else:
            self.fired[Fault.FORGED] += 1
            world.tell(target, f"refuses a forged {type(message).__name__.lower()} of {forger}")

    def believes(self, world: World, receiver: NodeId) -> bool:
        """Whether a forged signature passes; the codec's tests say that it does not (tests/unit/test_codec.py)."""
        return False

    # ------------------------------------------------------------ grudges

    def bear_grudge(self, names: tuple[NodeId, ...], faults_s: float) -> None:
        """One kind of message, from or to certain nodes, is lost or late by up to so many seconds, always or for a while."""
        rng = self.rng
        kind = KINDS[rng.choice(self._against)]
        who: tuple[NodeId | None, NodeId | None] = rng.choice(
            ((rng.choice(names), None), (None, rng.choice(names)), (rng.choice(names), rng.choice(names)), (None, None))
        )
        begins_at = rng.choice((0.0, rng.uniform(0, faults_s)))
        lasts_s = rng.choice((1.0, 2.5, faults_s))
        self._grudges.append(Grudge(*who, kind, rng.choice((-1.0, 0.5, 3.0)), begins_at, begins_at + lasts_s))

    def _grudge(self, now: float, sender: NodeId, to: NodeId, message: Message) -> float:
        kind = type(message)
        for grudge in self._grudges:
            if (
                grudge.kind is kind
                and grudge.begins_at <= now < grudge.ends_at
                and grudge.sender in (None, sender)
                and grudge.to in (None, to)
                and self.rng.random() < 0.9
            ):
                return grudge.late_s
        return 0.0

    # ------------------------------------------------------------ direct HTTP

    def reaches(self, world: World, one: NodeId, other: NodeId) -> bool:
        """A question needs its way and the way back."""
        if self.calm or not self.cut:
            return True
        for pair in ((one, other), (other, one)):
            if fault := self.cut.get(pair):
                self.fired[fault] += 1
                return False
        return True

    def direct_delay(self) -> float:
        return 0.01 * self.rng.random()

    def answer_delay(self) -> float:
        return (0.01 if self.calm else self._network_s) * self.rng.random()

    def may_stage(self, node: NodeId) -> bool:
        if self.calm or (node not in self.withheld and (not self._unstaged or self.rng.random() >= self._unstaged)):
            return True
        self.fired[Fault.UNSTAGED] += 1
        return False

    # ------------------------------------------------------------ disks

    def journal_delays(self, node: NodeId) -> tuple[float, float]:
        rng = self.rng
        if self.calm:
            return 0.001 * rng.random(), 0.0
        if node in self.slow:
            self.fired[Fault.SLOW] += 1
            return self._write_s * rng.random(), 0.5 * rng.random()
        return self._write_s * rng.random(), self._sync_s * rng.random()

    def apply_delay(self) -> float:
        return self._apply_s * self.rng.random()

    def disk_fault(self, node: NodeId) -> DiskFault:
        if self.calm:
            return DiskFault.NONE
        if node in self.full:
            self.fired[Fault.FULL] += 1
            return DiskFault.REFUSED
        if node in self.failing:
            self.failing.remove(node)
            self.fired[Fault.FSYNC] += 1
            return DiskFault.FAILED
        return DiskFault.NONE

    # ------------------------------------------------------------ crashes

    def aim(self, name: NodeId) -> None:
        aims = [aim for aim in AIMS if self._aimed_at in ("", aim_name(aim))]
        self._aims[name] = (self.rng.choice(aims), self.rng.choice((1, 1, 2, 3)))
        self.fragile = True

    def cut_power_soon(self, name: NodeId) -> None:
        """At one of the next writes of this node that are in the log and not fsynced."""
        self._cut_power[name] = self.rng.choice((1, 1, 2, 3))
        self.fragile = True

    def crashes(self, world: World, node: NodeId, before: Effect | Written | Pending) -> bool:
        if self.calm:
            return False
        if type(before) is Pending and node in self._cut_power:
            self._cut_power[node] -= 1
            if self._cut_power[node] <= 0:
                del self._cut_power[node]
                self.kill(world, node, self.rng.choice((Fault.POWER_CUT, Fault.TORN)))
                return True
        aim = self._aims.get(node)
        if aim is None:
            return False
        (kind, message), left = aim
        if type(before) is not kind or (message is not None and type(getattr(before, "message", None)) is not message):
            return False
        self._aims[node] = ((kind, message), left - 1)
        if left > 1:
            return False
        del self._aims[node]
        self.fired[Fault.AIMED] += 1
        self.kill(world, node, self.rng.choice((Fault.CRASH, Fault.CRASH, Fault.POWER_CUT, Fault.TORN)))
        return True

    def kill(self, world: World, name: NodeId, fault: Fault, down_s: float | None = None) -> None:
        """A node dies, and comes back later."""
        node, rng = world.nodes[name], self.rng
        tail, loose = len(node.disk.tail), len(node.disk.loose) + (node.disk.applied > node.disk.marked)
        if fault is Fault.CRASH:
            node.crash()
        else:
            kept = rng.randint(0, tail - 1) if tail else 0
            node.crash(kept)
            if not tail and not (loose and fault is Fault.POWER_CUT):
                fault = Fault.CRASH
        self.fired[fault] += 1
        world.tell(name, f"died: {fault.value}")
        world.after(rng.uniform(0.01, self._down_s) if down_s is None else down_s, self.restart, world, name, node.life)

    def restart(self, world: World, name: NodeId, life: int = 0) -> None:
        """Unless it was started, or died again, meanwhile (``life``)."""
        node = world.nodes[name]
        if node.up or (life and node.life != life):
            return
        world.tell(name, "STARTED")
        node.start()
        self.back(world, name)

    def spread(self, node: NodeId) -> float:
        return self.rng.random()
