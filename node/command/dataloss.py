"""``gitquorum dataloss``: what would be lost if the cluster went on from the nodes that answer, before anybody decides that.

Asked are the nodes that answer, and, read-only and from a copy, the journals of those that do not but whose disk is here. Of a
repository the highest committed version that an answering node holds is what one would go on from; what a silent node's disk
has beyond it, or instead of it, is named ref by ref. A change that such a disk has accepted and does not know to be committed
may have been acknowledged by a coordinator that is gone: it is named as undecided. Of a node whose disk is not here nothing is
known, and no more of one whose journal is not all that was written (it is rejoining, new, or a part is missing): pushes that
only such nodes held cannot be named, and whether there may be any is said. Changes nothing.
"""

import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Group

from node.command.client import NodeSilent, at_once, get
from node.command.output import CommandError, Output, table
from node.command.repos import list_repos
from node.command.state import Home, NodePlace
from node.ports.errors import StorageError
from node.protocol.change import Change, ChangeKind
from node.protocol.ids import NodeId, RepoId
from node.protocol.quorum import VoterSet, blocking
from node.protocol.standing import State
from node.storage import journal_whole
from node.storage.journal_lives import read_standing
from node.storage.journal_reads import load
from node.storage.journal_schema import FILE_NAME, FOLDER_NAME, connect_reader
from node.storage.journal_verify import keys

REPOSITORIES_MAX = 100_000
REFS_PAGE = 1000
SHOWN_MAX = 20
COPIES_MAX = 5
LOG_HEADER_BYTES = 32
"""Two of its words are made anew whenever SQLite begins the log again (https://www.sqlite.org/fileformat2.html#walformat)."""


@dataclass(slots=True)
class Holding:
    """What one node holds of one repository."""

    version: int
    digest: str
    refs: dict[str, str]
    in_doubt: bool = False
    accepted: tuple[tuple[str, str | None], ...] = ()
    """Of the change in doubt: each ref that it moves, and to what; a creation or deletion moves ``repository``."""


@dataclass(slots=True)
class Source:
    """A node, and how it was asked: ``answers``, ``disk`` or ``nothing``."""

    id: str
    how: str
    problem: str = ""
    holds: dict[str, Holding] = field(default_factory=dict)
    forgot: str = ""
    """Why its journal is not all that it ever wrote; empty when it is."""


def dataloss(home: Home, output: Output) -> dict[str, Any]:
    """Raises ``CommandError`` (FAILED) after the result if something would or may be lost."""
    nodes = home.load().nodes
    sources = at_once(_source, nodes)
    names = sorted({name for source in sources for name in source.holds})
    repositories = [_repository(name, sources) for name in names]
    known = [source for source in sources if source.how != "nothing" and not source.forgot]
    certain = len(known) >= blocking(len(nodes))
    result = {
        "nodes": [
            {"id": s.id, "source": s.how, "problem": s.problem, "repositories": len(s.holds)} for s in map(_told, sources)
        ],
        "certain": certain,
        "lost": any(repository["lost"] for repository in repositories),
        "undecided": any(repository["undecided"] for repository in repositories),
        "repositories": repositories,
    }
    output.result(result, None if output.as_json else _human(result))
    if result["lost"] or result["undecided"] or not certain:
        raise CommandError(_verdict(result, sources))
    return result


def _source(node: NodePlace) -> Source:
    try:
        return Source(node.id, "answers", holds=_asked(node))
    except (NodeSilent, CommandError) as error:
        said = str(error)
    try:
        holds, forgot = _read(node)
        return Source(node.id, "disk", said, holds, forgot)
    except (OSError, StorageError, sqlite3.Error) as error:
        return Source(node.id, "nothing", f"{said}; its disk: {error}")


def _asked(node: NodePlace) -> dict[str, Holding]:
    """By HTTP, what the node knows by itself."""
    holds = {}
    for repo in list_repos(node.url, REPOSITORIES_MAX)[0]:
        name = repo["repo_id"]
        path: str | None = f"/repos/{quote(name)}/refs?limit={REFS_PAGE}"
        refs: dict[str, str] = {}
        while path is not None:
            page = get(node.url, path, local=True)
            if not page.ok:
                raise CommandError(f"{name} on {node.id}: {page.reason}")
            refs |= {ref["name"]: ref["oid"] for ref in page.body["refs"]}
            cursor = page.body["next"]
            path = cursor and f"/repos/{quote(name)}/refs?limit={REFS_PAGE}&cursor={quote(cursor)}"
        holds[name.lower()] = Holding(repo["version"], repo["digest"], refs)
    return holds


def _told(source: Source) -> Source:
    return replace(source, problem="; ".join(filter(None, (source.problem, source.forgot))))


def _read(node: NodePlace) -> tuple[dict[str, Holding], str]:
    """(what it holds, why that is not all that it ever held or empty): from a copy of its journal, which is left as it is;
    every row is verified."""
    nobody = VoterSet.of([NodeId(node.id)])
    holds = {}
    journal_whole.check(node.data, node.data / FOLDER_NAME / FILE_NAME)
    with tempfile.TemporaryDirectory(prefix="gitquorum-dataloss-") as folder:
        _copy(node.data / FOLDER_NAME / FILE_NAME, Path(folder))
        with closing(connect_reader(Path(folder) / FILE_NAME)) as db:
            standing = read_standing(db)
            forgot = (
                "" if standing.state is State.MEMBER else f"it has forgotten what it held: {standing.reason or 'it is new'}"
            )
            for name in keys(db, "", REPOSITORIES_MAX):
                loaded = load(db, RepoId(name), nobody)
                position = loaded.register.position
                refs = {str(ref): str(value.oid) for ref, value in loaded.register.refs.items()}
                doubt = loaded.record.in_doubt
                if position.version or doubt is not None:
                    moved = _moved(doubt) if doubt is not None else ()
                    holds[str(name)] = Holding(position.version, position.digest, refs, doubt is not None, moved)
    return holds, forgot


