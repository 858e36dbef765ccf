"""The scrub (R3): all that this node stores is looked at now and then, at a bounded rate, and what is damaged is repaired.

A pass goes over all repositories in order of their keys (``examining``), then SQLite checks the journal's file as a whole.
What others meet (a vote reads a row that is not what was written) is taken up within a second, beside a pass that is under way.
What could not be repaired is tried again, with patience. An operator may ask for a pass, or for one repository, now.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from weakref import WeakValueDictionary

import structlog

from node.edges import Edges
from node.examining import Examiner, NotLooked
from node.ports.errors import DamagedPart, JournalDamaged, NodeError, StorageError
from node.ports.upkeep import RepairPlan, RepairReport, ScrubState
from node.protocol.ids import RepoId
from node.registry import Registry
from node.repair import Repair
from node.replay import DAMAGED
from node.replica import INTERNAL

LOOK_S = 1.0
"""How often it is looked whether somebody met damage."""

RETRY_S = 10.0
RETRY_S_MAX = 600.0
"""After this long a look or a repair that failed is tried again, each time twice as long."""

KEYS_PAGE = 256
REPORTS_MAX = 100
REST_S = 0.002
"""Between two pieces of SQLite's check of the whole file."""

log = structlog.get_logger()


class Scrub:
    """One node's scrub; implements ``ports.Care``."""

    def __init__(self, edges: Edges, registry: Registry, examiner: Examiner, repair: Repair) -> None:
        self._edges = edges
        self._examiner = examiner
        self._repair = repair
        self._registry = registry
        self._state = ScrubState(0, False, "", 0, 0, 0, 0, 0, 0, 0, ())
        self._reports: deque[RepairReport] = deque(maxlen=REPORTS_MAX)
        self._wanted: set[RepoId] = set()
        self._opened = False
        """The node has begun to speak for its repositories since it was looked which ones are set aside."""
        self._all_wanted = False
        self._begun = asyncio.Event()
        self._wake = asyncio.Event()
        self._locks: WeakValueDictionary[RepoId, asyncio.Lock] = WeakValueDictionary()
        """Nobody looks at, or mends, one repository twice at once."""
        self._again: dict[RepoId, tuple[float, float]] = {}
        """Repositories whose look or repair failed: (when it is tried again, how long is waited after that)."""

    def state(self) -> ScrubState:
        return replace(self._state, bytes_read=self._examiner.pace.bytes, reports=tuple(self._reports))

    def opened(self) -> None:
        """The node speaks for its repositories from now on, or again. Told and not sampled: a rejoining may take less than the
        time between two looks, and set replicas aside."""
        self._opened = True
        self._wake.set()

    async def break_off(self) -> None:
        """This node is about to learn anew what it stores: ends what is being repaired. A look ends by itself."""
        await self._repair.break_off()

    def begin(self, repository: RepoId | None) -> int:
        if repository is None:
            self._all_wanted = True
        else:
            self._wanted.add(repository)
        self._begun.set()
        return self._state.run + 1

    async def examine(self, repository: RepoId) -> RepairPlan:
        damages = await self._examiner.damages(repository)
        findings = [] if damages else await self._examiner.findings(repository)
        would = await self._repair.plan(repository, damages, findings)
        return RepairPlan((*map(str, damages), *map(str, findings)), would)

    async def repair(self, repository: RepoId) -> RepairReport:
        """Raises ``NotAMember``: what a rejoining node stores is being learned anew, it is not repaired beside that."""
        self._registry.check()
        async with self._looking(repository):
            self._registry.check()
            now = self._edges.clock.wall_ms()
            report = await self._one(repository, mendable=(DAMAGED, INTERNAL))
            return report or RepairReport(repository, (), (), "", now, self._edges.clock.wall_ms())

    async def run(self) -> None:
        """For ever; ends when cancelled."""
        interval_s = self._edges.config.scrub_interval_s
        due_at = self._edges.clock.now() + self._edges.entropy.uniform(interval_s)  # nodes do not all scrub at once
        await self._resume()
        while True:
            try:
                if not self._registry.open:
                    pass  # R4: what a rejoining node stores is being learned anew
                elif self._all_wanted or self._edges.clock.now() >= due_at:
                    self._all_wanted, due_at = False, self._edges.clock.now() + interval_s
                    await self._pass(None)
                elif self._nameless and not self._waits(_FILE):
                    await self._pass(None)
                elif self._wanted:
                    wanted, self._wanted = self._wanted, set()
                    await self._pass(wanted)
            except Exception:
                log.exception("scrub failed")  # a fault of ours ends this pass, not the scrub
            await self._pause(self._begun)

    async def run_mends(self) -> None:
        """What others met, what is set aside, and what failed before: a pass may take hours, and none of this waits for it. For
        ever; ends when cancelled."""
        while True:
            try:
                if self._registry.open:
                    if self._opened:
                        await self._take_up()
                    for repository in self._due():
                        await self._guarded(repository)
            except (NodeError, OSError) as error:
                log.error("scrub broke off", error=str(error))
            await self._pause(self._wake)

    async def _pause(self, wake: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await wake.wait()
        wake.clear()

    async def _resume(self) -> None:
        """An index that lies is better known soon."""
        try:
            await self._file()
        except StorageError as error:
            log.error("scrub broke off", error=str(error))

    async def _take_up(self) -> None:
        """Repairs that a stop of the node broke off, and what it found damaged while it started or rejoined, once it speaks for
        repositories. Asked again a moment later if the journal cannot tell."""
        self._opened = False
        try:
            now = self._edges.clock.now()
            self._again |= dict.fromkeys(await self._edges.journal.care.set_aside(DAMAGED), (now, RETRY_S))
        except Exception as error:
            self._opened = True
            if not isinstance(error, StorageError):
                raise
            log.error("scrub broke off", error=str(error))

    @property
    def _nameless(self) -> bool:
        """Whether somebody met damage of which is not known whose it is: everything is looked at."""
        return any(damage.repository is None for damage in self._edges.journal.damages)

    def _waits(self, repository: RepoId) -> bool:
        return repository in self._again and self._again[repository][0] > self._edges.clock.now()

    def _due(self) -> list[RepoId]:
        """But for those that are being looked at."""
        met = {damage.repository for damage in self._edges.journal.damages if damage.repository is not None}
        due = {each for each in met | self._again.keys() if not self._waits(each)}
        if self._nameless:
            due.discard(_FILE)  # it is looked at after everything else
        return sorted(each for each in due if each not in self._locks or not self._locks[each].locked())

    async def _pass(self, repositories: set[RepoId] | None) -> None:
        """Over these, or over everything."""
        self._examiner.pace.bytes = 0
        begun_at_ms = self._edges.clock.wall_ms()
        run = self._state.run + 1
        self._state = replace(self._state, run=run, running=True, repositories=0, skipped=0, begun_at_ms=begun_at_ms)
        try:
            if repositories is None:
                await self._everything()
            else:
                for repository in sorted(repositories):
                    await self._counted(repository)
        except Exception as error:
            if self._nameless:
                self._later(_FILE)  # else everything would be looked at again a second later, for ever
            if not isinstance(error, NodeError | OSError):
                raise
            log.error("scrub broke off", error=str(error))
        finally:
            self._state = replace(self._state, running=False, repository="")

    async def _everything(self) -> None:
        after = ""
        try:
            while page := await self._edges.journal.care.keys(after, KEYS_PAGE):
                for repository in page:
                    await self._counted(repository)
                after = page[-1]
        except JournalDamaged as error:
            log.error("scrub broke off", error=str(error))  # not before the file as a whole has been looked at
        await self._file()
        for damage in self._edges.journal.damages:
            if damage.repository is None:
                self._edges.journal.mended(damage)  # whatever it was is found by now, and has a name
        self._state = replace(self._state, ended_at_ms=self._edges.clock.wall_ms())
        log.info("scrubbed", repositories=self._state.repositories, bytes=self._examiner.pace.bytes)

    async def _counted(self, repository: RepoId) -> None:
        """Within a pass."""
        self._state = replace(self._state, repository=repository, repositories=self._state.repositories + 1)
        if not await self._guarded(repository):
            self._state = replace(self._state, skipped=self._state.skipped + 1)

    async def _guarded(self, repository: RepoId) -> bool:
        """Whether it was looked at; else it is tried again later."""
        self._registry.check()
        looked = False
        try:
            if repository == _FILE:
                await self._file()
            else:
                async with self._looking(repository):
                    await self._one(repository)
            looked = True
        except (NotLooked, StorageError) as error:
            log.warning("not scrubbed", repository=repository, reason=str(error))
            self._later(repository)
        except (NodeError, OSError):
            raise
        except Exception:
            # A fault of ours in one repository is no reason never to look at those that come after it.
            log.exception("scrub failed", repository=repository)
            self._later(repository)
        await asyncio.sleep(0)
        return looked

    @asynccontextmanager
    async def _looking(self, repository: RepoId) -> AsyncIterator[None]:
        lock = self._locks.setdefault(repository, asyncio.Lock())
        async with lock:
            yield

    async def _one(self, repository: RepoId, mendable: tuple[str, ...] = (DAMAGED,)) -> RepairReport | None:
        """``mendable``: how the reason begins for which a replica was set aside that is taken back if nothing is damaged."""
        damages = await self._examiner.damages(repository)
        findings = [] if damages else await self._examiner.findings(repository)
        replica = self._registry.peek(repository)
        if not damages and not findings and not (replica and replica.stopped.startswith(mendable)):
            stopped = "" if replica else (await self._edges.journal.load(repository, self._edges.config.voters)).stopped
            if not stopped.startswith(mendable):
                self._clean(repository)
                return None
        report = await self._repair.mend(repository, damages, findings)
        self._note(repository, report)
        return report

    def _clean(self, repository: RepoId) -> None:
        """What somebody met is not there any more: it was repaired, or it was a page in memory."""
        self._again.pop(repository, None)
        for damage in self._edges.journal.damages:
            if damage.repository == repository:
                self._edges.journal.mended(damage)

    def _note(self, repository: RepoId, report: RepairReport) -> None:
        self._reports.append(report)
        found, repaired = self._state.found + 1, self._state.repaired + (not report.problem)
        self._state = replace(self._state, found=found, repaired=repaired)
        if not report.problem:
            self._again.pop(repository, None)
            return
        self._later(repository)

    def _later(self, repository: RepoId) -> None:
        _, wait_s = self._again.get(repository, (0.0, RETRY_S))
        self._again[repository] = (self._edges.clock.now() + wait_s, min(wait_s * 2, RETRY_S_MAX))

    async def _file(self) -> None:
        """SQLite's own check; indexes are made again. Anything else is amnesia, and the file is written anew. While the node
        rejoins already it is looked at again when it has: nothing is learned into a file that is being written anew."""
        async with self._looking(_FILE):
            await self._look_at_file()

    async def _look_at_file(self) -> None:
        journal = self._edges.journal
        wrong = await journal.care.verify_database(REST_S)
        if not wrong:
            self._again.pop(_FILE, None)
            return
        begun_at_ms = self._edges.clock.wall_ms()
        log.error("damage found", repository="", found=[wrong], count=1)
        problem = ""
        try:
            await journal.care.reindex()
            problem = await journal.care.verify_database(REST_S)
        except StorageError as error:
            problem = str(error)
        if problem:
            await self._repair.mend(_FILE, [JournalDamaged(None, DamagedPart.DATABASE, problem)], [])
        else:
            log.warning("repaired", repository="", actions=["indexes made again"])
        at_ms = self._edges.clock.wall_ms()
        self._note(_FILE, RepairReport("", (wrong,), ("indexes made again",), problem, begun_at_ms, at_ms))


_FILE = RepoId("")
"""The journal's file as a whole, among repositories whose repair is tried again."""
