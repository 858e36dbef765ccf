"""R5: which version a read must wait for."""

import pytest

from node.protocol.ids import NO_BALLOT, Ballot, Digest, Position
from node.protocol.messages import Status
from node.protocol.reads import Barrier, barrier
from tests.scenarios.values import REPOSITORY
from tests.unit.machine_values import VOTERS, A, B, ballot


def status(committed: int, at: Ballot = NO_BALLOT, base: int = 0, *, change: bool = False) -> Status:
    def position(version: int) -> Position:
        return Position(version, Digest(f"{version:064d}"))

    return Status(REPOSITORY, VOTERS.digest, 1, position(committed), at, position(base), change, committed)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([status(3), status(3)], Barrier(3, doubtful=False)),
        ([status(2), status(3)], Barrier(3, doubtful=False)),
        # a change on the highest committed version may be decided: wait for it, or settle it
        ([status(3), status(3, ballot(5), 3, change=True)], Barrier(4, doubtful=True)),
        ([status(2, ballot(5), 2, change=True), status(3, ballot(5), 2, change=True)], Barrier(3, doubtful=False)),
        # only the record with the highest ballot says anything
        ([status(3, ballot(5), 3, change=True), status(3, ballot(5, A, 2), 3)], Barrier(3, doubtful=False)),
        ([status(3, ballot(5), 3), status(3, ballot(6, B), 3, change=True)], Barrier(4, doubtful=True)),
        ([status(3, ballot(4), 3, change=True), status(3, ballot(9, B), 2, change=True)], Barrier(3, doubtful=False)),
    ],
)
def test_what_a_majority_says(answers: list[Status], expected: Barrier) -> None:
    assert barrier(answers) == expected
    assert barrier(answers[::-1]) == expected
