"""A cluster of ``Runtime``s on one event loop, on simulated time: journals in memory, objects in memory, a network that obeys.

Time stands still while anything can run and jumps when everything waits, so a test of minutes takes milliseconds and always
runs the same way. ``@simulated`` turns an ``async def`` test into one that runs so.
"""

import asyncio
import contextlib
import copy
import functools
import inspect
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.config import Config, Member
from node.fakes import FakeObjects, FakePeers, FakeQuarantine, FakeTransport, LoopClock, Network, SeededEntropy
from node.keys import Keyring, public_text
from node.ports.errors import StorageError
from node.ports.service import Consistency
from node.protocol.change import RefUpdate
from node.protocol.ids import ZERO_OID, NodeId, Oid, RefName, TxnId
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome
from node.protocol.register import Register
from node.replica import Replica
from node.runtime import Runtime
from node.storage.memory_journal import MemoryJournal

A, B, C = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
NAME = RepositoryName("alice", "project")
MAIN = RefName("refs/heads/main")

SIMULATED_S_MAX = 36_000.0


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: time jumps instead."""

    jumped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen again: a task waits for what nobody does")
            self.jumped_s += timeout
            if self.jumped_s > SIMULATED_S_MAX:
                raise RuntimeError("ten simulated hours have gone by")
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)
        self.problems: list[dict[str, Any]] = []
        self.set_exception_handler(lambda loop, context: self.problems.append(context))

    def time(self) -> float:
        return 1000.0 + self._jumping.jumped_s


def simulated(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on simulated time; an exception that nobody looked at fails it."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
            runner.run(test(*args, **kwargs))
            loop = runner.get_loop()
            assert isinstance(loop, SimulatedLoop)
            problems = list(loop.problems)
        assert not problems, problems

    # pytest-asyncio must not take it for a coroutine function.
    del run.__wrapped__  # type: ignore[attr-defined]
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return run


class Box:
    """One machine: a disk that outlives the processes on it, and the process that runs now."""

    def __init__(self, cluster: "Cluster", node: NodeId) -> None:
        self.node = node
        self.journal = MemoryJournal(node)
        self.store = FakeObjects()
        self._disks = 1
        self.runtime: Runtime | None = None
        self._cluster = cluster

    @property
    def service(self) -> Any:
        assert self.runtime is not None
        return self.runtime.service

    async def start(self) -> None:
        cluster = self._cluster
        cluster.network.down.discard(self.node)
        peers = FakePeers(cluster.network, self.node)
        self.runtime = Runtime(
            cluster.config(self.node),
            clock=LoopClock(),
            entropy=SeededEntropy(f"{self.node} {cluster.lives}"),
            signer=cluster.signers[self.node],
            journal=self.journal,
            store=self.store,
            transport=FakeTransport(cluster.network, self.node),
            peers=peers,
        )
        cluster.lives += 1
        cluster.network.attach(self.node, self.runtime.serving.on_question, self.runtime.serving.on_fetch)
        await self.runtime.start()

    async def crash(self) -> None:
        """SIGKILL: nothing more is written or sent, notes are gone, memory is gone."""
        runtime, self.runtime = self.runtime, None
        assert runtime is not None
        self._cluster.network.down.add(self.node)
        self.journal.failure = StorageError("killed")
        with contextlib.suppress(StorageError):
            await runtime.stop()
        self.journal.crash()
        self.journal.failure = None
        self.store.crash()

    def wipe(self) -> None:
        """The disk is lost; the next start finds an empty one."""
        self._disks += 1
        self.journal = MemoryJournal(self.node, journal=f"journal-of-{self.node}-disk-{self._disks}")
        self.store = FakeObjects()

    def copy_disk(self) -> tuple[MemoryJournal, FakeObjects]:
        """Of a node that is down: what a snapshot or a clone holds."""
        return self.journal.copy(), copy.deepcopy(self.store)

    async def replica(self, name: RepositoryName = NAME) -> Replica:
        assert self.runtime is not None
        return await self.runtime._registry.get(name.key)


class Cluster:
    """Three nodes (or more), and what a test does to them."""

    def __init__(self, nodes: tuple[NodeId, ...] = (A, B, C), **settings: Any) -> None:
        self.nodes = nodes
        self.network = Network()
        self.lives = 0
        keys = {node: Ed25519PrivateKey.generate() for node in nodes}
        public = {node: (public_text(key),) for node, key in keys.items()}
        self.signers = {node: Keyring(node, key, public) for node, key in keys.items()}
        self._members = tuple(Member(id=node, url=f"http://{node}.example:3001", public_keys=public[node]) for node in nodes)
        self._settings = settings
        self.boxes = {node: Box(self, node) for node in nodes}

    def config(self, node: NodeId) -> Config:
        return Config(
            node_id=node, members=self._members, data_dir=Path("/nowhere"), private_key=Path("/nowhere"), **self._settings
        )

    def __getitem__(self, node: NodeId) -> Box:
        return self.boxes[node]

    async def __aenter__(self) -> "Cluster":
        for box in self.boxes.values():
            await box.start()
        await asyncio.sleep(1.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        for box in self.boxes.values():
            if box.runtime is not None:
                await box.runtime.stop()

    # ------------------------------------------------------------ what clients do

    async def create(self, node: NodeId = A, name: RepositoryName = NAME, key: str | None = None) -> Outcome:
        outcome: Outcome = await self[node].service.create(name, actor="alice", head=None, key=key)
        return outcome

    async def delete(self, node: NodeId = A, name: RepositoryName = NAME, key: str | None = None) -> Outcome:
        outcome: Outcome = await self[node].service.delete(name, actor="alice", key=key)
        return outcome

    async def push(
        self,
        node: NodeId,
        new: int,
        old: int = 0,
        *,
        ref: RefName = MAIN,
        content: bytes = b"",
        name: RepositoryName = NAME,
        txn: TxnId | None = None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        """Move ``ref`` from object number ``old`` (0: it is new) to number ``new`` (0: it goes)."""
        box = self[node]
        quarantine = FakeQuarantine(box.store, content)
        update = RefUpdate(ref, oid(old), oid(new))
        outcome: Outcome = await box.service.push(
            name, txn or box.service.new_txn(), quarantine, [update], actor="alice", atomic=False, progress=progress
        )
        return outcome

    async def read(
        self,
        node: NodeId,
        name: RepositoryName = NAME,
        consistency: Consistency = Consistency.LINEARIZABLE,
        at_least: int = 0,
    ) -> Register:
        register: Register = await self[node].service.read(name, consistency, at_least)
        return register

    async def main(self, node: NodeId, consistency: Consistency = Consistency.LINEARIZABLE, at_least: int = 0) -> int:
        """The object number that a read of ``MAIN`` shows."""
        register = await self.read(node, NAME, consistency, at_least)
        return number(register.refs[MAIN].oid) if MAIN in register.refs else 0

    async def positions(self, name: RepositoryName = NAME) -> set[str]:
        """The distinct places in history at which the nodes that are up stand, and what is on their disks."""
        found = set()
        for box in self.boxes.values():
            if box.runtime is not None:
                replica = await box.replica(name)
                disk = box.store.repositories.get(str(name))
                refs = sorted(disk.refs.items()) if disk else None
                found.add(f"{replica.register.position} applied {replica.applied} {refs}")
        return found

    async def settle(self, seconds: float = 10.0) -> None:
        await asyncio.sleep(seconds)


def oid(value: int) -> Oid:
    return Oid(f"{value:040x}") if value else ZERO_OID


def number(value: Oid) -> int:
    return int(value, 16)


async def until(claim: Callable[[], bool], timeout_s: float = 30.0, every_s: float = 0.0005) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(timeout_s):
        while not claim():  # noqa: ASYNC110  (there is nobody who could tell)
            await asyncio.sleep(every_s)


async def chunks_of(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])
