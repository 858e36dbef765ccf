"""Reads on every node. Linearizable (R5): ask a majority, then wait until this node has applied what they know.

The question is sent after the read's request arrived, and its answers are nobody else's. Where the highest accepted record
carries a change, the read waits for its commit; it asks again meanwhile (a later question is as good), because the change may
end as "no change". A doubt that lasts is settled by the voters themselves (R1). Peers are asked over direct HTTP: as many as
make a majority, each peer in its turn, and the others too as soon as one fails or is slow (a hedged request: Dean and Barroso,
"The Tail at Scale", 2013). So reads go on while a broker is gone, cost the cluster no question more than they need, and wait
for a slow peer no longer than a moment.

Local: what this node has applied, at once. With a version to be reached (the reader has seen it already) either kind waits for
that, for a stated time. What no majority knows to exist is not waited for: an acknowledged version is known to every majority.

A replica that is set aside serves nobody: what it has may be wrong, not only old.
"""

import asyncio
from collections.abc import Callable, Iterable

from node.ports.errors import ReadUnavailable, TransportError, VersionNotReached
from node.ports.surroundings import Clock
from node.ports.transport import Peers
from node.protocol.ids import NodeId
from node.protocol.messages import Query, Status
from node.protocol.reads import Barrier, barrier, fresh
from node.protocol.register import Register
from node.protocol.standing import Life
from node.replica import Replica

ASK_TIMEOUT_S = 1.0

PAUSE_S = 0.05
PAUSE_S_MAX = 0.5
"""Between two questions of one read that cannot be served yet; doubles, and is an eighth of its age for a read that has waited
long. So one read asks about 13 times in 5 seconds, and 35 times in a minute."""

BUDGET_PAUSE_S = 2.0
"""Instead, while the retry budget is spent."""

HEDGE_S = 0.01
"""How long the first peers are waited for before the others are asked as well: several times what an answer takes."""

LATE_MAX = 256
"""Answers that nobody waits for any more, and that are let come in: to hang up would cost the connection they come on."""


