"""The short share of the nemesis: a handful of faults on real processes. ``make test-nemesis`` is the real thing."""

import json
import shutil

import pytest

from tests.nemesis.field import missing
from tests.nemesis.run import Wish, new_folder, run

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FAULTS = ("kill", "pause", "die-before-commit-sent", "disk-watermark", "one-way", "cut-broker", "broker-pause", "reset")
SECONDS = 25.0


@pytest.mark.timeout(300)
async def test_nothing_is_lost_under_a_handful_of_faults() -> None:
    if why := missing():
        pytest.skip(why)
    folder = new_folder()
    said: list[str] = []
    summary = await run(Wish(folder, SECONDS, seed=7, faults=FAULTS), said.append)
    print("\n".join(said), json.dumps(summary.json(), indent=2), sep="\n")  # noqa: T201  # pytest shows it with a failure
    assert summary.good, f"data kept in {folder}:\n" + "\n".join(summary.bad)
    shutil.rmtree(folder)
