"""Catch-up (R2): history that peers have and this node lacks, a page at a time, objects first.

History is trusted by its chain and certificates (``protocol.catchup``). Any holder will do. Small packs come with the page;
others are fetched, a few at once. What was committed while this node was away is learned many changes at a time: they share
the journal's fsyncs, so that a node which was away long overtakes pushes that go on meanwhile.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import structlog

from node.applying import Applier
from node.edges import Edges
from node.packs import Packs
from node.ports.errors import Busy, NodeError, PackRefused, StorageError, TransportError
from node.protocol.catchup import HistoryRefused, Step, steps
from node.protocol.change import Change
from node.protocol.ids import NodeId, Position, RepoId
from node.protocol.messages import History, HistoryPage, InlinePack
from node.protocol.register import Register

log = structlog.get_logger()

HISTORY_PAGE = 128

PAGE_TIMEOUT_S = 5.0
"""For one page from one holder; whoever is suspected is asked last."""

NEXT_HOLDER_S = 0.25
"""How long one holder alone is waited for before the next is asked as well; a page takes milliseconds."""

LEARN_BYTES_MAX = 64 * 1024**2
"""Packs that are staged before the changes which need them are learned; beyond, they are learned in several goes."""

APPLY_BEHIND_MAX = 256
"""Learned and not yet applied: each of these changes is kept in memory, with the whole ref table after it."""

APPLY_WAIT_S = 60.0

FETCHES_AT_ONCE = 4
"""Changes of one page whose packs are fetched side by side."""

COMMIT_GRACE_S = 0.05
"""How long a commit that is probably on its way is waited for before history is fetched."""

CATCH_UP_PAUSE_S_MAX = 5.0
"""Between tries while nobody can give what a peer says there is. A replica that is behind never stops trying."""

BUDGET_PAUSE_S = 1.0
"""Before the retry budget is asked again: thousands of repositories may be behind at once."""

TOLD_MAX = 256
"""Positions remembered as told by a peer while catching up to them."""

Stage = Callable[[Change, tuple[NodeId, ...], int], Awaitable[str]]
"""(change, who has its packs, version of the last deletion): empty, or why its objects are not here."""
Hold = Callable[[Iterable[Change], tuple[InlinePack, ...]], Awaitable[None]]
"""Check packs that came along and hold them in memory. Raises ``PackRefused``."""
Learn = Callable[[Sequence[Step]], Awaitable[None]]
"""Commit proved changes whose objects are here, in order."""


class CatchUpFailed(NodeError):
    """No holder in reach could give what was asked for."""


class CatchingUp:
    """One repository's catch-up: at most one under way; calls join it."""

    def __init__(
        self,
        edges: Edges,
        repository: RepoId,
        packs: Packs,
        applier: Applier,
        *,
        here: Callable[[], Register],
        peers: Callable[[], list[NodeId]],
        stopped: Callable[[], bool],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        learn: Learn,
        alarm: Callable[[str, bool], None],
    ) -> None:
        """``here`` is the committed value, ``learn`` commits proved changes whose objects are here, ``alarm`` gets a reason,
        and whether it is one to stop voting for."""
        self._edges = edges
        self._repository = repository
        self._packs = packs
        self._applier = applier
        self._here = here
        self._peers = peers
        self._stopped = stopped
        self._spawn = spawn
        self._learn = learn
        self._alarm = alarm
        self._target = 0
        self._holders: tuple[NodeId, ...] = ()
        self._told: set[Position] = set()
        self._running = False

    def to(self, version: int, holders: tuple[NodeId, ...], told: Position | None = None) -> None:
        """Learn history up to ``version`` in the background. ``told``: a verified message named it committed."""
        if version <= self._here().position.version:
            return
        if told is not None and len(self._told) < TOLD_MAX:
            self._told.add(told)
        self._target = max(self._target, version)
        self._holders = tuple(dict.fromkeys((*holders, *self._holders)))
        if not self._running:
            self._running = True
            self._spawn(self._run())

    async def _run(self) -> None:
        """R2: objects first, then history, from whoever has it; goes on until the target is reached."""
        try:
            await asyncio.sleep(COMMIT_GRACE_S if self._target == self._here().position.version + 1 else 0)
            failures = 0
            while self._here().position.version < self._target and not self._stopped():
                here = self._here().position.version
                await self._once()
                await self._applier.wait(self._here().position.version - APPLY_BEHIND_MAX, APPLY_WAIT_S)
                failures = 0 if self._here().position.version > here else failures + 1
                if failures:
                    await asyncio.sleep(min(0.2 * failures, CATCH_UP_PAUSE_S_MAX))
                    while not self._edges.may_repeat():  # noqa: ASYNC110  (tokens come with time)
                        await asyncio.sleep(BUDGET_PAUSE_S)
        finally:
            self._running = False
            self._holders = ()
            self._told.clear()

    async def _once(self) -> None:
        edges = self._edges
        suspected = edges.suspected()
        known = dict.fromkeys((*self._holders, *(peer for peer in self._peers() if peer not in suspected)))
        holders = tuple(sorted(known, key=lambda peer: peer in suspected))
        hold, stage, learn = self._packs.hold, self._stage, self._learn
        try:
            await fetch_history(edges, self._repository, self._here(), holders, self._told, hold, stage, learn)
        except HistoryRefused as error:
            self._alarm(str(error), error.divergent)
        except (CatchUpFailed, TransportError, StorageError, PackRefused, Busy) as error:
            log.info("catch-up goes on elsewhere", repository=self._repository, error=str(error))

    async def _stage(self, change: Change, holders: tuple[NodeId, ...], floor: int) -> str:
        """Objects come before history, but for what a later deletion has made moot."""
        self._applier.moot_to = max(self._applier.moot_to, floor)
        if change.position.version <= floor:
            return ""
        return await self._packs.stage_change(change, holders)


