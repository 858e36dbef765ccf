"""Fetching what a peer has and this node lacks: packs by claim check (O1), history pages for catch-up (R2).

Bytes are trusted by checksum, history by its chain and certificates (``protocol.catchup``). Any holder will do; a transfer
that fails resumes from another.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import TYPE_CHECKING

from node.ports import NodeError, PackRefused, TransportError
from node.protocol.catchup import HistoryRefused, steps
from node.protocol.certificate import Certificate
from node.protocol.change import Change, PackRef
from node.protocol.ids import NodeId, Position, RepoId
from node.protocol.messages import Fetch, History, HistoryPage
from node.protocol.register import Register

if TYPE_CHECKING:
    from node.replica import Edges

HISTORY_PAGE = 64

Stage = Callable[[Change, tuple[NodeId, ...], int], Awaitable[str]]
"""(change, who has its packs, version of the last deletion): empty, or why its objects are not here."""
Learn = Callable[[Change, Certificate | None], Awaitable[None]]


class CatchUpFailed(NodeError):
    """No holder in reach could give what was asked for."""


async def fetch_packs(edges: "Edges", repository: RepoId, packs: tuple[PackRef, ...], holders: tuple[NodeId, ...]) -> None:
    """Stage ``packs``; those that are staged already cost nothing.

    Raises:
        CatchUpFailed: if no holder has one of them.
        PackRefused, StorageError: if what came is wrong, or cannot be stored.
    """
    for pack in packs:
        await _fetch_pack(edges, repository, pack, tuple(node for node in holders if node != edges.config.me))


async def _fetch_pack(edges: "Edges", repository: RepoId, pack: PackRef, holders: tuple[NodeId, ...]) -> None:
    failures: list[str] = []
    for holder in holders:

        def read(index: bool, offset: int, holder: NodeId = holder) -> AsyncIterator[bytes]:
            message = Fetch(repository, pack, index, offset)
            return edges.peers.fetch(holder, message, stall_s=edges.config.stage_stall_timeout_s)

        try:
            await edges.store.stage_fetched(pack, read)
        except (TransportError, PackRefused) as error:
            failures.append(f"{holder}: {error}")
        else:
            return
    raise CatchUpFailed(f"{pack.name} cannot be fetched ({'; '.join(failures) or 'nobody has it'})")


async def fetch_history(
    edges: "Edges",
    repository: RepoId,
    here: Register,
    holders: tuple[NodeId, ...],
    told: Collection[Position],
    stage: Stage,
    learn: Learn,
) -> None:
    """One page of history after ``here`` from the first holder that can give it, learned change by change.

    Raises:
        CatchUpFailed: if no holder knows more.
        HistoryRefused: if a holder's history does not continue ours.
    """
    failures: list[str] = []
    refused: HistoryRefused | None = None
    for holder in holders:
        question = History(repository, here.position.version, HISTORY_PAGE)
        try:
            page = await edges.peers.ask(holder, question, timeout_s=edges.config.prepare_timeout_s)
        except TransportError as error:
            failures.append(f"{holder}: {error}")
            continue
        if not isinstance(page, HistoryPage) or page.committed.version <= here.position.version:
            failures.append(f"{holder}: knows no more")
            continue
        try:
            await _learn_page(edges, here, page, (holder, *holders), told, stage, learn)
        except HistoryRefused as error:
            if error.divergent:
                raise
            refused = HistoryRefused(f"{holder}: {error}")  # perhaps another holder's is better
        except CatchUpFailed as error:
            failures.append(f"{holder}: {error}")
        else:
            return
    if refused is not None:
        raise refused
    raise CatchUpFailed("; ".join(failures) or "no peer in reach")


async def _learn_page(
    edges: "Edges",
    here: Register,
    page: HistoryPage,
    holders: tuple[NodeId, ...],
    told: Collection[Position],
    stage: Stage,
    learn: Learn,
) -> None:
    """Objects first: no change is committed here before its packs are."""
    voters = next((entry.change.voters for entry in page.entries if entry.change.voters is not None), here.voters)
    if here.position.version > 0:
        voters = here.voters
    proved = steps(here.position, page, lambda _, certificate: certificate.flaw(voters, edges.signer.verify), told)
    if not proved:
        raise CatchUpFailed("the page holds no certified change")
    for step in proved:
        if problem := await stage(step.change, holders, page.floor):
            raise CatchUpFailed(problem)
        await learn(step.change, step.certificate)
