"""Bare Git repositories at ``DATA_DIR/{owner}/{repo}.git``, in Git's own format, made with dulwich.

V6 of docs/protocol: applying a change is idempotent and safe to cut at any step. Objects come first, each pack as
``.pack`` and then ``.idx`` (git looks for the index, so a pack without one does not exist for it), then refs, then HEAD.
A repository is made aside and renamed into place; a deleted one is renamed into ``.trash`` and removed at leisure.

Nothing is fsynced while applying, since the journal holds all of it; ``sync`` makes durable what was touched since the
last one. After a crash, and after a ``sync`` that failed, the journal replays (``apply`` again, ``materialise``): both write
small packs, refs, HEAD and configuration anew, into new files, whatever is there. A rename may have survived a power cut that
the bytes did not; and what can be read back after a failed fsync need not be on the disk, though the next fsync succeeds.

Runs in worker threads. Locks are striped by name: two repositories may share one, one never has two.
"""

import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dulwich.repo import Repo

from node.ports.errors import DiskRefused, RepositoryAbsent, WrongKind
from node.protocol.change import Change, ChangeKind, PackRef
from node.protocol.ids import Digest, RefName, RepoId
from node.protocol.messages import InlinePack
from node.protocol.names import RepositoryName
from node.protocol.register import Register
from node.storage.files import fsync, write_anew
from node.storage.refs import NAMESPACES, RefFiles, Touched

QUARANTINE = ".quarantine"
STAGE = ".stage"
TRASH = ".trash"
RESCUED = ".rescued"
"""Repositories of this node whose history was not the cluster's: out of service, for an operator."""
HOME = ".git-home"
"""Private folders: an owner's name never begins with a dot."""

LOOSE_REFS_MAX = 256
"""Loose refs written since they were last packed, before all are packed again."""

_LOCKS = 64

CONFIG = b"""\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
\tlogallrefupdates = false
\thooksPath = /dev/null
[gc]
\tauto = 0
[maintenance]
\tauto = false
[uploadpack]
\tallowFilter = true
\tallowReachableSHA1InWant = true
\tallowAnySHA1InWant = false
"""


