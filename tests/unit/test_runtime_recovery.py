"""Nodes that were away, started again, forgot what was idle, or were told nonsense: they converge, and nothing is lost."""

import asyncio
import copy
import random

import pytest

from node import registry as registry_module
from node.fakes import pack_of
from node.ports.errors import DamagedPart, DiskRefused, JournalDamaged, StorageError
from node.ports.journal import Loaded
from node.protocol.ids import Ballot, NodeId, RefName, RepoId
from node.protocol.messages import Commit, Fetch, History, HistoryPage, Prepare, Vote
from node.protocol.names import RepositoryName
from node.protocol.outcome import OutcomeKind
from node.protocol.quorum import VoterSet
from tests.unit.runtime_kit import NAME, A, B, C, Cluster, oid, simulated
from tests.unit.storage_kit import moved

COMMITTED = OutcomeKind.COMMITTED
OTHER = RefName("refs/heads/other")


def named(number: int) -> RepositoryName:
    return RepositoryName("alice", f"r{number}")


async def restart(cluster: Cluster, node: NodeId) -> None:
    await cluster[node].crash()
    await cluster[node].start()


@simulated
async def test_a_node_that_was_away_catches_up_without_any_command_while_pushes_go_on() -> None:
    async with Cluster() as cluster:
        for number in range(5):
            await cluster.create(A, named(number))
        await cluster[C].crash()
        await cluster.settle(3)
        values = dict.fromkeys(range(5), 0)

        async def push_on(count: int) -> None:
            for step in range(count):
                number = step % 5
                outcome = await cluster.push(
                    (A, B)[step % 2], values[number] + 1, values[number], content=b"%d %d" % (number, step), name=named(number)
                )
                assert outcome.kind is COMMITTED
                values[number] += 1

        await push_on(200)
        await cluster[C].start()
        await asyncio.gather(push_on(100), cluster.settle(5))
        await cluster.settle(5)
        for number in range(5):
            assert len(await cluster.positions(named(number))) == 1
        assert not cluster[C].service.state().problem


@simulated
async def test_a_node_that_was_away_over_a_deletion_and_a_new_creation_needs_no_packs_of_before() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1, content=b"small, seen by all")
        await cluster.settle(3)
        await cluster[C].crash()
        await cluster.settle(3)
        await cluster.push(A, 2, 1, content=b"L" * 200_000)
        await cluster.push(B, 3, 2, content=b"small")
        await cluster.settle(3)
        assert (await cluster.delete(B)).kind is COMMITTED
        await cluster.create(A)
        await cluster.push(A, 9, content=b"M" * 200_000)
        await cluster.settle(3)
        await cluster[C].start()
        await cluster.settle(10)
        assert not (await cluster[C].replica()).stopped
        assert await cluster.main(C) == 9
        assert len(await cluster.positions()) == 1
        assert len(cluster[C].store.repositories[str(NAME)].packs) == 1


@simulated
async def test_a_crash_in_the_middle_of_learning_a_deleted_past_lets_the_node_start() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(3)
        await cluster[C].crash()
        await cluster.settle(3)
        await cluster.push(A, 2, content=b"L" * 200_000)
        await cluster.settle(3)
        await cluster.delete(B)
        await cluster.settle(3)
        journal, write = cluster[C].journal, cluster[C].journal.write
        moves = 0

        async def write_one(op: object, **kwargs: object) -> object:
            nonlocal moves
            moves += type(op).__name__ == "CommitOp"
            if moves > 1:
                raise StorageError("power cut")
            return await write(op, **kwargs)  # type: ignore[arg-type]

        journal.write = write_one  # type: ignore[method-assign, assignment]
        await cluster[C].start()
        await cluster.settle(3)
        assert (await cluster[C].replica()).register.position.version == 2
        await cluster[C].crash()
        journal.write = write  # type: ignore[method-assign]
        await cluster[C].start()
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1
        assert str(NAME) not in cluster[C].store.repositories


