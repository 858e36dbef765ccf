"""Anti-entropy (R3): two nodes compare everything they hold, at a cost that does not grow with what is idle.

A tree of hashes over all positions (``protocol.hash_tree``) is kept in memory, brought up to date from the journal by what
grew since the last look. Its root rides in every heartbeat: equal roots are the whole comparison. Where they differ for no
known reason, only the differing branches are asked for, at most once in ``anti_entropy_interval_s`` a peer.

A higher committed version is caught up with. "Different" is never "newer": of two digests at one version each node asks all
voters; who finds a majority against itself is divergent, raises an alarm, is set aside and rejoins; the others raise an alarm.
``summaries.py`` is quicker for what just happened; this finds what nobody told.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import structlog

from node.ports.errors import NodeError, TransportError
from node.ports.journal import Journal
from node.ports.surroundings import Clock
from node.ports.transport import Peers
from node.protocol.hash_tree import PREFIXES_MAX, Branch, Difference, HashTree
from node.protocol.ids import NodeId, Position, RepoId
from node.protocol.messages import Branches, BranchPage, History, HistoryPage, Pong, Query, Status
from node.replay import DAMAGED
from node.replica import Replica

REFRESH_PAGE = 1000
ASK_TIMEOUT_S = 5.0
QUESTIONS_MAX = 1000
"""In one comparison; what is left is found by the next one."""

log = structlog.get_logger()


class AntiEntropy:
    """One node's tree, and its comparisons with each peer."""

    def __init__(
        self,
        me: NodeId,
        journal: Journal,
        peers: Peers,
        clock: Clock,
        *,
        interval_s: float,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        replica: Callable[[RepoId], Awaitable[Replica]],
        rejoin: Callable[[str], None],
    ) -> None:
        """``rejoin`` is told why this node's history is not the cluster's: it has to learn that again (R4)."""
        self._me = me
        self._journal = journal
        self._peers = peers
        self._clock = clock
        self._interval_s = interval_s
        self._spawn = spawn
        self._replica = replica
        self._rejoin = rejoin
        self._tree = HashTree()
        self._sequence = 0
        self._incarnation = journal.identity.incarnation
        self._refreshing = asyncio.Lock()
        self._compared_at: dict[NodeId, float] = {}
        self.questions = 0
        """Asked of peers since the start, roots not counted: they ride in heartbeats."""

    async def root(self) -> str:
        """Of everything committed here, as of now."""
        await self._refresh()
        return self._tree.hash()

    async def page(self, prefixes: Sequence[str]) -> BranchPage:
        """The answer to a peer's question."""
        await self._refresh()
        return BranchPage(tuple(self._tree.branch(prefix) for prefix in prefixes))

    def on_pong(self, peer: NodeId, pong: Pong) -> None:
        """A heartbeat was answered: compare, if the roots differ and it was not done lately."""
        if not pong.root:
            return
        now = self._clock.now()
        if now - self._compared_at.setdefault(peer, now) >= self._interval_s:
            self._compared_at[peer] = now
            self._spawn(self._compare(peer, pong.root))

    async def _refresh(self) -> None:
        """What grew since the last look; everything, after the node has learned everything anew."""
        async with self._refreshing:
            if self._journal.identity.incarnation != self._incarnation:
                self._incarnation = self._journal.identity.incarnation
                self._tree, self._sequence = HashTree(), 0
            while self._journal.sequence > self._sequence:
                reached, page = await self._journal.summaries(self._sequence, REFRESH_PAGE)
                for summary in page:
                    self._tree.put(summary.repository, summary.position)
                if reached <= self._sequence:
                    return
                self._sequence = reached

    async def _compare(self, peer: NodeId, root: str) -> None:
        try:
            if await self.root() == root:
                return
            found = await self._differences(peer)
        except NodeError as error:
            log.debug("compared again later", peer=peer, error=str(error))
            return
        for difference in found:
            with suppress(NodeError):
                await self._settle(peer, difference)

    async def _differences(self, peer: NodeId) -> list[Difference]:
        found: list[Difference] = []
        frontier = [""]
        for _ in range(QUESTIONS_MAX):
            if not frontier:
                break
            prefixes, frontier = tuple(frontier[:PREFIXES_MAX]), frontier[PREFIXES_MAX:]
            self.questions += 1
            page = await self._peers.ask(peer, Branches(prefixes), timeout_s=ASK_TIMEOUT_S)
            if not isinstance(page, BranchPage):
                break
            for branch in page.branches:
                deeper, certain = self._compared(branch)
                frontier += deeper
                found += certain
        return found

    def _compared(self, branch: Branch) -> tuple[list[str], list[Difference]]:
        return self._tree.compare(branch)

    async def _settle(self, peer: NodeId, difference: Difference) -> None:
        mine, theirs = difference.mine, difference.theirs
        if theirs is None or (mine is not None and mine.version > theirs.version):
            return  # the peer finds out by its own comparison
        replica = await self._replica(difference.repository)
        if mine is None or theirs.version > mine.version:
            replica.catch_up(theirs.version, (peer,), theirs)
        elif replica.register.position == mine and not replica.stopped.startswith(DAMAGED):
            await self._judge(replica, peer, mine, theirs)

    async def _judge(self, replica: Replica, peer: NodeId, mine: Position, theirs: Position) -> None:
        """Two digests at one version: who stands alone is divergent, whoever it is."""
        held: Counter[str] = Counter({mine.digest: 1})
        voters = replica.register.voters
        for node in voters.nodes:
            if node != self._me and (digest := await self._digest_at(node, replica.repository, mine.version)):
                held[digest] += 1
        if held[theirs.digest] == 0:
            return  # it was a look at two moments
        others = {digest: count for digest, count in held.items() if digest != mine.digest}
        against = max(others.values(), default=0)
        reason = f"divergent: version {mine.version} is {mine} here and {theirs} on {peer}"
        if against >= voters.majority:
            replica.alarm(f"{reason}; {against} of {len(voters.nodes)} voters say so", stop=True)
            self._rejoin(reason)
        else:
            replica.alarm(reason, stop=False)

    async def _digest_at(self, node: NodeId, repository: RepoId, version: int) -> str:
        """The digest of that version on that node; empty if it does not say."""
        with suppress(TransportError):
            status = await self._peers.ask(node, Query(repository), timeout_s=ASK_TIMEOUT_S)
            if isinstance(status, Status) and not status.set_aside:
                if status.committed.version == version:
                    return status.committed.digest
                page = await self._peers.ask(node, History(repository, version - 1, 1), timeout_s=ASK_TIMEOUT_S)
                if isinstance(page, HistoryPage) and page.entries:
                    return page.entries[0].change.position.digest
        return ""
