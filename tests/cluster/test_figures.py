"""The measurements of ``bench/`` measure what they say: a small run of each, looked at for what must be right at any speed.

No time is judged here; the figures themselves are taken by hand.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.sources import sources

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(330)]
"""Seconds on an idle machine; ten times that on a crowded one."""

ROOT = Path(__file__).parents[2]


def bench(name: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"bench.{name}", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["cores"]
    return found


def test_a_node_that_was_away_is_byte_equal_when_bench_says_so() -> None:
    seen = bench("catching_up", "--behind", "30", "--runs", "1")
    (run,) = seen["runs"]
    assert seen["equal"]
    assert run["lost"] == 0
    assert run["behind"] >= 30
    assert run["acknowledged_meanwhile"] > 0, "pushes went on"
    assert run["packs"] >= 30 + run["acknowledged_meanwhile"]
    assert run["caught_up_s"] >= 0


def test_every_kill_leaves_a_doubt_that_is_settled_as_it_must_be() -> None:
    seen = bench("in_doubt", "--kills", "3")
    assert seen["kills"] >= 3
    for way in ("before-decision", "before-commit-sent"):
        assert seen["by_way"][way]["count"] == 1
    assert seen["outcomes"]["committed"] >= 2, "a quorum held both: they are finished, never undone"
    assert set(seen["outcomes"]) <= {"committed", "aborted", "never committed"}


def test_every_attempt_counts_for_the_availability() -> None:
    seen = bench("availability", "--pushes", "20", "--case", "dead coordinator")
    case = seen["cases"]["dead coordinator"]
    assert case["attempts"] >= 20
    assert case["attempts"] - case["acknowledged"] == len(case["others"])
    assert case["acknowledged"] > 10
    assert case["lost"] == 0


def test_every_node_takes_pushes_again_when_the_broker_is_back() -> None:
    source = sources().own
    if source is None:
        pytest.skip(sources().missing())
    image = ("--image", source.image) if source.image else ()
    seen = bench("broker_back", "--rounds", "1", "--broker", source.kind, *image)
    assert seen["of"] == 3
    assert seen["refused_meanwhile"] > 0, "the broker was gone"
    assert seen["lost"] == 0
