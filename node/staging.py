"""O3: large packs go to a quorum before the change that needs them exists; a slow transfer delays its own push only.

The peers pull from this node, so this node sees every transfer move: there is no time limit but on standing still.
"""

import asyncio
from collections.abc import Callable

from node.config import Config
from node.liveness import Liveness
from node.ports import Clock, Peers, TransportError
from node.protocol.change import PackRef
from node.protocol.ids import NodeId
from node.protocol.messages import Stage, Staged
from node.protocol.names import RepositoryName

TRANSFER_TIMEOUT_S = 3600.0
STRAGGLERS_S = 0.25


class Staging:
    """Asks peers to stage, and watches them do it."""

    def __init__(self, config: Config, clock: Clock, peers: Peers, liveness: Liveness) -> None:
        self._config = config
        self._clock = clock
        self._peers = peers
        self._liveness = liveness
        self._moved_at: dict[tuple[NodeId, str], float] = {}

    def moved(self, peer: NodeId, sha256: str) -> None:
        """Bytes of this pack are on their way to ``peer``."""
        if (peer, sha256) in self._moved_at:
            self._moved_at[peer, sha256] = self._clock.now()

    async def on_peers(self, name: RepositoryName, packs: tuple[PackRef, ...], progress: Callable[[str], None]) -> str:
        """O3: before the vote and outside it, large packs go to a quorum; empty when they are there, else why not."""
        peers = self._liveness.alive
        needed = self._config.write_quorum - 1
        size = sum(pack.size_bytes for pack in packs) / 1e6
        progress(f"gitquorum: staging {size:.1f} MB on {', '.join(peers) or 'no peer'}")
        tasks = {asyncio.create_task(self._stage_on(peer, name, packs)): peer for peer in peers}
        problems: list[str] = [f"{node} unreachable" for node in sorted(self._liveness.suspected)]
        staged = 0
        try:
            for done in asyncio.as_completed(list(tasks)):
                problem = await done
                staged += not problem
                problems += [problem] if problem else []
                if staged >= len(tasks) or (staged >= needed and await self._stragglers(tasks)):
                    return ""
        finally:
            for task in tasks:
                task.cancel()
        if staged >= needed:
            return ""
        return f"quorum not reached ({1 + staged}/{needed + 1}): {', '.join(problems)}; nothing was sent"

    async def _stragglers(self, tasks: dict[asyncio.Task[str], NodeId]) -> bool:
        """A quorum has the objects: give the others a moment, so that they need not fetch them while they vote."""
        _, pending = await asyncio.wait(tasks, timeout=STRAGGLERS_S)
        return bool(pending)

    async def _stage_on(self, peer: NodeId, name: RepositoryName, packs: tuple[PackRef, ...]) -> str:
        """Empty, or why ``peer`` could not stage; given up only when nothing moved for the stall time."""
        stall_s = self._config.stage_stall_timeout_s
        started_at = self._clock.now()
        self._moved_at.update({(peer, pack.sha256): started_at for pack in packs})
        message = Stage(name.key, packs, (self._config.me,))
        asking = asyncio.create_task(self._peers.ask(peer, message, timeout_s=TRANSFER_TIMEOUT_S))
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=0.5)
                moved_at = max(self._moved_at.get((peer, pack.sha256), started_at) for pack in packs)
                if not asking.done() and self._clock.now() - moved_at > stall_s:
                    return f"{peer} staged nothing for {stall_s:g} s"
            reply = asking.result()
        except TransportError as error:
            return f"{peer} {error}"
        finally:
            asking.cancel()
            for pack in packs:
                self._moved_at.pop((peer, pack.sha256), None)
        return "" if isinstance(reply, Staged) and reply.ok else f"{peer} could not stage: {getattr(reply, 'reason', '')}"
