"""Power cuts on a real ext4 (issue 4, evidence 5), and the proof that this test can fail: without fsync it does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crash import ext4

ROOT = Path(__file__).parents[2]
LIBRARY = "libeatmydata.so"
pytestmark = [
    pytest.mark.skipif(bool(ext4.why_not()), reason=f"no ext4 of its own: {ext4.why_not()}"),
    pytest.mark.timeout(600),
]


def cuts(number: int, seed: int, **environment: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.crash.powercut", "--cuts", str(number), "--seed", str(seed), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode in (0, 1), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    sys.stdout.write(f"{report}\n")
    return done.returncode, report


def loop_devices() -> list[str]:
    said = subprocess.run(["losetup", "-n", "-l", "-O", "BACK-FILE"], capture_output=True, text=True, check=True)
    return [line for line in said.stdout.splitlines() if "gitquorum-power-" in line]


def test_fifty_power_cuts_lose_nothing_that_was_acknowledged() -> None:
    code, report = cuts(50, 2)
    assert not report["wrong"], "\n".join(report["wrong"])
    assert code == 0
    assert report["cuts"] == 50
    assert sum(report["acknowledged"].values()) >= 50
    assert report["busy_cuts"] >= 25, "cuts must come while something is under way"
    assert {"create", "small push", "large push"} <= set(report["acknowledged"])


@pytest.fixture
def without_fsync() -> str:
    """libeatmydata, installed if that is permitted."""
    script = f". {ROOT / 'tools' / 'lib.sh'}; ldconfig -p | grep -q {LIBRARY} || apt_install libeatmydata1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"libeatmydata is not there: {done.stderr.strip()}")
    return LIBRARY


def test_with_fsync_switched_off_it_loses_acknowledged_pushes(without_fsync: str) -> None:
    code, report = cuts(12, 3, LD_PRELOAD=without_fsync)
    assert code == 1
    assert any("was acknowledged and is lost" in line or "does not start" in line for line in report["wrong"]), report["wrong"]
    assert not loop_devices(), "a run that fails leaves no loop device behind"
