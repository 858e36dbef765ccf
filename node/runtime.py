"""A running node: builds its parts, starts them in order, ends every task (``start``, ``stop``).

Knows who is alive and what state the node is in. One repository's effects are performed by ``node.replica``, peers are answered
by ``node.serving``, the API by ``node.front``.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any

import structlog

from node.anti_entropy import AntiEntropy
from node.breaker import Breakers
from node.config import Config
from node.disk import Disk
from node.edges import Edges
from node.examining import Examiner
from node.faults import Faults
from node.front import Front
from node.lasting import Lasting
from node.liveness import Liveness
from node.membership import Membership
from node.ports.errors import NodeError, StorageError
from node.ports.journal import Journal
from node.ports.objects import ObjectStore
from node.ports.service import NodeState, PeerState
from node.ports.surroundings import Clock, Entropy, Signer
from node.ports.transport import Peers, Transport
from node.protocol.ids import NodeId, RepoId
from node.protocol.messages import Pong
from node.protocol.standing import State
from node.reading import Reader
from node.records import Records
from node.registry import Registry
from node.repair import Repair
from node.replay import DAMAGED, replay
from node.retries import RetryBudget
from node.scrub import Scrub
from node.seen import SeenLives
from node.serving import Serving
from node.staging import Staging
from node.summaries import Follower
from node.trace import Trace
from node.watched import WatchedPeers, WatchedTransport

log = structlog.get_logger()

DISK_WATCH_S = 1.0
ALARMS_MAX = 1000
"""Repositories whose last alarm is remembered for /health."""


class Runtime:
    """One node. ``service`` is for the API, ``serving`` for the transports."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock,
        entropy: Entropy,
        signer: Signer,
        journal: Journal,
        store: ObjectStore,
        transport: Transport,
        peers: Peers,
        budget: RetryBudget | None = None,
        rejoined: Callable[[int], None] = lambda incarnation: None,
    ) -> None:
        """``budget`` is given where an adapter below repeats requests by itself, and has to ask it too. ``rejoined`` is told
        this node's incarnation whenever it begins to speak: envelopes name it."""
        self._rejoined = rejoined
        self._replayed = False
        self._config = config
        self._journal = journal
        self._store = store
        self._alarms: OrderedDict[RepoId, str] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lasting = Lasting(clock)
        self._ready = False
        self._was_up = False
        self._disk = Disk(config, journal, store)
        urls = [(node, url) for node, url in config.urls.items() if node != config.me]
        self._breakers = Breakers(
            [node for node, _ in urls],
            needed=config.write_quorum,
            suspected=lambda: self._liveness.suspected,
            on_change=self._on_suspicion,
        )
        budget = budget or RetryBudget(clock)
        self._peers = peers = WatchedPeers(peers, self._breakers, clock, budget)
        self._transport = transport = WatchedTransport(
            transport, self._breakers, clock, budget, lambda node: self._liveness.doubt(node)
        )
        self._liveness = Liveness(
            peers,
            clock,
            urls,
            heartbeat_s=config.heartbeat_s,
            suspect_after_s=config.suspect_after_s,
            on_change=self._on_suspicion,
            on_pong=self._on_pong,
            ping=lambda peer: self.membership.ping(peer),
            lasting=self._lasting,
        )
        self._lives = SeenLives(journal.lives)
        self._reader = reader = Reader(
            config.me,
            peers,
            clock,
            lambda: self._liveness.unanswering | self._breakers.open,
            self._lives.accept,
            timeout_s=config.read_timeout_s,
            doubt_s=config.prepare_timeout_s,
            may_repeat=budget.take,
        )
        trace = Trace(journal, clock)
        edges = Edges(
            config,
            clock,
            entropy,
            signer,
            journal,
            store,
            transport,
            peers,
            trace,
            Faults(config.fault_points),
            lambda: self._suspected,
            self._liveness.doubt,
            reader.question,
            self._on_alarm,
            budget.take,
            self._lives.accept,
        )
        self.membership = Membership(
            edges,
            self._lives,
            drop=self._drop,
            opened=self._on_opened,
            before_clear=self._catch_up_disk,
            hurry=self._liveness.doubt,
            spawn=self._spawn,
        )
        self._registry = Registry(edges, journal, config.voters, lambda: self.membership.refusal)
        examiner = Examiner(edges, self._registry)
        self.care = Scrub(edges, self._registry, examiner, Repair(edges, self._registry, examiner, self._on_amnesia))
        self.anti_entropy = AntiEntropy(
            config.me,
            journal,
            peers,
            clock,
            interval_s=config.anti_entropy_interval_s,
            spawn=self._spawn,
            replica=self._registry.get,
            rejoin=self.rejoin,
        )
        self._follower = Follower(peers, self._spawn, self._registry.get)
        records = Records(journal, peers, self._liveness, trace)
        staging = Staging(config, clock, peers, lambda: self._suspected)
        self.serving = Serving(
            config,
            self._disk,
            journal,
            store,
            transport,
            self._registry,
            records,
            staging,
            self.membership,
            anti_entropy=self.anti_entropy,
            lives=self._lives.accept,
        )
        self.service = Front(
            config,
            clock,
            entropy,
            journal,
            store,
            peers,
            liveness=self._liveness,
            registry=self._registry,
            reader=reader,
            records=records,
            staging=staging,
            trace=trace,
            state=self.state,
            check=self._registry.check,
            disk=self._disk,
        )

    async def start(self) -> None:
        """Replay, sweep, connect, ask the others; doubts of an earlier life are settled from here on. A journal that is to be
        learned anew is replayed when it is. Raises ``StorageError``."""
        if self._journal.lives.standing.state is not State.REJOINING:
            await self._catch_up_disk()
        await self._transport.start(self.serving.on_request)
        lasting = self._lasting.run
        self._spawn(self._liveness.run())
        self._spawn(lasting("the look at the transport", self._watch_transport))
        self._spawn(lasting("the keeping of what was seen of peers", self._lives.run))
        self._spawn(lasting("the look at the disk", self._watch_disk))
        self._spawn(lasting("the scrub", self.care.run))
        self._spawn(lasting("the repairs", self.care.run_mends))
        await self.membership.start()
        self._ready = True
        identity = self._journal.identity
        log.info("node started", node=identity.node, transport=self._transport.name, journal=identity.journal)

    async def stop(self) -> None:
        """Stop taking requests, end every task, close the journal last, whatever fails on the way there."""
        self._ready = False
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._journal.close)
            stack.push_async_callback(self._store.close)
            stack.push_async_callback(self._peers.stop)
            stack.push_async_callback(self._registry.close)
            stack.push_async_callback(self.membership.close)
            stack.push_async_callback(self.service.close)
            stack.push_async_callback(self._reader.close)
            stack.push_async_callback(self._end_tasks)
            await self._transport.stop()

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def rejoin(self, reason: str) -> None:
        """What this node's journal holds is no longer all that was written: it marks itself and learns it anew (R4)."""
        self.membership.lose(reason)

    async def _catch_up_disk(self) -> None:
        """Once in a process: later, what is applied is applied by who commits it."""
        if not self._replayed:
            await replay(self._config, self._journal, self._store)
            self._replayed = True

    async def _drop(self, reason: str) -> None:
        """R4: what was wrong with a replica is learned anew with all the others; what is wrong then is said then."""
        await self._registry.drop(reason)
        await self.care.break_off()
        self._alarms.clear()

    def _on_opened(self) -> None:
        """This node speaks for its repositories from now on, or again."""
        self._rejoined(self._journal.identity.incarnation)
        self._spawn(self._load_doubts())
        self._spawn(self._name_set_aside())
        self.care.opened()

    async def _name_set_aside(self) -> None:
        """Alarms of an earlier life, for /health; what is damaged is named by the scrub, which takes it up."""
        journal = self._journal
        for repository in await journal.care.set_aside(""):
            with suppress(StorageError):  # damage is the scrub's, which names it
                stopped = (await journal.load(repository, self._config.voters)).stopped
                if stopped and not stopped.startswith(DAMAGED):
                    self._on_alarm(repository, stopped)

    async def _load_doubts(self) -> None:
        """What is in doubt is settled, and what could not be placed is fetched, by whoever is in memory."""
        await self._journal.flush()
        unplaced = [repository for repository, *_ in await self._journal.unsynced()]
        for repository in dict.fromkeys((*await self._journal.in_doubt(), *unplaced)):
            try:
                await self._registry.get(repository)
            except Exception as error:
                ours = not isinstance(error, NodeError)
                log.warning("not loaded at the start", repository=repository, error=str(error), exc_info=ours)

    def state(self) -> NodeState:
        config, identity = self._config, self._journal.identity
        view, refusal = self.membership.view(), self.membership.refusal
        alive = len(config.members) - len(self._suspected)
        ready = self._ready and not refusal
        write_ready = ready and alive >= config.write_quorum and not self._disk.problem
        problem = ""
        if self._disk.problem:
            problem = self._disk.problem
        elif not self._ready:
            problem = "starting: replaying the journal"
        elif refusal:
            problem = refusal
        elif not self._transport.up:
            problem = f"{self._transport.name} is not in reach: {self._transport.detail}"
        elif not write_ready:
            problem = f"a write needs {config.write_quorum} nodes, {alive} are in reach"
        elif self._alarms:
            repository, reason = next(reversed(self._alarms.items()))
            problem = f"alarm on {repository}: {reason}"
        problem = "; ".join(filter(None, (problem, self._lasting.problem)))
        return NodeState(
            config.me,
            config.cluster,
            identity.incarnation,
            config.write_quorum,
            config.voters.nodes,
            tuple(self._seen(peer) for peer in self._liveness.states()),
            self._transport.name,
            self._transport.up,
            self._transport.detail,
            ready and not self._disk.failed,
            write_ready,
            problem,
            bool(self._disk.failed),
            view.standing,
            view.reason,
            view.since_ms,
            view.waits_for,
        )

    # ------------------------------------------------------------ who is there

    @property
    def _suspected(self) -> frozenset[NodeId]:
        """Peers not worth waiting for in a vote; all of them while the own transport is down."""
        if not self._transport.up:
            return frozenset(node for node in self._config.urls if node != self._config.me)
        return self._liveness.suspected | self._breakers.open

    def _seen(self, peer: PeerState) -> PeerState:
        """For /health: a peer whose heartbeats are good may not be waited for all the same."""
        if peer.node not in self._breakers.open or peer.state != "alive":
            return peer
        return replace(peer, state="suspected", reason=self._breakers.reason(peer.node))

    def _on_suspicion(self) -> None:
        suspected = self._suspected
        log.info("suspicion changed", suspected=sorted(suspected))
        self._registry.suspect(suspected)

    async def _watch_transport(self) -> None:
        """The transport going up or down changes whom a vote can reach."""
        while True:
            if (up := self._transport.up) != self._was_up:
                log.info("transport changed", up=up, detail=self._transport.detail)
                self._on_suspicion()
                self._was_up = up
            await asyncio.sleep(0.05)

    async def _watch_disk(self) -> None:
        """The log says when the disk fails, runs short, and has room again."""
        told = False
        while not self._disk.failed:
            short = self._disk.short
            if short and not told:
                log.warning("disk short of room", reason=short)
            elif told and not short:
                log.info("disk has room again")
            told = bool(short)
            await asyncio.sleep(DISK_WATCH_S)
        log.error("disk failed", reason=self._disk.failed)

    def _on_pong(self, peer: NodeId, pong: Pong) -> None:
        self.membership.met(peer, pong)
        self._follower.on_pong(peer, pong)
        self.anti_entropy.on_pong(peer, pong)

    def _on_amnesia(self, reason: str, first: Callable[[], Awaitable[None]] | None) -> None:
        """What this node promised is not known any more: it learns it again from the others (R4)."""
        log.error("acceptor record lost", reason=reason)
        self.membership.lose(reason, first)

    def _on_alarm(self, repository: RepoId, reason: str) -> None:
        """An empty reason: it is well again."""
        if not reason:
            self._alarms.pop(repository, None)
            return
        self._alarms[repository] = reason
        while len(self._alarms) > ALARMS_MAX:
            self._alarms.popitem(last=False)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", exc_info=error)
