"""Fakes of the edges, shipped beside the ports they stand for: a network that loses and delays, objects in memory.

``node.storage.memory_journal`` is the journal's. What a test turns: ``Network.rule`` decides of every message how long it
takes, or that it is lost; ``FakeObjects.failures`` makes the disk refuse. Nothing here touches a disk, a socket or a thread,
so whole clusters run on one event loop, and on simulated time if that loop keeps it.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from node.ports.errors import DiskRefused, NoAnswer, NodeError, PackRefused, PeerUnreachable, RepositoryAbsent, TransportError
from node.ports.objects import Finding, Spend
from node.ports.transport import DirectHandler, FetchHandler, Handler
from node.protocol.change import Change, ChangeKind, PackRef, RefUpdate
from node.protocol.ids import Digest, NodeId, Oid, RefName, TxnId
from node.protocol.messages import (
    INLINE_PACK_BYTES_MAX,
    DirectReply,
    DirectRequest,
    Fetch,
    InlinePack,
    Message,
    TransportReply,
    TransportRequest,
)
from node.protocol.names import RepositoryName
from node.protocol.register import Register

LATENCY_S = 0.001
CHUNK_BYTES = 64 * 1024


class LoopClock:
    """The running loop's own time, real or simulated."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self.now() * 1000)


