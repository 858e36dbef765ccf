"""The last look: all replicas equal, certificates valid, every acknowledged object there and readable, stock git content.

First by HTTP, of nodes that run; then on their disks, when they have ended.
"""

import asyncio
import subprocess
import time
import tomllib
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from node.protocol.certificate import Certificate, SignedVote
from node.protocol.ids import Ballot, Digest, NodeId, Position, RepoId
from node.protocol.quorum import VoterSet
from tests.cluster.harness import GIT, git_environment, refs_of
from tests.nemesis.chains import Change
from tests.nemesis.field import NODES, Field
from tests.nemesis.history import ZERO, Operation, Outcome

SETTLED_TIMEOUT_S = 60.0
"""After the last fault. Two deadlines settle a doubt; a dead broker connection is noticed after up to 18 s."""

FSCK = [
    word for sin in ("badTimezone", "missingSpaceBeforeDate", "zeroPaddedFilemode") for word in ("-c", f"fsck.{sin}=ignore")
]
LOCAL = {"X_Gitquorum_Consistency": "local"}


@dataclass
class Replica:
    """One repository on one node, by its own knowledge."""

    version: int
    digest: str
    head: str
    refs: dict[str, str]
    changes: list[Change]
    certificates: list[dict[str, Any] | None]


@dataclass
class Look:
    """What was found; ``corrupt`` is in words."""

    replicas: dict[str, dict[int, Replica]] = field(default_factory=dict)
    corrupt: list[str] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    certificates: int = 0
    certificates_missing: int = 0
    objects: int = 0


async def settled(field_: Field, repositories: Iterable[str]) -> list[str]:
    """Wait until every replica of each is current and equal; returns those that are not in time, and how they stand."""
    give_up_at = time.monotonic() + SETTLED_TIMEOUT_S
    left = list(repositories)
    stand: dict[str, Any] = {}
    while left and time.monotonic() < give_up_at:
        still = []
        for name in left:
            found = [(await field_.get(number, f"/repos/{name}/replicas", **LOCAL))[1] or {} for number in NODES]
            stand[name] = [
                [(each["node_id"], each["state"], each["version"], each["applied"]) for each in one.get("replicas", [])]
                for one in found
            ]
            if not all(one and all(state == "current" for _, state, _, _ in one) for one in stand[name]):
                still.append(name)
        left = still
        if left:
            await asyncio.sleep(0.5)
    return [f"{name} is not current everywhere after {SETTLED_TIMEOUT_S:g} s: {stand[name]}" for name in left]


async def look(field_: Field, repositories: Iterable[str]) -> Look:
    """At what every running node holds."""
    seen = Look()
    keys = _keys(field_)
    for name in repositories:
        replicas = {number: await _replica(field_, number, name) for number in NODES}
        seen.replicas[name] = {number: each for number, each in replicas.items() if each is not None}
        if missing := [number for number, each in replicas.items() if each is None]:
            seen.unequal.append(f"{name} is not served by {missing}")
        states = {
            (each.version, each.digest, each.head, tuple(sorted(each.refs.items()))) for each in seen.replicas[name].values()
        }
        if len(states) > 1:
            seen.unequal.append(f"{name} differs: {states}")
        for number, each in seen.replicas[name].items():
            await asyncio.to_thread(_certified, seen, keys, name, number, each)
    return seen


async def _replica(field_: Field, number: int, name: str) -> Replica | None:
    status, shown = await field_.get(number, f"/repos/{name}", **LOCAL)
    if status != 200:
        return None
    _, table = await field_.get(number, f"/repos/{name}/refs?limit=1000", **LOCAL)
    found: list[dict[str, Any]] = []
    while True:
        _, page = await field_.get(number, f"/repos/{name}/history?since={len(found)}&limit=200", **LOCAL)
        if not page:
            return None
        found += page["changes"]
        if page["next"] is None:
            break
    return Replica(
        shown["version"],
        shown["digest"],
        shown["head"],
        {each["name"]: each["oid"] for each in table["refs"]},
        [Change.of_json(each) for each in found],
        [each["certificate"] for each in found],
    )


# ---------------------------------------------------------------- certificates


