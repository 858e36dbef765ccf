"""One index over many packs, so that a repository does not slow down with every push.

A push leaves a pack, and git opens the index of every pack when it looks for an object: 400 small pushes made the next
intake three times slower. ``git multi-pack-index write`` puts all their names into one file beside them; it removes and
rewrites nothing, so packs can still be served by their names to lagging voters. git ignores one that is older than a pack
for that pack only. It is written after a sync, so that it never names what a power cut could take.
"""

from pathlib import Path

from node.storage.git import Git

NEW_PACKS = 32
"""Packs that came since, before it is written again."""


def write_index(git: Git, folder: Path) -> bool:
    """In a worker thread. False if git could not: a repository without is only slower."""
    environment = git.environment({}, {"GIT_DIR": str(folder)})
    spawned = git.spawn(["multi-pack-index", "write", "--no-progress"], environment, folder)
    try:
        assert spawned.process.stdin is not None
        assert spawned.process.stdout is not None
        spawned.process.stdin.close()
        spawned.process.stdout.read()
        code, _ = spawned.wait()
    finally:
        spawned.end()
    return code == 0


def rewrite_index(git: Git, folder: Path) -> None:
    """Made again, if there is one: a damaged one is not read. In a worker thread."""
    path = folder / "objects" / "pack" / "multi-pack-index"
    if path.exists():
        path.unlink()
        write_index(git, folder)
