"""What a crash leaves behind, removed at start, under the data directory's lock and before anything else runs.

Nothing that the journal names is touched (O4), nor what it cannot speak of because a row is damaged; and nothing in a
repository but files whose names say that they are unfinished: ``*.lock`` (git and we make them; no ref may be called that) and
``tmp_*``. Where the journal was lost, a repository that it does not name is no leftover: it is put out of service, and kept.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import structlog

from node.protocol.names import BadRepositoryName, RepositoryName
from node.storage.indexer import remove
from node.storage.repository import QUARANTINE, STAGE, Repositories

log = structlog.get_logger()


def sweep(
    data_dir: Path,
    repositories: Repositories,
    packs_in_use: set[str],
    existing: set[str],
    doubtful: AbstractSet[str] = frozenset(),
    *,
    keep: bool = False,
) -> Mapping[str, int]:
    """``existing`` are the names of all repositories that the journal says exist, ``doubtful`` the keys of those of which it
    cannot say that. Returns how many of each went."""
    counts = Counter(locks=0, temporaries=0, quarantines=0, stages=0, repositories=0, trash=0)
    for folder in _children(data_dir / QUARANTINE):
        remove(folder)
        counts["quarantines"] += 1
    counts["stages"] = _stages(data_dir / STAGE, packs_in_use)
    for name in list(_on_disk(data_dir)):
        if _orphaned(name, existing) and name.lower() not in doubtful:
            _put_away(repositories, name, keep=keep)
            counts["repositories"] += 1
        else:
            counts.update(_unfinished(repositories.need(name)))
    counts["trash"] = repositories.empty_trash()
    return dict(counts)


def _put_away(repositories: Repositories, name: str, *, keep: bool) -> None:
    if keep:
        kept = repositories.keep_aside(name)
        log.warning("repository kept aside", repository=name, kept=kept)
    else:
        repositories.trash(name)


def staged(data_dir: Path) -> set[str]:
    """sha256 of every pack of which something is on the stage."""
    return {path.name.partition(".")[0] for path in _children(data_dir / STAGE)}


def _stages(folder: Path, packs_in_use: set[str]) -> int:
    gone = set()
    for path in _children(folder):
        sha256 = path.name.partition(".")[0]
        if sha256 not in packs_in_use:
            path.unlink()
            gone.add(sha256)
    return len(gone)


def _on_disk(data_dir: Path) -> Iterator[str]:
    """Names of the repositories that are there; anything else in the data directory is not ours to judge."""
    for owner in _children(data_dir):
        if owner.name.startswith(".") or owner.is_symlink() or not owner.is_dir():
            continue
        for folder in _children(owner):
            if folder.suffix != ".git" or folder.is_symlink() or not folder.is_dir():
                continue
            try:
                yield str(RepositoryName.parse(f"{owner.name}/{folder.stem}"))
            except BadRepositoryName:
                continue


def _orphaned(name: str, existing: set[str]) -> bool:
    """Deleted, the crash having come before its removal; or re-created since with other capitals.

    Whoever passes registers' keys (lower case) instead of names loses nothing: only the same letters count then.
    """
    if name in existing:
        return False
    namesakes = {other for other in existing if other.lower() == name.lower()}
    return not namesakes or any((other != other.lower()) for other in namesakes)


def _unfinished(folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path in _files(folder, depth=1):
        if path.name.endswith(".lock"):
            path.unlink()
            counts["locks"] += 1
    for here, _, files in os.walk(folder / "refs"):
        for name in files:
            if name.endswith(".lock"):
                Path(here, name).unlink()
                counts["locks"] += 1
    for path in _files(folder / "objects", depth=2):
        if path.name.startswith("tmp_") or path.name.endswith(".lock"):
            path.unlink()
            counts["locks" if path.name.endswith(".lock") else "temporaries"] += 1
    return counts


def _files(folder: Path, depth: int) -> Iterator[Path]:
    for path in _children(folder):
        if path.is_dir() and not path.is_symlink():
            if depth > 1:
                yield from _files(path, depth - 1)
        else:
            yield path


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
