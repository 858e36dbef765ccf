"""What must hold on the disk after a fault, once the node has started again: no promise is missing, nothing half is there."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from node.protocol.ids import Ballot, RepoId, TxnId
from node.protocol.register import Register
from node.storage.repository import QUARANTINE, STAGE, TRASH
from tests.crash.scripts import PUSHES_MAX
from tests.crash.subject import Subject
from tests.crash.values import NAME, B
from tests.unit.storage_kit import git, refs_by_git, refs_of

Told = Iterable[Mapping[str, Any]]
REPOSITORIES = [NAME.key, *(RepoId(f"{NAME.key}-{number}") for number in range(1, PUSHES_MAX))]


async def promises(node: Subject, told: Told) -> list[str]:
    """What was acknowledged and is not there, what was said to be aborted and is."""
    journal, wrong = node.journal, []
    replica = await node.runtime._registry.get(NAME.key)
    record, register = replica.voter.record, replica.applied_register
    pushed: dict[str, str] = {}
    for message in told:
        match message["kind"]:
            case "committed":
                pages = [await journal.history(one, message["version"] - 1, 1) for one in REPOSITORIES]
                if message["digest"] not in {entry.change.position.digest for page in pages for entry in page}:
                    wrong.append(f"version {message['version']} was acknowledged and is not in history")
            case "pushed":
                pushed[message["ref"]] = message["oid"]
            case "promised":
                if record.promised < Ballot(message["round"], B, message["attempt"]):
                    wrong.append(f"the promise of {message['round']} is gone: {record.promised}")
            case "accepted":
                wrong += _accepted(message, record)
            case "aborted" | "rejected":
                if message.get("txn") and await journal.find(TxnId(message["txn"])):
                    wrong.append(f"{message['txn']} was {message['kind']} and is in history")
                own = record.in_doubt
                if own is not None and message.get("txn") in own.txns and record.promised == record.accepted_ballot:
                    wrong.append(f"{message['txn']} was {message['kind']} and may still be decided")
    there = refs_of(register)
    return wrong + [f"{ref} was pushed and is {there.get(ref)}" for ref, oid in pushed.items() if there.get(ref) != oid]


def _accepted(message: Mapping[str, Any], record: Any) -> list[str]:
    ballot = Ballot(message["round"], B, message["attempt"])
    if record.accepted_ballot < ballot:
        return [f"the vote at {ballot} is forgotten: {record.accepted}"]
    if record.accepted_ballot == ballot:
        change = record.accepted.change
        digest = change.position.digest if change else ""
        if digest != message["digest"]:
            return [f"the vote at {ballot} was for something else"]
    return []


async def visible(node: Subject, told: Told) -> list[str]:
    """Disk and journal agree, git finds nothing wrong, and every ref is as it was or as it was asked to be."""
    wrong: list[str] = []
    asked = {(message["ref"], message["oid"]) for message in told if message["kind"] == "asked"}
    existing: set[str] = set()
    after = ""
    while page := await node.journal.repositories(after, 100):
        for one in page:
            replica = await node.runtime._registry.get(one.repository)
            existing.add(one.name)
            wrong += _repository(node, replica.applied_register)
            if replica.applied != replica.register.position.version:
                wrong.append(f"{one.name}: applied {replica.applied}, committed {replica.register.position.version}")
            if asked:
                wrong += [f"{ref} is {oid}" for ref, oid in refs_of(replica.register).items() if (ref, oid) not in asked]
        after = page[-1].repository
    for owner in node.data_dir.iterdir():
        if owner.is_dir() and not owner.name.startswith("."):
            wrong += [
                f"{f} is on disk and not in the journal" for f in owner.iterdir() if f"{owner.name}/{f.stem}" not in existing
            ]
    return wrong


def _repository(node: Subject, register: Register) -> list[str]:
    folder = node.store.path(register.name)
    if not folder.is_dir():
        return [f"{register.name} is not on disk"]
    wrong = []
    said = git("-C", folder, "for-each-ref", check=False)
    if "warning" in said or "error" in said:
        return [f"{register.name}: git for-each-ref: {said}"]
    if (there := refs_by_git(folder)) != refs_of(register):
        wrong.append(f"{register.name}: refs on disk {there}, in the journal {refs_of(register)}")
    if (head := git("-C", folder, "symbolic-ref", "HEAD").strip()) != register.head:
        wrong.append(f"{register.name}: HEAD is {head}")
    said = git("-C", folder, "fsck", "--strict", "--full", check=False)
    if "error" in said or "missing" in said or "fatal" in said or "corrupt" in said or "broken" in said:
        wrong.append(f"{register.name}: git fsck: {said}")
    return wrong


async def leftovers(node: Subject) -> list[str]:
    """After replay nothing unfinished is left, and the stage holds only what the journal names, or named at the start (it goes
    at the next one), or what was applied just now (it goes a minute later)."""
    stage = node.store._stage
    named = await node.journal.packs_in_use() | set(stage._condemned) | set(stage._holders)
    wrong = [f"left in {QUARANTINE}: {path.name}" for path in (node.data_dir / QUARANTINE).iterdir()]
    wrong += [f"left in {TRASH}: {path.name}" for path in (node.data_dir / TRASH).iterdir()]
    wrong += [f"left in {STAGE}: {p.name}" for p in (node.data_dir / STAGE).iterdir() if p.name.partition(".")[0] not in named]
    for here, _, files in os.walk(node.data_dir):
        wrong += [f"left: {Path(here, name)}" for name in files if _unfinished(Path(here, name), node.data_dir)]
    return wrong


def _unfinished(path: Path, data_dir: Path) -> bool:
    return (path.name.endswith(".lock") and path != data_dir / ".lock") or path.name.startswith("tmp_")
