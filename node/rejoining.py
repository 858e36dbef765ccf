"""Drives the pure machine of a rejoining node (``protocol/rejoin.py``): asks, keeps, restores, and clears the mark at the end.

One attempt after another until the machine is done or the task is cancelled. While it runs the node answers nothing for any
repository; ``membership.py`` sees to that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from node.edges import Edges
from node.ports.errors import DamagedPart, StorageError, TransportError
from node.protocol.effects import Note, Wake
from node.protocol.events import Tick
from node.protocol.ids import NodeId
from node.protocol.messages import AcceptorPage, AcceptorRecords, Enrol, Enrolment
from node.protocol.rejoin import (
    ANSWER_S,
    Answered,
    Ask,
    Begin,
    Clear,
    Cleared,
    Keep,
    Kept,
    Rejoin,
    RejoinEffect,
    RejoinEvent,
    Restore,
    Restored,
)
from node.protocol.rejoin_states import Step
from node.restoring import Restoring
from node.seen import SeenLives

log = structlog.get_logger()

BROKE_OFF = "broke off, see this node's log"
"""A fault of ours: the machine is told all the same, and begins anew; it waits for nothing else meanwhile."""
RESTORE_PAUSE_S = 0.5
"""Before a repository that could not be learned is tried again."""


class Rejoining:
    """One run of the machine. ``sources``: an operator's choice of members to learn from, however few."""

    def __init__(
        self,
        edges: Edges,
        seen: SeenLives,
        *,
        founders: Callable[[], tuple[str, ...]],
        before_clear: Callable[[], Awaitable[None]],
        sources: frozenset[NodeId] | None = None,
    ) -> None:
        """``founders``: those that a member named. ``before_clear`` brings the disk in step with what was learned."""
        self._edges = edges
        self._seen = seen
        self._founders = founders
        self._before_clear = before_clear
        self._sources = sources
        lives = edges.journal.lives
        self._machine = Rejoin(
            edges.config.me,
            edges.config.voters,
            incarnation=lives.life.incarnation,
            tried=lives.standing.tried,
            spread=edges.entropy.uniform(1.0),
            sources=sources,
        )
        self._events: asyncio.Queue[RejoinEvent] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._restores: set[asyncio.Task[None]] = set()
        self._wake_at: float | None = None

    @property
    def waits_for(self) -> str:
        return self._machine.waits_for

    async def run(self) -> None:
        """Returns when the mark is removed."""
        try:
            self._feed(Begin())
            while self._machine.step is not Step.DONE:
                self._feed(await self._next())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _next(self) -> RejoinEvent:
        timeout_s = None if self._wake_at is None else max(0.0, self._wake_at - self._edges.clock.now())
        try:
            async with asyncio.timeout(timeout_s):
                return await self._events.get()
        except TimeoutError:
            return Tick()

    def _feed(self, event: RejoinEvent) -> None:
        before = self._machine.step
        self._wake_at = None
        for effect in self._machine.handle(event, self._edges.clock.now()):
            self._perform(effect)
        if self._machine.step is not before:
            log.info("rejoining", step=self._machine.step.value, waits_for=self._machine.waits_for)

    def _perform(self, effect: RejoinEffect) -> None:
        match effect:
            case Ask(to, message):
                self._spawn(self._ask(to, message))
            case Keep(incarnation):
                self._spawn(self._keep(incarnation))
            case Restore():
                restore = self._spawn(self._restore(effect))
                self._restores.add(restore)
                restore.add_done_callback(self._restores.discard)
            case Clear():
                self._spawn(self._clear(effect))
            case Wake(at):
                self._wake_at = at
            case Note(reason):
                log.info("rejoining goes on", reason=reason)

    async def _ask(self, to: NodeId, message: Enrol | AcceptorRecords) -> None:
        try:
            answer = await self._edges.peers.ask(to, message, timeout_s=ANSWER_S)
        except TransportError as error:
            log.debug("no answer to a rejoining node", peer=to, error=str(error))
            return
        if isinstance(answer, Enrolment | AcceptorPage) and self._counts(to, answer):
            self._events.put_nowait(Answered(to, answer))

    def _counts(self, sender: NodeId, answer: Enrolment | AcceptorPage) -> bool:
        """What a source has seen of the others is known here from now on: this node may have been the only other one to know.
        Who answers from an older life is no source, unless an operator takes for everything whatever is left."""
        if isinstance(answer, AcceptorPage):
            members = [node for node in self._edges.config.voters.nodes if node != self._edges.config.me]
            self._seen.learn((node, life) for node, life in answer.seen if node in members)
        if self._seen.accept(sender, answer.life) or self._sources is not None:
            return True
        log.warning("source of an older life", peer=sender, kind=type(answer).__name__)
        return False

    async def _keep(self, incarnation: int) -> None:
        life, problem = "", BROKE_OFF
        try:
            await self._end_restores()
            life = str(self._edges.entropy.txn_id())
            await self._edges.journal.lives.keep_attempt(incarnation)
            problem = ""
        except StorageError as error:
            problem = str(error)
        finally:
            self._events.put_nowait(Kept(incarnation, life, problem))

    async def _end_restores(self) -> None:
        """Those of an attempt that was given up: one that ended later could drop what the next one has learned and counted."""
        restores = list(self._restores)
        for restore in restores:
            restore.cancel()
        await asyncio.gather(*restores, return_exceptions=True)

    async def _restore(self, wanted: Restore) -> None:
        try:
            problem = await Restoring(self._edges, wanted, lossy=self._sources is not None).restore()
        except Exception:
            await self._restored(wanted, BROKE_OFF)
            raise
        await self._restored(wanted, problem)  # not if it is cancelled: its attempt is over

    async def _restored(self, wanted: Restore, problem: str) -> None:
        if problem:
            await asyncio.sleep(RESTORE_PAUSE_S)
        self._events.put_nowait(Restored(wanted.repository, problem))

    async def _clear(self, effect: Clear) -> None:
        edges, problem = self._edges, BROKE_OFF
        try:
            for damage in list(edges.journal.damages):
                if damage.repository is not None and damage.part is DamagedPart.RECORD:  # nobody else remembers it
                    await edges.journal.lives.forget(damage.repository)
                    edges.journal.mended(damage)
            await self._before_clear()
            await self._seen.keep_all()
            await edges.journal.lives.clear_rejoining(
                effect.incarnation, effect.incarnations, self._founders(), edges.clock.wall_ms()
            )
            problem = ""
        except StorageError as error:
            problem = str(error)
        finally:
            self._events.put_nowait(Cleared(problem))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", exc_info=error)