class Repositories:
    """All bare repositories of this node."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._locks = [threading.RLock() for _ in range(_LOCKS)]
        self._touched: dict[str, Touched] = {}
        self._loose: dict[str, int] = {}
        self._spelling: dict[RepoId, str] = {}
        self._packs: dict[str, int] = {}

    def path(self, name: str) -> Path:
        """Where ``owner/name`` stands. Raises ``BadRepositoryName``."""
        parsed = RepositoryName.parse(name)
        return self._data_dir / parsed.owner / f"{parsed.name}.git"

    def find(self, name: str) -> Path | None:
        """The repository's folder if it is there; a symbolic link on the way is refused, wherever it leads."""
        path = self.path(name)
        for part in (path.parent, path):
            try:
                mode = part.lstat().st_mode
            except FileNotFoundError:
                return None
            if not stat.S_ISDIR(mode):
                raise WrongKind(f"{name} is not a folder on this node's disk (a symbolic link?)")
        return path

    def need(self, name: str) -> Path:
        """Raises ``RepositoryAbsent``."""
        path = self.find(name)
        if path is None:
            raise RepositoryAbsent(f"{name} is not on this node's disk")
        return path

    def spelled(self, key: RepoId) -> str | None:
        """The name on disk of the register ``key`` (which is in lower case), if it is there."""
        known = self._spelling.get(key)
        if known is None or self.find(known) is None:
            owner, _, repo = str(key).partition("/")
            found = (
                f"{folder.name}/{repository.name.removesuffix('.git')}"
                for folder in _namesakes(self._data_dir, owner)
                for repository in _namesakes(folder, f"{repo}.git")
            )
            known = next(found, None)
            if known is not None:
                self._spelling[key] = known
        return known

    # ------------------------------------------------------------ applying

    def apply(self, changes: Sequence[Change], after: Register, sources: "Sources") -> None:
        """V6. ``after`` is the value that these consecutive changes lead to; a deletion comes alone, and its ``after`` still
        has the name."""
        with self._lock(after.name):
            if changes[0].kind is ChangeKind.DELETE:
                self._remove(after.name)
                return
            folder = self._ensure(after.name, after.head)
            touched = self._touched_of(after.name)
            packs = [pack for change in changes for pack in change.packs]
            for pack in packs:
                _add_pack(folder / "objects" / "pack", pack, sources, touched)
            self._packs[after.name] = self._packs.get(after.name, 0) + len(packs)
            requests = (request for change in changes for request in change.requests)
            changed = {update.ref: after.refs.get(update.ref) for request in requests for update in request.updates}
            files = RefFiles(folder, touched)
            self._loose[after.name] = self._loose.get(after.name, 0) + files.update(changed, after.refs)
            if self._loose[after.name] > LOOSE_REFS_MAX:
                files.replace(after.refs)
                self._loose[after.name] = 0
            files.point_head(after.head)

    def materialise(self, register: Register) -> None:
        """Make refs and HEAD equal to ``register``, whatever is there now."""
        if not register.name:
            return
        with self._lock(register.name):
            if not register.exists:
                self._remove(register.name)
                return
            touched = self._touched_of(register.name)
            folder = self._ensure(register.name, register.head)
            _complete(folder)
            _touch_all(folder, touched)
            files = RefFiles(folder, touched)
            files.replace(register.refs)
            files.point_head(register.head, anew=True)
            self._loose[register.name] = 0

    def rewrite(self, register: Register) -> None:
        """``materialise`` over whatever a damaged disk has made of it: configuration and folders too."""
        if not register.name:
            return
        with self._lock(register.name):
            folder = self.path(register.name)
            if register.exists and folder.is_dir() and not folder.is_symlink():
                _clear_the_way(folder)
                _complete(folder)
                _touch_all(folder, self._touched_of(register.name))
            self.materialise(register)

    def rescue(self, register: Register, label: str) -> str:
        """Where the repository is now: out of service, with every ref it had as ``refs/rescued/{label}/…``."""
        with self._lock(register.name):
            found = self.find(register.name) if register.name else None
            if found is None:
                return ""
            place = self._data_dir / RESCUED / f"{found.parent.name}--{found.name}-{label}"
            place.parent.mkdir(exist_ok=True)
            refs = {RefName(f"refs/rescued/{label}/{ref.removeprefix('refs/')}"): ref_ for ref, ref_ in register.refs.items()}
            touched = Touched()
            RefFiles(found, touched).replace(refs)
            self._put_aside(found, place)
            self._remove(register.name)  # what is remembered of it
            return str(place)

    def keep_aside(self, name: str) -> str:
        """Where it is now: out of service, with its refs under their own names, since nobody knows what they should be."""
        with self._lock(name):
            found = self.need(name)
            place = self._data_dir / RESCUED / f"{found.parent.name}--{found.name}-{time.time_ns() // 1_000_000}"
            place.parent.mkdir(exist_ok=True)
            self._put_aside(found, place)
            self._remove(name)  # what is remembered of it
            return str(place)

    def _put_aside(self, folder: Path, place: Path) -> None:
        """All of it durable first: what was applied last may not have been synced, and the journal will not place it again."""
        for here, _, files in os.walk(folder, topdown=False):
            for name in files:
                if not (path := Path(here, name)).is_symlink():
                    fsync(path)
            fsync(Path(here))
        folder.rename(place)
        for path in (place.parent, place.parent.parent, folder.parent):
            fsync(path)

    def restore_pack(self, name: str, pack: PackRef, stage: Path) -> None:
        """Put the staged files in the place of what is there; ``sync`` is the caller's."""
        with self._lock(name):
            base = self.need(name) / "objects" / "pack" / pack.name
            _link_staged(base, pack, stage)
            for suffix in (".pack", ".idx"):
                self._touched_of(name).file(base.with_name(pack.name + suffix))

    def _ensure(self, name: str, head: RefName) -> Path:
        """The repository's folder, made if it is not there, made whole if a power cut left half of one."""
        found = self.find(name)
        touched = self._touched_of(name)
        self._spelling[RepositoryName.parse(name).key] = name
        if found is not None:
            if not _whole(found):
                _complete(found)
                _touch_all(found, touched)
            return found
        path = self.path(name)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            touched.entry(path.parent)
        made = self._make(head)
        made.rename(path)
        touched.entry(path)
        _touch_all(path, touched)
        return path

    def _make(self, head: RefName) -> Path:
        folder = self._data_dir / QUARANTINE / f".create-{secrets.token_hex(8)}"
        folder.mkdir(parents=True)
        Repo.init_bare(folder).close()
        (folder / "HEAD").write_text(f"ref: {head}\n")
        _complete(folder)
        return folder

    def _remove(self, name: str) -> None:
        found = self.find(name)
        if found is not None:
            self._to_trash(found)
        self._loose.pop(name, None)
        self._packs.pop(name, None)
        self._spelling.pop(RepositoryName.parse(name).key, None)
        touched = self._touched[name] = Touched()
        touched.entry(self.path(name))

    def trash(self, name: str) -> None:
        """Take a repository away, whatever it is worth: the journal says that it does not exist."""
        with self._lock(name):
            self._remove(name)

    def _to_trash(self, folder: Path) -> None:
        trash = self._data_dir / TRASH
        trash.mkdir(exist_ok=True)
        folder.rename(trash / f"{folder.parent.name}--{folder.name}-{secrets.token_hex(8)}")

    def empty_trash(self) -> int:
        """Remove deleted repositories for good. Returns how many."""
        count = 0
        trash = self._data_dir / TRASH
        for folder in trash.iterdir() if trash.is_dir() else ():
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
        return count

    # ------------------------------------------------------------ durability

    def sync(self, name: str) -> None:
        """fsync all that was touched since the last time."""
        with self._lock(name):
            touched = self._touched.pop(name, Touched())
        try:
            for path in sorted(touched.paths, key=lambda path: len(path.parts), reverse=True):
                fsync(path)
        except OSError:
            with self._lock(name):
                self._touched_of(name).paths |= touched.paths
            raise

    def packs_came(self, name: str, many: int) -> bool:
        """Whether ``many`` packs came since this last said yes."""
        with self._lock(name):
            came = self._packs.get(name, 0) >= many
            if came:
                self._packs[name] = 0
            return came

    # ------------------------------------------------------------ questions

    def has_pack(self, name: str, pack: PackRef) -> bool:
        """Whether the repository holds this pack, index and all."""
        folder = self.find(name)
        return folder is not None and holds(folder / "objects" / "pack" / pack.name, pack)

    def read_packs(self, name: str, packs: Iterable[PackRef]) -> tuple[InlinePack, ...]:
        """Those that the repository holds, whole in memory: for small ones only. Who gets them checks them."""
        folder = self.find(name)
        if folder is None:
            return ()
        bases = [(pack, folder / "objects" / "pack" / pack.name) for pack in packs]
        return tuple(_read_pack(pack, base) for pack, base in bases if holds(base, pack))

    def size_bytes(self, name: str) -> int:
        total = 0
        for folder, _, files in os.walk(self.need(name)):
            for file in files:
                try:
                    total += os.lstat(os.path.join(folder, file)).st_size
                except FileNotFoundError:
                    continue  # replaced meanwhile
        return total

    def _lock(self, name: str) -> threading.RLock:
        return self._locks[hash(name.lower()) % _LOCKS]

    def _touched_of(self, name: str) -> Touched:
        return self._touched.setdefault(name, Touched())


