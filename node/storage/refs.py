"""The ref table of a bare repository on disk: a view of the register that stock git can read.

The register in the journal is the truth, so nothing here compares old values, and a half-written state is repaired by
writing it again. What matters is the order in which a concurrent reader (``git upload-pack``) may see things, which is
git's own (``files-backend.c``): loose files are read before ``packed-refs``, so a deleted ref leaves ``packed-refs``
first and a ref that gets packed leaves its loose file last. Temporary files end in ``.lock``: git never takes those for
refs, and the sweep at start knows them.

A few updates become loose files; many, or the deletion of a packed one, rewrite ``packed-refs`` from the whole table.
Nothing is fsynced here: every touched file and directory is noted in ``Touched``, for ``sync``.
"""

import os
import shutil
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from dulwich.objects import ObjectID
from dulwich.refs import Ref as DulwichRef
from dulwich.refs import write_packed_refs

from node.protocol.ids import RefName
from node.protocol.register import Ref
from node.storage.files import write_anew

LOOSE_UPDATES_MAX = 16
"""More updates than this at once rewrite ``packed-refs``: one file instead of many."""

COMPONENT_BYTES_MAX = 250
"""A longer part of a ref's name has no place in a file name once ``.lock`` is added."""

NAMESPACES = ("heads", "tags", "notes")


class Touched:
    """Files and directories whose content changed since the last ``sync``."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()

    def file(self, path: Path) -> None:
        """``path`` was written and its directory entry changed."""
        self.paths |= {path, path.parent}

    def entry(self, path: Path) -> None:
        """``path`` appeared or vanished: only its directory counts."""
        self.paths.add(path.parent)


def storable(ref: RefName) -> bool:
    """Whether a file system can hold the name as a loose ref."""
    return all(len(part.encode()) <= COMPONENT_BYTES_MAX for part in ref.split("/"))


class RefFiles:
    """``refs/``, ``packed-refs`` and ``HEAD`` of the repository at ``folder``; one writer at a time."""

    def __init__(self, folder: Path, touched: Touched) -> None:
        self._folder = folder
        self._touched = touched

    def update(self, changed: Mapping[RefName, Ref | None], table: Mapping[RefName, Ref]) -> int:
        """Bring ``changed`` refs (``None``: deleted) to the values they have in ``table``. Returns how many are loose."""
        deleted = [ref for ref, value in changed.items() if value is None]
        many = len(changed) > LOOSE_UPDATES_MAX or not all(map(storable, changed))
        if many or self._packed(deleted):
            self._write_packed(table)
            for ref in changed:
                self._remove_loose(ref)
            return 0
        for ref in deleted:
            self._remove_loose(ref)
        loose = {ref: value for ref, value in changed.items() if value is not None}
        for ref, value in loose.items():
            self._write_loose(ref, value)
        return len(loose)

    def replace(self, table: Mapping[RefName, Ref]) -> None:
        """Make the whole table this, whatever it is now: all packed, nothing loose."""
        self._write_packed(table)
        for folder, folders, files in os.walk(self._folder / "refs", topdown=False):
            here = Path(folder)
            for name in [*files, *(name for name in folders if (here / name).is_symlink())]:
                (here / name).unlink()
                self._touched.entry(here / name)
            if here.parent != self._folder and here.parent != self._folder / "refs":
                here.rmdir()
                self._touched.entry(here)
        for namespace in NAMESPACES:
            (self._folder / "refs" / namespace).mkdir(parents=True, exist_ok=True)

    def point_head(self, ref: RefName, *, anew: bool = False) -> None:
        """HEAD as a symbolic ref; untouched on disk if it says so already and not ``anew``, but synced anyway."""
        path, text = self._folder / "HEAD", f"ref: {ref}\n".encode()
        if anew or path.is_symlink() or not path.is_file() or path.read_bytes() != text:
            self._write(path, text)
        self._touched.file(path)

    def _packed(self, refs: list[RefName]) -> bool:
        if not refs:
            return False
        try:
            packed = (self._folder / "packed-refs").read_bytes()
        except FileNotFoundError:
            return False
        return any(b" " + ref.encode() + b"\n" in packed for ref in refs)

    def _write_packed(self, table: Mapping[RefName, Ref]) -> None:
        refs = {DulwichRef(ref.encode()): ObjectID(value.oid.encode()) for ref, value in table.items()}
        peeled = {DulwichRef(ref.encode()): ObjectID(v.peeled.encode()) for ref, v in table.items() if v.peeled}
        file = BytesIO()
        write_packed_refs(file, refs, peeled)
        # The peeled value of every annotated tag is known, and the order is that of the bytes: git may rely on both.
        text = file.getvalue().replace(b" peeled\n", b" peeled fully-peeled sorted \n", 1)
        self._write(self._folder / "packed-refs", text)

    def _write_loose(self, ref: RefName, value: Ref) -> None:
        path = self._folder / ref
        self._make_room(path)
        self._write(path, value.oid.encode() + b"\n")

    def _make_room(self, path: Path) -> None:
        """The register says that ``path`` is a ref: whatever stands in its way (empty folders, stale files) is not."""
        if path.is_dir():
            shutil.rmtree(path)
        missing = []
        for parent in path.parents:
            if parent.is_dir():
                break
            if parent.is_symlink() or parent.exists():
                parent.unlink()
            missing.append(parent)
        for parent in reversed(missing):
            parent.mkdir()
            self._touched.entry(parent)

    def _remove_loose(self, ref: RefName) -> None:
        path = self._folder / ref
        if not storable(ref):
            return
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            # Not loose; perhaps a parent of it is a ref by now.
            return
        except IsADirectoryError:
            return
        self._touched.entry(path)
        namespace = self._folder / "refs"
        for parent in path.parents:
            if parent.parent == namespace or os.listdir(parent):
                break
            parent.rmdir()
            self._touched.entry(parent)

    def _write(self, path: Path, text: bytes) -> None:
        write_anew(path, path.with_name(path.name + ".lock"), text)
        self._touched.file(path)
