"""Repair without an operator (R3): what is damaged is made again from what is whole, here or on the peers, and proved.

    refs, HEAD, configuration      from the journal's register
    packs and their indexes        fetched from any voter, by the checksums that their change names
    a committed change             fetched from any voter; the change after it, or the acceptor record, names its digest
    a certificate                  fetched from any voter, by its signatures
    refs and value in the journal  from its history
    an acceptor record             not at all: the node has forgotten what it promised. It rejoins (R4)
    pages of the journal's file    likewise; before anything is learned the file is written anew

The replica is set aside first, durably: no votes, no reads. It comes back when a second look finds nothing, and then asks what
it missed. What cannot be repaired now stays set aside, and the scrub tries again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import sha256

import structlog

from node.edges import Edges
from node.examining import Examiner
from node.placing import ObjectsMissing, place
from node.ports.errors import DamagedPart, DiskFailed, JournalDamaged, NodeError, PackRefused, StorageError, TransportError
from node.ports.objects import Finding
from node.ports.upkeep import RepairReport
from node.protocol.change import PackRef
from node.protocol.ids import NodeId, Position, RepoId
from node.protocol.messages import Fetch, History, HistoryEntry, HistoryPage, InlinePack, Query, Status
from node.protocol.register import Register
from node.registry import Registry
from node.replay import DAMAGED
from node.replica import INTERNAL

ROUNDS = 3
"""A repair can bring to light what could not be looked at before: a repository that was gone has no packs either."""

HISTORY_PAGE = 64
ASK_TIMEOUT_S = 5.0
BREAK_OFF_S = 30.0
"""How long the end of a repair that is broken off is waited for: by then it only sees a look of git's to its end."""
SHOWN_MAX = 5
AMNESIA = frozenset({DamagedPart.RECORD, DamagedPart.DATABASE})

Rejoin = Callable[[str, Callable[[], Awaitable[None]] | None], None]

log = structlog.get_logger()


class Unrepaired(NodeError):
    """It cannot be repaired now; the sentence says why."""


