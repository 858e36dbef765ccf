"""What a journal remembers of lives (R4), on SQLite and in memory: its own, its standing, and those of the other nodes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from node.protocol.acceptor import Accepted, RejoinOp
from node.protocol.ids import NodeId
from node.protocol.messages import Enrolment
from node.protocol.standing import Life, State
from node.storage.journal import SqliteJournal
from node.storage.memory_journal import MemoryJournal
from tests.unit.journal_values import ME, MEMBERS, REPO, accept, ballot, commit, create, pack, point, promise, update

B = NodeId("node-2")
Open = Callable[[], Awaitable[SqliteJournal | MemoryJournal]]


@pytest.fixture(params=["sqlite", "memory"])
async def open_(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    memory = MemoryJournal(ME, "test")
    opened: list[SqliteJournal | MemoryJournal] = []

    async def again() -> SqliteJournal | MemoryJournal:
        for journal in opened:
            await journal.close()
        if request.param == "memory":
            journal: SqliteJournal | MemoryJournal = memory
        else:
            journal = await asyncio.to_thread(SqliteJournal.open, tmp_path, node=ME, cluster="test")
        opened.append(journal)
        return journal

    yield again
    await opened[-1].close()


async def test_every_start_is_counted_and_has_a_name_of_its_own(open_: Open) -> None:
    first = (await open_()).lives.life
    second = (await open_()).lives.life
    assert (first.boot, second.boot) == (1, 2)
    assert first.nonce != second.nonce
    assert (first.journal, first.incarnation, first.writes) == (second.journal, 1, 0)
    assert second.behind(first) == ""
    assert first.behind(second)


async def test_every_durable_write_of_a_record_is_counted_once(open_: Open) -> None:
    journal = await open_()
    for op in (promise(ballot(1)), promise(ballot(1)), accept(ballot(1, 1), create()), commit(create())):
        await journal.write(op, members=MEMBERS, at_ms=1)
    assert (journal.lives.life.writes, journal.lives.life.began) == (3, 0)  # a repeated promise writes nothing
    journal = await open_()
    assert (journal.lives.life.writes, journal.lives.life.began) == (3, 3)


async def test_a_mark_written_again_undoes_a_clearing_that_nobody_waited_for(open_: Open) -> None:
    """[the write was made all the same, memory said that the mark stood, and it was not written again]"""
    journal = await open_()
    await journal.mark_rejoining("lost", 6)
    await journal.lives.keep_attempt(2)
    clearing = asyncio.create_task(journal.lives.clear_rejoining(2, (), ("a",), 8))
    await asyncio.sleep(0)
    clearing.cancel()
    await asyncio.gather(clearing, return_exceptions=True)
    await journal.mark_rejoining("later", 9)
    journal = await open_()
    standing = journal.lives.standing
    assert (standing.state, standing.reason, standing.since_ms, standing.tried) == (State.REJOINING, "lost", 6, 2)


async def test_a_journal_is_new_until_it_is_a_members_and_the_first_reason_to_rejoin_is_kept(open_: Open) -> None:
    journal = await open_()
    assert journal.lives.standing.state is State.NEW
    await journal.lives.found(("a", "b"), 5)
    journal = await open_()
    assert (journal.lives.standing.state, journal.lives.standing.founders) == (State.MEMBER, ("a", "b"))
    await journal.mark_rejoining("lost", 6)
    await journal.mark_rejoining("later", 7)
    await journal.lives.keep_attempt(3)
    await journal.lives.keep_attempt(2)
    journal = await open_()
    standing = journal.lives.standing
    assert (standing.state, standing.reason, standing.since_ms, standing.tried) == (State.REJOINING, "lost", 6, 3)
    await journal.lives.clear_rejoining(3, ((B, 4),), ("a",), 8)
    journal = await open_()
    assert journal.lives.standing.state is State.MEMBER
    assert journal.lives.standing.founders == tuple(sorted(("a", journal.identity.journal)))
    assert journal.identity.incarnation == journal.lives.life.incarnation == 3
    assert journal.lives.incarnations == ((B, 4),)  # what others had granted is known here again


async def test_an_incarnation_is_granted_to_one_life_only(open_: Open) -> None:
    journal = await open_()
    assert await journal.lives.enrol(B, 0, "") == Enrolment(False, 1)
    assert await journal.lives.enrol(B, 2, "one") == Enrolment(True, 2)
    assert await journal.lives.enrol(B, 2, "other") == Enrolment(False, 2)
    journal = await open_()
    assert journal.lives.incarnations == ((B, 2),)
    assert await journal.lives.enrol(B, 2, "one") == Enrolment(True, 2)
    assert await journal.lives.enrol(B, 4, "other") == Enrolment(True, 4)
    assert await journal.lives.enrol(B, 3, "one") == Enrolment(False, 4)
    assert journal.lives.incarnations == ((B, 4),)


async def test_a_grant_counts_as_a_write_so_that_others_notice_a_journal_that_has_lost_it(open_: Open) -> None:
    journal = await open_()
    before = journal.lives.life.writes
    await journal.lives.enrol(B, 2, "one")
    assert journal.lives.life.writes == before + 1
    for incarnation, life in ((2, "one"), (2, "other"), (1, "one")):
        await journal.lives.enrol(B, incarnation, life)
    assert journal.lives.life.writes == before + 1, "a repetition writes nothing"
    journal = await open_()
    assert journal.lives.life.writes == before + 1


async def test_what_was_seen_of_others_is_remembered(open_: Open) -> None:
    journal = await open_()
    life = Life(1, "journal", 2, "nonce", 7)
    await journal.lives.keep_seen({B: life})
    journal = await open_()
    assert journal.lives.seen == {B: life}


async def test_records_are_listed_in_order_those_only_promised_too(open_: Open) -> None:
    journal = await open_()
    other, third = type(REPO)("bob/a"), type(REPO)("bob/b")
    await journal.write(promise(ballot(7), third), members=MEMBERS, at_ms=1)
    for op in (accept(ballot(1, 1), create(repository=other)), commit(create())):
        await journal.write(op, members=MEMBERS, at_ms=1)
    await journal.stop_voting(other, "an alarm")
    first, more = await journal.lives.records("", 2, MEMBERS)
    assert [record.set_aside for record in first] == [False, True]
    assert [record.repository for record in first] == [REPO, other]
    assert more
    last, more = await journal.lives.records(other, 2, MEMBERS)
    assert ([record.repository for record in last], more) == ([third], False)
    assert (first[0].voters, first[0].committed.version, first[0].accepted) == (create().voters, 1, None)
    assert first[1].accepted == Accepted(ballot(1, 1), create(repository=other).base, create(repository=other))
    assert (last[0].voters, last[0].promised, last[0].committed.version) == (MEMBERS, ballot(7), 0)


async def test_a_record_taken_over_is_kept_with_its_packs(open_: Open) -> None:
    journal = await open_()
    await journal.write(commit(create()), members=MEMBERS, at_ms=1)
    reference, inline = pack(1)
    change = update(create(), "t1", point(), packs=(reference,))
    op = RejoinOp(REPO, ballot(9), Accepted(ballot(4, 1), change.base, change))
    _, record = await journal.write(op, members=MEMBERS, at_ms=1, packs=(inline,))
    assert (record.promised, record.in_doubt) == (ballot(9), change)
    journal = await open_()
    assert (await journal.load(REPO, MEMBERS)).record == record
    assert await journal.inline_pack(reference) == inline
    assert await journal.in_doubt() == [REPO]
