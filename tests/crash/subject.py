"""The node that is made to fail: the real runtime, journal and object store on real files; only the network is made of paper.

``Subject`` is one life of it. What it promises to anybody is told to ``tell`` at the moment at which the client or the peer
would hear it: whoever looks at the disk afterwards knows what must be there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from node import applying
from node.fakes import LoopClock, SeededEntropy
from node.ports.errors import NodeError, PeerUnreachable
from node.protocol.change import RefUpdate
from node.protocol.ids import ZERO_OID, NodeId, RefName
from node.protocol.messages import (
    DirectReply,
    DirectRequest,
    Fetch,
    History,
    HistoryEntry,
    HistoryPage,
    TransportReply,
    TransportRequest,
)
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome, OutcomeKind
from node.protocol.standing import State
from node.runtime import Runtime
from node.storage.git import GitLimits
from node.storage.journal import SqliteJournal
from node.storage.objects import DiskObjects
from tests.crash.values import NAME, A, B, Chain, Packed, config, keyring

Tell = Callable[..., None]
"""(kind, **facts): see ``checks.py`` for the kinds."""

LINGER_S = 0.002
LIMITS = GitLimits(free_bytes_min=0, warm_max=0)
HURRY = {"SYNC_DELAY_S": 0.01, "APPLY_PAUSE_S_MAX": 0.1, "SYNC_PAUSE_S_MAX": 0.1}
"""The applier's pauses, in seconds, for thousands of short lives."""


def hurry() -> None:
    """For a whole process; a test that shares one with others has them patched for itself."""
    for name, value in HURRY.items():
        setattr(applying, name, value)


class PaperTransport:
    """Up, and without anybody at the other end."""

    name = "paper"
    up = True
    detail = "nobody is there"

    async def start(self, handler: object) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def request(self, to: NodeId, message: TransportRequest, *, timeout_s: float) -> TransportReply:
        raise PeerUnreachable("nobody is there")


class PaperPeers:
    """A peer that can give history and packs, from memory."""

    def __init__(self, chain: Chain | None, packs: list[Packed]) -> None:
        self._chain = chain
        self._packs = {pack.ref.sha256: pack.inline for pack in packs}

    async def ask(self, to: NodeId, message: DirectRequest, *, timeout_s: float) -> DirectReply:
        if not isinstance(message, History) or self._chain is None:
            raise PeerUnreachable("nobody is there")
        chain = self._chain
        entries = tuple(HistoryEntry(change, chain.certificate(change), 1) for change in chain.changes[message.since :])
        return HistoryPage(message.repository, entries, chain.position, 0)

    async def fetch(self, to: NodeId, message: Fetch, *, stall_s: float) -> AsyncIterator[bytes]:
        held = self._packs.get(message.pack.sha256)
        if held is None:
            raise PeerUnreachable("nobody has it")
        content = (held.index if message.index else held.pack)[message.offset :]
        for at in range(0, len(content), 64 * 1024):
            yield content[at : at + 64 * 1024]

    async def stop(self) -> None:
        return None


class Subject:
    """One life of the node in ``data_dir``."""

    def __init__(
        self, data_dir: Path, nodes: tuple[NodeId, ...], tell: Tell, chain: Chain | None, packs: list[Packed], life: str
    ) -> None:
        """``life`` is this one's name: no two lives of a disk may use the same transaction ids."""
        self.data_dir = data_dir
        self.tell = tell
        self._nodes = nodes
        self._peers = PaperPeers(chain, packs)
        self.free_bytes_min = 0
        self._life = life
        self.journal: SqliteJournal
        self.store: DiskObjects
        self.runtime: Runtime

    async def start(self) -> None:
        """Raises ``NodeError`` when the node would not start."""
        settings = config(self.data_dir, self._nodes, free_bytes_min=self.free_bytes_min)
        self.journal = await asyncio.to_thread(
            SqliteJournal.open, self.data_dir, node=A, cluster=settings.cluster, linger_s=LINGER_S
        )
        if self.journal.lives.standing.state is State.NEW:  # founded, without anybody to found it with
            await self.journal.lives.found((self.journal.identity.journal,), 1)
        self.store = await asyncio.to_thread(DiskObjects, self.data_dir, replace(LIMITS, free_bytes_min=self.free_bytes_min))
        self.runtime = Runtime(
            settings,
            clock=LoopClock(),
            entropy=SeededEntropy(f"{A} {self._life}"),
            signer=keyring(A),
            journal=self.journal,
            store=self.store,
            transport=PaperTransport(),
            peers=self._peers,
        )
        await self.runtime.start()

    async def stop(self) -> None:
        await self.runtime.stop()

    async def settle(self) -> None:
        """Until everything that is applied is on stable storage, and noted so; not for ever, if the disk will not have it."""
        try:
            async with asyncio.timeout(3):
                while not self.journal.failed and await self.journal.unsynced():  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.005)
                await self.journal.flush()
        except (NodeError, TimeoutError) as error:
            self.tell("unsettled", reason=str(error) or "still unsynced")

    # ------------------------------------------------------------ what clients and peers ask

    async def create(self, name: RepositoryName = NAME, tell: Tell | None = None) -> bool:
        outcome = await self.runtime.service.create(name, actor="anonymous", head=None, key=None)
        return _told(outcome, tell or self.tell)

    async def delete(self, name: RepositoryName = NAME, tell: Tell | None = None) -> bool:
        return _told(await self.runtime.service.delete(name, actor="anonymous", key=None), tell or self.tell)

    async def push(self, ref: RefName, pack: Packed, name: RepositoryName = NAME, tell: Tell | None = None) -> bool:
        """As ``api/receive_pack.py`` does it."""
        service, tell = self.runtime.service, tell or self.tell
        txn = service.new_txn()
        tell("asked", ref=ref, oid=pack.tip, txn=txn)
        outcome: Outcome | None = None
        try:
            intake = service.intake(name, txn, ())
            async with await intake.receive(_chunks(pack.content)) as quarantine:
                register = (await self.runtime._registry.get(name.key)).register
                old = register.refs[ref].oid if ref in register.refs else ZERO_OID
                updates, refused = await quarantine.examine([RefUpdate(ref, old, pack.tip)])
                if refused:
                    tell("no", txn=txn, reason=str(dict(refused)))
                    return False
                outcome = await service.push(name, txn, quarantine, updates, actor="anonymous", atomic=True)
        except (NodeError, OSError) as error:
            if outcome is None:  # else it is only the quarantine that could not be removed
                tell("no", txn=txn, reason=str(error))
                return False
        if not _told(outcome, tell):
            return False
        tell("pushed", ref=ref, oid=pack.tip)
        return True

    async def request(self, message: TransportRequest) -> TransportReply:
        return await self.runtime.serving.on_request(B, message)

    def tell_state(self) -> None:
        state = self.runtime.state()
        self.tell("state", ready=state.ready, write_ready=state.write_ready, problem=state.problem, failed=self.journal.failed)


def _told(outcome: Outcome, tell: Tell) -> bool:
    if outcome.kind is OutcomeKind.COMMITTED:
        assert outcome.position is not None
        tell("committed", version=outcome.position.version, digest=outcome.position.digest)
        return True
    tell(outcome.kind.value, txn=outcome.txn, reason=outcome.reason)
    return False


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 16 * 1024):
        yield content[at : at + 16 * 1024]
