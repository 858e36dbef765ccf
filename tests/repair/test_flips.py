"""A dozen flipped bytes, each found and repaired without an operator; ``python -m tests.repair.flips`` does hundreds."""

from pathlib import Path

import pytest

from tests.repair.flips import run


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flipped_bytes_are_found_and_repaired(tmp_path: Path) -> None:
    result = run(count=12, seed=4, folder=tmp_path)
    assert not result["missed"], result
    outcomes = result["outcomes"]
    assert outcomes.get("repaired", 0) + outcomes.get("rejoined", 0) == result["mattered"] >= 12, "the fault fired"
