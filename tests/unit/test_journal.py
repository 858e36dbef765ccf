"""What every journal must do: the same claims for the one on disk (closed and opened again at will) and the one in memory."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from node.ports.errors import StorageError
from node.ports.journal import Loaded, TransactionRecord
from node.protocol.acceptor import AcceptorRecord, Op, WriteVerdict
from node.protocol.certificate import Certificate
from node.protocol.change import Change
from node.protocol.ids import NO_BALLOT, ORIGIN, Position, RefName, RepoId, TxnId
from node.protocol.messages import InlinePack, Summary
from node.protocol.outcome import OutcomeKind, VoterReport
from node.protocol.register import Register
from node.replay import DAMAGED
from node.replica import INTERNAL
from node.storage.journal import SqliteJournal
from node.storage.journal_writes import ENDED_BY_REPAIR, kept_reason
from node.storage.memory_journal import MemoryJournal
from tests.unit.journal_values import (
    MAIN,
    ME,
    MEMBERS,
    OTHERS,
    REPO,
    accept,
    accept_none,
    ballot,
    certificate,
    commit,
    create,
    delete,
    pack,
    point,
    promise,
    update,
)

DONE, REPEATED, REFUSED = WriteVerdict.DONE, WriteVerdict.REPEATED, WriteVerdict.REFUSED
MOVED, DIVERGENT = WriteVerdict.MOVED, WriteVerdict.DIVERGENT
TRANSACTIONS_MAX = 5


class Bench:
    """A journal that can be restarted, and shorthand for what is asked of it most."""

    def __init__(self, open_: Callable[[], Awaitable[SqliteJournal | MemoryJournal]]) -> None:
        self._open = open_
        self.journal: SqliteJournal | MemoryJournal

    async def start(self) -> None:
        self.journal = await self._open()

    async def restart(self) -> None:
        await self.journal.close()
        await self.start()

    async def write(
        self, op: Op, certificate: Certificate | None = None, packs: tuple[InlinePack, ...] = (), at_ms: int = 7
    ) -> WriteVerdict:
        verdict, record = await self.journal.write(op, members=MEMBERS, at_ms=at_ms, certificate=certificate, packs=packs)
        assert record == (await self.load(op.repository)).record
        return verdict

    async def load(self, repository: RepoId = REPO) -> Loaded:
        return await self.journal.load(repository, MEMBERS)

    async def commit_all(self, *changes: Change) -> None:
        for change in changes:
            assert await self.write(commit(change)) is DONE


@pytest.fixture(params=["sqlite", "memory"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    memory = MemoryJournal(ME, "test", transactions_max=TRANSACTIONS_MAX)

    async def open_() -> SqliteJournal | MemoryJournal:
        if request.param == "memory":
            return memory
        return await asyncio.to_thread(
            SqliteJournal.open, tmp_path, node=ME, cluster="test", transactions_max=TRANSACTIONS_MAX, linger_s=0.01
        )

    bench = Bench(open_)
    await bench.start()
    yield bench
    await bench.journal.close()


async def test_a_repository_never_heard_of_stands_at_the_origin_with_the_configured_members(bench: Bench) -> None:
    assert await bench.load() == Loaded(AcceptorRecord(), Register(REPO, MEMBERS), applied=0)


async def test_identity_belongs_to_the_node_and_survives_a_restart(bench: Bench) -> None:
    before = bench.journal.identity
    await bench.restart()
    assert bench.journal.identity == before
    assert (before.node, before.cluster, before.incarnation) == (ME, "test", 1)
    assert before.journal


async def test_a_promise_survives_a_restart_and_lower_ones_are_refused(bench: Bench) -> None:
    assert await bench.write(promise(ballot(2))) is DONE
    await bench.restart()
    assert (await bench.load()).record == AcceptorRecord(promised=ballot(2))
    assert await bench.write(promise(ballot(2))) is REPEATED
    assert await bench.write(promise(ballot(1))) is REFUSED
    assert (await bench.load()).record.promised == ballot(2)


async def test_an_accepted_change_survives_a_restart_whole(bench: Bench) -> None:
    change = create(key="once")
    assert await bench.write(accept(ballot(3, 1), change)) is DONE
    await bench.restart()
    record = (await bench.load()).record
    assert record.in_doubt == change
    assert record.promised == record.accepted_ballot == ballot(3, 1)
    assert await bench.write(accept(ballot(3, 1), change)) is REPEATED
    assert await bench.write(accept(ballot(3, 1), create("t-other"))) is DIVERGENT
    assert await bench.write(accept(ballot(2, 9), change)) is REFUSED
    assert (await bench.load()).record == record


async def test_accepting_none_is_kept_with_its_ballot_and_ends_the_doubt(bench: Bench) -> None:
    await bench.write(accept(ballot(1, 1), create()))
    assert await bench.journal.in_doubt() == [REPO]
    assert await bench.write(accept_none(ballot(1, 2), ORIGIN)) is DONE
    await bench.restart()
    record = (await bench.load()).record
    assert record.accepted_ballot == ballot(1, 2)
    assert record.in_doubt is None
    assert await bench.journal.in_doubt() == []


async def test_an_accept_on_another_base_than_the_committed_one_is_refused_by_kind(bench: Bench) -> None:
    change = create()
    await bench.commit_all(change)
    assert await bench.write(accept(ballot(1, 1), create("t-late"))) is MOVED
    elsewhere = Position(1, create("t-elsewhere").position.digest)
    assert await bench.write(accept_none(ballot(1, 1), elsewhere)) is DIVERGENT
    assert (await bench.load()).record == AcceptorRecord(committed=change.position)


async def test_a_commit_stores_history_value_certificate_and_indexes_at_once(bench: Bench) -> None:
    first = create(key="once")
    second = update(first, "t-push", point(new=5))
    proof = certificate(second)
    await bench.write(accept(ballot(1, 1), first))
    await bench.commit_all(first)
    assert await bench.write(commit(second), certificate=proof, at_ms=99) is DONE
    await bench.restart()

    loaded = await bench.load()
    assert loaded.record.committed == second.position
    assert loaded.record.accepted_ballot == ballot(1, 1)
    assert loaded.register == Register(REPO, MEMBERS).applied(first).applied(second)
    assert loaded.register.voters == OTHERS
    assert bench.journal.sequence == 2
    entries = await bench.journal.history(REPO, 0, 10)
    assert [(e.change, e.certificate, e.committed_at_ms) for e in entries] == [(first, None, 7), (second, proof, 99)]
    assert await bench.journal.history(REPO, 1, 10) == entries[1:]
    assert await bench.journal.history(REPO, 0, 1) == entries[:1]
    assert await bench.journal.find(TxnId("t-push")) == (REPO, entries[1])
    assert await bench.journal.find(TxnId("t-unknown")) is None
    assert await bench.journal.find_key(REPO, "once") == entries[0]
    assert await bench.journal.find_key(REPO, "never") is None
    assert await bench.journal.find_key(RepoId("bob/other"), "once") is None


async def test_a_commit_twice_is_repeated_ahead_is_moved_and_beside_is_divergent(bench: Bench) -> None:
    first = create()
    second = update(first, "t-2", point(new=5))
    third = update(second, "t-3", point(new=6, old=5))
    assert await bench.write(commit(second)) is MOVED
    await bench.commit_all(first, second)
    assert await bench.write(commit(second)) is REPEATED
    assert await bench.write(commit(update(first, "t-beside", point(new=9)))) is DIVERGENT
    await bench.commit_all(third)
    assert await bench.write(commit(first)) is REPEATED
    assert await bench.write(commit(update(first, "t-beside", point(new=9)))) is DIVERGENT, "V3: also below the newest version"
    assert bench.journal.sequence == 3


async def test_a_certificate_that_comes_late_is_kept_by_a_repeated_commit_and_never_replaced(bench: Bench) -> None:
    change = create()
    await bench.commit_all(change)
    assert await bench.write(commit(change), certificate=certificate(change)) is REPEATED
    assert await bench.write(commit(change), certificate=certificate(change, ballot(9, 1))) is REPEATED
    await bench.restart()
    (entry,) = await bench.journal.history(REPO, 0, 10)
    assert entry.certificate == certificate(change)


async def test_a_certificate_can_be_added_but_only_to_the_change_it_proves(bench: Bench) -> None:
    first, second = create(), update(create(), "t-2", point())
    await bench.commit_all(first, second)
    await bench.journal.add_certificate(certificate(update(first, "t-beside", point(new=9))))
    await bench.journal.add_certificate(certificate(first))
    await bench.journal.add_certificate(certificate(create(repository=RepoId("bob/unknown"))))
    await bench.restart()
    assert [entry.certificate for entry in await bench.journal.history(REPO, 0, 10)] == [certificate(first), None]


async def test_a_commit_with_another_changes_certificate_is_refused_and_writes_nothing(bench: Bench) -> None:
    change = create()
    with pytest.raises(StorageError, match="another change"):
        await bench.write(commit(change), certificate=certificate(create("t-other")))
    assert (await bench.load()).record.committed == ORIGIN
    assert bench.journal.sequence == 0


async def test_a_deleted_repository_is_a_tombstone_that_keeps_its_voters_and_can_be_created_again(bench: Bench) -> None:
    first = create()
    second = update(first, "t-2", point())
    gone = delete(second, "t-3")
    await bench.commit_all(first, second, gone)
    deleted = (await bench.load()).register
    assert (deleted.exists, deleted.floor, dict(deleted.refs), deleted.voters) == (False, 3, {}, OTHERS)
    assert await bench.journal.repositories("", 10) == []
    again = create("t-4", base=gone.position)
    await bench.commit_all(again)
    await bench.restart()
    register = (await bench.load()).register
    assert register == deleted.applied(again)
    assert await bench.journal.repositories("", 10) == [register]


async def test_a_claim_that_lands_between_check_and_write_refuses_the_late_accept(bench: Bench) -> None:
    """The record is read again inside the transaction, though both wait for the same one."""
    seen = (await bench.load()).record
    assert seen.promised == NO_BALLOT
    claim = bench.journal.write(promise(ballot(5)), members=MEMBERS, at_ms=1)
    late = bench.journal.write(accept(ballot(4, 1), create()), members=MEMBERS, at_ms=1)
    (claimed, _), (refused, record) = await asyncio.gather(claim, late)
    assert (claimed, refused) == (DONE, REFUSED)
    assert record == AcceptorRecord(promised=ballot(5))
    assert (await bench.load()).record == record


async def test_of_two_different_changes_at_one_ballot_the_second_is_divergent(bench: Bench) -> None:
    writes = [bench.journal.write(accept(ballot(1, 1), create(f"t-{n}")), members=MEMBERS, at_ms=1) for n in range(2)]
    verdicts = [verdict for verdict, _ in await asyncio.gather(*writes)]
    assert verdicts == [DONE, DIVERGENT]


async def test_the_first_alarm_stays_and_a_promise_does_not_clear_it(bench: Bench) -> None:
    await bench.journal.stop_voting(REPO, "two digests at version 3")
    await bench.journal.stop_voting(REPO, "a later one")
    await bench.write(promise(ballot(1)))
    await bench.restart()
    assert (await bench.load()).stopped == "two digests at version 3"
    assert (await bench.load(RepoId("bob/other"))).stopped == ""


async def test_an_alarm_that_no_repair_ends_takes_the_place_of_one_that_a_repair_ends() -> None:
    """[a divergence found on a damaged replica was kept nowhere: the scrub took that back, and it voted with the divergence]"""
    assert ENDED_BY_REPAIR == (DAMAGED, INTERNAL)
    kinds = (DAMAGED + "a pack", INTERNAL + ": a bug", "two digests at version 3")
    for first, second in product(kinds, repeat=2):
        harder = max(first, second, key=kinds.index)
        assert kept_reason(first, second) == harder
        journal = MemoryJournal(ME)
        await journal.stop_voting(REPO, first)
        await journal.stop_voting(REPO, second)
        assert (await journal.load(REPO, MEMBERS)).stopped == harder
    assert kept_reason(DAMAGED + "a pack", DAMAGED + "a ref") == DAMAGED + "a pack"


async def test_an_alarm_about_history_is_kept_on_a_replica_that_is_damaged(bench: Bench) -> None:
    await bench.journal.stop_voting(REPO, DAMAGED + "a pack")
    await bench.journal.stop_voting(REPO, "two digests at version 3")
    await bench.restart()
    assert (await bench.load()).stopped == "two digests at version 3"


async def test_marks_are_seen_at_once_never_fall_and_never_pass_what_is_committed(bench: Bench) -> None:
    first = create()
    second = update(first, "t-2", point())
    await bench.commit_all(first, second)
    assert await bench.journal.unsynced() == [(REPO, 0, 0)]
    await bench.journal.mark_applied(REPO, 99)
    assert (await bench.load()).applied == 2
    await bench.journal.mark_applied(REPO, 1)
    await bench.journal.mark_synced(REPO, 1)
    await bench.journal.mark_applied(RepoId("bob/unknown"), 3)
    await bench.restart()
    assert (await bench.load()).applied == 2
    assert await bench.journal.unsynced() == [(REPO, 2, 1)]
    await bench.journal.mark_synced(REPO, 2)
    await bench.restart()
    assert await bench.journal.unsynced() == []
    await bench.journal.mark_synced(REPO, 1)
    await bench.restart()
    assert await bench.journal.unsynced() == []


async def test_what_is_synced_is_applied(bench: Bench) -> None:
    await bench.commit_all(create())
    await bench.journal.mark_synced(REPO, 1)
    assert (await bench.load()).applied == 1
    await bench.restart()
    assert (await bench.load()).applied == 1


async def test_repositories_come_in_order_a_page_at_a_time_without_refs(bench: Bench) -> None:
    names = [RepoId(f"alice/{letter}") for letter in "cab"]
    for name in names:
        first = create(f"t-{name[-1]}", repository=name)
        await bench.commit_all(first, update(first, f"t-{name[-1]}2", point()))
    await bench.write(promise(ballot(1), RepoId("alice/promised-only")))
    page = await bench.journal.repositories("", 2)
    assert [register.repository for register in page] == ["alice/a", "alice/b"]
    assert [dict(register.refs) for register in page] == [{}, {}]
    assert page[0] == replace((await bench.load(RepoId("alice/a"))).register, refs={})
    assert [register.repository for register in await bench.journal.repositories("alice/b", 2)] == ["alice/c"]


async def test_summaries_lead_a_peer_page_by_page_to_the_newest_position_of_each(bench: Bench) -> None:
    first = {name: create(f"t-{name[-1]}", repository=RepoId(name)) for name in ("o/a", "o/b", "o/c")}
    await bench.commit_all(*first.values())
    later = update(first["o/a"], "t-later", point())
    await bench.commit_all(later)
    expected = [Summary(c.repository, c.position) for c in (first["o/b"], first["o/c"], later)]
    assert await bench.journal.summaries(0, 10) == (4, expected)
    assert await bench.journal.summaries(0, 2) == (3, expected[:2])
    assert await bench.journal.summaries(3, 2) == (4, expected[2:])
    assert await bench.journal.summaries(4, 2) == (4, [])
    assert await bench.journal.summaries(40, 2) == (4, []), "a peer that remembers more than this journal has must see it"


async def test_small_packs_stay_until_their_change_is_committed_and_synced(bench: Bench) -> None:
    first = create()
    ref, inline = pack(1)
    stranger = pack(2)[1]
    change = update(first, "t-2", point(), packs=(ref,))
    await bench.commit_all(first)
    await bench.write(accept(ballot(1, 1), change), packs=(inline, stranger))
    await bench.restart()
    assert await bench.journal.inline_pack(ref) == inline
    assert await bench.journal.inline_pack(pack(2)[0]) is None, "a pack that the change does not name is not kept"
    assert await bench.journal.packs_in_use() == {ref.sha256}
    await bench.commit_all(change)
    await bench.journal.mark_synced(REPO, 1)
    await bench.restart()
    assert await bench.journal.inline_pack(ref) == inline
    await bench.journal.mark_synced(REPO, 2)
    await bench.restart()
    assert await bench.journal.inline_pack(ref) is None
    assert await bench.journal.packs_in_use() == {ref.sha256}, "the accepted record still names it (O4)"


async def test_small_packs_go_when_the_change_that_named_them_is_replaced(bench: Bench) -> None:
    first = create()
    ref, inline = pack(1)
    change = update(first, "t-2", point(), packs=(ref,))
    await bench.commit_all(first)
    await bench.write(accept(ballot(1, 1), change), packs=(inline,))
    await bench.write(accept(ballot(2, 1), change))
    assert await bench.journal.inline_pack(ref) == inline, "accepted again at a higher ballot, without the bytes"
    await bench.write(accept_none(ballot(2, 2), first.position))
    assert await bench.journal.inline_pack(ref) is None
    assert await bench.journal.packs_in_use() == set()


async def test_a_pack_that_two_repositories_name_stays_until_both_let_it_go(bench: Bench) -> None:
    ref, inline = pack(1)
    changes = []
    for name in ("o/a", "o/b"):
        first = create(f"t-{name[-1]}", repository=RepoId(name))
        changes.append(update(first, f"t-{name[-1]}2", point(), packs=(ref,)))
        await bench.commit_all(first)
        await bench.write(accept(ballot(1, 1), changes[-1]), packs=(inline,))
    await bench.write(accept_none(ballot(1, 2), changes[0].base, RepoId("o/a")))
    assert await bench.journal.inline_pack(ref) == inline
    await bench.commit_all(changes[1])
    await bench.journal.mark_synced(RepoId("o/b"), 2)
    await bench.restart()
    assert await bench.journal.inline_pack(ref) is None


async def test_packs_that_come_with_a_commit_are_kept_too(bench: Bench) -> None:
    """Catch-up: the change was never accepted here."""
    first = create()
    ref, inline = pack(1)
    change = update(first, "t-2", point(), packs=(ref,))
    await bench.commit_all(first)
    await bench.write(commit(change), packs=(inline,))
    assert await bench.journal.inline_pack(ref) == inline
    assert await bench.journal.packs_in_use() == {ref.sha256}
    await bench.journal.mark_synced(REPO, 2)
    await bench.restart()
    assert await bench.journal.inline_pack(ref) is None
    assert await bench.journal.packs_in_use() == set()


def record(number: int, outcome: OutcomeKind | None = OutcomeKind.COMMITTED) -> TransactionRecord:
    return TransactionRecord(
        TxnId(f"t-{number}"), REPO, "update", ME, "tester", submitted_at_ms=number, outcome=outcome,
        position=create().position, votes=(VoterReport(ME, "no", "disk full"),),
        rejections=((MAIN, "fetch first"), (RefName("refs/heads/x"), "stale")), phases_ms={"prepare": 1.5},
    )  # fmt: skip


async def test_a_transaction_is_seen_at_once_survives_and_the_newest_word_on_it_counts(bench: Bench) -> None:
    await bench.journal.keep_transaction(record(1, None))
    assert await bench.journal.transaction(TxnId("t-1")) == record(1, None)
    await bench.restart()
    assert await bench.journal.transaction(TxnId("t-1")) == record(1, None)
    await bench.journal.keep_transaction(record(1))
    assert await bench.journal.transaction(TxnId("t-1")) == record(1)
    await bench.restart()
    assert await bench.journal.transaction(TxnId("t-1")) == record(1)
    assert await bench.journal.transaction(TxnId("t-2")) is None


async def test_transactions_are_bounded_and_the_oldest_settled_go_first(bench: Bench) -> None:
    outcomes = [None, OutcomeKind.COMMITTED, OutcomeKind.UNKNOWN, OutcomeKind.ABORTED, OutcomeKind.REJECTED]
    kept = [record(number, outcome) for number, outcome in enumerate(outcomes, 1)]
    for each in [*kept, record(6), record(7)]:
        await bench.journal.keep_transaction(each)
        await bench.journal.flush()
    left = {n for n in range(1, 8) if await bench.journal.transaction(TxnId(f"t-{n}"))}
    assert left == {1, 3, 5, 6, 7}


async def test_a_write_that_cannot_be_stored_does_not_fail_its_neighbours(bench: Bench) -> None:
    bad = commit(create())
    results = await asyncio.gather(
        bench.journal.write(promise(ballot(1), RepoId("o/a")), members=MEMBERS, at_ms=1),
        bench.journal.write(bad, members=MEMBERS, at_ms=1, certificate=certificate(create("t-other"))),
        bench.journal.write(promise(ballot(1), RepoId("o/b")), members=MEMBERS, at_ms=1),
        return_exceptions=True,
    )
    assert isinstance(results[1], StorageError)
    await bench.restart()
    for name in ("o/a", "o/b"):
        assert (await bench.load(RepoId(name))).record.promised == ballot(1)
    assert (await bench.load()).record == AcceptorRecord()
