"""Golden transcripts: a text of commands and what came of them, run again and compared (or rewritten by one flag).

A file is made of blocks: commands, a line ``----``, then what happened, up to an empty line. Lines that begin with ``#`` are
for readers. Messages take 10 ms, a write to a journal 1 ms, direct questions 5 ms; nothing is random.

    cluster 3 [all] [amnesia]     three voters, the repository at version 1 everywhere, nobody owns it; quorum; disks may die
    wipe NODE                     it dies and its disk is lost; start it again, and it has to rejoin (R4)
    snapshot NODE / restore NODE  copy its disk / it dies, and the copy is put back: it remembers less than it has said
    push NODE TXN BRANCH OLD NEW [pack]     a, b … are git commits, - is none
    run SECONDS                   let time pass
    drop|hold|double KIND FROM TO [COUNT]   the next COUNT (1) messages of that kind are lost, kept back, or come twice
    release [reversed]            what was kept back arrives now
    crash NODE [before WHAT]      now, or before it performs its next effect of that name (decide, send commit, reply vote …)
    start NODE / cut NODE / heal  a crashed node begins a new life / a node reaches nobody / everybody reaches everybody
    suspect NODE [NODE …]         the first believes the others to be dead (nobody: it trusts all again)
    calm                          every rule is forgotten and everybody reaches everybody
    withhold NODE / supply NODE   the node gets no objects of anybody / gets them again
    read NODE                     a linearizable read
    state                         every journal
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from node.protocol.change import ChangeKind
from node.protocol.effects import Effect, Reply, Send
from node.protocol.events import Written
from node.protocol.ids import NodeId, TxnId
from node.protocol.messages import TransportReply, TransportRequest
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.protocol.standing import Standing, State
from tests.scenarios.conditions import Conditions
from tests.scenarios.disk import Disk, new_life
from tests.scenarios.values import REPOSITORY, creation, pack, update
from tests.scenarios.words import describe, describe_record
from tests.scenarios.world import World


@dataclass(slots=True)
class Rule:
    """What happens to the next ``left`` messages of a kind between two nodes."""

    what: str
    kind: str
    sender: str
    to: str
    left: int


class Stage(Conditions):
    """A calm world, but for what the script says."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.held: list[tuple[NodeId, NodeId, TransportRequest | TransportReply]] = []
        self.away: set[NodeId] = set()
        self.without_objects: set[NodeId] = set()
        self.crash_before: dict[NodeId, str] = {}

    def deliveries(self, world: World, sender: NodeId, to: NodeId, message: TransportRequest | TransportReply) -> list[float]:
        kind = type(message).__name__.lower()
        for rule in self.rules:
            if (rule.kind, rule.sender, rule.to) == (kind, sender, to) and rule.left > 0:
                rule.left -= 1
                if rule.what == "hold":
                    self.held.append((sender, to, message))
                    world.tell(sender, f"kept back on the way to {to}: {describe(message)}")
                    return [float("inf")]
                return [] if rule.what == "drop" else [self.network_s, self.network_s * 2]
        return super().deliveries(world, sender, to, message)

    def reaches(self, world: World, one: NodeId, other: NodeId) -> bool:
        return one not in self.away and other not in self.away

    def may_stage(self, node: NodeId) -> bool:
        return node not in self.without_objects

    def crashes(self, world: World, node: NodeId, before: Effect | Written) -> bool:
        wanted = self.crash_before.get(node)
        if wanted is None or wanted != effect_name(before):
            return False
        del self.crash_before[node]
        return True


def effect_name(effect: Effect | Written) -> str:
    """``decide``, ``send commit``, ``reply vote``, ``answer`` …"""
    name = type(effect).__name__.lower()
    if isinstance(effect, Send | Reply):
        return f"{name} {type(effect.message).__name__.lower()}"
    return name