def _namesakes(folder: Path, lower: str) -> list[Path]:
    """Folders in ``folder`` of that name, whatever their capitals."""
    return [path for path in folder.iterdir() if path.name.lower() == lower and path.is_dir() and not path.is_symlink()]


def _whole(folder: Path) -> bool:
    try:
        return (folder / "config").stat().st_size > 0 and (folder / "objects" / "pack").is_dir()
    except FileNotFoundError:
        return False


def _complete(folder: Path) -> None:
    """All but HEAD and refs, which are written from the register."""
    for part in ("objects/pack", "objects/info", *(f"refs/{namespace}" for namespace in NAMESPACES)):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_anew(folder / "config", folder / "config.lock", CONFIG)


def _clear_the_way(folder: Path) -> None:
    """Where this program has a file there is no folder, and the other way round; nothing is a symbolic link."""
    below = [(name, True) for name in ("objects/pack", "objects/info", *(f"refs/{namespace}" for namespace in NAMESPACES))]
    files = [(f"{name}{suffix}", False) for name in ("HEAD", "config", "packed-refs") for suffix in ("", ".lock")]
    for name, is_folder in (*files, ("refs", True), ("objects", True), *below):
        path = folder / name
        if path.is_symlink() or (path.exists() and path.is_dir() != is_folder):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _touch_all(path: Path, touched: Touched) -> None:
    for folder, _, files in os.walk(path):
        touched.paths |= {Path(folder), *(Path(folder, file) for file in files)}


class Sources:
    """Where ``apply`` finds packs: small ones in memory, large ones in the stage."""

    def __init__(self, small: Mapping[Digest, InlinePack], stage: Path) -> None:
        self.small = small
        self.stage = stage


def holds(base: Path, pack: PackRef) -> bool:
    """Whether ``base`` + .pack and .idx are there in full length."""
    return _size(base, ".pack") == pack.size_bytes and _size(base, ".idx") == pack.index_size_bytes


def _read_pack(pack: PackRef, base: Path) -> InlinePack:
    content = base.with_name(base.name + ".pack").read_bytes()
    return InlinePack(pack.sha256, content, base.with_name(base.name + ".idx").read_bytes())


def _size(base: Path, suffix: str) -> int:
    try:
        return os.stat(base.with_name(base.name + suffix), follow_symlinks=False).st_size
    except FileNotFoundError:
        return -1


def _add_pack(folder: Path, pack: PackRef, sources: Sources, touched: Touched) -> None:
    base = folder / pack.name
    small = sources.small.get(pack.sha256)
    if small is not None:
        for suffix, content in ((".pack", small.pack), (".idx", small.index)):
            write_anew(base.with_name(pack.name + suffix), folder / f"tmp_{secrets.token_hex(8)}", content, 0o444)
    elif not holds(base, pack):
        _link_staged(base, pack, sources.stage)
    touched.file(base.with_name(pack.name + ".pack"))
    touched.file(base.with_name(pack.name + ".idx"))


def _link_staged(base: Path, pack: PackRef, stage: Path) -> None:
    """Staged files are synced already. A link, no move: the same pack may be staged for another change too."""
    staged = stage / pack.sha256
    if not holds(staged, pack):
        raise DiskRefused(f"objects are missing: {pack.name} is neither staged nor in the repository")
    for suffix in (".pack", ".idx"):
        temporary = base.with_name(f"tmp_{secrets.token_hex(8)}")
        os.link(staged.with_name(staged.name + suffix), temporary)
        try:
            temporary.replace(base.with_name(base.name + suffix))
        finally:
            temporary.unlink(missing_ok=True)  # rename(2) does nothing, and says so to nobody, between links of one file