def _keys(field_: Field) -> Mapping[str, Sequence[str]]:
    config = tomllib.loads(field_.nodes[1].place.config.read_text())
    return {member["id"]: member["public_keys"] for member in config["members"]}


def _certified(seen: Look, keys: Mapping[str, Sequence[str]], name: str, number: int, replica: Replica) -> None:
    """Checked offline, with nothing but public keys, and by OpenSSL: nodes verify with libsodium. A change that was learned by
    inference has no certificate until it is needed."""
    voters = VoterSet.of(NodeId(node) for node in keys)

    def verify(node: NodeId, message: bytes, signature: bytes) -> bool:
        for key in keys.get(node, ()):
            try:
                Ed25519PublicKey.from_public_bytes(b64decode(key)).verify(signature, message)
            except InvalidSignature:
                continue
            return True
        return False

    for change, data in zip(replica.changes, replica.certificates, strict=True):
        if data is None:
            seen.certificates_missing += 1
            continue
        seen.certificates += 1
        certificate = _certificate(data)
        flaw = certificate.flaw(voters, verify)
        if (certificate.position.version, certificate.position.digest) != (change.version, change.digest):
            flaw = "it is of another change"
        if flaw:
            seen.corrupt.append(f"certificate of {name} version {change.version} on node-{number}: {flaw}")


def _certificate(data: Mapping[str, Any]) -> Certificate:
    def vote(each: Mapping[str, Any]) -> SignedVote:
        return SignedVote(NodeId(each["node_id"]), each["incarnation"], b64decode(each["signature"]))

    number, _, rest = data["ballot"].partition(".")
    node, _, attempt = rest.rpartition(".")
    return Certificate(
        RepoId(data["repository"]),
        Digest(data["voters"]),
        data["quorum"],
        Position(data["version"], Digest(data["digest"])),
        Ballot(int(number), NodeId(node), int(attempt)),
        tuple(vote(each) for each in data["votes"]),
        vote(data["decision"]),
    )


# ---------------------------------------------------------------- disks


def look_at_disks(field_: Field, seen: Look, acknowledged: Mapping[str, set[str]]) -> None:
    """When all nodes have ended. ``acknowledged``: oids that must be readable, with all that they refer to."""
    for name, replicas in seen.replicas.items():
        for number, replica in replicas.items():
            bare = field_.nodes[number].place.data / f"{name}.git"
            seen.corrupt += [
                f"{name} on node-{number}: {what}" for what in _flaws(bare, replica, acknowledged.get(name, set()))
            ]
            seen.objects += len(acknowledged.get(name, ()))


def _flaws(bare: Path, replica: Replica, acknowledged: set[str]) -> Iterable[str]:
    fsck = _git(bare, *FSCK, "fsck", "--full", "--strict", "--no-progress", "--no-dangling")
    if fsck.returncode or "error" in fsck.stderr or "missing" in fsck.stdout:
        yield f"git fsck: {fsck.stdout[-400:]} {fsck.stderr[-400:]}"
    table = refs_of(_git(bare, "show-ref").stdout)
    if table != replica.refs:
        yield f"stock git finds {table}, the register holds {replica.refs}"
    head = _git(bare, "symbolic-ref", "HEAD").stdout.strip()
    if head != replica.head:
        yield f"HEAD is {head}, not {replica.head}"
    if acknowledged:
        walked = _git(bare, "rev-list", "--objects", "--quiet", "--stdin", text="\n".join(sorted(acknowledged)))
        if walked.returncode:
            yield f"an acknowledged object, or one that it needs, cannot be read: {walked.stderr[-400:]}"


def _git(bare: Path, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    command = [GIT, "-c", "safe.directory=*", *arguments]
    return subprocess.run(
        command, cwd=bare, env=git_environment(), input=text, capture_output=True, text=True, check=False, timeout=300
    )


def acknowledged(operations: Sequence[Operation], chain: Sequence[Change]) -> set[str]:
    """Oids of acknowledged pushes since the repository was last created: what was in it before was deleted with it."""
    since = max((change.version for change in chain if change.kind == "create"), default=0)
    return {
        update.new
        for each in operations
        if each.outcome is Outcome.COMMITTED and each.writes and (each.version is None or each.version > since)
        for update in each.updates
        if update.new != ZERO
    }
