"""Seeded simulation of whole clusters: random faults, then peace, and the laws checked at every step (``schedule.py``).

A failure names its seed and the command that replays it, line by line: ``python -m tests.simulation.replay --seed N``. Many
more schedules: ``make test-simulation``. Seeds say nothing any more when the generator changes; what a seed once found is
kept as a planted bug (``planted/catalogue.py``): the simulation must find it again.
"""

import os
import subprocess
import sys

import pytest

from tests.simulation.fleet import replay_command, run, run_block
from tests.simulation.replay import replay

SCHEDULES = 6000
SECONDS_MAX = 40.0
"""On a busy machine fewer schedules are run; what is run is the same ones in the same order."""


@pytest.mark.timeout(180)
def test_random_schedules_keep_the_laws() -> None:
    report = run(SCHEDULES, seconds_max=SECONDS_MAX)
    sys.stdout.write(f"{report.as_json()}\n")
    assert not report.failures, [f"{text}; replay: {replay_command(seed)}" for seed, text in report.failures]
    assert report.schedules >= 100
    assert not report.silent, report.silent
    assert set(report.outcomes) == {"committed", "aborted", "rejected", "unknown"} or report.schedules < 2000
    assert report.outcomes["committed"] > report.schedules
    assert report.reads > report.schedules / 3


def test_the_same_seed_is_the_same_schedule_whatever_the_hash_seed() -> None:
    """Two processes with different string hashes: sets and dictionaries of names must not decide anything."""
    seeds = [str(seed) for seed in range(40)]
    command = [sys.executable, "-m", "tests.simulation.replay", "--hash", "--seed", *seeds]
    traces = [
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": hashed}, capture_output=True, text=True, check=True).stdout
        for hashed in ("0", "4711")
    ]
    assert traces[0] == traces[1]
    assert len(set(traces[0].split())) == len(seeds)


def test_a_trace_does_not_change_what_happens() -> None:
    """Listening is no part of a schedule: what is told with and without a listener is the same."""
    assert replay(7) == replay(7)
    assert run_block([7]).as_json() == run_block([7]).as_json()


def test_a_seed_can_be_looked_at(request: pytest.FixtureRequest) -> None:
    """One schedule, line by line: pytest tests/simulation -k looked --seed N -s"""
    _, broken = replay(int(request.config.getoption("--seed")), aloud=True)
    assert broken is None, broken
