"""Scrub and repair over simulated time: what is damaged is found, set aside, made again from the peers, and taken back."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from node.ports.errors import DamagedPart, DiskFull, JournalDamaged, NotAMember, ReadUnavailable, StorageError, WrongKind
from node.ports.objects import Finding
from node.ports.service import Consistency
from node.ports.upkeep import RepairPlan, ScrubState
from node.protocol.ids import Oid, RefName, RepoId
from node.protocol.names import RepositoryName
from node.protocol.outcome import OutcomeKind
from node.protocol.register import Register
from node.protocol.standing import State
from tests.unit.runtime_kit import MAIN, NAME, A, B, C, Cluster, NodeId, oid, simulated

FAST: dict[str, Any] = {"scrub_bytes_per_s": 1e9}
KEY = NAME.key


def scrub(cluster: Cluster, node: NodeId) -> ScrubState:
    runtime = cluster[node].runtime
    assert runtime is not None
    return runtime.care.state()


async def look(cluster: Cluster, node: NodeId, seconds: float = 5.0) -> ScrubState:
    runtime = cluster[node].runtime
    assert runtime is not None
    runtime.care.begin(None)
    await cluster.settle(seconds)
    return runtime.care.state()


async def pushed(cluster: Cluster) -> None:
    await cluster.create()
    assert (await cluster.push(A, 1, content=b"first")).kind is OutcomeKind.COMMITTED
    assert (await cluster.push(B, 2, 1, content=b"second")).kind is OutcomeKind.COMMITTED
    await cluster.settle(3)


@simulated
async def test_a_look_at_what_is_whole_finds_nothing() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        state = await look(cluster, B)
        assert (state.found, state.repositories, state.skipped, state.running) == (0, 1, 0, False)
        assert state.ended_at_ms
        assert not cluster[B].journal.care.mended


@simulated
async def test_a_ref_that_was_changed_on_disk_is_written_again_from_the_journal() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        cluster[B].store.repositories[str(NAME)].refs[MAIN] = Oid("f" * 40)
        state = await look(cluster, B)
        assert (state.found, state.repaired) == (1, 1)
        assert cluster[B].store.repositories[str(NAME)].refs[MAIN] == oid(2)
        assert (await cluster[B].replica()).stopped == ""
        assert (await cluster.push(B, 3, 2)).kind is OutcomeKind.COMMITTED, "it votes again"


@simulated
async def test_a_pack_that_was_changed_is_fetched_again_by_its_checksum_and_never_from_who_has_it_wrong() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        for node in (A, B):  # C alone has it right
            packs = cluster[node].store.repositories[str(NAME)].packs
            for sha256, pack in packs.items():
                packs[sha256] = replace(pack, pack=pack.pack[:-1] + b"?")
            cluster[node].store.small.clear()
        state = await look(cluster, B)
        assert (state.found, state.repaired) == (1, 1), state.reports
        whole = cluster[C].store.repositories[str(NAME)].packs
        assert {s: p.pack for s, p in cluster[B].store.repositories[str(NAME)].packs.items()} == {
            s: p.pack for s, p in whole.items()
        }


@simulated
async def test_what_cannot_be_repaired_stays_set_aside_and_is_repaired_when_a_peer_is_back() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        packs = cluster[B].store.repositories[str(NAME)].packs
        sha256 = next(iter(packs))
        packs[sha256] = replace(packs[sha256], pack=b"wrong")
        cluster[B].store.small.clear()
        cluster.network.down |= {A, C}
        state = await look(cluster, B)
        assert (state.found, state.repaired) == (1, 0)
        assert "cannot be fetched" in state.reports[-1].problem
        assert (await cluster[B].replica()).stopped.startswith("damaged: pack")
        with pytest.raises(ReadUnavailable):
            await cluster.read(B)
        cluster.network.down.clear()
        await cluster.settle(60)
        assert scrub(cluster, B).repaired == 1
        assert (await cluster.push(B, 3, 2)).kind is OutcomeKind.COMMITTED


@simulated
async def test_a_replica_that_is_set_aside_neither_votes_nor_serves_and_catches_up_when_it_is_taken_back() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        replica = await cluster[B].replica()
        replica.set_aside("damaged: a test says so")
        await cluster[B].journal.stop_voting(KEY, "damaged: a test says so")
        assert (await cluster.push(A, 3, 2)).kind is OutcomeKind.COMMITTED, "A and C are a quorum"
        await cluster.settle(2)
        with pytest.raises(ReadUnavailable):
            await cluster.read(B)
        shown = {view.node: view.state for view in await cluster[A].service.replicas(NAME)}
        assert shown == {A: "current", B: "set aside", C: "current"}
        await cluster[A].crash()
        with pytest.raises(ReadUnavailable):
            await cluster.read(C)  # B's answer counts for nothing
        await cluster[A].start()
        state = await look(cluster, B, 20)
        assert state.repaired == 1
        assert await cluster.main(B, Consistency.LOCAL) == 3


@simulated
async def test_a_repair_that_a_crash_broke_off_is_taken_up_at_the_next_start() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        await cluster[B].journal.stop_voting(KEY, "damaged: found before the crash")
        cluster[B].store.repositories[str(NAME)].refs[RefName("refs/heads/ghost")] = oid(1)
        await cluster[B].crash()
        await cluster[B].start()
        await cluster.settle(10)
        assert scrub(cluster, B).repaired == 1
        assert (await cluster[B].replica()).stopped == ""


@simulated
async def test_what_replay_could_not_apply_is_repaired_although_nobody_asks_for_it() -> None:
    """[set aside by replay for a damaged row, and not in memory: the look waited for what was "being applied" all the time]"""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        runtime, journal = cluster[B].runtime, cluster[B].journal
        assert runtime is not None
        await runtime._registry.drop("a start that replayed nothing of it")
        await journal.flush()
        journal._rows[KEY].applied = journal._rows[KEY].synced = 1
        journal._rows[KEY].stopped = "damaged: replay met a row"
        cluster[B].store.repositories[str(NAME)].refs[MAIN] = Oid("f" * 40)
        for node in (A, C):
            await cluster[node].crash()  # nobody asks for it
        state = await look(cluster, B, 60)
        assert (state.found, state.repaired) == (1, 1), state
        assert cluster[B].store.repositories[str(NAME)].refs[MAIN] == oid(2)


@simulated
async def test_an_alarm_about_history_is_not_cleared_by_a_repair() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        await cluster[B].journal.stop_voting(KEY, "version 2 has two digests")
        await cluster[B].crash()
        await cluster[B].start()
        cluster[B].store.repositories[str(NAME)].refs[MAIN] = Oid("f" * 40)
        state = await look(cluster, B)
        assert (state.found, state.repaired) == (1, 0)
        assert "set aside before" in state.reports[-1].problem
        assert (await cluster[B].replica()).stopped == "version 2 has two digests"


@simulated
async def test_an_alarm_about_history_that_comes_in_the_last_moment_of_a_repair_is_not_cleared_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """[it was cleared together with the reason that the repair knew of]"""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        journal = cluster[B].journal
        plain = journal.flush

        async def flush() -> None:
            """The last await before the replica is taken back."""
            await plain()
            runtime = cluster[B].runtime
            if journal._rows[KEY].stopped and runtime and (replica := runtime._registry.peek(KEY)):
                replica.alarm("version 2 has two digests", stop=True)

        monkeypatch.setattr(journal, "flush", flush)
        cluster[B].store.repositories[str(NAME)].refs[MAIN] = Oid("f" * 40)
        state = await look(cluster, B)
        assert state.repaired == 0
        assert "set aside meanwhile: version 2 has two digests" in state.reports[0].problem
        await cluster[B].crash()
        monkeypatch.undo()
        await cluster[B].start()
        assert (await cluster[B].replica()).stopped == "version 2 has two digests"


@pytest.mark.parametrize(
    "part",
    [DamagedPart.HISTORY, DamagedPart.CERTIFICATE, DamagedPart.VALUE, DamagedPart.REFS, DamagedPart.INDEX],
)
def test_a_row_that_somebody_met_is_mended_within_seconds(part: DamagedPart) -> None:
    @simulated
    async def run() -> None:
        async with Cluster(**FAST) as cluster:
            await pushed(cluster)
            journal = cluster[B].journal
            version = 2 if part in (DamagedPart.HISTORY, DamagedPart.CERTIFICATE) else 0
            damage = JournalDamaged(KEY, part, "a test says so", version)
            journal.damaged[KEY, part, version] = damage
            await cluster.settle(5)
            assert journal.care.mended == [part]
            assert scrub(cluster, B).repaired == 1
            assert (await cluster.push(B, 3, 2)).kind is OutcomeKind.COMMITTED

    run()


@simulated
async def test_an_acceptor_record_that_is_lost_is_not_repaired_but_amnesia() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        damage = JournalDamaged(KEY, DamagedPart.RECORD, "a test says so")
        cluster[B].journal.damaged[KEY, DamagedPart.RECORD, 0] = damage
        await cluster.settle(5)
        state = scrub(cluster, B)
        assert (state.found, state.repaired) == (1, 0)
        assert "rejoin" in state.reports[-1].problem


@simulated
async def test_a_node_that_has_rejoined_over_a_lost_record_says_no_longer_that_it_is_damaged() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        damage = JournalDamaged(KEY, DamagedPart.RECORD, "a test says so")
        cluster[B].journal.damaged[KEY, DamagedPart.RECORD, 0] = damage
        await cluster.settle(60)
        assert cluster[B].service.state().standing == "member"
        assert cluster[B].service.state().problem == ""


@simulated
async def test_a_damaged_file_is_written_anew_before_anything_is_learned_and_the_node_rejoins_once() -> None:
    """[it rejoined into the damaged file, was a member, and rejoined again at every pass, until it was started again]"""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        box = cluster[B]
        assert box.runtime is not None
        tried = box.journal.lives.standing.tried
        rebuild, seen = box.journal.care.rebuild, list[int]()

        async def rebuilt() -> None:
            seen.append(box.journal.lives.standing.tried)
            await rebuild()

        box.journal.care.rebuild = rebuilt  # type: ignore[method-assign]
        box.journal.care.torn = "a page is damaged"
        await look(cluster, B, 60)
        for _ in range(3):
            await look(cluster, B, 60)
        assert seen == [tried], "once, and before another incarnation was asked for"
        assert box.service.state().standing == "member"
        assert box.journal.lives.life.incarnation == 2, "it rejoined once"
        assert scrub(cluster, B).found == 1
        assert (await cluster.push(B, 3, 2)).kind is OutcomeKind.COMMITTED


@simulated
async def test_a_file_whose_list_of_repositories_cannot_be_read_is_looked_at_all_the_same() -> None:
    """[each pass broke off at its first question, so nobody looked at the file before a vote met that page]"""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        care = cluster[B].journal.care
        keys = care.keys

        async def broken(after: str, limit: int) -> Sequence[RepoId]:
            if care.torn:
                raise JournalDamaged(None, DamagedPart.DATABASE, care.torn)
            return await keys(after, limit)

        care.keys = broken  # type: ignore[method-assign]
        care.torn = "a page is damaged"
        await look(cluster, B, 60)
        assert care.torn == ""
        assert cluster[B].service.state().standing == "member"


@simulated
async def test_a_file_that_is_damaged_while_its_node_rejoins_is_looked_at_again_when_it_has() -> None:
    """[a repair of the file that was tried again looked at a repository without a name, and found that whole]"""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        box = cluster[B]
        cluster.network.down |= {A, C}
        box.journal.lives.standing = replace(box.journal.lives.standing, state=State.REJOINING, reason="before")
        await box.crash()
        box.journal.care.torn = "a page is damaged"
        await box.start()
        await cluster.settle(5)
        assert box.journal.care.torn, "not while it rejoins"
        cluster.network.down.clear()
        await cluster.settle(120)
        assert box.journal.care.torn == ""
        assert box.service.state().standing == "member"


@simulated
async def test_no_repair_beside_a_rejoining() -> None:
    """[an operator's word ran beside it, on rows that were being learned anew]"""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        runtime = cluster[B].runtime
        assert runtime is not None
        cluster[B].store.repositories[str(NAME)].refs[MAIN] = Oid("f" * 40)
        cluster.network.down |= {A, C}
        runtime.rejoin("a test says so")
        with pytest.raises(NotAMember):
            await runtime.care.repair(KEY)
        await cluster.settle(5)
        with pytest.raises(NotAMember):
            await runtime.care.repair(KEY)
        assert not (await cluster[B].journal.load(KEY, cluster.config(B).voters)).stopped


@simulated
async def test_a_pass_ends_where_its_node_begins_to_rejoin() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        await cluster.create(A, RepositoryName("zoe", "last"))
        await cluster.settle(3)
        box = cluster[B]
        runtime = box.runtime
        assert runtime is not None
        verify, looked = box.store.verify_refs, list[str]()

        async def lost(register: Register) -> Sequence[Finding]:
            looked.append(register.name)
            cluster.network.down.update({A, C})
            runtime.rejoin("a test says so")
            return await verify(register)

        box.store.verify_refs = lost  # type: ignore[method-assign]
        await look(cluster, B)
        assert looked == [str(NAME)]


@simulated
async def test_a_dry_run_says_what_a_repair_would_come_to() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        box = cluster[B]
        assert box.runtime is not None
        care = box.runtime.care
        assert (await care.examine(KEY)) == RepairPlan((), "")
        await box.journal.stop_voting(KEY, "version 2 has two digests")
        assert "no repair ends: version 2 has two digests" in (await care.examine(KEY)).would
        assert await box.journal.care.resume_voting(KEY, "damaged: found before") == "version 2 has two digests"
        assert await box.journal.care.resume_voting(KEY, "version 2 has two digests") == ""
        await box.journal.stop_voting(KEY, "damaged: found before")
        assert "would be taken back" in (await care.examine(KEY)).would
        box.store.repositories[str(NAME)].refs.clear()
        plan = await care.examine(KEY)
        assert (len(plan.found), plan.would) == (1, "it would be set aside and repaired from the other nodes")
        box.journal.damaged[KEY, DamagedPart.RECORD, 0] = JournalDamaged(KEY, DamagedPart.RECORD, "a test says so")
        assert (await care.examine(KEY)).would.startswith("the whole node would rejoin")
        box.journal.damaged.clear()


@simulated
async def test_a_fault_of_ours_in_one_repository_keeps_no_other_from_being_looked_at() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        await cluster.create(A, RepositoryName("zoe", "last"))
        await cluster.settle(3)
        box = cluster[B]
        assert box.runtime is not None
        verify = box.store.verify_refs

        async def broken(register: Register) -> Sequence[Finding]:
            if register.repository == KEY:
                raise ValueError("a test says so")
            return await verify(register)

        box.store.verify_refs = broken  # type: ignore[method-assign]
        box.store.repositories["zoe/last"].head = RefName("refs/heads/wrong")
        state = await look(cluster, B)
        assert (state.found, state.repaired, state.skipped) == (1, 1, 1)


@simulated
async def test_a_replica_that_an_internal_error_stopped_is_named_after_a_restart_and_taken_back_by_a_repair() -> None:
    """It stayed out for good: no repair took it, and after a restart nothing named it."""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        handle = (await cluster[B].replica()).voter.handle

        def broken(event: object, now: float) -> Any:
            if type(event).__name__ == "Requested":
                raise KeyError("a bug")
            return handle(event, now)  # type: ignore[arg-type]

        (await cluster[B].replica()).voter.handle = broken  # type: ignore[method-assign]
        assert (await cluster.push(A, 3, 2)).kind is OutcomeKind.COMMITTED
        await cluster.settle(2)
        await cluster[B].crash()
        await cluster[B].start()
        await cluster.settle(30)
        runtime = cluster[B].runtime
        assert runtime is not None
        assert "alarm on alice/project: internal error" in runtime.state().problem
        assert (await cluster[B].replica()).stopped.startswith("internal error")  # no scrub takes it back by itself
        assert "it would be taken back, as its journal has it" in (await runtime.care.examine(KEY)).would
        assert (await runtime.care.repair(KEY)).problem == ""
        assert runtime.state().problem == ""
        await cluster.settle(5)
        await cluster[C].crash()
        assert (await cluster.push(A, 4, 3)).kind is OutcomeKind.COMMITTED  # it votes
        assert await cluster.main(B) == 4


@pytest.mark.parametrize("fault", [StorageError("git took too long"), ValueError("a fault of ours")])
def test_a_replica_that_is_set_aside_is_looked_at_again_soon_after_a_look_that_failed(fault: Exception) -> None:
    """[one failed look kept it out until the next pass over everything, six hours]"""

    @simulated
    async def run() -> None:
        async with Cluster(**FAST) as cluster:
            await pushed(cluster)
            box = cluster[B]
            await box.crash()
            await box.journal.stop_voting(KEY, "damaged: replay found something")
            verify, faults = box.store.verify_objects, [fault]

            async def looked(name: str) -> Finding | None:
                if faults:
                    raise faults.pop()
                return await verify(name)

            box.store.verify_objects = looked  # type: ignore[method-assign]
            await box.start()
            await cluster.settle(30)
            assert not faults
            assert (await box.replica()).stopped == ""

    run()


@simulated
async def test_what_a_rejoining_sets_aside_is_repaired_however_quick_it_was() -> None:
    """[the scrub noticed a rejoining only if it looked, once a second, while that was under way]"""
    async with Cluster(**FAST) as cluster:
        await cluster.create()
        await cluster.settle(3)
        box = cluster[B]
        assert box.runtime is not None
        box.store.failures["apply"] = DiskFull("disk full")
        assert (await cluster.push(A, 1, content=b"first")).kind is OutcomeKind.COMMITTED
        await cluster.settle(1.8)
        box.store.failures["apply"] = WrongKind("something else is there")
        membership, began = box.runtime.membership, asyncio.get_running_loop().time()
        membership.lose("a test says so")
        while membership.refusal:  # noqa: ASYNC110  (there is nobody who could tell)
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began < 1
        box.store.failures.clear()
        await cluster.settle(60)
        assert (await box.replica()).stopped == ""
        assert scrub(cluster, B).repaired == 1


@simulated
async def test_damage_that_is_met_during_a_pass_is_repaired_within_seconds_and_so_is_what_an_operator_asks_for() -> None:
    """[both waited for the end of the pass: hours, with large repositories]"""
    other, third = RepositoryName("zoe", "other"), RepositoryName("zoe", "third")
    async with Cluster(scrub_bytes_per_s=1024.0) as cluster:
        for name in (NAME, other, third):
            await cluster.create(A, name)
        assert (await cluster.push(A, 1, content=b"L" * 8_000_000)).kind is OutcomeKind.COMMITTED
        await cluster.settle(5)
        box = cluster[B]
        assert box.runtime is not None
        state = await look(cluster, B)
        assert (state.running, state.repository) == (True, KEY)
        damage = JournalDamaged(other.key, DamagedPart.VALUE, "met by a vote")
        box.journal.damaged[other.key, DamagedPart.VALUE, 0] = damage
        box.store.repositories[str(third)].head = RefName("refs/heads/wrong")
        async with asyncio.timeout(60):
            assert (await box.runtime.care.repair(third.key)).actions[-1] == "taken back"
        await cluster.settle(5)
        assert not box.journal.damages
        state = scrub(cluster, B)
        assert (state.found, state.repaired) == (2, 2)
        assert (state.running, state.repository, state.repositories, state.run) == (True, KEY, 1, 1), "the pass goes on"


@simulated
async def test_nobody_looks_at_one_repository_twice_at_once() -> None:
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        box = cluster[B]
        assert box.runtime is not None
        verify, looking, most = box.store.verify_objects, 0, 0

        async def looked(name: str) -> Finding | None:
            nonlocal looking, most
            looking += 1
            most = max(most, looking)
            await asyncio.sleep(5)
            looking -= 1
            return await verify(name)

        box.store.verify_objects = looked  # type: ignore[method-assign]
        box.runtime.care.begin(None)
        damage = JournalDamaged(KEY, DamagedPart.VALUE, "met by a vote")
        box.journal.damaged[KEY, DamagedPart.VALUE, 0] = damage
        await asyncio.gather(box.runtime.care.repair(KEY), box.runtime.care.repair(KEY))
        await cluster.settle(30)
        assert most == 1
        assert not box.journal.damages
        assert (await box.replica()).stopped == ""


@simulated
async def test_a_pass_over_everything_that_broke_off_is_tried_again_with_patience() -> None:
    """[damage without a name begins a pass over everything; where that broke off, it began again every second]"""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        care, asked = cluster[B].journal.care, list[str]()

        async def broken(after: str, limit: int) -> Sequence[RepoId]:
            asked.append(after)
            raise StorageError("a test says so")

        keys, care.keys = care.keys, broken  # type: ignore[method-assign]
        damage = JournalDamaged(None, DamagedPart.INDEX, "a test says so")
        cluster[B].journal.damaged[None, DamagedPart.INDEX, 0] = damage
        await cluster.settle(300)
        assert 3 <= len(asked) <= 6, len(asked)
        care.keys = keys  # type: ignore[method-assign]
        await cluster.settle(600)
        assert not cluster[B].journal.damages


@simulated
async def test_a_repair_ends_where_its_node_begins_to_rejoin_and_is_taken_up_when_it_has() -> None:
    """[it went on beside the learning of the same repository: wrote its refs, and took back what that had set aside]"""
    async with Cluster(**FAST) as cluster:
        await pushed(cluster)
        box = cluster[B]
        assert box.runtime is not None
        membership, mend, ended = box.runtime.membership, box.store.mend_refs, list[str]()

        async def slow(register: Register) -> None:
            try:
                await asyncio.sleep(5)
                await mend(register)
            finally:
                ended.append(box.service.state().waits_for)

        box.store.mend_refs = slow  # type: ignore[method-assign]
        box.store.repositories[str(NAME)].refs[MAIN] = Oid("f" * 40)
        await look(cluster, B, 2)
        assert (await box.replica()).stopped.startswith("damaged")
        membership.lose("a test says so")
        while membership.refusal:  # noqa: ASYNC110  (there is nobody who could tell)
            await asyncio.sleep(0.01)
        assert ended == ["its own disk, to write that down"], "before anything is learned"
        await cluster.settle(60)
        assert [report.problem for report in scrub(cluster, B).reports] == ["broken off, this node rejoins", ""]
        assert (await box.replica()).stopped == ""
        assert box.service.state().problem == ""
