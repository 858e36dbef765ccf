"""``gitquorum dataloss``: which refs only a silent node's disk has, and whether there may be losses that nobody can name."""

from pathlib import Path

import pytest

from node.command.dataloss import Holding, Source, _read, _repository
from node.command.state import NodePlace
from node.storage.journal import SqliteJournal
from tests.unit.journal_values import MAIN, ME, MEMBERS, REPO, accept, ballot, commit, create, oid, point, update

OLD = Holding(3, "a" * 64, {"refs/heads/main": "1", "refs/heads/gone": "2"})
NEW = Holding(4, "b" * 64, {"refs/heads/main": "3", "refs/heads/new": "4"})
OTHER = Holding(3, "c" * 64, {"refs/heads/main": "9", "refs/heads/gone": "2"})


def lost(*sources: Source) -> list[tuple[str, str, str | None, str | None]]:
    found = _repository("alice/one", list(sources))
    return [(each["node_id"], each["ref"], each["oid"], each["kept"]) for each in found["lost"]]


def source(node: str, how: str, holding: Holding | None) -> Source:
    return Source(node, how, holds={"alice/one": holding} if holding else {})


def test_what_a_silent_disk_has_beyond_those_that_answer_is_named_ref_by_ref() -> None:
    assert lost(source("node-1", "answers", OLD), source("node-2", "disk", NEW)) == [
        ("node-2", "refs/heads/main", "3", "1"),
        ("node-2", "refs/heads/new", "4", None),
        ("node-2", "refs/heads/gone", None, "2"),
    ]


def test_a_disk_that_is_behind_has_nothing_to_lose() -> None:
    assert lost(source("node-1", "answers", NEW), source("node-2", "disk", OLD), source("node-3", "disk", None)) == []


def test_another_digest_at_the_same_version_is_no_equal() -> None:
    assert lost(source("node-1", "answers", OLD), source("node-2", "answers", OTHER)) == [
        ("node-2", "refs/heads/main", "9", "1")
    ]


def test_a_repository_that_nobody_who_answers_holds_is_lost_whole() -> None:
    assert len(lost(source("node-1", "answers", None), source("node-2", "disk", NEW))) == 2


async def test_a_dead_nodes_journal_is_read_from_a_copy_and_left_as_it_is(tmp_path: Path) -> None:
    place = NodePlace("node-1", 3001, tmp_path)
    place.data.mkdir()
    journal = SqliteJournal.open(place.data, node=ME, cluster="test")
    first = create()
    second = update(first, "t-2", point(new=5))
    for change in (first, second):
        await journal.write(commit(change), members=MEMBERS, at_ms=1)
    await journal.write(accept(ballot(1, 1), update(second, "t-3", point(new=6, old=5))), members=MEMBERS, at_ms=1)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (place.data / ".journal").iterdir())
    held = _read(place)[str(REPO)]
    assert (held.version, held.refs, held.in_doubt) == (2, {str(MAIN): oid(5)}, True)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (place.data / ".journal").iterdir()) == before
    await journal.close()
    with pytest.raises(FileNotFoundError):
        _read(NodePlace("node-2", 3002, tmp_path / "nowhere"))
