"""Seeded simulation of whole clusters: random faults, then peace, and the laws checked at every step (``schedule.py``).

A failure prints ``seed=…``; see what happened with ``pytest tests/simulation -k looked --seed N -s``. Found seeds stay here.
"""

import hashlib
import sys
import time

import pytest

from node.protocol.ids import NodeId
from tests.simulation.schedule import Schedule

SCHEDULES = 2000
SECONDS_MAX = 20.0
"""On a busy machine fewer schedules are run; what is run is the same ones in the same order."""


def test_random_schedules_keep_the_laws() -> None:
    began = time.monotonic()
    outcomes: dict[str, int] = {}
    served = run = 0
    for seed in range(SCHEDULES):
        schedule = Schedule(seed)
        for kind, count in schedule.run().items():
            outcomes[kind] = outcomes.get(kind, 0) + count
        served += schedule.served
        run += 1
        if time.monotonic() - began > SECONDS_MAX:
            break
    assert run >= 100
    assert served > run / 2
    assert set(outcomes) == {"committed", "aborted", "rejected", "unknown"} or run < 500
    assert outcomes["committed"] > run


def test_the_same_seed_is_the_same_schedule() -> None:
    assert _trace(7) == _trace(7)
    assert _trace(7) != _trace(8)


def test_a_seed_can_be_looked_at(request: pytest.FixtureRequest) -> None:
    """One schedule, line by line: pytest tests/simulation -k looked --seed N -s"""

    def say(at: float, node: NodeId, text: str) -> None:
        sys.stdout.write(f"{at:8.3f}  {node}  {text}\n")

    Schedule(int(request.config.getoption("--seed")), say).run()


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(831, id="catch_up_onto_a_failing_disk_does_not_spin"),
        pytest.param(100569, id="a_late_claim_of_a_dead_node_does_not_either"),
        pytest.param(102754, id="an_old_contention_does_not_slow_the_next_request"),
        pytest.param(1273, id="retry_shares_its_pack_with_the_change_that_lost_its_place"),
    ],
)
def test_found_seeds(seed: int) -> None:
    Schedule(seed).run()


def _trace(seed: int) -> str:
    lines: list[str] = []

    def say(at: float, node: NodeId, text: str) -> None:
        lines.append(f"{at} {node} {text}")

    Schedule(seed, say).run()
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