@simulated
async def test_catch_up_outlasts_holders_that_fail() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        await cluster[C].crash()
        await cluster.push(A, 1, content=b"L" * 200_000)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, History | HistoryPage) else 0.001
        await cluster[C].start()
        await cluster.settle(60)
        assert (await cluster[C].replica()).applied == 1
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster.settle(6)
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_journal_that_refuses_while_catching_up_is_not_asked_in_a_busy_loop() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster[C].crash()
        await cluster.settle(3)
        await cluster.push(A, 1, content=b"x")
        await cluster[C].start()
        cluster[C].journal.failure = DiskRefused("disk full")
        cluster.network.sent.clear()
        await cluster.settle(30)
        assert cluster.network.sent[C, "History"] < 60
        cluster[C].journal.failure = None
        await cluster.settle(6)
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_change_whose_certificate_died_with_its_coordinator_is_learned_by_a_node_that_was_away() -> None:
    """B knows it committed by V2's inference only; C learns it because B's word for the position is told along."""
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Commit) or to == C else 0.001
        assert (await cluster.push(A, 1, content=b"x")).kind is COMMITTED
        # B infers it from the base of the next prepare, whose coordinator dies before anything comes of it.
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Commit) or to in (C, A) else 0.001
        pushing = asyncio.create_task(cluster.push(A, 2, 1, content=b"y"))
        await asyncio.sleep(0.05)
        assert (await cluster[B].replica()).register.position.version == 2
        await cluster[A].crash()
        await asyncio.gather(pushing, return_exceptions=True)
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster.settle(10)
        assert (await cluster[C].replica()).register.position.version >= 2
        assert await cluster.main(C) >= 1


@simulated
async def test_every_acknowledged_push_survives_the_crash_of_all_nodes() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        for number in range(1, 11):
            assert (await cluster.push((A, B, C)[number % 3], number, number - 1, content=b"%d" % number)).kind is COMMITTED
        for node in (A, B, C):
            await cluster[node].crash()
        for node in (A, B, C):
            await cluster[node].start()
        await cluster.settle(10)
        assert [await cluster.main(node) for node in (A, B, C)] == [10, 10, 10]
        assert len(await cluster.positions()) == 1


@simulated
async def test_replay_applies_an_unsynced_deletion_and_what_was_created_after_it() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.push(A, 1, content=b"old")
        for box in cluster.boxes.values():
            box.store.failures["sync"] = DiskRefused("not now")
        before = copy.deepcopy(cluster[A].store.repositories)
        await cluster.delete(A)
        await cluster.create(A)
        await cluster.push(A, 5, content=b"new")
        await cluster.settle(1)
        await cluster[A].crash()
        # The power cut: what was not synced is as it was before.
        cluster[A].store.repositories = before
        cluster[A].store.failures.clear()
        await cluster[A].start()
        disk = cluster[A].store.repositories[str(NAME)]
        assert [len(disk.packs), len(disk.refs)] == [1, 1]
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_failed_sync_is_tried_again_until_it_succeeds() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        cluster[A].store.failures["sync"] = DiskRefused("not now")
        await cluster.push(A, 1, content=b"x")
        await cluster.settle(5)
        assert await cluster[A].journal.unsynced()
        cluster[A].store.failures.clear()
        await cluster.settle(20)
        await cluster[A].journal.flush()
        assert not await cluster[A].journal.unsynced()


@simulated
async def test_idle_replicas_are_forgotten_and_nothing_in_doubt_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "REPLICAS_MAX", 3)
    async with Cluster() as cluster:
        for number in range(6):
            await cluster.create(A, named(number))
        await cluster.settle(5)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Prepare) else 0.001
        doubtful = await cluster[A].replica(named(0))
        pushing = asyncio.create_task(cluster.push(A, 1, name=named(0)))
        await asyncio.sleep(0.1)
        for number in range(1, 6):
            await cluster[A].replica(named(number))
        assert await cluster[A].replica(named(0)) is doubtful
        await pushing
        await cluster.settle(10)
        runtime = cluster[A].runtime
        assert runtime is not None
        await cluster[A].replica(named(7))
        assert len(runtime._registry._replicas) <= 3
        cluster.network.rule = lambda sender, to, message: 0.001
        for number in range(6):
            assert (await cluster.push(B, 3, name=named(number), ref=OTHER)).kind is COMMITTED
        await cluster.settle(5)
        for number in range(6):
            assert len(await cluster.positions(named(number))) == 1


