"""The quick bounds are explored to the end on every run; each planted bug is found, told and replayed.

``make test-exhaustive`` runs all the bounds.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.simulation.exhaustive.__main__ import main
from tests.simulation.exhaustive.bounds import BOUNDS
from tests.simulation.exhaustive.plants import PLANTS
from tests.simulation.exhaustive.search import Search
from tests.simulation.exhaustive.space import Space
from tests.simulation.exhaustive.story import told

SECONDS_MAX = 100.0
"""Of the processor; ten are needed."""

pytestmark = pytest.mark.timeout(900)

QUICK = [bound for bound in BOUNDS.values() if bound.quick]


@pytest.mark.parametrize("bound", QUICK, ids=lambda bound: bound.name)
def test_no_interleaving_within_a_quick_bound_breaks_a_law(bound: object) -> None:
    found = Search(bound).run(SECONDS_MAX, clock=time.process_time)  # type: ignore[arg-type]
    assert not found.broken, "\n".join(found.story)
    assert found.complete
    assert found.surprises == 0
    assert found.at_rest > 100
    assert found.settlings > 100


@pytest.mark.parametrize("plant", PLANTS.values(), ids=lambda plant: plant.name)
def test_a_planted_bug_is_found_and_replayed(plant: object) -> None:
    bound = BOUNDS[plant.bound]  # type: ignore[attr-defined]
    with plant.planted():  # type: ignore[attr-defined]
        found = Search(bound).run(SECONDS_MAX, clock=time.process_time)
        assert found.broken
        lines = list(told(Space(bound), found.path))
    assert lines == found.story
    assert lines[-1] == f"     BROKEN: {found.broken}"


def test_nothing_depends_on_the_hash_seed() -> None:
    counts = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation.exhaustive", "--bound", "push", "--plant", "late-votes", "--json"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        (found,) = json.loads(done.stdout)
        counts.append([found[name] for name in ("states", "transitions", "parts", "steps", "path", "story")])
        assert "replay: python -m tests.simulation.exhaustive --bound push --plant late-votes --replay " in done.stderr
    assert counts[0] == counts[1]


def test_a_bound_that_is_cut_short_is_called_incomplete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bound", "five", "--seconds", "0.3"]) == 0
    assert "incomplete: to depth" in capsys.readouterr().out


def test_a_bound_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit, match="no bound is called 'six'"):
        main(["--bound", "six"])
