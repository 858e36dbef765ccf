"""A repository on disk compared with what the journal says: the scrub's eyes. It reads files, never what a process holds.

Refs, ``packed-refs``, HEAD and the configuration are this program's own writing (``refs.py``), so they are compared strictly:
a line that it would not have written is damage, even where git would shrug. A loose ref overrides its packed one, whose old
value may be any object name: a bit flipped in a name that is overridden changes nothing, and is not found. Packs and their
indexes are compared with the checksums that their change names, which is stronger than git's own: it knows what they should
have been. What is left to git is whether all that the refs lead to is there, and the index over all packs.
"""

import os
import re
from collections.abc import Iterator
from hashlib import sha1, sha256
from pathlib import Path

from node.ports.errors import RepositoryAbsent, StorageError
from node.ports.objects import Finding
from node.protocol.change import PackRef
from node.protocol.ids import Oid, RefName
from node.protocol.register import Ref, Register
from node.storage.git import Git
from node.storage.repository import CONFIG, Repositories, holds

READ_BYTES = 1024 * 1024
SHOWN_MAX = 3
FATAL = 128
"""git's exit code when it gave up; below it, fsck says what it found."""
PACKED_HEADER = b"# pack-refs with: peeled fully-peeled sorted "
_OID = re.compile(rb"[0-9a-f]{40}")


def verify_refs(repositories: Repositories, register: Register) -> list[Finding]:
    """Blocking. The caller makes sure that nothing is being applied."""
    try:
        folder = repositories.find(register.name) if register.name else None
    except StorageError as error:
        return [Finding("repository", str(error))]
    if not register.exists:
        return [Finding("repository", "it is deleted, and is here")] if folder is not None else []
    if folder is None:
        return [Finding("repository", "it is not here")]
    try:
        return [*_head_and_config(folder, register), *_refs(folder, register)]
    except OSError as error:
        return [Finding("repository", f"it cannot be read: {error.strerror}")]


def _head_and_config(folder: Path, register: Register) -> Iterator[Finding]:
    if _content(folder / "HEAD") != f"ref: {register.head}\n".encode():
        yield Finding("HEAD", f"it does not say {register.head}")
    if _content(folder / "config") != CONFIG:
        yield Finding("config", "it is not the one that was written")
    if not (folder / "objects" / "pack").is_dir():
        yield Finding("repository", "its folder of packs is missing")


def _content(path: Path) -> bytes | None:
    try:
        return None if path.is_symlink() else path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _refs(folder: Path, register: Register) -> Iterator[Finding]:
    packed = _packed(folder)
    if packed is None:
        yield Finding("refs", "packed-refs is not what was written")
        packed = {}
    loose: dict[RefName, Oid | None] = dict(_loose(folder))
    wrong = [ref for ref, oid in loose.items() if oid is None or ref not in register.refs or register.refs[ref].oid != oid]
    wrong += [ref for ref, value in packed.items() if ref not in loose and register.refs.get(ref) != value]
    wrong += [ref for ref in packed if ref not in register.refs and ref in loose]
    wrong += [ref for ref in register.refs if ref not in loose and ref not in packed]
    if wrong:
        named = sorted(set(wrong))
        more = f" and {len(named) - SHOWN_MAX} more" if len(named) > SHOWN_MAX else ""
        shown = ", ".join(named[:SHOWN_MAX]).encode("utf-8", "backslashreplace").decode()  # names may be no text any more
        yield Finding("refs", f"{shown}{more} not as the journal says")


def _packed(folder: Path) -> dict[RefName, Ref] | None:
    """``None`` for a file that this program would not have written."""
    content = _content(folder / "packed-refs")
    if content is None:
        return None if os.path.lexists(folder / "packed-refs") else {}
    if not content:
        return {}
    header, *lines = content.removesuffix(b"\n").split(b"\n")
    if header != PACKED_HEADER.rstrip(b"\n") or not content.endswith(b"\n"):
        return None
    found: dict[RefName, Ref] = {}
    last: RefName | None = None
    for line in lines:
        if line.startswith(b"^") and last is not None and _OID.fullmatch(line[1:]) and found[last].peeled is None:
            found[last] = Ref(found[last].oid, Oid(line[1:].decode()))
            continue
        oid, space, name = line.partition(b" ")
        if not space or not _OID.fullmatch(oid):
            return None
        ref = RefName(name.decode("utf-8", "surrogateescape"))
        if last is not None and name <= last.encode("utf-8", "surrogateescape"):
            return None
        found[ref], last = Ref(Oid(oid.decode())), ref
    return found


def _loose(folder: Path) -> Iterator[tuple[RefName, Oid | None]]:
    for here, folders, files in os.walk(folder / "refs"):
        for name in [*files, *(name for name in folders if Path(here, name).is_symlink())]:
            path = Path(here, name)
            if name.endswith(".lock"):
                continue  # no ref: left by a crash, or being written
            content = _content(path) or b""
            whole = len(content) == 41 and content.endswith(b"\n") and _OID.fullmatch(content[:-1])
            yield RefName(str(path.relative_to(folder))), Oid(content[:-1].decode()) if whole else None


def pack_files(repositories: Repositories, name: str, pack: PackRef) -> list[tuple[Path, str, str]]:
    """(path, what it is, sha256) of pack and index, if both are there in full length. Blocking."""
    folder = repositories.find(name)
    base = folder / "objects" / "pack" / pack.name if folder else None
    if base is None or not holds(base, pack):
        return []
    return [
        (base.with_name(base.name + ".pack"), "pack", pack.sha256),
        (base.with_name(base.name + ".idx"), "index", pack.index_sha256),
    ]


class Hashing:
    """A file read piece by piece, each piece in a thread; the checksum at its end."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._hash = sha256()

    def step(self) -> int:
        """Bytes that were read; 0 at the end."""
        piece = os.read(self._descriptor, READ_BYTES)
        self._hash.update(piece)
        return len(piece)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def close(self) -> None:
        os.close(self._descriptor)


def verify_objects(git: Git, repositories: Repositories, name: str) -> Finding | None:
    """``git fsck --connectivity-only``, niced; and the trailer of the multi-pack index. Blocking.

    Raises:
        StorageError: git could not look (out of memory, out of time): nothing is known.
    """
    try:
        folder = repositories.need(name)
    except RepositoryAbsent as error:
        return Finding("repository", str(error))
    if not _trailed(folder / "objects" / "pack" / "multi-pack-index"):
        return Finding("multi-pack-index", "its checksum is wrong")
    environment = git.environment({}, {"GIT_DIR": str(folder)})
    arguments = ["fsck", "--connectivity-only", "--no-dangling", "--no-progress", "--no-reflogs"]
    spawned = git.spawn(arguments, environment, folder)
    try:
        os.setpriority(os.PRIO_PROCESS, spawned.process.pid, 19)
        assert spawned.process.stdin is not None
        assert spawned.process.stdout is not None
        spawned.process.stdin.close()
        said = spawned.process.stdout.read().decode("utf-8", "replace")
        code, errors = spawned.wait()
    finally:
        spawned.end()
    if code == 0:
        return None
    words = (errors + said).strip().splitlines() or [f"git fsck ended with {code}"]
    if not 0 < code < FATAL:
        raise StorageError(f"git fsck could not look at {name}: {words[0][:200]}")
    return Finding("objects", words[0][:200])


def _trailed(path: Path) -> bool:
    """Whether a file ends in the SHA-1 of what is before; one that is not there does."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return True
    return sha1(content[:-20], usedforsecurity=False).digest() == content[-20:]
