"""Whether this node may speak for repositories at all (R4): a member, not yet one, rejoining, or stopped for good.

Everything else asks ``refusal``: empty, or why nothing is answered. It is decided by

    the journal's standing      new until its cluster is founded; rejoining until it has learned what it lost
    the others, at the start    each is asked once, within a second, what it has seen of this node, before anything is said
    the others, at any time     every heartbeat tells what was seen of whom. A node that is told that it is older than that
                                marks itself, drops its machines and rejoins, in the same process and with no operator

Two processes with one identity (a cloned disk) take turns to be told: the one that is told takes a newer incarnation, which
the other is told of, and so on. A process that has rejoined once and is told again stops for good: exactly one is left.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import structlog

from node.edges import Edges
from node.ports.errors import RejoinRefused, StorageError, TransportError
from node.protocol.ids import NodeId
from node.protocol.incarnations import newest
from node.protocol.messages import Ping, Pong
from node.protocol.standing import Found, Life, Lost, Standing, State, founding
from node.rejoining import Rejoining
from node.seen import SeenLives

log = structlog.get_logger()

HELLO_S = 1.0
"""How long a starting node waits for each peer to tell what it has seen of it."""
AGAIN_S = 5.0
"""Before a rejoining that broke off for a fault of ours begins again."""
MARK_PAUSE_S = 1.0
"""Between tries to write the mark, on a disk that refuses; meanwhile nothing is answered all the same."""


@dataclass(frozen=True, slots=True)
class View:
    """For /health."""

    standing: Literal["member", "new", "starting", "rejoining", "stopped"]
    reason: str = ""
    since_ms: int = 0
    waits_for: str = ""


class Membership:
    """One node's. ``drop`` ends every machine, ``opened`` is told when the node may speak (again)."""

    def __init__(
        self,
        edges: Edges,
        seen: SeenLives,
        *,
        drop: Callable[[str], Awaitable[None]],
        opened: Callable[[], None],
        before_clear: Callable[[], Awaitable[None]],
        hurry: Callable[[NodeId], None],
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
    ) -> None:
        self._edges = edges
        self._seen = seen
        self._drop = drop
        self._opened = opened
        self._before_clear = before_clear
        self._hurry = hurry
        self._spawn = spawn
        self._lives = edges.journal.lives
        self._others = tuple(node for node in edges.config.voters.nodes if node != edges.config.me)
        self._heard: dict[NodeId, tuple[str, Standing]] = {}
        self._asked = False
        self._losing = ""
        """The mark is being written, for this reason."""
        self._before_learning = False
        """Something is to be done under the mark first: until it is, nobody's word begins an attempt."""
        self._stopped = ""
        self._deciding = False
        self._rejoined = False
        self._broke_off = ""
        self._rejoining: Rejoining | None = None
        self._task: asyncio.Task[None] | None = None
        self._taking = asyncio.Lock()

    # ------------------------------------------------------------ what others ask of it

    @property
    def refusal(self) -> str:
        """Empty, or why this node answers nothing for any repository."""
        if self._asked and not self._losing and not self._stopped and self._lives.standing.state is State.MEMBER:
            return ""
        view = self.view()
        reason = f": {view.reason}" if view.reason else ""
        since = f" since {datetime.fromtimestamp(view.since_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC" if view.since_ms else ""
        return f"this node is {view.standing}{since}{reason}" + (f"; it waits for {view.waits_for}" if view.waits_for else "")

    def view(self) -> View:
        standing = self._lives.standing
        if self._stopped:
            return View("stopped", self._stopped)
        if self._losing:
            return View("rejoining", self._losing, waits_for="its own disk, to write that down")
        if standing.state is State.REJOINING:
            waits_for = self._broke_off or (self._rejoining.waits_for if self._rejoining else "its turn")
            return View("rejoining", standing.reason, standing.since_ms, waits_for)
        if not self._asked:
            return View("starting", "it asks the others what they have seen of it")
        if standing.state is State.NEW:
            missing = [node for node in self._others if node not in self._heard]
            others = [node for node in self._others if node not in missing and self._heard[node][1].state is not State.NEW]
            waits_for = ", ".join((*missing, *(f"{node} ({self._heard[node][1].state.value})" for node in others)))
            return View("new", "its cluster is not founded yet", waits_for=waits_for or "its own disk")
        return View("member", since_ms=standing.since_ms)

    def ping(self, peer: NodeId) -> Ping:
        """What to tell a peer."""
        lives = self._lives
        return Ping(lives.life, self._seen.of(peer), lives.standing, newest(lives.incarnations, peer))

    def seen_but(self, peer: NodeId) -> tuple[tuple[NodeId, Life], ...]:
        """What ``peer``, which rejoins, had perhaps seen of the others, and more."""
        return tuple((node, life) for node, life in self._seen.all if node != peer)

    def met(self, peer: NodeId, message: Ping | Pong) -> None:
        """A peer told where it stands, and what it has seen of this node."""
        if message.seen is not None:
            self._told(peer, self._lives.life.behind(message.seen))
        if message.granted > self._lives.life.incarnation:
            # Whoever asked for that number may never have come to use it: all that this node says is in vain until it rejoins.
            mine = self._lives.life.incarnation
            self._told(peer, f"incarnation {message.granted} of it was granted, this one is {mine}")
        if message.life is None or message.standing is None:
            return
        if message.standing.state is not State.NEW:  # a new journal has said nothing that could be lost
            self._seen.accept(peer, message.life)
        before = self._heard.get(peer)
        self._heard[peer] = (message.life.journal, message.standing)
        if isinstance(message, Ping) and (before is None or before[1].state is not message.standing.state):
            self._hurry(peer)  # it changed sides: do not wait for the next heartbeat to count on it, or not to
        self._consider()

    # ------------------------------------------------------------ the start

    async def start(self) -> None:
        """Ask everybody once; returns when each has answered or has been waited for."""
        if self._lives.standing.state is State.REJOINING:
            self._begin(None)
        await asyncio.gather(*(self._hello(peer) for peer in self._others))
        self._asked = True
        self._consider()
        self._open()

    async def _hello(self, peer: NodeId) -> None:
        try:
            pong = await self._edges.peers.ask(peer, self.ping(peer), timeout_s=HELLO_S)
        except TransportError as error:
            log.debug("a peer says nothing at the start", peer=peer, error=str(error))
            return
        if isinstance(pong, Pong):
            self.met(peer, pong)

    def _consider(self) -> None:
        """Found the cluster, or find out that it was founded without this journal."""
        if self._lives.standing.state is not State.NEW or self._deciding or self._losing or not self._asked:
            return
        verdict = founding(self._lives.life.journal, self._others, self._heard)
        if isinstance(verdict, Found):
            self._deciding = True
            self._spawn(self._found(verdict.founders))
        elif isinstance(verdict, Lost):
            self.lose(verdict.reason)

    async def _found(self, founders: tuple[str, ...]) -> None:
        try:
            await self._lives.found(founders, self._edges.clock.wall_ms())
        except StorageError as error:
            log.error("the founding could not be written", error=str(error))
            return
        finally:
            self._deciding = False
        log.info("the cluster is founded", members=len(founders))
        self._open()

    def _open(self) -> None:
        if not self.refusal:
            self._opened()
            for peer in self._others:
                self._hurry(peer)  # so that it hears at once that this node can be counted on

    # ------------------------------------------------------------ loss

    def _told(self, peer: NodeId, reason: str) -> None:
        if not reason or self._losing or self._stopped or self._lives.standing.state is State.REJOINING:
            return
        if self._rejoined:
            self._stop(peer, reason)
        else:
            self.lose(f"{peer} has seen more of it: {reason}")

    def _stop(self, peer: NodeId, reason: str) -> None:
        """For good: if there is another process, to rejoin again would only push it out, and be pushed out by it."""
        self._stopped = (
            f"it has rejoined once since its start, and {peer} says again that {reason}: "
            f"another process uses the identity {self._edges.config.me} (then stop one of them), "
            "or this disk was set back once more, or an operator accepted a loss; then start this one again, it rejoins"
        )
        log.error("stopped for good", reason=self._stopped)
        self._spawn(self._end())

    async def _end(self) -> None:
        await self._drop(self._stopped)

    def lose(self, reason: str, first: Callable[[], Awaitable[None]] | None = None) -> None:
        """What this node has said may be lost: from here on it answers nothing, and it rejoins. ``first`` is done under the
        mark, before anything is learned; not at all if the node is rejoining already."""
        if self._losing or self._stopped or self._lives.standing.state is State.REJOINING:
            return
        self._losing, self._before_learning = reason, first is not None
        log.error("this node must rejoin", reason=reason)
        self._spawn(self._mark(reason, first))

    async def _mark(self, reason: str, first: Callable[[], Awaitable[None]] | None) -> None:
        while True:
            try:
                await self._drop(f"this node is rejoining: {reason}")
                await self._lives.mark_rejoining(reason, self._edges.clock.wall_ms())
            except Exception as error:
                log.error("the mark could not be written", error=str(error), exc_info=not isinstance(error, StorageError))
                await asyncio.sleep(MARK_PAUSE_S)
            else:
                break
        if first is not None:
            await first()
        self._losing, self._before_learning = "", False
        if self._task is None:  # an operator's word may have come meanwhile: never two attempts at once
            self._begin(None)

    def plan(self, sources: frozenset[NodeId], *, accept_loss: bool) -> str:
        """``ports.Rejoins``: what an operator's word would do."""
        me, state = self._edges.config.me, self._lives.standing.state
        if self._stopped:
            raise RejoinRefused(self._stopped)
        if state is State.MEMBER and not self._losing:
            raise RejoinRefused("this node is a member and has lost nothing; there is nothing to take")
        if self._before_learning:
            raise RejoinRefused("its journal is being put right before anything is learned; try again when that is done")
        if strangers := sources - set(self._others):
            raise RejoinRefused(f"{', '.join(sorted(strangers))} is no other member of this cluster")
        majority, voters = self._edges.config.voters.majority, len(self._edges.config.voters.nodes)
        if len(sources) >= majority:
            raise RejoinRefused("these are a majority: the node rejoins from them by itself as soon as they answer")
        if not accept_loss:
            raise RejoinRefused(
                f"{len(sources)} of {voters} members are no majority ({majority}): acknowledged pushes that only others hold "
                "would be lost for good; if they are gone for good, say so with --accept-loss"
            )
        taken = f"what {', '.join(sorted(sources))} holds is taken for everything" if sources else "it starts with nothing"
        return f"{me} becomes a member again in a new incarnation; {taken}; whatever only other nodes held is lost"

    async def take(self, sources: frozenset[NodeId]) -> None:
        """An operator's word: learn what is left from these members, however few, and accept the loss of the rest.

        Raises:
            RejoinRefused, StorageError: the mark could not be written.
        """
        async with self._taking:
            self.plan(sources, accept_loss=True)
            log.warning("an operator decides what a rejoining node takes", sources=sorted(sources))
            if self._lives.standing.state is not State.REJOINING:
                await self._lives.mark_rejoining("an operator decided", self._edges.clock.wall_ms())
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
                await self._mark_again()
            self._begin(sources)

    async def _mark_again(self) -> None:
        """The attempt that was ended may have been clearing the mark: that write is made all the same."""
        try:
            await self._lives.mark_rejoining("an operator decided", self._edges.clock.wall_ms())
        except BaseException:
            self._begin(None)
            raise

    def _begin(self, sources: frozenset[NodeId] | None) -> None:
        self._broke_off = ""
        self._task = asyncio.create_task(self._run(sources))

    async def _run(self, sources: frozenset[NodeId] | None) -> None:
        while True:
            self._rejoining = Rejoining(
                self._edges, self._seen, founders=self._founders, before_clear=self._before_clear, sources=sources
            )
            try:
                await self._rejoining.run()
            except Exception as error:
                log.exception("rejoining failed")  # R4: interrupted, it starts again at 1
                self._broke_off = f"its next attempt; the last one ended by an internal error, see this node's log: {error!r}"
                await asyncio.sleep(AGAIN_S)
                self._broke_off = ""
            else:
                break
        self._rejoined = True
        self._rejoining = self._task = None
        log.warning("rejoined", incarnation=self._lives.life.incarnation)
        self._open()

    def _founders(self) -> tuple[str, ...]:
        return tuple({uuid for _, standing in self._heard.values() for uuid in standing.founders})

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
