"""Noticing that a peer knows more: heartbeats carry its journal's sequence, summaries tell which repositories grew.

The cost does not grow with idle repositories: only what changed after the last look is asked for. This is how a node that was
away learns, without any command, what it missed; the comparison of everything (R3) is in ``anti_entropy.py``.

A journal that was learned again (R4) has dropped rows, and given their numbers to others: it is another one for who follows it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from node.ports.errors import NodeError, NotAMember
from node.ports.transport import Peers
from node.protocol.ids import NodeId, RepoId
from node.protocol.messages import Pong, Summaries, Summary, SummaryPage
from node.replica import Replica

GRACE_S = 0.3
"""Commits are normally delivered within milliseconds; summaries are for what was not."""

ASK_TIMEOUT_S = 5.0
PAGE_TIMEOUT_S = 30.0
"""How long the repositories of one page are waited for, so that not all of a long absence is fetched at once."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Seen:
    life: tuple[str, int] = ("", 0)
    """The journal, and its incarnation."""
    sequence: int = 0
    following: bool = False
    missed: dict[RepoId, Summary] = field(default_factory=dict)
    """What could not be read here when it was told; tried again at every heartbeat."""


class Follower:
    """Follows every peer's journal from where it looked last."""

    def __init__(
        self,
        peers: Peers,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        replica: Callable[[RepoId], Awaitable[Replica]],
    ) -> None:
        self._peers = peers
        self._spawn = spawn
        self._replica = replica
        self._seen: dict[NodeId, _Seen] = {}

    def on_pong(self, peer: NodeId, pong: Pong) -> None:
        """A heartbeat was answered; look closer if that journal has grown, or is another one."""
        seen = self._seen.setdefault(peer, _Seen())
        if seen.life != (pong.journal, pong.incarnation):
            seen = self._seen[peer] = _Seen((pong.journal, pong.incarnation))  # who follows the old one ends by himself
        if (pong.sequence > seen.sequence or seen.missed) and not seen.following:
            seen.following = True
            self._spawn(self._follow(peer, seen))

    async def _follow(self, peer: NodeId, seen: _Seen) -> None:
        try:
            await asyncio.sleep(GRACE_S)
            await asyncio.gather(*(self._catch_up(peer, seen, summary) for summary in tuple(seen.missed.values())))
            while True:
                page = await self._peers.ask(peer, Summaries(seen.sequence), timeout_s=ASK_TIMEOUT_S)
                if not isinstance(page, SummaryPage) or page.journal != seen.life[0] or page.sequence <= seen.sequence:
                    return
                await asyncio.gather(*(self._catch_up(peer, seen, summary) for summary in page.summaries))
                seen.sequence = page.sequence
        except NodeError as error:
            log.debug("asked again at the next heartbeat, from the same place", peer=peer, error=str(error))
        finally:
            seen.following = False

    async def _catch_up(self, peer: NodeId, seen: _Seen, summary: Summary) -> None:
        """Returns when it is done, or goes on by itself: a node that was away long fetches a page of repositories at a time.
        One that cannot be read keeps no other from being followed."""
        repository = summary.repository
        try:
            replica = await self._replica(repository)
            replica.catch_up(summary.position.version, (peer,), summary.position)
            await replica.wait_applied(summary.position.version, PAGE_TIMEOUT_S)
        except NotAMember:
            raise
        except Exception as error:
            if repository not in seen.missed:
                ours = not isinstance(error, NodeError)
                log.warning("not followed", repository=repository, peer=peer, error=str(error), exc_info=ours)
            seen.missed[repository] = summary
        else:
            seen.missed.pop(repository, None)
