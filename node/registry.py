"""The repositories of this node that are in memory: one ``Replica`` each, loaded on demand, idle ones forgotten."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from itertools import islice

import structlog

from node.edges import Edges
from node.ports.errors import NotAMember
from node.ports.journal import Journal
from node.protocol.ids import NodeId, RepoId
from node.protocol.quorum import VoterSet
from node.replica import Replica

REPLICAS_MAX = 4096
"""Kept in memory at once; beyond, idle ones are forgotten first (the journal knows them all)."""

log = structlog.get_logger()


class Registry:
    """Every replica there is, by its register's key."""

    def __init__(self, edges: Edges, journal: Journal, members: VoterSet, refusal: Callable[[], str]) -> None:
        """``refusal``: empty, or why this node speaks for no repository now (R4)."""
        self._refusal = refusal
        self._edges = edges
        self._journal = journal
        self._members = members
        self._replicas: OrderedDict[RepoId, Replica] = OrderedDict()
        self._loading: dict[RepoId, asyncio.Task[Replica]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._drops = 0

    async def get(self, repository: RepoId) -> Replica:
        """The one object for this repository, whoever asks and however many at once.

        Raises:
            NotAMember: this node speaks for no repository now.
            StorageError: it cannot be loaded.
        """
        self.check()
        known = self._replicas.get(repository)
        if known is not None:
            self._replicas.move_to_end(repository)
            return known
        loading = self._loading.get(repository) or self._load_by(repository, self._load(repository))
        return await asyncio.shield(loading)

    @property
    def open(self) -> bool:
        """Whether this node speaks for repositories at all now."""
        return not self._refusal()

    def check(self) -> None:
        """Raises ``NotAMember``."""
        if refusal := self._refusal():
            raise NotAMember(refusal)

    async def drop(self, reason: str) -> None:
        """R4: end every machine; whoever waits for one is told that nothing is known."""
        self._drops += 1
        replicas = list(self._replicas.values())
        self._replicas.clear()
        await asyncio.gather(*(replica.close(reason) for replica in replicas))

    def peek(self, repository: RepoId) -> Replica | None:
        """The one in memory, if there is one."""
        return self._replicas.get(repository)

    async def reload(self, repository: RepoId, reason: str) -> Replica:
        """Forget what is in memory, and load it again from the journal: its replica is set aside, or was repaired. Whatever
        it was doing has ended then. Who asks for it meanwhile waits for the new one: to load it beside a write of the old one
        would miss what that write commits.

        Raises:
            NotAMember, StorageError: as ``get``.
        """
        work = self._load_anew(repository, self._replicas.pop(repository, None), self._loading.get(repository), reason)
        return await asyncio.shield(self._load_by(repository, work))

    def suspect(self, nodes: frozenset[NodeId]) -> None:
        """The failure detector's opinion changed."""
        for replica in list(self._replicas.values()):
            try:
                replica.suspect(nodes)
            except Exception:  # one that is broken keeps nobody else from being told
                log.exception("machine failed", repository=replica.repository, told="Suspected")

    def enrolled(self, node: NodeId, incarnation: int) -> None:
        """R4: a newer incarnation of a node is durable here; replicas loaded from now on find it in the journal."""
        for replica in list(self._replicas.values()):
            replica.enrolled(node, incarnation)

    async def close(self) -> None:
        for loading in list(self._loading.values()):
            loading.cancel()
        await asyncio.gather(*self._loading.values(), *self._closing, return_exceptions=True)
        for replica in list(self._replicas.values()):
            await replica.close()

    def _load_by(self, repository: RepoId, work: Coroutine[None, None, Replica]) -> asyncio.Task[Replica]:
        """Whoever asks for this repository from now on waits for ``work``."""
        loading = self._loading[repository] = asyncio.create_task(work)

        def done(_: asyncio.Task[Replica]) -> None:
            if self._loading.get(repository) is loading:
                del self._loading[repository]

        loading.add_done_callback(done)
        return loading

    async def _load_anew(
        self, repository: RepoId, old: Replica | None, loading: asyncio.Task[Replica] | None, reason: str
    ) -> Replica:
        if loading is not None:  # it may have read what is there no more
            await asyncio.gather(loading, return_exceptions=True)
            old = self._replicas.pop(repository, None) or old
        if old is not None:
            await old.close(reason)
        await self._journal.flush()  # what it was writing is written
        return await self._load(repository)

    async def _load(self, repository: RepoId) -> Replica:
        drops = None
        while drops != self._drops:  # what was read before a drop may be what was learned anew since
            drops = self._drops
            loaded = await self._journal.load(repository, self._members)
            self.check()
        replica = Replica(repository, self._edges, self._members, loaded)
        self._replicas[repository] = replica
        if len(self._replicas) > REPLICAS_MAX:
            self._forget_idle(spare=replica)
        return replica

    def _forget_idle(self, spare: Replica) -> None:
        """Those used longest ago first; ``spare`` was just loaded, and whoever asked for it has not used it yet."""
        surplus = len(self._replicas) - REPLICAS_MAX
        idle = (known for known in self._replicas.items() if known[1] is not spare and not known[1].busy)
        for repository, replica in list(islice(idle, surplus)):
            del self._replicas[repository]
            closing = asyncio.create_task(replica.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
