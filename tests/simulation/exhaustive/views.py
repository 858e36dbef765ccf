"""What a node's part of a state shows to the laws about several nodes: who holds a change on disk, what a reader is answered.

Reads are checked without modelling readers: in every state, every majority of the nodes that are up is asked R5's question, and
the barrier must not lie below anything that anybody could have been told: any acknowledged version, and any version committed
anywhere (a reader at that node may have been served it). Answers taken at different moments are as good: what a voter has
accepted and committed only grows, and what must be seen is what was said before the question was sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from node.protocol import reads
from node.protocol.ids import Digest, NodeId
from node.protocol.messages import Status
from tests.scenarios.laws import Broken
from tests.scenarios.values import REPOSITORY
from tests.simulation.exhaustive.ghost import Ghost
from tests.simulation.exhaustive.local import Local


@dataclass(frozen=True, slots=True)
class View:
    """One node, as the laws see it."""

    held: frozenset[Digest]
    """Changes that its disk has accepted last, or committed; writes under way do not count."""
    committed: int
    rejoining: bool
    """Among the failed minority: what it held is somewhere else, or the failures were too many."""
    status: Status | None
    """Its answer to R5's question; none while it is down."""


def view_of(local: Local) -> View:
    record = local.record
    held = {entry.change.position.digest for entry in local.history}
    if record.accepted is not None and record.accepted.change is not None:
        held.add(record.accepted.change.position.digest)
    return View(frozenset(held), record.committed.version, local.rejoining, _status(local))


def _status(local: Local) -> Status | None:
    if local.voter is None or local.voter.stopped:
        return None
    record, accepted = local.voter.record, local.voter.record.accepted
    return Status(
        REPOSITORY,
        local.register.voters.digest,
        local.incarnation,
        record.committed,
        record.accepted_ballot,
        accepted.base if accepted else record.committed,
        accepted is not None and accepted.change is not None,
        local.register.position.version,
        incarnations=local.incarnations,
    )


def check(views: Sequence[View], ghost: Ghost) -> None:
    """Raises ``Broken`` if a decided (so every acknowledged) change is not on a quorum of disks, or a read could miss one."""
    majority = len(views) // 2 + 1  # not asked of the code that is tested
    for version, digest in ghost.decided:
        holders = sum(digest in view.held or view.rejoining for view in views)
        if holders < majority:
            raise Broken(f"version {version} was decided, and is on {holders} of {len(views)} disks")
    least = max(ghost.seen, *(view.committed for view in views))
    answers = [(NodeId(str(n)), view.status) for n, view in enumerate(views, 1) if view.status is not None]
    for some in combinations(answers, majority):
        counted = reads.fresh({NodeId(f"node-{n}"): status for n, status in some})
        if len(counted) < majority:
            continue  # R4: they do not count together
        wall = reads.barrier(counted.values())
        if wall.applied < least:
            raise Broken(f"a read would be served at version {wall.applied}, and version {least} is known already")
