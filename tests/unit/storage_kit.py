"""Raw git objects and packs made by hand, registers and changes in one line, and real git to compare with."""

import os
import struct
import subprocess
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from hashlib import sha1
from pathlib import Path

from node.protocol.change import Change, ChangeKind, PackRef, RefUpdate, Request
from node.protocol.ids import ZERO_OID, NodeId, Oid, RefName, TxnId
from node.protocol.names import RepositoryName
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.storage.objects import DiskObjects
from node.storage.quarantine import Received

NAME = RepositoryName("alice", "project")
MAIN = RefName("refs/heads/main")
VOTERS = VoterSet.of([NodeId("node-1")])
WHO = b"A <a@example.org> 1700000000 +0000"

COMMIT, TREE, BLOB, TAG = 1, 2, 3, 4
_KINDS = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}

GIT_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "user.name",
    "GIT_CONFIG_VALUE_0": "test",
    "GIT_CONFIG_KEY_1": "user.email",
    "GIT_CONFIG_VALUE_1": "test@example.org",
    "GIT_CONFIG_KEY_2": "protocol.file.allow",
    "GIT_CONFIG_VALUE_2": "always",
}


class Thing:
    """A git object: its type, content and name."""

    def __init__(self, kind: int, content: bytes) -> None:
        self.kind = kind
        self.content = content
        self.oid = Oid(sha1(_KINDS[kind] + b" %d\0" % len(content) + content).hexdigest())

    @property
    def raw(self) -> bytes:
        return bytes.fromhex(self.oid)


def blob(content: bytes = b"hello\n") -> Thing:
    return Thing(BLOB, content)


def tree(*entries: tuple[bytes, bytes, Thing]) -> Thing:
    """Entries of (mode, name, object)."""
    return Thing(TREE, b"".join(mode + b" " + name + b"\0" + thing.raw for mode, name, thing in entries))


def commit(root: Thing, *parents: Thing, who: bytes = WHO, message: bytes = b"x\n") -> Thing:
    lines = [b"tree " + root.oid.encode(), *(b"parent " + parent.oid.encode() for parent in parents)]
    return Thing(COMMIT, b"\n".join([*lines, b"author " + who, b"committer " + who, b"", message]))


def tag(target: Thing, name: bytes = b"v1") -> Thing:
    kind = _KINDS[target.kind]
    return Thing(TAG, b"object %s\ntype %s\ntag %s\ntagger %s\n\nx\n" % (target.oid.encode(), kind, name, WHO))


def history(length: int = 1, content: bytes = b"hello\n", parent: Thing | None = None) -> list[Thing]:
    """Blob, tree and commit, again and again; the last one is the tip."""
    things: list[Thing] = []
    for number in range(length):
        file = blob(content + b"%d" % number)
        root = tree((b"100644", b"file", file))
        tip = commit(root, *([parent] if parent else []))
        things += [file, root, tip]
        parent = tip
    return things


def entry_header(kind: int, size: int) -> bytes:
    out, byte, size = bytearray(), kind << 4 | size & 15, size >> 4
    while size:
        out.append(byte | 128)
        byte, size = size & 127, size >> 7
    return bytes([*out, byte])


def pack_of(*things: Thing, extra: Sequence[bytes] = ()) -> bytes:
    """A pack without deltas; ``extra`` are raw entries put at its end."""
    body = b"PACK" + struct.pack(">LL", 2, len(things) + len(extra))
    for thing in things:
        body += entry_header(thing.kind, len(thing.content)) + zlib.compress(thing.content)
    return seal(body + b"".join(extra))


def seal(body: bytes) -> bytes:
    return body + sha1(body).digest()


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def ref_delta(base: Thing, delta: bytes) -> bytes:
    return entry_header(7, len(delta)) + base.raw + zlib.compress(delta)


async def chunked(content: bytes, size: int = 8192) -> AsyncIterator[bytes]:
    for at in range(0, len(content), size):
        yield content[at : at + size]


def register(name: RepositoryName = NAME) -> Register:
    return Register(name.key, VOTERS)


def request(txn: str, updates: Iterable[RefUpdate] = (), packs: Iterable[PackRef] = (), head: RefName | None = None) -> Request:
    return Request(TxnId(txn), "anonymous", NodeId("node-1"), 0, tuple(updates), head, tuple(packs))


def creation(before: Register, name: RepositoryName = NAME, head: RefName = MAIN) -> Change:
    return Change(before.repository, before.position, ChangeKind.CREATE, (request("create", head=head),), str(name), VOTERS)


def deletion(before: Register) -> Change:
    return Change(before.repository, before.position, ChangeKind.DELETE, (request("delete"),))


def change_of(before: Register, *updates: RefUpdate, packs: Iterable[PackRef] = (), txn: str = "push") -> Change:
    return Change(before.repository, before.position, ChangeKind.UPDATE, (request(txn, updates, packs),))


def moved(before: Register, refs: Mapping[str, Oid | None], packs: Iterable[PackRef] = (), txn: str = "push") -> Change:
    """A change that brings ``refs`` from where they are to the values given."""
    updates = []
    for ref, new in refs.items():
        old = before.refs.get(RefName(ref))
        updates.append(RefUpdate(RefName(ref), old.oid if old else ZERO_OID, new or ZERO_OID))
    return change_of(before, *updates, packs=packs, txn=txn)


async def created(objects: DiskObjects, name: RepositoryName = NAME) -> Register:
    before = register(name)
    change = creation(before, name)
    after = before.applied(change)
    await objects.apply(before, change, after, ())
    return after


async def receive(objects: DiskObjects, pack: bytes, txn: str = "push", shallow: Sequence[Oid] = ()) -> Received:
    return await objects.quarantine(NAME, TxnId(txn), shallow).receive(chunked(pack))


async def pushed(objects: DiskObjects, before: Register, pack: bytes, refs: Mapping[str, Oid | None], txn: str) -> Register:
    """Receive, examine, promote, apply: a push without a quorum."""
    async with await receive(objects, pack, txn) as received:
        change = moved(before, refs, txn=txn)
        updates, refused = await received.examine(change.requests[0].updates)
        assert not refused
        await received.promote()
        change = change_of(before, *updates, packs=received.packs, txn=txn)
        after = before.applied(change)
        await objects.apply(before, change, after, received.inline)
    return after


def git(*args: str | Path, stdin: bytes = b"", check: bool = True) -> str:
    done = subprocess.run(
        ["git", *map(str, args)],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=GIT_ENVIRONMENT,
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0 or not check, output
    return output


def refs_by_git(folder: Path) -> dict[str, str]:
    lines = git("-C", folder, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return dict(line.split(" ") for line in lines)


def refs_of(value: Register) -> dict[str, str]:
    return {ref: target.oid for ref, target in value.refs.items()}


def left_in_quarantine(objects: DiskObjects) -> list[str]:
    """Quarantines of pushes; warm processes have theirs while they wait."""
    folder = objects.path(str(NAME)).parent.parent / ".quarantine"
    return [path.name for path in folder.iterdir() if not path.name.startswith(".warm-")]
