"""Catch-up (R2): which of a peer's retained changes may be trusted, and which of their objects are needed.

Objects first; the digest chain and the certificates before trust. Only a higher committed version is ever taken: "different"
is not "newer". ``promised`` and ``accepted`` are never touched, see ``acceptor.CommitOp``.

All history is retained at present, so a tail always reaches back far enough; a snapshot (refs, ids, digest, objects) followed
by the tail belongs here once packs are repacked.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from node.protocol.certificate import Certificate
from node.protocol.change import Change
from node.protocol.ids import Position
from node.protocol.messages import HistoryEntry, HistoryPage


class HistoryRefused(Exception):
    """A peer's history does not continue ours, or proves nothing; ``divergent`` ones are an alarm."""

    def __init__(self, reason: str, *, divergent: bool = False) -> None:
        super().__init__(reason)
        self.divergent = divergent


@dataclass(frozen=True, slots=True)
class Step:
    """One change to learn, in order; ``needs_objects`` is false for what a later deletion has made moot."""

    change: Change
    certificate: Certificate | None
    needs_objects: bool


def steps(
    here: Position,
    page: HistoryPage,
    flaw: Callable[[Change, Certificate], str | None],
    told: Collection[Position] = (),
) -> list[Step]:
    """The prefix of ``page`` that is proved: the chain proves every change below a certified one, or below a position that
    a verified claim, prepare, vote or status named as committed (``told``). Without the latter, a change whose certificate
    was lost with its coordinator, and that one voter knows by V2's inference only, could never be learned by the others.

    Raises:
        HistoryRefused: if the chain does not start at ``here``, or a certificate is flawed.
    """
    position = here
    out: list[Step] = []
    proved = 0
    for entry in page.entries:
        if entry.change.position.version <= here.version:
            _same_as_ours(here, entry)
            continue
        if entry.change.base != position:
            divergent = entry.change.base.version == position.version
            raise HistoryRefused(f"a peer's change stands on {entry.change.base}, not on {position}", divergent=divergent)
        position = entry.change.position
        out.append(Step(entry.change, entry.certificate, position.version > page.floor))
        if entry.certificate is not None:
            if entry.certificate.position != position:
                raise HistoryRefused(f"the certificate of version {position.version} names another digest", divergent=True)
            if reason := flaw(entry.change, entry.certificate):
                raise HistoryRefused(f"the certificate of version {position.version} is worthless: {reason}")
            proved = len(out)
        elif position in told:
            proved = len(out)
    return out[:proved]


def _same_as_ours(here: Position, entry: HistoryEntry) -> None:
    position = entry.change.position
    if position.version == here.version and position != here:
        raise HistoryRefused(f"a peer committed {position}, this node {here}", divergent=True)