class Reader:
    """Answers reads for one node."""

    def __init__(
        self,
        me: NodeId,
        peers: Peers,
        clock: Clock,
        suspected: Callable[[], frozenset[NodeId]],
        lives: Callable[[NodeId, Life | None], bool],
        *,
        timeout_s: float,
        doubt_s: float,
        may_repeat: Callable[[], bool] = lambda: True,
    ) -> None:
        """``doubt_s``: how long a change in doubt is left to its coordinator, the prepare deadline. ``may_repeat`` asks the
        retry budget."""
        self._me = me
        self._peers = peers
        self._clock = clock
        self._suspected = suspected
        self._lives = lives
        self._timeout_s = timeout_s
        self._doubt_s = doubt_s
        self._may_repeat = may_repeat
        self._late: set[asyncio.Task[Status | None]] = set()
        self._turn = 0

    async def close(self) -> None:
        """End what nobody waits for."""
        await _ended(self._late)

    async def linearizable(self, replica: Replica, at_least: int = 0) -> Register:
        """The applied value, at a version that holds every change acknowledged before this call, and not below ``at_least``.

        Raises:
            ReadUnavailable: no majority answered, the version cannot be reached in time, or this replica is set aside.
            VersionNotReached: a majority answered, and none of them can have shown anybody ``at_least``.
        """
        replica.readers += 1
        try:
            return await _Linearizable(self, replica, at_least).read()
        finally:
            replica.readers -= 1

    async def local(self, replica: Replica, at_least: int = 0) -> Register:
        """The applied value; nobody is asked unless it is older than ``at_least``.

        Raises:
            ReadUnavailable: this replica is set aside, or its disk lacks what was committed before the start.
            VersionNotReached: ``at_least`` is not here in time, or no majority has heard of it.
        """
        refuse_if_set_aside(replica)
        if replica.applied < replica.applied_register.position.version:
            raise ReadUnavailable("objects of a committed change are missing on this node and are being fetched")
        if replica.applied >= at_least:
            return replica.applied_register
        replica.readers += 1
        try:
            return await _Local(self, replica, at_least).read()
        finally:
            replica.readers -= 1

    def check(self, replica: Replica) -> None:
        """Raise ``ReadUnavailable`` if a linearizable read would be refused before anybody is asked."""
        refuse_if_set_aside(replica)
        self._candidates(replica)

    async def question(self, replica: Replica) -> list[Status]:
        """The answers of a majority of the voters, the own one included unless this replica is set aside or is no voter.

        Raises:
            ReadUnavailable: if too few answer.
        """
        peers = self._candidates(replica)
        answers = await self._gather(replica, peers)
        if len(answers) < replica.register.voters.majority:
            raise self._too_few(replica, answers)
        return list(answers.values())

    # ------------------------------------------------------------ asking

    def _candidates(self, replica: Replica) -> list[NodeId]:
        """Whom to ask; raises ``ReadUnavailable`` if they cannot be enough."""
        voters, own = replica.register.voters, self._counts(replica)
        peers = self.in_reach(replica)
        if own + len(peers) < voters.majority:
            raise self._too_few(replica, [self._me] if own else [])
        return peers

    def _counts(self, replica: Replica) -> bool:
        """Whether this node's own answer is one of a voter's."""
        return not replica.stopped and self._me in replica.register.voters.nodes

    def in_reach(self, replica: Replica) -> list[NodeId]:
        """The other voters that are worth a question."""
        suspected = self._suspected()
        return [node for node in replica.register.voters.nodes if node != self._me and node not in suspected]

    def _too_few(self, replica: Replica, answered: Iterable[NodeId]) -> ReadUnavailable:
        voters = replica.register.voters
        silent = ", ".join(node for node in voters.nodes if node != self._me and node not in answered)
        needed = f"{voters.majority} of {len(voters.nodes)}"
        return ReadUnavailable(f"a linearizable read needs {needed} voters; no answer from {silent}")

    async def _gather(self, replica: Replica, peers: list[NodeId]) -> dict[NodeId, Status]:
        """The own answer, and those of ``peers`` that come first, until they make a majority. Fewer when all have answered or
        failed. What a newer incarnation makes worthless does not count (R4)."""
        voters, own = replica.register.voters, replica.status()
        heard = {self._me: own} if self._counts(replica) else {}
        answers = fresh(heard, own.incarnations)
        asked: dict[asyncio.Task[Status | None], NodeId] = {}
        waiting: set[asyncio.Task[Status | None]] = set()
        left, hedge_at = self._in_turn(peers), self._clock.now() + HEDGE_S
        try:
            while (missing := voters.majority - len(answers)) > 0 and (waiting or left):
                if left and (missing > len(waiting) or self._clock.now() >= hedge_at):
                    count = len(left) if asked else missing
                    asking = {asyncio.create_task(self._ask(peer, replica)): peer for peer in left[:count]}
                    left = left[count:]
                    asked |= asking
                    waiting |= asking.keys()
                wait_s = max(0.0, hedge_at - self._clock.now()) if left else None
                done, waiting = await asyncio.wait(waiting, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    status = task.result()
                    if status is not None and status.voters == voters.digest:
                        heard[asked[task]] = status
                answers = fresh(heard, own.incarnations)
        finally:
            self._let_come(waiting)
        return answers

    def _in_turn(self, peers: list[NodeId]) -> list[NodeId]:
        """Another one first each time: no peer answers all of this node's reads."""
        self._turn += 1
        first = self._turn % len(peers) if peers else 0
        return peers[first:] + peers[:first]

    def _let_come(self, tasks: Iterable[asyncio.Task[Status | None]]) -> None:
        for task in tasks:
            if len(self._late) >= LATE_MAX:
                task.cancel()
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _ask(self, peer: NodeId, replica: Replica) -> Status | None:
        try:
            answer = await self._peers.ask(peer, Query(replica.repository), timeout_s=ASK_TIMEOUT_S)
        except TransportError:
            return None
        if not isinstance(answer, Status) or answer.repository != replica.repository or answer.set_aside:
            return None
        return answer if self._lives(peer, answer.life) else None


class _Read:
    """One read under way: bounded in time and in questions."""

    def __init__(self, reader: Reader, replica: Replica, at_least: int) -> None:
        self._reader = reader
        self._replica = replica
        self._at_least = at_least
        self._began_at = reader._clock.now()
        self._pause_s = PAUSE_S

    @property
    def _waited_s(self) -> float:
        return self._reader._clock.now() - self._began_at

    @property
    def _left_s(self) -> float:
        return max(0.0, self._reader._timeout_s - self._waited_s)

    async def _applied(self, version: int, *, ask_again: bool) -> bool:
        """Wait for ``version``, to the end, or until another question is due."""
        wait_s = self._left_s
        if ask_again:
            wait_s = min(wait_s, max(self._pause_s, self._waited_s / 8))
            self._pause_s = min(self._pause_s * 2, PAUSE_S_MAX)
            if not self._reader._may_repeat():
                wait_s = min(self._left_s, max(wait_s, BUDGET_PAUSE_S))
        return await self._replica.wait_applied(version, wait_s)

    def _unknown(self, wall: Barrier) -> VersionNotReached:
        return VersionNotReached(
            f"version {self._at_least} of this repository is not known to a majority, {wall.applied} is the newest; "
            "check where that number comes from, or try again"
        )

    def _hasten(self, wall: Barrier, answers: list[Status]) -> None:
        """What is committed elsewhere is fetched; what is only accepted has to be waited for."""
        committed = wall.applied - 1 if wall.doubtful else wall.applied
        told = next((status.committed for status in answers if status.committed.version == committed), None)
        self._replica.catch_up(committed, (), told)


class _Linearizable(_Read):
    """R5."""

    async def read(self) -> Register:
        reader, replica = self._reader, self._replica
        while True:
            refuse_if_set_aside(replica)
            answers = await reader.question(replica)
            refuse_if_set_aside(replica)  # it may have been closed meanwhile: this node rejoins
            wall = barrier(answers)
            if wall.applied < self._at_least:
                raise self._unknown(wall)
            if replica.applied >= wall.applied:
                return replica.applied_register
            self._hasten(wall, answers)
            if wall.doubtful and self._waited_s > reader._doubt_s:
                replica.settle(wall.applied - 1)
            if await self._applied(wall.applied, ask_again=wall.doubtful):
                refuse_if_set_aside(replica)
                return replica.applied_register
            if not self._left_s:
                doubt = "a change in doubt is not settled yet" if wall.doubtful else f"version {wall.applied} is not here yet"
                raise ReadUnavailable(f"{doubt}; try again, or ask for local consistency")


class _Local(_Read):
    """Not R5: any peer that knows of the version will do, and only what is committed counts."""

    async def read(self) -> Register:
        reader, replica = self._reader, self._replica
        while True:
            refuse_if_set_aside(replica)
            answers = await reader._gather(replica, reader.in_reach(replica))
            known = 0
            if answers:
                wall = barrier(answers.values())
                if len(answers) >= replica.register.voters.majority and wall.applied < self._at_least:
                    raise self._unknown(wall)
                known = wall.applied - wall.doubtful
                self._hasten(wall, list(answers.values()))
            if await self._applied(self._at_least, ask_again=known < self._at_least):
                refuse_if_set_aside(replica)
                return replica.applied_register
            if not self._left_s:
                raise VersionNotReached(
                    f"version {self._at_least} is not here yet, but {replica.applied}; try again, or ask another node"
                )


def refuse_if_set_aside(replica: Replica) -> None:
    """Raise ``ReadUnavailable`` if what this replica has may be wrong."""
    if replica.stopped:
        raise ReadUnavailable(f"this replica is set aside ({replica.stopped}); another node can serve the read")


async def _ended(tasks: set[asyncio.Task[Status | None]]) -> None:
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
