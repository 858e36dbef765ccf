"""O3: large packs go to a quorum before the change that needs them exists; a slow transfer delays its own push only.

The peers pull from this node, so this node sees every transfer move: there is no time limit but on standing still.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from node.config import Config
from node.ports.errors import TransportError
from node.ports.surroundings import Clock
from node.ports.transport import Peers
from node.protocol.change import PackRef
from node.protocol.ids import NodeId
from node.protocol.messages import Stage, Staged
from node.protocol.names import RepositoryName

TRANSFER_TIMEOUT_S = 3600.0
STRAGGLERS_S = 0.25
CHECKED_BYTES_PER_S = 25e6
"""After the last byte a peer checks and syncs the pack, and nothing moves meanwhile: so much more patience, for slow disks."""


@dataclass(slots=True, eq=False)
class _Transfer:
    """What one peer is asked to fetch for one push."""

    moved_at: float


class Staging:
    """Asks peers to stage, and watches them do it."""

    def __init__(self, config: Config, clock: Clock, peers: Peers, suspected: Callable[[], frozenset[NodeId]]) -> None:
        self._config = config
        self._clock = clock
        self._peers = peers
        self._suspected = suspected
        self._transfers: dict[tuple[NodeId, str], set[_Transfer]] = {}

    def moved(self, peer: NodeId, sha256: str) -> None:
        """Bytes of this pack are on their way to ``peer``; two pushes may be waiting for the same one."""
        for transfer in self._transfers.get((peer, sha256), ()):
            transfer.moved_at = self._clock.now()

    async def on_peers(self, name: RepositoryName, packs: tuple[PackRef, ...], progress: Callable[[str], None]) -> str:
        """O3: before the vote and outside it, large packs go to a quorum; empty when they are there, else why not."""
        suspected = self._suspected()
        peers = [node for node in self._config.voters.nodes if node != self._config.me and node not in suspected]
        needed = self._config.write_quorum - 1
        problems: list[str] = [f"{node} unreachable" for node in sorted(suspected)]
        if len(peers) < needed:
            return f"quorum not reachable ({1 + len(peers)}/{needed + 1}): {', '.join(problems)}; nothing was sent"
        size = sum(pack.size_bytes for pack in packs) / 1e6
        progress(f"gitquorum: staging {size:.1f} MB on {', '.join(peers) or 'no peer'}")
        tasks = {asyncio.create_task(self._stage_on(peer, name, packs)): peer for peer in peers}
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
            await asyncio.gather(*tasks, return_exceptions=True)
        if staged >= needed:
            return ""
        return f"quorum not reached ({1 + staged}/{needed + 1}): {', '.join(problems)}; nothing was voted on"

    async def _stragglers(self, tasks: dict[asyncio.Task[str], NodeId]) -> bool:
        """A quorum has the objects: give the others a moment, so that they need not fetch them while they vote."""
        _, pending = await asyncio.wait(tasks, timeout=STRAGGLERS_S)
        return bool(pending)

    async def _stage_on(self, peer: NodeId, name: RepositoryName, packs: tuple[PackRef, ...]) -> str:
        """Empty, or why ``peer`` could not stage; given up only when nothing moved for the stall time."""
        stall_s = self._config.stage_stall_timeout_s
        patience_s = stall_s + sum(pack.size_bytes for pack in packs) / CHECKED_BYTES_PER_S
        transfer = _Transfer(self._clock.now())
        keys = [(peer, pack.sha256) for pack in packs]
        for key in keys:
            self._transfers.setdefault(key, set()).add(transfer)
        message = Stage(name.key, packs, (self._config.me,))
        asking = asyncio.create_task(self._peers.ask(peer, message, timeout_s=TRANSFER_TIMEOUT_S))
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=0.5)
                if not asking.done() and self._clock.now() - transfer.moved_at > patience_s:
                    return f"{peer} staged nothing for {patience_s:.0f} s"
            reply = asking.result()
        except TransportError as error:
            return f"{peer} {error}"
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            for key in keys:
                self._transfers[key].discard(transfer)
                if not self._transfers[key]:
                    del self._transfers[key]
        return "" if isinstance(reply, Staged) and reply.ok else f"{peer} could not stage: {getattr(reply, 'reason', '')}"
