"""What a drill proves at its end: every acknowledged push is on every node, and stock git finds all replicas equal.

Each node is asked for what it alone has (``local`` consistency): its history, then a clone of everything by stock git, checked
with ``git fsck --strict``. Compared are refs, HEAD, version, digest, and the names of all objects.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from node.command.client import get
from node.command.drill_doubts import History
from node.command.drill_push import Fate, Pushed
from node.command.drill_targets import Target
from node.command.output import CommandError
from node.command.repos import clone_url
from node.command.selfcheck import run_git

LOCAL_HEADER = "http.extraHeader=X-Gitquorum-Consistency: local"


def prove(targets: Sequence[Target], repository: str, pushed: Iterable[Pushed]) -> dict[str, Any]:
    """What was compared, with ``problems``; empty when all is well."""
    acknowledged = {each.new for each in pushed if each.fate is Fate.ACKNOWLEDGED}
    problems: list[str] = []
    prints: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="gitquorum-drill-") as folder:
        for target in targets:
            history = History(target, repository)
            if not history.read():
                problems.append(f"{target.id} does not tell its history")
                continue
            if lost := acknowledged - history.oids:
                problems.append(f"{target.id} lacks {len(lost)} acknowledged pushes, {min(lost)[:12]} for one")
            try:
                prints[target.id], names = _fingerprint(Path(folder), target, repository, history)
                if lost := acknowledged - names:
                    problems.append(f"a clone from {target.id} lacks {len(lost)} acknowledged commits")
            except CommandError as error:
                problems.append(f"{target.id}: {error}")
    if len(set(prints.values())) > 1:
        problems.append(f"the replicas differ: {', '.join(f'{node} {found[:12]}' for node, found in prints.items())}")
    return {"acknowledged": len(acknowledged), "replicas": prints, "problems": problems}


def _fingerprint(folder: Path, target: Target, repository: str, history: History) -> tuple[str, set[str]]:
    """(a digest of all that is compared, the names of all objects) of a clone from ``target``."""
    copy = folder / target.id
    run_git(folder, "-c", LOCAL_HEADER, "clone", "--quiet", "--mirror", clone_url(target.url, repository), str(copy))
    run_git(copy, "fsck", "--strict", "--full", "--no-progress")
    objects = sorted(line.split()[0] for line in run_git(copy, "rev-list", "--objects", "--all").stdout.splitlines())
    shown = get(target.url, f"/repos/{repository}", local=True).body
    said = [run_git(copy, "show-ref").stdout, str(shown.get("head")), str(history.version), history.digest, *objects]
    return hashlib.sha256("\0".join(said).encode()).hexdigest(), set(objects)
