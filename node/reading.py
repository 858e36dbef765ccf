"""Linearizable reads on every node (R5): ask a majority, then wait until this node has applied what they know.

The question is sent after the read's request arrived. Where the highest accepted record carries a change, the read waits for
its commit; it asks again meanwhile (a later question is as good), because the change may end as "no change". A doubt that
lasts is settled by the voters themselves (R1). Peers are asked over direct HTTP: reads go on while a broker is gone.
"""

import asyncio
from collections.abc import Callable

from node.ports import Clock, Peers, ReadUnavailable, TransportError
from node.protocol.ids import NodeId
from node.protocol.messages import Query, Status
from node.protocol.quorum import VoterSet
from node.protocol.reads import Barrier, barrier, fresh
from node.protocol.register import Register
from node.replica import Replica

ASK_TIMEOUT_S = 1.0


class Reader:
    """Answers reads for one node."""

    def __init__(
        self,
        me: NodeId,
        peers: Peers,
        clock: Clock,
        suspected: Callable[[], frozenset[NodeId]],
        *,
        timeout_s: float,
        doubt_s: float,
    ) -> None:
        """``doubt_s``: how long a change in doubt is left to its coordinator, the prepare deadline."""
        self._me = me
        self._peers = peers
        self._clock = clock
        self._suspected = suspected
        self._timeout_s = timeout_s
        self._doubt_s = doubt_s

    async def linearizable(self, replica: Replica) -> Register:
        """The applied value, at a version that holds every change acknowledged before this call.

        Raises:
            ReadUnavailable: no majority answered, or the version cannot be reached in time.
        """
        replica.readers += 1
        try:
            return await self._read(replica)
        finally:
            replica.readers -= 1

    async def _read(self, replica: Replica) -> Register:
        began_at = self._clock.now()
        deadline_at = began_at + self._timeout_s
        pause_s = 0.05
        while True:
            if replica.stopped:
                raise ReadUnavailable(f"this replica is set aside ({replica.stopped}); another node can serve the read")
            answers = await self.question(replica)
            wall = barrier(answers)
            if replica.applied >= wall.applied:
                return replica.applied_register
            self._hasten(replica, wall, answers)
            if wall.doubtful and self._clock.now() - began_at > self._doubt_s:
                replica.settle(wall.applied - 1)
            left_s = deadline_at - self._clock.now()
            if await replica.wait_applied(wall.applied, min(left_s, pause_s) if wall.doubtful else left_s):
                return replica.applied_register
            if self._clock.now() >= deadline_at:
                doubt = "a change in doubt is not settled yet" if wall.doubtful else f"version {wall.applied} is not here yet"
                raise ReadUnavailable(f"{doubt}; try again, or ask for local consistency")
            pause_s = min(pause_s * 2, 0.5)

    async def question(self, replica: Replica) -> list[Status]:
        """The answers of a majority of the voters, the own one included unless this replica is set aside.

        Raises:
            ReadUnavailable: if too few answer.
        """
        voters = replica.register.voters
        own = replica.status()
        answers = {} if replica.stopped else {self._me: own}
        suspected = self._suspected()
        peers = [node for node in voters.nodes if node != self._me and node not in suspected]
        if len(answers) < voters.majority <= len(answers) + len(peers):
            await self._gather(replica, peers, answers, voters)
        answers = fresh(answers, own.incarnations)
        if len(answers) < voters.majority:
            silent = ", ".join(node for node in voters.nodes if node != self._me and node not in answers)
            count = f"{voters.majority} of {len(voters.nodes)}"
            raise ReadUnavailable(f"a linearizable read needs {count} voters; no answer from {silent}")
        return list(answers.values())

    async def _gather(self, replica: Replica, peers: list[NodeId], answers: dict[NodeId, Status], voters: VoterSet) -> None:
        """Ask all at once; the first that make a majority are enough."""

        async def ask(peer: NodeId) -> None:
            status = await self._ask(peer, replica)
            if status is not None and status.voters == voters.digest:
                answers[peer] = status

        tasks = [asyncio.create_task(ask(peer)) for peer in peers]
        try:
            for done in asyncio.as_completed(tasks):
                await done
                if len(fresh(answers)) >= voters.majority:
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, peer: NodeId, replica: Replica) -> Status | None:
        try:
            answer = await self._peers.ask(peer, Query(replica.repository), timeout_s=ASK_TIMEOUT_S)
        except TransportError:
            return None
        if not isinstance(answer, Status) or answer.repository != replica.repository or answer.set_aside:
            return None
        return answer

    def _hasten(self, replica: Replica, wall: Barrier, answers: list[Status]) -> None:
        """What is committed elsewhere is fetched; what is only accepted has to be waited for."""
        committed = wall.applied - 1 if wall.doubtful else wall.applied
        told = next((status.committed for status in answers if status.committed.version == committed), None)
        replica.catch_up(committed, (), told)
