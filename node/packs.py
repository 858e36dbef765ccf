"""One repository's packs on this node: which are here, and fetching those that are not (O1).

Small ones ride along or are in the journal; large ones come by claim check, from any holder, and are trusted by checksum. A
transfer that fails resumes from another holder.
"""

from collections.abc import AsyncIterator, Callable, Iterable

from node.edges import Edges
from node.ports.errors import NodeError, PackRefused, TransportError
from node.protocol.change import Change, PackRef
from node.protocol.ids import Digest, NodeId, RepoId
from node.protocol.messages import Fetch, InlinePack


class NobodyHasIt(NodeError):
    """No holder in reach could give a pack."""


class Packs:
    """``peers`` are the repository's other voters at the moment."""

    def __init__(self, edges: Edges, repository: RepoId, peers: Callable[[], list[NodeId]]) -> None:
        self._edges = edges
        self._repository = repository
        self._peers = peers

    async def stage(self, packs: tuple[PackRef, ...], holders: tuple[NodeId, ...], inline: tuple[InlinePack, ...] = ()) -> str:
        """Make these packs durable here, or hold them if they are small; empty when all are here, else why not."""
        edges = self._edges
        along = {pack.sha256: pack for pack in inline}
        try:
            for pack in packs:
                if pack.sha256 not in along and (kept := await edges.journal.inline_pack(pack)) is not None:
                    along[pack.sha256] = kept
            await edges.store.stage_inline([(pack, along[pack.sha256]) for pack in packs if pack.sha256 in along])
            live = tuple(peer for peer in self._peers() if peer not in edges.suspected())
            others = tuple(pack for pack in packs if pack.sha256 not in along)
            await self._fetch(others, tuple(dict.fromkeys((*holders, *live))))
        except NodeError as error:
            return str(error) or type(error).__name__
        return ""

    async def stage_change(self, change: Change, holders: tuple[NodeId, ...], inline: tuple[InlinePack, ...] = ()) -> str:
        """The same for all packs of ``change``; from then on the store knows that it needs them (O4)."""
        known = {pack.sha256 for pack in inline}
        along = tuple(pack for pack in change.packs if pack.sha256 in known)
        missing = await self._edges.store.missing(change)
        wanted = tuple(dict.fromkeys((*along, *missing)))
        if wanted and (problem := await self.stage(wanted, holders, inline)):
            return problem
        missing = await self._edges.store.missing(change) if wanted else ()
        return f"{missing[0].name} was staged and is gone" if missing else ""

    async def hold(self, changes: Iterable[Change], inline: tuple[InlinePack, ...]) -> None:
        """Those of ``inline`` that ``changes`` name, checked and held in memory until the journal has them.

        Raises:
            PackRefused: one of them is not what its change names.
            Busy: no room; they can be fetched instead.
        """
        along = {pack.sha256: pack for pack in inline}
        named = {pack.sha256: pack for change in changes for pack in change.packs if pack.sha256 in along}
        await self._edges.store.stage_inline([(pack, along[sha256]) for sha256, pack in named.items()])

    async def small(self, change: Change) -> dict[Digest, InlinePack]:
        """Those that are held in memory or in the journal."""
        edges = self._edges
        packs = {pack.sha256: pack for pack in edges.store.inline(change.packs)}
        for pack in change.packs:
            if pack.sha256 not in packs and (kept := await edges.journal.inline_pack(pack)) is not None:
                packs[pack.sha256] = kept
        return packs

    async def _fetch(self, packs: tuple[PackRef, ...], holders: tuple[NodeId, ...]) -> None:
        """Raises ``NobodyHasIt``, and ``PackRefused`` or ``StorageError`` if what came is wrong or cannot be stored."""
        others = [node for node in holders if node != self._edges.config.me]
        for pack in packs:
            await self._fetch_one(pack, others)

    async def _fetch_one(self, pack: PackRef, holders: list[NodeId]) -> None:
        failures: list[str] = []
        for holder in holders:

            def read(index: bool, offset: int, holder: NodeId = holder) -> AsyncIterator[bytes]:
                message = Fetch(self._repository, pack, index, offset)
                return self._edges.peers.fetch(holder, message, stall_s=self._edges.config.stage_stall_timeout_s)

            try:
                await self._edges.store.stage_fetched(pack, read)
            except (TransportError, PackRefused) as error:
                failures.append(f"{holder}: {error}")
            else:
                return
        raise NobodyHasIt(f"{pack.name} cannot be fetched ({'; '.join(failures) or 'nobody has it'})")