async def fetch_history(
    edges: Edges,
    repository: RepoId,
    here: Register,
    holders: tuple[NodeId, ...],
    told: Collection[Position],
    hold: Hold,
    stage: Stage,
    learn: Learn,
) -> None:
    """One page of history after ``here`` from the first holder that can give it, learned as far as its objects can be had.

    Raises:
        CatchUpFailed: if no holder knows more.
        HistoryRefused: if a holder's history does not continue ours.
    """
    failures: list[str] = []
    refused: HistoryRefused | None = None
    question = History(repository, here.position.version, HISTORY_PAGE)
    async with aclosing(_pages(edges, question, holders, failures)) as pages:
        async for holder, page in pages:
            try:
                proved = _proved(edges, here, page, told)
                await hold((step.change for step in proved if step.needs_objects), page.packs)
                await _learn_all(proved, page.floor, (holder, *holders), stage, learn)
            except HistoryRefused as error:
                if error.divergent:
                    raise
                refused = HistoryRefused(f"{holder}: {error}")  # perhaps another holder's is better
            except (CatchUpFailed, PackRefused) as error:
                failures.append(f"{holder}: {error}")
            else:
                return
    if refused is not None:
        raise refused
    raise CatchUpFailed("; ".join(failures) or "no peer in reach")


async def _pages(
    edges: Edges, question: History, holders: Sequence[NodeId], failures: list[str]
) -> AsyncGenerator[tuple[NodeId, HistoryPage], None]:
    """Each holder's page, as they come. The next holder is asked when one has nothing to give, or says nothing for a moment:
    the first may just have been frozen, and a prepare that another one waits for must not wait for it."""
    left = list(holders)
    asked: dict[asyncio.Task[object], NodeId] = {}
    try:
        while left or asked:
            if left:
                holder = left.pop(0)
                asked[asyncio.create_task(edges.peers.ask(holder, question, timeout_s=PAGE_TIMEOUT_S))] = holder
            done, _ = await asyncio.wait(asked, timeout=NEXT_HOLDER_S if left else None, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                holder = asked.pop(task)
                try:
                    page = task.result()
                except TransportError as error:
                    failures.append(f"{holder}: {error}")
                    continue
                if isinstance(page, HistoryPage) and page.committed.version > question.since:
                    yield holder, page
                else:
                    failures.append(f"{holder}: knows no more")
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def _proved(edges: Edges, here: Register, page: HistoryPage, told: Collection[Position]) -> list[Step]:
    voters = next((entry.change.voters for entry in page.entries if entry.change.voters is not None), here.voters)
    if here.position.version > 0:
        voters = here.voters
    proved = steps(here.position, page, lambda _, certificate: certificate.flaw(voters, edges.signer.verify), told)
    if not proved:
        raise CatchUpFailed("the page holds no certified change")
    return proved


async def _learn_all(proved: Sequence[Step], floor: int, holders: tuple[NodeId, ...], stage: Stage, learn: Learn) -> None:
    """Objects first: no change is committed here before its packs are. What comes before a change whose packs cannot be had
    is learned all the same; raises ``CatchUpFailed`` if that is the first one."""
    learned = False
    for some in _goes(proved):
        problems = await _stage_all(some, floor, holders, stage)
        whole = next((number for number, problem in enumerate(problems) if problem), len(some))
        if whole:
            await learn(some[:whole])
            learned = True
        if whole < len(some):
            if not learned:
                raise CatchUpFailed(problems[whole])
            return


async def _stage_all(some: Sequence[Step], floor: int, holders: tuple[NodeId, ...], stage: Stage) -> list[str]:
    """Per step, empty or why its objects are not here."""
    turns = asyncio.Semaphore(FETCHES_AT_ONCE)

    async def one(step: Step) -> str:
        async with turns:
            return await stage(step.change, holders, floor)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(step)) for step in some]
    return [task.result() for task in tasks]


def _goes(proved: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Consecutive steps whose packs are together not much larger than is to be staged at once."""
    some: list[Step] = []
    size = 0
    for step in proved:
        some.append(step)
        size += sum(pack.size_bytes for pack in step.change.packs)
        if size > LEARN_BYTES_MAX:
            yield some
            some, size = [], 0
    if some:
        yield some