class SeededEntropy:
    """Chance that a test can repeat."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._prefix = f"tx-{sha256(seed.encode()).hexdigest()[:6]}"
        self._count = 0

    def uniform(self, upper: float) -> float:
        return self._random.random() * upper

    def txn_id(self) -> TxnId:
        self._count += 1
        return TxnId(f"{self._prefix}-{self._count}")


# ---------------------------------------------------------------- the network

Rule = Callable[[NodeId, NodeId, Message], float | None]
"""(sender, receiver, message) → seconds until it arrives, or ``None``: lost. Replies are messages too."""


@dataclass(slots=True)
class _Place:
    """One node that is up."""

    transport: Handler | None = None
    direct: DirectHandler | None = None
    fetch: FetchHandler | None = None


class Network:
    """Everything between nodes. ``rule`` is asked of every message, ``sent`` counts them by (sender, kind)."""

    def __init__(self) -> None:
        self.rule: Rule = lambda sender, to, message: LATENCY_S
        self.down: set[NodeId] = set()
        """Nodes whose process is gone: connections to them are refused."""
        self.cut: set[frozenset[NodeId]] = set()
        """Pairs between which everything is lost."""
        self.brokerless: set[NodeId] = set()
        """Nodes that have lost their broker; direct HTTP goes on."""
        self.sent: Counter[tuple[NodeId, str]] = Counter()
        self.log: list[tuple[NodeId, NodeId, Message]] = []
        self.places: dict[NodeId, _Place] = {}

    def attach(self, node: NodeId, direct: DirectHandler, fetch: FetchHandler) -> None:
        place = self.places.setdefault(node, _Place())
        place.direct, place.fetch = direct, fetch

    async def carry(self, sender: NodeId, to: NodeId, message: Message) -> _Place:
        """Returns when the message has arrived; never, when it is lost."""
        if sender in self.down or to in self.down or to not in self.places:
            raise PeerUnreachable(f"{to} refused the connection")
        self.sent[sender, type(message).__name__] += 1
        self.log.append((sender, to, message))
        delay_s = None if frozenset((sender, to)) in self.cut else self.rule(sender, to, message)
        await asyncio.sleep(1e9 if delay_s is None else delay_s)
        if to in self.down or sender in self.down:
            await asyncio.sleep(1e9)
        return self.places[to]


class FakeTransport:
    """``ports.Transport`` over a ``Network``."""

    name = "fake"

    def __init__(self, network: Network, me: NodeId) -> None:
        self._network = network
        self._me = me
        self._started = False
        self._handling: set[asyncio.Task[TransportReply]] = set()

    @property
    def up(self) -> bool:
        return self._started and self._me not in self._network.brokerless

    @property
    def detail(self) -> str:
        return "in memory" if self.up else "no broker"

    async def start(self, handler: Handler) -> None:
        self._started = True
        self._network.places.setdefault(self._me, _Place()).transport = handler

    async def stop(self) -> None:
        self._started = False
        self._network.places.setdefault(self._me, _Place()).transport = None

    async def request(self, to: NodeId, message: TransportRequest, *, timeout_s: float) -> TransportReply:
        if not self.up or to in self._network.brokerless:
            raise PeerUnreachable("no broker")
        try:
            async with asyncio.timeout(timeout_s):
                place = await self._network.carry(self._me, to, message)
                if place.transport is None:
                    raise PeerUnreachable(f"{to} does not serve")
                # The receiver handles it to its end, whether the sender still waits or not.
                handling = asyncio.ensure_future(place.transport(self._me, message))
                self._handling.add(handling)
                handling.add_done_callback(self._handling.discard)
                reply: TransportReply = await asyncio.shield(handling)
                await self._network.carry(to, self._me, reply)
                return reply
        except TimeoutError as error:
            raise NoAnswer(f"no answer from {to}") from error


class FakePeers:
    """``ports.Peers`` over a ``Network``."""

    def __init__(self, network: Network, me: NodeId) -> None:
        self._network = network
        self._me = me

    async def ask(self, to: NodeId, message: DirectRequest, *, timeout_s: float) -> DirectReply:
        try:
            async with asyncio.timeout(timeout_s):
                place = await self._network.carry(self._me, to, message)
                if place.direct is None:
                    raise PeerUnreachable(f"{to} does not serve")
                reply = await place.direct(self._me, message)
                await self._network.carry(to, self._me, reply)
                return reply
        except TransportError:
            raise
        except NodeError as error:  # the real one answers 503
            raise PeerUnreachable(f"{to} refused: {error}") from error
        except TimeoutError as error:
            raise NoAnswer(f"no answer from {to}") from error

    async def fetch(self, to: NodeId, message: Fetch, *, stall_s: float) -> AsyncIterator[bytes]:
        try:
            async with asyncio.timeout(stall_s):
                place = await self._network.carry(self._me, to, message)
        except TimeoutError as error:
            raise NoAnswer(f"no answer from {to}") from error
        chunks = await place.fetch(self._me, message) if place.fetch else None
        if chunks is None:
            raise PeerUnreachable(f"{message.pack.name} is not at {to}")
        async for chunk in chunks:
            try:
                async with asyncio.timeout(stall_s):
                    await self._network.carry(to, self._me, message)
            except TimeoutError as error:
                raise NoAnswer(f"{to} stalled") from error
            yield chunk

    async def stop(self) -> None:
        return None


# ---------------------------------------------------------------- objects


def pack_of(content: bytes) -> tuple[PackRef, InlinePack]:
    """Something that is named as a pack is; nothing in it is git's."""
    index = b"index of " + sha256(content).digest()
    digest = Digest(sha256(content).hexdigest())
    reference = PackRef(
        f"pack-{digest[:40]}", digest, max(len(content), 32), Digest(sha256(index).hexdigest()), max(len(index), 32)
    )
    return reference, InlinePack(digest, content, index)


@dataclass(slots=True)
class FakeRepository:
    """What stock git would see."""

    head: RefName
    refs: dict[RefName, Oid] = field(default_factory=dict)
    packs: dict[str, InlinePack] = field(default_factory=dict)


class FakeQuarantine:
    """``ports.Quarantine`` of one pack."""

    def __init__(self, store: "FakeObjects", content: bytes) -> None:
        self._store = store
        self._pairs = (pack_of(content),) if content else ()
        small = len(content) <= INLINE_PACK_BYTES_MAX
        self.packs = tuple(pack for pack, _ in self._pairs)
        self.inline = tuple(inline for _, inline in self._pairs if small)
        self.oids: frozenset[Oid] | None = None

    async def examine(self, updates: Sequence[RefUpdate]) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        return tuple(updates), {}

    async def promote(self) -> None:
        self._store.check("promote")
        self._store.staged |= {pack.sha256: inline for pack, inline in self._pairs if not self.inline}

    async def discard(self) -> None:
        return None

    async def __aenter__(self) -> "FakeQuarantine":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class FakeIntake:
    """``ports.QuarantineIntake``."""

    def __init__(self, store: "FakeObjects") -> None:
        self._store = store

    async def receive(self, chunks: AsyncIterator[bytes]) -> FakeQuarantine:
        return FakeQuarantine(self._store, b"".join([chunk async for chunk in chunks]))

    async def empty(self) -> FakeQuarantine:
        return FakeQuarantine(self._store, b"")