class Script:
    """Runs one file's blocks in order."""

    def __init__(self) -> None:
        self._stage = Stage()
        self._world: World | None = None
        self._said: list[str] = []
        self._snapshots: dict[NodeId, Disk] = {}

    @property
    def said(self) -> list[str]:
        return self._said

    def play(self, text: str) -> str:
        """The same text, with what happened this time."""
        out: list[str] = []
        lines = iter(text.splitlines())
        block: list[str] = []
        for line in lines:
            if line != "----":
                out.append(line)
                block.append(line)
                continue
            for old in lines:
                if not old:
                    break
            for command in block:
                if command and not command.startswith("#"):
                    self.do(command)
            block = []
            out += ["----", *(self._said or ["(nothing)"]), ""]
            self._said = []
        while out and not out[-1]:
            out.pop()
        return "\n".join(out) + "\n"

    @property
    def world(self) -> World:
        assert self._world is not None, "a script begins with 'cluster'"
        return self._world

    def do(self, command: str) -> None:
        name, *words = command.split()
        doing: Callable[..., Any] = getattr(self, f"_do_{name}")
        doing(*words)

    def _say(self, now: float, node: NodeId, text: str) -> None:
        self._said.append(f"{now:7.3f}  {node}  {text}")

    def _do_cluster(self, size: str, *words: str) -> None:
        voters = VoterSet.of(NodeId(f"node-{n}") for n in range(1, int(size) + 1))
        amnesia = "amnesia" in words
        quorum = next((word for word in words if word != "amnesia"), "majority")
        self._world = World(int(size), self._stage, quorum=quorum, say=self._say, history=[creation(voters)], amnesia=amnesia)

    def _do_wipe(self, name: str) -> None:
        """It dies, and its disk with it; the next start finds an empty one."""
        world, node = self.world, self.world.nodes[NodeId(name)]
        if node.up:
            node.crash()
        world.laws.destroyed(node.name, node.disk)
        life = new_life(f"{name} of {world.now}")
        node.disk = Disk(Register(REPOSITORY, world.voters), life=life, standing=Standing(State.NEW))
        world.tell(node.name, "DISK LOST")

    def _do_snapshot(self, name: str) -> None:
        self._snapshots[NodeId(name)] = self.world.nodes[NodeId(name)].disk.copy()

    def _do_restore(self, name: str) -> None:
        node = self.world.nodes[NodeId(name)]
        if node.up:
            node.crash()
        self.world.laws.destroyed(node.name, node.disk)
        node.disk = self._snapshots.pop(node.name)
        self.world.tell(node.name, "DISK SET BACK")

    def _do_push(self, node: str, txn: str, branch: str, old: str, new: str, packed: str = "") -> None:
        self._say(self.world.now, NodeId(node), f"push {txn}: {branch} {old} → {new}")
        packs = (pack(txn),) if packed else ()
        self.world.nodes[NodeId(node)].submit(TxnId(txn), ChangeKind.UPDATE, (update(branch, old, new),), packs)

    def _do_run(self, seconds: str) -> None:
        self.world.run(round(self.world.now + float(seconds), 6))

    def _rule(self, what: str, kind: str, sender: str, to: str, count: str) -> None:
        self._stage.rules.append(Rule(what, kind, sender, to, int(count)))

    def _do_drop(self, kind: str, sender: str, to: str, count: str = "1") -> None:
        self._rule("drop", kind, sender, to, count)

    def _do_hold(self, kind: str, sender: str, to: str, count: str = "1") -> None:
        self._rule("hold", kind, sender, to, count)

    def _do_double(self, kind: str, sender: str, to: str, count: str = "1") -> None:
        self._rule("double", kind, sender, to, count)

    def _do_release(self, order: str = "") -> None:
        held, self._stage.held = self._stage.held, []
        for sender, to, message in reversed(held) if order else held:
            self.world.nodes[sender].deliver(to, message)

    def _do_crash(self, node: str, before: str = "", *what: str) -> None:
        if before:
            self._stage.crash_before[NodeId(node)] = " ".join(what)
        else:
            self.world.nodes[NodeId(node)].crash()

    def _do_start(self, node: str) -> None:
        self.world.tell(NodeId(node), "STARTED")
        self.world.nodes[NodeId(node)].start()

    def _do_cut(self, node: str) -> None:
        self._stage.away.add(NodeId(node))

    def _do_heal(self) -> None:
        self._stage.away.clear()

    def _do_calm(self) -> None:
        self._stage.rules.clear()
        self._stage.crash_before.clear()
        self._do_heal()

    def _do_suspect(self, node: str, *others: str) -> None:
        self._say(self.world.now, NodeId(node), f"suspects {', '.join(others) or 'nobody'}")
        self.world.nodes[NodeId(node)].suspect(frozenset(NodeId(other) for other in others))

    def _do_withhold(self, node: str) -> None:
        self._stage.without_objects.add(NodeId(node))

    def _do_supply(self, node: str) -> None:
        self._stage.without_objects.discard(NodeId(node))

    def _do_read(self, node: str) -> None:
        name = NodeId(node)
        self._say(self.world.now, name, "read")
        self.world.nodes[name].read(
            4.0, lambda value: self._say(self.world.now, name, f"READ serves version {value.position.version}")
        )

    def _do_state(self) -> None:
        for node in self.world.nodes.values():
            self._say(self.world.now, node.name, ("" if node.up else "(down) ") + describe_record(node.disk.record))
