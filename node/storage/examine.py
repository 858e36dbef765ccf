"""What git checks of a push's new values once its objects are good: they exist, branches are commits, tags peel.

Answers come from pack indexes and entry headers (``packfile.Pack``), so no process is started and no large object is
read. Objects live in packs only: everything enters through ``index-pack`` and nothing is ever unpacked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from node.protocol.change import RefUpdate
from node.protocol.ids import Oid, RefName
from node.storage.packfile import Kind, Malformed, Pack
from node.storage.refs import storable

TAG_DEPTH_MAX = 32

NAMES = {Kind.COMMIT: "commit", Kind.TREE: "tree", Kind.BLOB: "blob", Kind.TAG: "tag"}


class Examiner:
    """Looks objects up in folders of packs, in that order; opens what it needs, closes all at the end."""

    def __init__(self, folders: Sequence[Path], bases: Sequence[Path] = ()) -> None:
        self._unopened = _bases(folders, bases)
        self._packs: list[Pack] = []

    def kind(self, oid: Oid) -> Kind | None:
        """Type of the object, or ``None`` if it is nowhere."""
        found = self._find(oid)
        return found.kind(oid) if found else None

    def examine(self, updates: Sequence[RefUpdate]) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        """(those that git would accept, with ``peeled`` filled in; per ref, why not)."""
        good: list[RefUpdate] = []
        refused: dict[RefName, str] = {}
        for update in updates:
            if update.deletes:
                good.append(replace(update, peeled=None))
                continue
            try:
                good.append(replace(update, peeled=self._check(update)))
            except _Refused as reason:
                refused[update.ref] = str(reason)
        return tuple(good), refused

    def _check(self, update: RefUpdate) -> Oid | None:
        """What an annotated tag peels to."""
        if not storable(update.ref):
            raise _Refused(f"cannot lock ref '{update.ref}': File name too long")
        kind = self.kind(update.new)
        if kind is None:
            raise _Refused("missing necessary objects")
        if update.ref.startswith("refs/heads/") and kind is not Kind.COMMIT:
            raise _Refused(f"cannot update ref: trying to write non-commit object {update.new} to branch '{update.ref}'")
        return self._peel(update.new) if kind is Kind.TAG else None

    def _peel(self, oid: Oid) -> Oid:
        for _ in range(TAG_DEPTH_MAX):
            pack = self._find(oid)
            if pack is None:
                raise _Refused("missing necessary objects")
            if pack.kind(oid) is not Kind.TAG:
                return oid
            try:
                oid = pack.tag_target(oid)
            except Malformed as error:
                raise _Refused(f"bad tag {oid}: {error}") from error
        raise _Refused(f"more than {TAG_DEPTH_MAX} tags of tags")

    def _find(self, oid: Oid) -> Pack | None:
        for pack in self._packs:
            if pack.offset(oid) is not None:
                return pack
        for base in self._unopened:
            pack = Pack(base)
            self._packs.append(pack)
            if pack.offset(oid) is not None:
                return pack
        return None

    def close(self) -> None:
        for pack in self._packs:
            pack.close()

    def __enter__(self) -> "Examiner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Refused(Exception):
    """Why one ref cannot be updated; becomes a value in ``examine``."""


def _bases(folders: Sequence[Path], bases: Sequence[Path]) -> Iterator[Path]:
    yield from bases
    for folder in folders:
        indexes = folder.glob("*.idx") if folder.is_dir() else ()
        yield from (index.with_suffix("") for index in indexes)
