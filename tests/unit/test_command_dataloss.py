"""``gitquorum dataloss``: which refs only a silent node's disk has, and whether there may be losses that nobody can name."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.command import dataloss as command
from node.command.dataloss import Holding, Source, _read, _repository
from node.command.output import CommandError
from node.command.state import NodePlace
from node.ports.errors import JournalDamaged
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
    holds, _ = _read(place)
    held = holds[str(REPO)]
    assert (held.version, held.refs, held.in_doubt) == (2, {str(MAIN): oid(5)}, True)
    assert held.accepted == ((str(MAIN), oid(6)),)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (place.data / ".journal").iterdir()) == before
    await journal.close()
    with pytest.raises(FileNotFoundError):
        _read(NodePlace("node-2", 3002, tmp_path / "nowhere"))


def run(monkeypatch: pytest.MonkeyPatch, *sources: Source) -> tuple[dict[str, Any], str]:
    """(the result, what the command ends with)."""
    by_id = {source.id: source for source in sources}
    places = [NodePlace(source.id, 3000, Path("/nowhere")) for source in sources]
    monkeypatch.setattr(command, "_source", lambda node: by_id[node.id])
    said: list[dict[str, Any]] = []
    output: Any = SimpleNamespace(as_json=True, result=lambda result, _: said.append(result))
    home: Any = SimpleNamespace(load=lambda: SimpleNamespace(nodes=places))
    try:
        command.dataloss(home, output)
    except CommandError as error:
        return said[0], str(error)
    return said[0], ""


def test_a_change_that_a_silent_disk_has_accepted_may_have_been_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its coordinator, which is gone, may have counted this vote and told the client."""
    silent = Holding(3, "a" * 64, OLD.refs, in_doubt=True, accepted=(("refs/heads/main", "7"),))
    sources = source("node-1", "answers", OLD), source("node-2", "disk", silent), source("node-3", "nothing", None)
    result, said = run(monkeypatch, *sources)
    assert "may have been acknowledged" in said
    (repository,) = result["repositories"]
    assert repository["undecided"] == [{"node_id": "node-2", "ref": "refs/heads/main", "oid": "7", "kept": "1"}]
    settled = Holding(4, "b" * 64, NEW.refs)
    result, said = run(monkeypatch, source("node-1", "answers", settled), *sources[1:])
    assert (result["undecided"], said) == (False, ""), "version 4 is decided, whatever it is"


def test_a_journal_that_was_lost_and_begun_anew_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wiped = Source("node-2", "disk", "503", forgot="it has forgotten what it held: its journal is empty")
    result, said = run(monkeypatch, source("node-1", "answers", OLD), wiped, source("node-3", "nothing", None))
    assert not result["certain"]
    assert "only node-2, node-3 held cannot be named" in said


async def test_whether_a_silent_nodes_journal_is_all_that_it_wrote_is_read_from_it(tmp_path: Path) -> None:
    place = NodePlace("node-1", 3001, tmp_path)
    place.data.mkdir()
    journal = SqliteJournal.open(place.data, node=ME, cluster="test")
    assert _read(place)[1] == "it has forgotten what it held: it is new"
    await journal.lives.found(("a",), 1)
    assert _read(place)[1] == ""
    await journal.mark_rejoining("its disk was lost", 2)
    assert _read(place)[1] == "it has forgotten what it held: its disk was lost"
    (place.data / ".journal" / "journal.sqlite-wal").rename(tmp_path / "wal")
    with pytest.raises(JournalDamaged, match="is missing"):
        _read(place)
    (tmp_path / "wal").rename(place.data / ".journal" / "journal.sqlite-wal")
    await journal.close()


def test_a_log_that_is_begun_anew_while_it_is_copied_is_copied_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    database, log, folder = tmp_path / "journal.sqlite", tmp_path / "journal.sqlite-wal", tmp_path / "copy"
    folder.mkdir()
    database.write_bytes(b"old")
    log.write_bytes(b"1" * 32 + b"what the file does not have yet")
    copy, copied = shutil.copy2, list[str]()

    def checkpointed(source: Path, target: Path) -> None:
        copy(source, target)
        copied.append(source.name)
        if len(copied) == 1:
            database.write_bytes(b"old and new")
            log.write_bytes(b"2" * 32)

    monkeypatch.setattr(shutil, "copy2", checkpointed)
    command._copy(database, folder)
    assert (folder / database.name).read_bytes() == b"old and new"
