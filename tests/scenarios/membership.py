"""R4 for a test node: what it is worth to its cluster, and the way back of one that lost its disk, as ``node/membership.py``,
``node/rejoining.py`` and ``node/restoring.py`` do it. The machine is the real one (``node/protocol/rejoin.py``).

In a world without amnesia nothing of this happens. In one with it a starting node asks everybody what they have seen of it
before it says anything; a new journal is told that its cluster was founded without it; who is older than what was seen of it
marks itself. What is seen of a node comes with every message it sends, requests included, and is forgotten with the process
that saw it (a real one keeps it on its disk every few seconds). A disk that was set back must be noticed whenever a node that
answers has received any later message of it; that is a law here. Where nobody in reach has, nothing is guaranteed: there the
operator says ``rejoin``, as the documents demand (``World.unnoticed`` counts these). Of heartbeats only those are played that
tell a node why its messages are refused.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from node.protocol.acceptor import CommitOp, RejoinOp, WriteVerdict
from node.protocol.catchup import steps
from node.protocol.effects import Wake
from node.protocol.events import Enrolled, Tick
from node.protocol.ids import NodeId
from node.protocol.incarnations import FIRST, newest
from node.protocol.messages import (
    AcceptorPage,
    AcceptorRecords,
    Enrol,
    Enrolment,
    HeldRecord,
    HistoryEntry,
    HistoryPage,
    TransportReply,
    TransportRequest,
)
from node.protocol.rejoin import (
    Answered,
    Ask,
    Begin,
    Clear,
    Cleared,
    Keep,
    Kept,
    Rejoin,
    RejoinEvent,
    Restore,
    Restored,
)
from node.protocol.rejoin_states import Step
from node.protocol.standing import Life, Lost, Standing, State, founding, together, weighed
from tests.scenarios.laws import Broken
from tests.scenarios.values import REPOSITORY

if TYPE_CHECKING:
    from tests.scenarios.cluster_node import Node

HELLO_S = 1.0
HEARTBEAT_S = 0.5
"""Within which who is refused as older than what was seen of it is told so."""
KNOCK_S = 0.5
"""Between hellos of a journal that knows nothing of its cluster yet."""
RESTORE_PAUSE_S = 0.5


class Membership:
    """One life's."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._seen: dict[NodeId, Life] = {}
        self._arrived: dict[NodeId, Life] = {}
        """The life with the most writes that any message of a node carried, for the law and not for the node."""
        self._heard: dict[NodeId, tuple[str, Standing]] = {}
        self.machine: Rejoin | None = None
        self._wish = 0
        self._asked = False
        self._heartbeat = False

    # ------------------------------------------------------------ the start

    def start(self) -> None:
        node, disk = self._node, self._node.disk
        life = disk.life
        disk.life = replace(life, boot=life.boot + 1, nonce=f"{node.name} life {node.life}", began=life.writes)
        if not node.world.amnesia:
            node.begin()
        elif disk.standing.state is State.REJOINING:
            self._rejoin()
        elif node.world.now == 0.0:
            self._asked = True
            node.begin()
        else:
            self._hello()
            node.after(HELLO_S, self._consider)

    def _hello(self) -> None:
        """Ask everybody once: where do you stand, and what have you seen of me?"""
        world, node = self._node.world, self._node
        for peer in self._others:
            world.after(world.conditions.direct_delay(), self._greet, peer, node.life)

    def _greet(self, peer: "Node", life: int) -> None:
        node, world = self._node, self._node.world
        if not self._in_reach(peer) or node.life != life or not node.up:
            return
        peer.membership.counts(node.name, node.disk.life)
        seen = peer.membership._seen.get(node.name)
        delay_s = world.conditions.answer_delay()
        arrived = peer.membership._arrived.get(node.name)
        node.after(delay_s, self._met, peer.name, peer.disk.life, peer.disk.standing, seen, arrived)

    def _met(self, peer: NodeId, life: Life, standing: Standing, seen: Life | None, arrived: Life | None) -> None:
        disk = self._node.disk
        self._heard[peer] = (life.journal, standing)
        if standing.state is not State.NEW:
            self.counts(peer, life)
        if seen is not None and disk.standing.state is State.MEMBER and (reason := disk.life.behind(seen)):
            self.lose(f"{peer} has seen more of it: {reason}")
        elif disk.set_back and disk.standing.state is State.MEMBER and self._had_more(arrived):
            raise Broken(f"{self._node.name} is set back, {peer} has had a later message of it, and nobody notices")
        elif not self._asked and len(self._heard) == len(self._others):
            self._consider()

    def _had_more(self, arrived: Life | None) -> bool:
        """Whether that message was sent before this disk was set back, by what the world knows: it began with less."""
        life = self._node.disk.life
        return arrived is not None and (arrived.incarnation, arrived.writes) > (life.incarnation, life.began)

    def _consider(self) -> None:
        """Everybody was waited for long enough."""
        node, disk = self._node, self._node.disk
        if node.open or self.machine is not None:
            return
        self._asked = True
        if disk.standing.state is State.NEW:
            verdict = founding(disk.life.journal, tuple(peer.name for peer in self._others), self._heard)
            if isinstance(verdict, Lost):
                self.lose(verdict.reason)
            else:
                self._hello()
                node.after(KNOCK_S, self._consider)
        elif disk.set_back:
            node.world.unnoticed += 1
            self.lose("an operator restored an old copy, and says so")
        else:
            node.begin()

    def lose(self, reason: str) -> None:
        """From here on it answers nothing; the mark is durable."""
        node, disk = self._node, self._node.disk
        node.world.tell(node.name, f"must rejoin: {reason}")
        was_open = node.open
        if was_open:
            node.crash()  # its machines are dropped with all they wait for
        disk.standing = replace(disk.standing, state=State.REJOINING, reason=reason)
        if was_open:
            node.start()
        else:
            self._rejoin()

    def hears(self, sender: "Node", message: TransportRequest | TransportReply) -> bool:
        """A message arrives: remember what it tells of its sender; False for an older life than was seen, which is refused."""
        _, life = self._node.world.lives.get(id(message), (None, None))
        if life is None:
            return True
        known = self._arrived.get(sender.name)
        if known is None or (life.incarnation, life.writes) > (known.incarnation, known.writes):
            self._arrived[sender.name] = life
        return self.counts(sender.name, life) or sender.membership.refused(self._node)

    def refused(self, peer: "Node") -> bool:
        """A message of this node was older than what ``peer`` has seen: the next heartbeat says so."""
        node = self._node
        if node.open and not self._heartbeat:
            self._heartbeat = True
            node.after(HEARTBEAT_S, self._beat, peer)
        return False

    def _beat(self, peer: "Node") -> None:
        self._heartbeat = False
        self._greet(peer, self._node.life)

    def counts(self, peer: NodeId, life: Life | None) -> bool:
        """Remember where ``peer`` stands; False for a life that is older than what was seen of it."""
        return life is None or not self._node.world.amnesia or self.counted(peer, life)

    def counted(self, peer: NodeId, life: Life) -> bool:
        counts, self._seen[peer] = weighed(self._seen.get(peer), life)
        return counts

    @property
    def _others(self) -> list["Node"]:
        return [peer for peer in self._node.world.nodes.values() if peer is not self._node]

    def _in_reach(self, peer: "Node") -> bool:
        node, world = self._node, self._node.world
        return peer.up and peer.paused_until <= world.now and world.conditions.reaches(world, node.name, peer.name)

    # ------------------------------------------------------------ who answers a rejoining node

    def enrol(self, sender: NodeId, message: Enrol) -> Enrolment:
        """Durable, and known to every machine, before it is granted; a mere question changes nothing."""
        node, disk = self._node, self._node.disk
        known = disk.enrolled.get(sender, (FIRST, ""))
        if message.incarnation > known[0]:
            known = disk.enrolled[sender] = (message.incarnation, message.life)
            self.enrolled(sender, message.incarnation)
        granted = message.incarnation > FIRST and known == (message.incarnation, message.life)
        return Enrolment(granted, newest_of(node, sender), disk.life)

    def enrolled(self, node: NodeId, incarnation: int) -> None:
        self._node.feed_both(Enrolled(node, incarnation))

    def page(self, sender: NodeId, message: AcceptorRecords) -> AcceptorPage:
        disk = self._node.disk
        granted = self.enrol(sender, Enrol(message.incarnation, message.life)).granted
        known = disk.record.promised.round > 0 or disk.record.committed.version > 0
        record = disk.record
        held = HeldRecord(REPOSITORY, disk.register.voters, record.promised, record.accepted, record.committed)
        records = (held,) if granted and known else ()
        seen = tuple((peer, life) for peer, life in sorted(self._seen.items()) if granted and peer != sender)
        return AcceptorPage(granted, records, False, disk.life.incarnation, disk.incarnations, disk.life, seen)

    # ------------------------------------------------------------ the machine

    def _rejoin(self) -> None:
        node, disk = self._node, self._node.disk
        node.open = False
        self.machine = Rejoin(
            node.name,
            node.world.voters,
            incarnation=disk.life.incarnation,
            tried=disk.standing.tried,
            spread=node.world.conditions.spread(node.name),
        )
        self._feed(Begin())

    def _feed(self, event: RejoinEvent) -> None:
        node, machine = self._node, self.machine
        if machine is None:
            return
        before = machine.step
        effects = machine.handle(event, node.clock())
        if machine.step is not before:
            node.world.tell(node.name, f"rejoining: {before.name} → {machine.step.name}")
        for effect in effects:
            match effect:
                case Ask(to, message):
                    world = node.world
                    world.after(world.conditions.direct_delay(), self._ask, world.nodes[to], message, node.life)
                case Keep(incarnation):
                    node.after(0.001, self._keep, incarnation)
                case Restore():
                    node.after(node.world.conditions.direct_delay(), self._restore, effect)
                case Clear():
                    node.after(0.001, self._clear, effect)
                case Wake(at):
                    self._wish += 1
                    node.after(max(0.001, (at - node.clock()) / node.rate), self._tick, self._wish)
                case _:
                    pass

    def _tick(self, wish: int) -> None:
        if wish == self._wish:
            self._feed(Tick())

    def _ask(self, peer: "Node", message: Enrol | AcceptorRecords, life: int) -> None:
        node, world = self._node, self._node.world
        if not self._in_reach(peer) or not peer.open or node.life != life:
            return
        if isinstance(message, Enrol):
            answer: Enrolment | AcceptorPage = peer.membership.enrol(node.name, message)
        else:
            answer = peer.membership.page(node.name, message)
        node.after(world.conditions.answer_delay(), self._answered, peer, answer)

    def _answered(self, peer: "Node", answer: Enrolment | AcceptorPage) -> None:
        if not self._in_reach(peer):
            return
        if isinstance(answer, AcceptorPage):
            for seen, life in answer.seen:
                known = self._seen.get(seen)
                self._seen[seen] = together(life, *(known,) if known else ())
        if self.counts(peer.name, answer.life) or peer.membership.refused(self._node):
            self._feed(Answered(peer.name, answer))

    def _keep(self, incarnation: int) -> None:
        disk = self._node.disk
        disk.standing = replace(disk.standing, tried=max(disk.standing.tried, incarnation))
        self._node.world.attempts += 1
        self._feed(Kept(incarnation, f"attempt {self._node.world.attempts}"))

    def _restore(self, wanted: Restore) -> None:
        problem = self._learn(wanted) or self._take_over(wanted)
        if problem:
            self._node.after(RESTORE_PAUSE_S, self._feed, Restored(wanted.repository, problem))
        else:
            self._feed(Restored(wanted.repository))

    def _learn(self, wanted: Restore) -> str:
        """R4.3: history first, from whoever has it."""
        node, disk, world = self._node, self._node.disk, self._node.world
        for peer in (world.nodes[name] for name in wanted.holders):
            here = disk.register.position
            if here.version >= wanted.committed.version:
                break
            if not (self._in_reach(peer) and peer.open):
                continue
            register = peer.disk.register
            page = HistoryPage(REPOSITORY, tuple(peer.disk.history[here.version :]), register.position, register.floor)
            proved = steps(here, page, lambda _, certificate: world.flaw(certificate, world.voters), {wanted.committed})
            for step in proved:
                if step.needs_objects and not all(
                    p.sha256 in peer.disk.objects or peer.disk.holds((p,)) for p in step.change.packs
                ):
                    break
                record, verdict = CommitOp(REPOSITORY, step.change).on(disk.record)
                if verdict is not WriteVerdict.DONE:
                    raise Broken(f"{node.name} learns {step.change.position} and its record says {verdict.value}")
                disk.learn(record, world.value(disk.register, step.change), HistoryEntry(step.change, step.certificate, 0))
                world.laws.committed(step.change)
        return "" if disk.register.position.version >= wanted.committed.version else "nobody in reach has that history"

    def _take_over(self, wanted: Restore) -> str:
        """``promised`` and ``accepted``, with the ballots they had; no vote is sent for it."""
        node, disk = self._node, self._node.disk
        accepted = wanted.accepted
        change = accepted.change if accepted is not None else None
        if change is not None and change.base == disk.register.position and not disk.holds(change.packs):
            peers = (self._node.world.nodes[name] for name in wanted.holders)
            if not any(self._in_reach(peer) and peer.disk.holds(change.packs) for peer in peers):
                return "nobody in reach has the objects"
            disk.keep(change.position.digest, change.packs)
        record, verdict = RejoinOp(REPOSITORY, wanted.promised, accepted).on(disk.record)
        if verdict is WriteVerdict.DIVERGENT:
            raise Broken(f"{node.name} rejoins, and one ballot or one version has two values")
        if verdict is WriteVerdict.MOVED:
            return "history is shorter than what was accepted on it"
        disk.record = record
        return ""

    def _clear(self, effect: Clear) -> None:
        node, disk = self._node, self._node.disk
        for peer, number in effect.incarnations:
            if number > disk.enrolled.get(peer, (FIRST, ""))[0]:
                disk.enrolled[peer] = (number, "")
        founders = {uuid for _, standing in self._heard.values() for uuid in standing.founders}
        disk.standing = Standing(State.MEMBER, tuple(sorted({disk.life.journal, *founders})), tried=disk.standing.tried)
        disk.life = replace(disk.life, incarnation=effect.incarnation)
        disk.set_back = False
        self._feed(Cleared())
        assert self.machine is not None
        assert self.machine.step is Step.DONE
        self.machine = None
        node.world.rejoined += 1
        node.world.tell(node.name, f"rejoined in incarnation {effect.incarnation}")
        node.begin()


def newest_of(node: "Node", peer: NodeId) -> int:
    return max(newest(node.disk.incarnations, peer), FIRST)