class FakeObjects:
    """``ports.ObjectStore`` in memory; it outlives its node as a disk does (``crash`` forgets what was in memory)."""

    def __init__(self) -> None:
        self.repositories: dict[str, FakeRepository] = {}
        self.rescued: dict[str, FakeRepository] = {}
        self.staged: dict[str, InlinePack] = {}
        self.small: dict[str, InlinePack] = {}
        self.held: dict[str, set[str]] = {}
        self.failures: dict[str, Exception] = {}
        """By method: what it raises."""
        self.free = 1 << 40
        self.streams_open = 0

    def check(self, method: str) -> None:
        if method in self.failures:
            raise self.failures[method]

    def crash(self) -> None:
        self.small.clear()
        self.held.clear()

    def quarantine(self, repository: RepositoryName, txn: TxnId, shallow: Sequence[Oid] = ()) -> FakeIntake:
        return FakeIntake(self)

    def path(self, name: str) -> Path:
        return Path("/nowhere") / f"{name}.git"

    async def missing(self, change: Change) -> tuple[PackRef, ...]:
        await asyncio.sleep(0)
        self.check("missing")
        here = self._of(change)
        absent = tuple(p for p in change.packs if not {p.sha256} & (self.small.keys() | self.staged.keys() | here.keys()))
        for pack in change.packs:
            if pack not in absent:
                self.held.setdefault(pack.sha256, set()).add(change.position.digest)
        return absent

    async def holds(self, name: str, packs: Sequence[PackRef]) -> bool:
        repository = self.repositories.get(name)
        return repository is not None and any(pack.sha256 in repository.packs for pack in packs)

    async def stage_inline(self, packs: Iterable[tuple[PackRef, InlinePack]]) -> None:
        self.check("stage_inline")
        for pack, inline in packs:
            if sha256(inline.pack).hexdigest() != pack.sha256:
                raise PackRefused("checksum mismatch")
            self.small[pack.sha256] = inline

    def inline(self, packs: Iterable[PackRef]) -> tuple[InlinePack, ...]:
        return tuple(self.small[pack.sha256] for pack in packs if pack.sha256 in self.small)

    async def read_small(self, name: str, packs: Sequence[PackRef]) -> tuple[InlinePack, ...]:
        self.check("read_small")
        here = self.repositories[name].packs if name in self.repositories else {}
        found = (self.small.get(pack.sha256) or here.get(pack.sha256) for pack in packs)
        return tuple(inline for inline in found if inline is not None)

    async def stage_fetched(self, pack: PackRef, read: Callable[[bool, int], AsyncIterator[bytes]]) -> None:
        self.check("stage_fetched")
        if pack.sha256 in self.staged:
            return
        content = b"".join([chunk async for chunk in read(False, 0)])
        index = b"".join([chunk async for chunk in read(True, 0)])
        if sha256(content).hexdigest() != pack.sha256:
            raise PackRefused("checksum mismatch")
        self.staged[pack.sha256] = InlinePack(pack.sha256, content, index)

    async def discard(self, change: Change) -> None:
        self.check("discard")
        self._release(change)

    async def apply(self, before: Register, change: Change, after: Register, packs: Sequence[InlinePack]) -> None:
        await self.apply_all((change,), after, packs)

    async def apply_all(self, changes: Sequence[Change], after: Register, packs: Sequence[InlinePack]) -> None:
        await asyncio.sleep(0)
        self.check("apply")
        if changes[0].kind is ChangeKind.DELETE:
            self.repositories.pop(after.name, None)
            self._release(changes[0])
            return
        repository = self.repositories.setdefault(after.name, FakeRepository(after.head))
        along = {inline.sha256: inline for inline in packs}
        for pack in (pack for change in changes for pack in change.packs):
            found = along.get(pack.sha256) or self.small.get(pack.sha256) or self.staged.get(pack.sha256)
            found = found or repository.packs.get(pack.sha256)
            if found is None:
                raise DiskRefused(f"objects are missing: {pack.name} is neither staged nor in the repository")
            repository.packs[pack.sha256] = found
        self._show(repository, after)
        for change in changes:
            self._release(change)

    async def materialise(self, register: Register) -> None:
        self.check("materialise")
        if register.exists:
            self._show(self.repositories.setdefault(register.name, FakeRepository(register.head)), register)
        else:
            self.repositories.pop(register.name, None)

    async def sync(self, name: str) -> None:
        self.check("sync")

    async def sweep(
        self, packs_in_use: set[str] | None, existing: set[str], doubtful: AbstractSet[str] = frozenset(), *, keep: bool = False
    ) -> Mapping[str, int]:
        gone = self.staged.keys() - packs_in_use if packs_in_use is not None else set()
        for sha in list(gone):
            del self.staged[sha]
        return {"stages": len(gone)}

    async def close(self) -> None:
        return None

    async def open_pack(self, name: str, pack: PackRef, index: bool, offset: int) -> AsyncIterator[bytes] | None:
        repository = self.repositories.get(name)
        found = self.staged.get(pack.sha256) or (repository.packs.get(pack.sha256) if repository else None)
        if found is None:
            return None
        return self._stream((found.index if index else found.pack)[offset:])

    async def _stream(self, content: bytes) -> AsyncIterator[bytes]:
        self.streams_open += 1
        try:
            for at in range(0, len(content), CHUNK_BYTES):
                yield content[at : at + CHUNK_BYTES]
        finally:
            self.streams_open -= 1

    async def upload_pack(self, name: str, *, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        if name not in self.repositories:
            raise RepositoryAbsent(f"{name} is not on this node's disk")
        return self._stream(b"pack for " + request)

    async def verify_refs(self, register: Register) -> Sequence[Finding]:
        here = self.repositories.get(register.name)
        if here is None or not register.exists:
            return [Finding("repository", "it is not as the journal says")] if (here is not None) != register.exists else []
        refs = {name: ref.oid for name, ref in register.refs.items()}
        return [] if (here.refs, here.head) == (refs, register.head) else [Finding("refs", "not as the journal says")]

    async def verify_pack(self, name: str, pack: PackRef, spend: Spend) -> Finding | None:
        found = self.repositories[name].packs.get(pack.sha256) if name in self.repositories else None
        if found is not None:
            await spend(len(found.pack))
        whole = found is not None and sha256(found.pack).hexdigest() == pack.sha256
        return None if whole else Finding("pack", f"{pack.name} is not what was written", pack)

    async def verify_objects(self, name: str) -> Finding | None:
        return None

    async def rescue(self, register: Register, label: str) -> str:
        here = self.repositories.pop(register.name, None)
        if here is not None:
            self.rescued[label] = here
        return label if here is not None else ""

    async def mend_refs(self, register: Register) -> None:
        await self.materialise(register)

    async def mend_pack(self, name: str, pack: PackRef, read: Callable[[bool, int], AsyncIterator[bytes]]) -> None:
        self.staged.pop(pack.sha256, None)
        await self.stage_fetched(pack, read)
        self.repositories[name].packs[pack.sha256] = self.staged.pop(pack.sha256)

    async def size_bytes(self, name: str) -> int:
        return sum(len(inline.pack) for inline in self.repositories[name].packs.values())

    def free_bytes(self) -> int:
        return self.free

    def _of(self, change: Change) -> dict[str, InlinePack]:
        names = (name for name in self.repositories if name.lower() == change.repository)
        return next((self.repositories[name].packs for name in names), {})

    def _release(self, change: Change) -> None:
        for pack in change.packs:
            holders = self.held.get(pack.sha256, set())
            holders.discard(change.position.digest)
            if not holders:
                self.staged.pop(pack.sha256, None)

    @staticmethod
    def _show(repository: FakeRepository, register: Register) -> None:
        repository.head = register.head
        repository.refs = {name: ref.oid for name, ref in register.refs.items()}
