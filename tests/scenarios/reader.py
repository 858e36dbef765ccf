"""How a test node asks a majority (R5's question), and serves linearizable reads, as ``node/reading.py`` does.

Questions and answers take their time over direct HTTP, and any of them may be lost; the first answers that make a majority,
the own one included, are the answer. A read waits until the version they name is applied here, and asks again now and then
meanwhile where a change is only accepted: it may end as "no change".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from node.protocol.events import SettleNow
from node.protocol.ids import NodeId
from node.protocol.messages import Status
from node.protocol.reads import Barrier, barrier, fresh
from node.protocol.register import Register

if TYPE_CHECKING:
    from tests.scenarios.cluster_node import Node

ASK_TIMEOUT_S = 1.0
PAUSE_S = 0.05
PAUSE_MAX_S = 0.5

Answers = list[Status]


@dataclass(slots=True, eq=False)
class Question:
    """One question to everybody; ``then`` hears the answers of a majority, or an empty list."""

    then: Callable[[Answers], None]
    answers: dict[NodeId, Status]
    closed: bool = False


@dataclass(slots=True, eq=False)
class Reading:
    """One read under way."""

    began_at: float
    until: float
    seen: int
    """The highest version that anybody could know of when it began."""
    told: Callable[[Register], None]
    pause_s: float = PAUSE_S
    wanted: int | None = None
    """The version it waits for."""
    turn: int = 0
    done: bool = field(default=False)


class Reader:
    """One life's questions and reads."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._waiting: list[Reading] = []

    # ------------------------------------------------------------ questions

    def ask(self, then: Callable[[Answers], None]) -> None:
        node, world = self._node, self._node.world
        question = Question(then, {} if node.disk.stopped else {node.name: node.status()})
        if self._enough(question):
            return
        for name in node.register.voters.nodes:
            if name != node.name and name not in node.suspected:
                world.after(world.conditions.direct_delay(), self._asked, world.nodes[name], question, node.life)
        node.after(ASK_TIMEOUT_S, self._give_up, question)

    def _asked(self, peer: "Node", question: Question, life: int) -> None:
        node, world = self._node, self._node.world
        if question.closed or not node.reaches(peer):
            return
        if (left_s := peer.paused_until - world.now) > 0:
            world.after(left_s, self._asked, peer, question, life)
            return
        if not peer.disk.stopped:
            delay_s = world.conditions.answer_delay()
            world.after(delay_s, node.if_alive, life, self._answered, (peer, question, peer.status()))

    def _answered(self, peer: "Node", question: Question, status: Status) -> None:
        if (
            not question.closed
            and peer.reaches(self._node)
            and self._node.membership.counts(peer.name, status.life)
            and status.voters == self._node.register.voters.digest
        ):
            question.answers[peer.name] = status
            self._enough(question)

    def _enough(self, question: Question) -> bool:
        answers = fresh(question.answers, self._node.disk.incarnations)
        question.closed = len(answers) >= self.majority()
        if question.closed:
            question.then(list(answers.values()))
        return question.closed

    def majority(self) -> int:
        """How many must answer: a majority, always, and the quorum's rule does not matter."""
        return self._node.register.voters.majority

    def _give_up(self, question: Question) -> None:
        if not question.closed:
            question.closed = True
            question.then([])

    # ------------------------------------------------------------ reads

    def read(self, timeout_s: float, told: Callable[[Register], None]) -> None:
        """R5; ``told`` hears the value served, or nobody does."""
        world = self._node.world
        self._ask_again(Reading(world.now, world.now + timeout_s, world.laws.seen, told))

    def _ask_again(self, reading: Reading) -> None:
        reading.wanted = None
        reading.turn += 1
        self.ask(lambda answers: self._known(reading, answers))

    def _known(self, reading: Reading, answers: Answers) -> None:
        node, world = self._node, self._node.world
        if not answers:
            self._later(reading, reading.pause_s)
            return
        wall = barrier(answers)
        if self._serve(reading, wall.applied):
            return
        self._hasten(wall, answers)
        if wall.doubtful and world.now - reading.began_at > world.timing.prepare_s:
            node.feed(node.coordinator, SettleNow(wall.applied - 1))
        reading.wanted = wall.applied
        self._waiting.append(reading)
        self._later(reading, reading.pause_s if wall.doubtful else reading.until - world.now)
        reading.pause_s = min(reading.pause_s * 2, PAUSE_MAX_S)

    def _hasten(self, wall: Barrier, answers: Answers) -> None:
        committed = wall.applied - 1 if wall.doubtful else wall.applied
        told = next((status.committed for status in answers if status.committed.version == committed), None)
        self._node.catch_up(committed, (), told)

    def _later(self, reading: Reading, delay_s: float) -> None:
        self._node.after(max(delay_s, 0.0), self._once_more, reading, reading.turn)

    def _once_more(self, reading: Reading, turn: int) -> None:
        if reading.done or reading.turn != turn:
            return
        if reading in self._waiting:
            self._waiting.remove(reading)
        if self._node.world.now < reading.until:
            self._ask_again(reading)

    def _serve(self, reading: Reading, wanted: int) -> bool:
        node = self._node
        if node.applied.position.version < wanted:
            return False
        reading.done = True
        node.world.laws.served(node.name, node.applied.position, reading.seen)
        reading.told(node.applied)
        return True

    def applied(self) -> None:
        """The disk holds a newer version: who waited for it is served."""
        if self._waiting:
            self._waiting = [reading for reading in self._waiting if not self._serve(reading, reading.wanted or 0)]