class Repair:
    """Mends one repository at a time."""

    def __init__(self, edges: Edges, registry: Registry, examiner: Examiner, rejoin: Rejoin) -> None:
        """``rejoin`` is told why this node cannot trust what it remembers (R4), and what to do before it learns it again."""
        self._edges = edges
        self._registry = registry
        self._examiner = examiner
        self._rejoin = rejoin
        self._mending = asyncio.Lock()
        self._under_way: asyncio.Timeout | None = None

    async def break_off(self) -> None:
        """R4: what is stored is about to be learned anew, and nothing is written beside that. What was handed to the journal is
        written before its mark; what was begun in a repository has ended when this returns."""
        if self._under_way is not None:
            self._under_way.reschedule(0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout(BREAK_OFF_S), self._mending:
                pass

    async def mend(self, repository: RepoId, damages: Sequence[JournalDamaged], findings: Sequence[Finding]) -> RepairReport:
        """Set aside, repair, look again, take back. Never raises for what cannot be repaired: the report says so. One at a
        time; nobody else mends this one meanwhile (``Scrub`` sees to that)."""
        async with self._mending:
            return await self._mend_one(repository, damages, findings)

    async def _mend_one(
        self, repository: RepoId, damages: Sequence[JournalDamaged], findings: Sequence[Finding]
    ) -> RepairReport:
        clock = self._edges.clock
        known = await self._stopped(repository) if not damages and not findings else ""
        seen = [*(f"journal: {damage.part.value}: {damage.detail}" for damage in damages), *map(str, findings)]
        found = seen or [known]
        begun_at_ms, actions, problem = clock.wall_ms(), list[str](), ""
        log.error("damage found", repository=repository, found=found[:SHOWN_MAX], count=len(found))
        self._edges.alarms(repository, f"damaged, being repaired: {found[0]}")
        try:
            self._registry.check()
            async with asyncio.timeout(None) as self._under_way:
                await self._mend(repository, damages, findings, actions, known)
        except (NodeError, OSError) as error:
            broken_off = self._under_way is not None and self._under_way.expired()
            problem = "broken off, this node rejoins" if broken_off else str(error) or type(error).__name__
            log.error("not repaired", repository=repository, reason=problem)
            self._edges.alarms(repository, f"damaged, and not repaired yet: {problem}")
        else:
            log.warning("repaired", repository=repository, actions=actions)
        finally:
            self._under_way = None
        return RepairReport(repository, tuple(found), tuple(actions), problem, begun_at_ms, clock.wall_ms())

    async def plan(self, repository: RepoId, damages: Sequence[JournalDamaged], findings: Sequence[Finding]) -> str:
        """What ``mend`` would come to; empty: there is nothing to mend."""
        if any(damage.part in AMNESIA for damage in damages):
            return (
                "the whole node would rejoin and answer nothing for any repository meanwhile: "
                "what it promised for this one is not known any more"
            )
        replica, durable = self._registry.peek(repository), ""
        with suppress(JournalDamaged):
            durable = (await self._edges.journal.load(repository, self._edges.config.voters)).stopped
        if any(finding.part == "objects" for finding in findings):
            return "it would be set aside, and stay so: every pack is whole, so there is nothing to fetch"
        if durable.startswith(INTERNAL):
            if damages or findings:
                return f"it would be repaired from the other nodes, and taken back by a second repair ({durable})"
            return f"it would be taken back, as its journal has it: nothing of it is damaged ({durable})"
        if durable and not durable.startswith(DAMAGED):
            return f"it would stay set aside, for what no repair ends: {durable}"
        if damages or findings:
            return "it would be set aside and repaired from the other nodes"
        if durable:
            return f"it would be taken back: nothing of it is damaged any more ({durable})"
        if replica is not None and replica.stopped:
            return f"it would stay set aside until the node is started again: {replica.stopped}"
        return ""

    async def _mend(
        self,
        repository: RepoId,
        damages: Sequence[JournalDamaged],
        findings: Sequence[Finding],
        actions: list[str],
        known: str,
    ) -> None:
        if amnesia := next((damage for damage in damages if damage.part in AMNESIA), None):
            self._rejoin(str(amnesia), self._rebuild if amnesia.part is DamagedPart.DATABASE else None)
            raise Unrepaired(f"{amnesia}; what this node promised is not known any more, so it has to rejoin")
        await self._set_aside(repository, known or DAMAGED + str((*damages, *findings)[0]))
        for _ in range(ROUNDS):
            if damages:
                await self._mend_journal(repository, damages, actions)
            if findings:
                await self._mend_view(repository, findings, actions)
            damages = await self._examiner.damages(repository)
            findings = [] if damages else await self._examiner.findings(repository)
            if not damages and not findings:
                await self._take_back(repository, actions, known)
                return
        left = [*map(str, damages), *map(str, findings)]
        raise Unrepaired(f"still damaged after {ROUNDS} rounds: {'; '.join(left[:SHOWN_MAX])}")

    async def _rebuild(self) -> None:
        """The mark stands, no machine runs. If it fails the journal has, and the node is out until it is started again."""
        try:
            await self._edges.journal.care.rebuild()
        except Exception as error:
            log.error("not repaired", repository="", reason=str(error), exc_info=not isinstance(error, StorageError))
            self._edges.journal.fail(f"its file could not be written anew: {error}")
        else:
            log.warning("repaired", repository="", actions=["the journal's file written anew"])

    # ------------------------------------------------------------ set aside, and back

    async def _stopped(self, repository: RepoId) -> str:
        """Why it was set aside earlier: the repair broke off after everything was mended."""
        replica = self._registry.peek(repository)
        return replica.stopped if replica else (await self._edges.journal.load(repository, self._edges.config.voters)).stopped

    async def _set_aside(self, repository: RepoId, reason: str) -> None:
        reason = reason.encode("utf-8", "backslashreplace").decode()  # it is kept, and told to peers
        replica = self._registry.peek(repository)
        if replica is not None:
            replica.set_aside(reason)
        with suppress(JournalDamaged):  # then its row says so itself, to whoever loads it
            await self._edges.journal.stop_voting(repository, reason)
            # Nothing is learned or applied any more while it is repaired; and one that was loaded just now is set aside too.
            await self._registry.reload(repository, f"this replica is set aside: {reason}")

    async def _take_back(self, repository: RepoId, actions: list[str], known: str) -> None:
        """Durable first, then voting and reading again; and what was missed meanwhile is asked for. After an internal error,
        if ``known`` says that this is what somebody asked for: its machines are made anew from the journal, as after a crash,
        and whatever they had not written down was promised to nobody."""
        journal = self._edges.journal
        loaded = await journal.load(repository, self._edges.config.voters)
        if loaded.register.exists:
            await self._written_anew(loaded.register)
        await journal.mark_synced(repository, loaded.register.position.version)
        await journal.flush()
        for damage in journal.damages:
            if damage.repository in (repository, None):
                journal.mended(damage)
        asked_for = known.startswith(INTERNAL) and loaded.stopped.startswith(INTERNAL)
        if loaded.stopped and not loaded.stopped.startswith(DAMAGED) and not asked_for:
            raise Unrepaired(f"repaired, but it was set aside before: {loaded.stopped}")
        left = await journal.care.resume_voting(repository, loaded.stopped)
        replica = await self._registry.reload(repository, "this replica was repaired")
        if left or replica.stopped:
            raise Unrepaired(f"repaired, but it was set aside meanwhile: {left or replica.stopped}")
        actions.append("taken back")
        self._edges.alarms(repository, "")
        for peer in self._peers(replica.register):
            with suppress(TransportError):
                status = await self._edges.peers.ask(peer, Query(repository), timeout_s=ASK_TIMEOUT_S)
                if isinstance(status, Status) and not status.set_aside:
                    replica.catch_up(status.committed.version, (peer,), status.committed)

    async def _written_anew(self, register: Register) -> None:
        """An fsync may have failed in this repair, or in one before a restart, and what it has lost can be read back all the
        same. So nothing is believed to be on the disk that was not written since: refs, HEAD, configuration, small packs that
        are not synced. Other packs are links to files of the stage, which are synced before they get their names."""
        edges, repository = self._edges, register.repository
        unsynced = {key: synced for key, _, synced in await edges.journal.unsynced()}
        try:
            await place(edges.journal, edges.store, register, unsynced.get(repository, register.position.version))
        except ObjectsMissing as error:
            raise Unrepaired(str(error)) from error
        await self._durably(repository, edges.store.sync(register.name))

    async def _durably(self, repository: RepoId, work: Awaitable[None]) -> None:
        """A failed fsync is never simply tried again: the next one would succeed and prove nothing."""
        try:
            await work
        except DiskFailed as error:
            self._edges.journal.fail(f"{repository} could not be made durable: {error}")
            raise

    def _peers(self, register: Register) -> list[NodeId]:
        """The other voters, those in reach first."""
        others = [node for node in register.voters.nodes if node != self._edges.config.me]
        return sorted(others, key=lambda node: node in self._edges.suspected())

    # ------------------------------------------------------------ the repository on disk

    async def _mend_view(self, repository: RepoId, findings: Sequence[Finding], actions: list[str]) -> None:
        loaded = await self._edges.journal.load(repository, self._edges.config.voters)
        register = loaded.register
        if any(finding.part == "objects" for finding in findings):
            # All packs have their checksums, so there is nothing to fetch: git misses what no change ever brought.
            raise Unrepaired(f"git misses objects although every pack is whole: {findings[0].detail}")
        for pack in {finding.pack.sha256: finding.pack for finding in findings if finding.pack is not None}.values():
            await self._fetch_pack(register, pack)
            actions.append(f"{pack.name} fetched")
        if any(finding.pack is None for finding in findings):
            await self._durably(repository, self._edges.store.mend_refs(register))
            actions.append("refs, HEAD and configuration written from the journal")

    async def _fetch_pack(self, register: Register, pack: PackRef) -> None:
        failures: list[str] = []
        for peer in self._peers(register):

            def read(index: bool, offset: int, peer: NodeId = peer) -> AsyncIterator[bytes]:
                message = Fetch(register.repository, pack, index, offset)
                return self._edges.peers.fetch(peer, message, stall_s=self._edges.config.stage_stall_timeout_s)

            try:
                await self._edges.store.mend_pack(register.name, pack, read)
            except (TransportError, PackRefused) as error:
                failures.append(f"{peer}: {error}")
            else:
                return
        raise Unrepaired(f"{pack.name} cannot be fetched ({'; '.join(failures) or 'there is no other voter'})")

    # ------------------------------------------------------------ rows of the journal

    async def _mend_journal(self, repository: RepoId, damages: Sequence[JournalDamaged], actions: list[str]) -> None:
        """In this order: history proves all the rest."""
        care = self._edges.journal.care
        await care.reindex()  # an index that lies looks like rows that are missing
        damages = await self._examiner.damages(repository)
        parts = {damage.part for damage in damages}
        versions = {d.version for d in damages if d.part in (DamagedPart.HISTORY, DamagedPart.CERTIFICATE)}
        for version in sorted(versions, reverse=True):
            await care.mend_history(await self._entry(repository, version))
            actions.append(f"version {version} of the history fetched")
        if parts & {DamagedPart.VALUE, DamagedPart.REFS}:
            for _ in range(ROUNDS):
                if await care.mend_value(await self._value(repository)):
                    break
            actions.append("value and refs made again from history")
        if DamagedPart.INDEX in parts:
            await care.mend_index(repository)
            actions.append("indexes made again from history")
        if DamagedPart.PACK in parts:
            await self._mend_small(repository, actions)
        if not parts:
            actions.append("indexes made again")

    async def _entry(self, repository: RepoId, version: int) -> HistoryEntry:
        """The committed change of that version from a peer, proved by what stands on it here."""
        wanted = await self._proved(repository, version)
        replica = self._registry.peek(repository)
        register = replica.register if replica else Register(repository, self._edges.config.voters)
        for peer in self._peers(register):
            with suppress(TransportError):
                page = await self._edges.peers.ask(peer, History(repository, version - 1, 1), timeout_s=ASK_TIMEOUT_S)
                entry = page.entries[0] if isinstance(page, HistoryPage) and page.entries else None
                if entry is None or entry.change.position != wanted or entry.change.repository != repository:
                    continue
                proof = entry.certificate
                flawed = proof is not None and (
                    proof.position != wanted or proof.flaw(register.voters, self._edges.signer.verify) is not None
                )
                return HistoryEntry(entry.change, None if flawed else proof, entry.committed_at_ms)
        raise Unrepaired(f"no voter in reach has version {version} of {repository} as it was committed here")

    async def _proved(self, repository: RepoId, version: int) -> Position:
        committed = await self._edges.journal.care.committed(repository)
        if version == committed.version:
            return committed
        (after,) = await self._edges.journal.history(repository, version, 1)
        return after.change.base

    async def _value(self, repository: RepoId) -> Register:
        """What history leads to."""
        register = Register(repository, self._edges.config.voters)
        while entries := await self._edges.journal.history(repository, register.position.version, HISTORY_PAGE):
            for entry in entries:
                register = register.applied(entry.change)
            await asyncio.sleep(0)
        return register

    async def _mend_small(self, repository: RepoId, actions: list[str]) -> None:
        """Small packs that wait in the journal: fetched, or dropped where the repository holds them already."""
        journal, store = self._edges.journal, self._edges.store
        register = (await journal.load(repository, self._edges.config.voters)).register
        for pack in await journal.care.waited_for(repository):
            try:
                await journal.inline_pack(pack)
            except JournalDamaged:
                if register.exists and await store.verify_pack(register.name, pack, self._examiner.pace.spend) is None:
                    await journal.care.drop_pack(pack.sha256)
                    actions.append(f"{pack.name} dropped from the journal, the repository holds it")
                else:
                    await journal.care.mend_pack(await self._small(register, pack))
                    actions.append(f"{pack.name} fetched into the journal")

    async def _small(self, register: Register, pack: PackRef) -> InlinePack:
        for peer in self._peers(register):
            with suppress(TransportError):
                content = await self._bytes(peer, Fetch(register.repository, pack, False))
                index = await self._bytes(peer, Fetch(register.repository, pack, True))
                sums = (sha256(content).hexdigest(), sha256(index).hexdigest())
                if sums == (pack.sha256, pack.index_sha256):
                    return InlinePack(pack.sha256, content, index)
        raise Unrepaired(f"{pack.name} cannot be fetched")

    async def _bytes(self, peer: NodeId, message: Fetch) -> bytes:
        stream = self._edges.peers.fetch(peer, message, stall_s=self._edges.config.stage_stall_timeout_s)
        return b"".join([chunk async for chunk in stream])