@simulated
async def test_a_repository_that_cannot_be_loaded_leaves_no_other_doubt_unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """[the first of those in doubt has a damaged row: the others were not loaded, and nobody settled them]"""
    async with Cluster() as cluster:
        for number in (0, 1):
            await cluster.create(A, named(number))
        await cluster.settle(3)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Vote) else 0.001
        pushes = [asyncio.create_task(cluster.push(A, 1, name=named(number))) for number in (0, 1)]
        await cluster.settle(0.1)
        for node in (A, B, C):
            await cluster[node].crash()
        for push in pushes:
            push.cancel()
        journal = cluster[B].journal
        assert sorted(await journal.in_doubt()) == [named(0).key, named(1).key]
        load = journal.load

        async def damaged(repository: RepoId, members: VoterSet) -> Loaded:
            if repository == named(0).key:
                raise JournalDamaged(repository, DamagedPart.REFS, "a test says so")
            return await load(repository, members)

        monkeypatch.setattr(journal, "load", damaged)
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster[B].start()
        await cluster.settle(1)
        runtime = cluster[B].runtime
        assert runtime is not None
        assert runtime._registry.peek(named(1).key) is not None, "whoever is loaded settles"


@simulated
async def test_a_replica_that_somebody_reads_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "REPLICAS_MAX", 2)
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(5)
        cluster.network.rule = lambda sender, to, message: 0.2
        reading = asyncio.create_task(cluster.read(B))
        await asyncio.sleep(0.05)
        replica = await cluster[B].replica()
        for number in range(5):
            await cluster[B].replica(named(number))
        assert await cluster[B].replica() is replica
        await reading


@simulated
async def test_a_forgotten_replica_has_no_timers_and_says_nothing() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(5)
        replica = await cluster[A].replica()
        assert not replica.busy
        await replica.close()
        assert all(timer.cancelled() for timer in replica._timers.values())
        cluster.network.sent.clear()
        replica.suspect(frozenset((B, C)))
        replica.catch_up(99, (B,))
        assert not replica._tasks


@simulated
async def test_a_set_aside_replica_is_never_forgotten() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(5)
        replica = await cluster[A].replica()
        replica._alarm("a test", stop=True)
        await cluster.settle(1)
        assert replica.busy
        assert cluster[A].journal._rows[NAME.key].stopped == "a test"


@simulated
async def test_a_machine_that_breaks_sets_its_replica_aside_and_answers_who_waits() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        replica = await cluster[B].replica()
        handle = replica.voter.handle

        def broken(event: object, now: float) -> object:
            if type(event).__name__ == "Requested":
                raise KeyError("a bug")
            return handle(event, now)  # type: ignore[arg-type]

        replica.voter.handle = broken  # type: ignore[method-assign, assignment]
        assert (await cluster.push(A, 1, content=b"x")).kind is COMMITTED
        assert "internal error" in replica.stopped
        assert "internal error" in cluster[B].service.state().problem


@simulated
async def test_a_replica_that_is_set_aside_answers_at_once_who_waits() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster.settle(2)
        cluster.network.rule = lambda sender, to, message: None if isinstance(message, Fetch) else 0.001
        replica = await cluster[B].replica()
        pack, _ = pack_of(b"L" * 200_000)
        change = moved(replica.register, {"refs/heads/main": oid(1)}, packs=[pack])
        voters, ballot = replica.register.voters, Ballot(99, A, 1)
        prepare = Prepare(NAME.key, voters.digest, ballot, change, voters.majority, 2.0)
        waiting = asyncio.create_task(replica.request(A, prepare))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        replica._alarm("a test", stop=True)
        assert "a test" in (await asyncio.wait_for(waiting, 0.1)).reason  # type: ignore[union-attr]


