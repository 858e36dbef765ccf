"""Laws of the journal over random histories, checked against the plainest model there is."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.protocol.acceptor import AcceptOp, AcceptorRecord, CommitOp, Op, PromiseOp
from node.protocol.change import Change, ChangeKind, RefUpdate, Request
from node.protocol.ids import ORIGIN, ZERO_OID, NodeId, RefName, RepoId, TxnId
from node.protocol.register import Register
from node.storage.journal import SqliteJournal
from node.storage.memory_journal import MemoryJournal
from tests.unit.journal_values import ME, MEMBERS, OTHERS, ballot, create, delete, oid, pack, point, update

Journal = SqliteJournal | MemoryJournal
Check = Callable[[Journal], Awaitable[None]]

SLOW_DISK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
REFS = [RefName(f"refs/heads/{name}") for name in ("main", "a", "b/c")] + [RefName("refs/tags/v1")]
REPOSITORIES = [RepoId("o/a"), RepoId("o/b")]


async def on_both(*checks: Check) -> None:
    """Run each check in turn, on a journal on disk that is closed and opened between them, and on one in memory."""
    memory = MemoryJournal(ME)
    with tempfile.TemporaryDirectory() as folder:
        for check in checks:
            for journal in (SqliteJournal.open(Path(folder), node=ME, cluster="test", linger_s=30), memory):
                try:
                    await check(journal)
                finally:
                    await journal.close()


@st.composite
def requests(draw: st.DrawFn, txn: str) -> Request:
    updates = draw(st.lists(st.builds(point, st.sampled_from(REFS), st.integers(0, 5), st.integers(0, 5)), max_size=4))
    peeled = [
        RefUpdate(u.ref, u.old, u.new, oid(77)) if u.ref.startswith("refs/tags") and not u.deletes else u for u in updates
    ]
    head = draw(st.sampled_from([None, *REFS[:2]]))
    packs = tuple(pack(number)[0] for number in draw(st.sets(st.integers(1, 3), max_size=2)))
    return Request(TxnId(txn), "tester", ME, 1, tuple(peeled), head, packs, draw(st.sampled_from([None, "k1", "k2"])))


@st.composite
def histories(draw: st.DrawFn) -> list[Change]:
    """Any order of creation, updates, deletion and creation again; the journal asks nothing about old values."""
    changes: list[Change] = []
    base, exists = ORIGIN, False
    for number in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from([ChangeKind.UPDATE] * 3 + [ChangeKind.DELETE])) if exists else ChangeKind.CREATE
        exists = kind is not ChangeKind.DELETE
        several = draw(st.integers(1, 3)) if kind is ChangeKind.UPDATE else 1
        batch = tuple(draw(requests(f"t-{number}-{each}")) for each in range(several))
        creates = kind is ChangeKind.CREATE
        change = Change(RepoId("o/a"), base, kind, batch, "O/a" if creates else "", OTHERS if creates else None)
        changes.append(change)
        base = change.position
    return changes


@SLOW_DISK
@given(history=histories())
def test_the_value_loaded_is_the_fold_of_all_committed_changes(history: list[Change]) -> None:
    async def commit(journal: Journal) -> None:
        value = Register(RepoId("o/a"), MEMBERS)
        for change in history:
            await journal.write(CommitOp(change.repository, change), members=MEMBERS, at_ms=1)
            value = value.applied(change)
            assert (await journal.load(RepoId("o/a"), MEMBERS)).register == value

    async def compare(journal: Journal) -> None:
        value = Register(RepoId("o/a"), MEMBERS)
        for change in history:
            value = value.applied(change)
        assert (await journal.load(RepoId("o/a"), MEMBERS)).register == value
        assert [entry.change for entry in await journal.history(RepoId("o/a"), 0, 100)] == history
        assert journal.sequence == len(history)
        for key in ("k1", "k2"):
            first = next((c for c in history if any(r.key == key for r in c.requests)), None)
            found = await journal.find_key(RepoId("o/a"), key)
            assert (found.change if found else None) == first

    asyncio.run(on_both(commit, compare))


def candidates() -> list[Change]:
    """A small world of changes, rivals at each version, over which random operations run."""
    changes = []
    for repository in REPOSITORIES:
        first, rival = (create(f"t-{repository[-1]}-{n}", repository=repository) for n in range(2))
        second = update(first, f"t-{repository[-1]}-2", point(new=1), packs=(pack(1)[0],))
        other = update(first, f"t-{repository[-1]}-3", point(new=2), packs=(pack(1)[0], pack(2)[0]))
        third = update(second, f"t-{repository[-1]}-4", point(new=3), packs=(pack(3)[0],))
        changes += [first, rival, second, other, third, delete(third, f"t-{repository[-1]}-5")]
    return changes


CANDIDATES = candidates()
BALLOTS = st.builds(ballot, st.integers(1, 3), st.integers(0, 2), st.sampled_from([ME, NodeId("node-2")]))
OPS: st.SearchStrategy[Op] = st.one_of(
    st.builds(PromiseOp, st.sampled_from(REPOSITORIES), BALLOTS),
    st.builds(lambda at, change: AcceptOp(change.repository, at, change.base, change), BALLOTS, st.sampled_from(CANDIDATES)),
    st.builds(lambda at, change: AcceptOp(change.repository, at, change.base, None), BALLOTS, st.sampled_from(CANDIDATES)),
    st.builds(lambda change: CommitOp(change.repository, change), st.sampled_from(CANDIDATES)),
)
STEPS = st.lists(OPS | st.tuples(st.sampled_from(REPOSITORIES), st.integers(0, 4)), max_size=25)


@SLOW_DISK
@given(before=STEPS, after=STEPS)
def test_promises_never_fall_and_disk_and_memory_answer_alike(
    before: list[Op | tuple[RepoId, int]], after: list[Op | tuple[RepoId, int]]
) -> None:
    """Random operations and marks with a restart between them; the records follow the pure functions and nothing else."""
    answers: dict[type, list[object]] = {SqliteJournal: [], MemoryJournal: []}

    def run(steps: list[Op | tuple[RepoId, int]]) -> Check:
        async def check(journal: Journal) -> None:
            told = answers[type(journal)]
            model = {name: (await journal.load(name, MEMBERS)).record for name in REPOSITORIES}
            for step in steps:
                if isinstance(step, tuple):
                    await journal.mark_synced(*step)
                    continue
                verdict, record = await perform(journal, step, model[step.repository])
                model[step.repository] = record
                told.append(verdict)
            await journal.flush()
            told.append(await everything(journal))

        return check

    asyncio.run(on_both(run(before), run(after), run([])))
    assert answers[SqliteJournal] == answers[MemoryJournal]


async def perform(journal: Journal, op: Op, known: AcceptorRecord) -> tuple[object, AcceptorRecord]:
    packs = tuple(pack(number)[1] for number in (1, 2, 3))
    expected, _ = op.on(known)
    verdict, record = await journal.write(op, members=MEMBERS, at_ms=1, packs=packs)
    assert record == expected
    assert record.promised >= known.promised
    assert record.accepted_ballot >= known.accepted_ballot
    assert record.committed.version >= known.committed.version
    return verdict, record


async def everything(journal: Journal) -> object:
    """All that can be asked."""
    loaded = [await journal.load(name, MEMBERS) for name in REPOSITORIES]
    return (
        loaded,
        [await journal.history(name, 0, 100) for name in REPOSITORIES],
        await journal.unsynced(),
        await journal.in_doubt(),
        await journal.packs_in_use(),
        [await journal.inline_pack(pack(number)[0]) for number in (1, 2, 3)],
        await journal.summaries(0, 100),
        await journal.repositories("", 100),
        [await journal.find(txn) for change in CANDIDATES for txn in change.txns],
    )


def test_the_small_world_reaches_every_kind_of_change() -> None:
    assert {change.kind for change in CANDIDATES} == set(ChangeKind)
    assert any(u.old == ZERO_OID for change in CANDIDATES for r in change.requests for u in r.updates)