def _copy(database: Path, folder: Path) -> None:
    """The file, and its log. The node may be running: a log that was begun anew meanwhile no longer holds what the file, copied
    before, does not have yet."""
    log = database.with_name(f"{database.name}-wal")
    for _ in range(COPIES_MAX):
        before = _log_header(log)
        shutil.copy2(database, folder)
        if log.exists():
            shutil.copy2(log, folder)
        if _log_header(folder / log.name) == before:
            return
        (folder / log.name).unlink(missing_ok=True)
    raise OSError("its journal is being written all the time")


def _log_header(log: Path) -> bytes:
    try:
        with log.open("rb") as file:
            return file.read(LOG_HEADER_BYTES)
    except FileNotFoundError:
        return b""


def _moved(change: Change) -> tuple[tuple[str, str | None], ...]:
    if change.kind is not ChangeKind.UPDATE:
        return (("repository", change.name or None),)
    updates = [update for request in change.requests for update in request.updates]
    return tuple((str(update.ref), None if update.deletes else str(update.new)) for update in updates) or (("HEAD", None),)


def _repository(name: str, sources: list[Source]) -> dict[str, Any]:
    """What one would go on from, and what others have that this has not."""
    held = {source.id: source.holds[name] for source in sources if name in source.holds}
    answering = [held[source.id] for source in sources if source.how == "answers" and source.id in held]
    kept = max(answering, key=lambda holding: holding.version, default=None)
    lost = []
    for source in sources:
        there = held.get(source.id)
        if there is None or (kept is not None and (there.version, there.digest) == (kept.version, kept.digest)):
            continue
        if kept is not None and there.version < kept.version:
            continue  # it is behind
        lost += [
            {"node_id": source.id, "ref": ref, "oid": oid, "kept": kept.refs.get(ref) if kept else None}
            for ref, oid in sorted(there.refs.items())
            if kept is None or kept.refs.get(ref) != oid
        ]
        lost += [
            {"node_id": source.id, "ref": ref, "oid": None, "kept": oid}
            for ref, oid in sorted(kept.refs.items() if kept else ())
            if ref not in there.refs
        ]
    return {
        "repo_id": name,
        "version": kept.version if kept else None,
        "digest": kept.digest if kept else None,
        "replicas": [{"node_id": s.id, "source": s.how, **_position(held.get(s.id))} for s in sources if s.how != "nothing"],
        "lost": lost,
        "undecided": [
            {"node_id": source.id, "ref": ref, "oid": oid, "kept": kept.refs.get(ref) if kept else None}
            for source in sources
            if source.how == "disk" and (there := held.get(source.id)) is not None
            if kept is None or kept.version <= there.version
            for ref, oid in there.accepted
        ],
    }


def _position(holding: Holding | None) -> dict[str, Any]:
    if holding is None:
        return {"version": None, "digest": None, "in_doubt": False}
    return {"version": holding.version, "digest": holding.digest, "in_doubt": holding.in_doubt}


def _verdict(result: dict[str, Any], sources: list[Source]) -> str:
    parts = []
    if result["lost"]:
        count = sum(len(repository["lost"]) for repository in result["repositories"])
        parts.append(f"{count} refs would be lost if the cluster went on from the nodes that answer: start the others instead")
    if result["undecided"]:
        count = sum(len(repository["undecided"]) for repository in result["repositories"])
        parts.append(
            f"{count} refs were moved by changes that only a silent disk has accepted: they may have been acknowledged"
        )
    if not result["certain"]:
        blind = ", ".join(source.id for source in sources if source.how == "nothing" or source.forgot)
        parts.append(f"pushes that only {blind} held cannot be named: there may have been some")
    return "; ".join(parts)


def _human(result: dict[str, Any]) -> Group:
    rows = [(node["id"], node["source"], node["repositories"], node["problem"]) for node in result["nodes"]]
    parts: list[Any] = [table(("node", "asked by", "repositories", "why"), rows), ""]
    places = [
        (repo["repo_id"], repo["version"], *(f"v{r['version']}" if r["version"] else "–" for r in repo["replicas"]))
        for repo in result["repositories"]
    ]
    heads = [node["id"] for node in result["nodes"] if node["source"] != "nothing"]
    parts.append(table(("repository", "goes on from", *heads), places))
    lost = [(repo["repo_id"], each) for repo in result["repositories"] for each in repo["lost"]]
    if lost:
        found = [(repo, e["node_id"], e["ref"], e["oid"] or "deleted", e["kept"] or "–") for repo, e in lost[:SHOWN_MAX]]
        parts += ["", table(("repository", "only on", "ref", "would be lost", "would stay"), found)]
        if len(lost) > SHOWN_MAX:
            parts.append(f"… and {len(lost) - SHOWN_MAX} more: --json")
    undecided = [(repo["repo_id"], each) for repo in result["repositories"] for each in repo["undecided"]]
    if undecided:
        found = [(repo, e["node_id"], e["ref"], e["oid"] or "–", e["kept"] or "–") for repo, e in undecided[:SHOWN_MAX]]
        parts += ["", table(("repository", "accepted on", "ref", "may have been acknowledged", "would stay"), found)]
        if len(undecided) > SHOWN_MAX:
            parts.append(f"… and {len(undecided) - SHOWN_MAX} more: --json")
    return Group(*parts)