@simulated
async def test_following_does_not_end_at_an_error() -> None:
    async with Cluster() as cluster:
        await cluster.create(A)
        await cluster[C].crash()
        await cluster.push(A, 1, content=b"x")
        load = cluster[C].journal.load

        async def failing(*args: object) -> object:
            raise StorageError("a moment")

        await cluster[C].start()
        cluster[C].journal.load = failing  # type: ignore[method-assign, assignment]
        await cluster.settle(3)
        cluster[C].journal.load = load  # type: ignore[method-assign]
        await cluster.settle(5)
        assert len(await cluster.positions()) == 1


@simulated
async def test_a_peer_is_suspected_after_its_silence_and_trusted_after_its_first_word() -> None:
    async with Cluster() as cluster:
        cluster.network.cut = {frozenset((A, C))}
        await cluster.settle(2.5)
        states = {peer.node: peer.state for peer in cluster[A].service.state().peers}
        assert states == {B: "alive", C: "suspected"}
        cluster.network.cut = set()
        await cluster.settle(2.5)
        assert {peer.state for peer in cluster[A].service.state().peers} == {"alive"}
        assert cluster.network.sent[A, "Ping"] < 60


@simulated
async def test_stopping_closes_the_journal_whatever_fails_before() -> None:
    async with Cluster() as cluster:
        runtime, cluster[A].runtime = cluster[A].runtime, None
        assert runtime is not None
        closed: list[str] = []
        close = cluster[A].journal.close

        async def note() -> None:
            closed.append("journal")
            await close()

        async def fail() -> None:
            raise OSError("the broker library fell over")

        cluster[A].journal.close = note  # type: ignore[method-assign]
        runtime._transport.stop = fail  # type: ignore[method-assign]
        with pytest.raises(OSError, match="fell over"):
            await runtime.stop()
        assert closed == ["journal"]


@pytest.mark.parametrize("seed", range(8))
@simulated
async def test_whatever_crashes_nothing_acknowledged_is_lost_and_nothing_aborted_appears(seed: int) -> None:
    chance = random.Random(seed)
    async with Cluster() as cluster:
        await cluster.create(A)
        committed: set[int] = set()
        aborted: set[int] = set()
        cluster.network.rule = lambda sender, to, message: None if chance.random() < 0.03 else chance.random() * 0.03
        ended = False

        async def write(first: int) -> None:
            for number in range(first, 400, 4):
                up = [node for node in (A, B, C) if cluster[node].runtime is not None]
                if ended or not up:
                    break
                ref = RefName(f"refs/heads/b{number}")
                pushing = asyncio.create_task(cluster.push(chance.choice(up), number, ref=ref, content=b"%d" % number))
                try:
                    outcome = await pushing
                except (AssertionError, asyncio.CancelledError):
                    continue
                {COMMITTED: committed, OutcomeKind.ABORTED: aborted}.get(outcome.kind, set()).add(number)
                if outcome.kind is not COMMITTED:
                    await asyncio.sleep(0.3)  # refusals come at once: do not use up all numbers while nobody is there

        async def crash() -> None:
            for _ in range(6):
                await asyncio.sleep(chance.random() * 3)
                victim = chance.choice((A, B, C))
                await cluster[victim].crash()
                await asyncio.sleep(chance.random() * 4)
                await cluster[victim].start()

        writers = [asyncio.create_task(write(first)) for first in range(1, 5)]
        await crash()
        ended = True
        await asyncio.gather(*writers, return_exceptions=True)
        cluster.network.rule = lambda sender, to, message: 0.001
        await cluster.settle(30)
        assert len(await cluster.positions()) == 1
        refs = {int(ref.removeprefix("refs/heads/b")) for ref in (await cluster.read(B)).refs}
        assert committed <= refs, f"seed {seed}: lost {committed - refs}"
        assert not aborted & refs, f"seed {seed}: appeared {aborted & refs}"
        assert committed, "the test must push something"
        for node in (A, B, C):
            replica = await cluster[node].replica()
            assert not replica.stopped
            assert not replica.in_doubt
            assert not replica.busy, f"{replica!r} {replica._tasks} {replica._requests} {replica._answers}"
