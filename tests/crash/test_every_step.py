"""A crash at every step (issue 4, evidence 5): a spread share of the points; ``make test-crash`` takes them all."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.crash import seccomp
from tests.crash.scripts import all_scripts
from tests.crash.watch import KINDS

ROOT = Path(__file__).parents[2]
SHARE = "7/60"
needs_seccomp = pytest.mark.skipif(bool(seccomp.why_not()), reason=f"system calls cannot be watched: {seccomp.why_not()}")


def steps(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "tests.crash.steps", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert not done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@needs_seccomp
@pytest.mark.timeout(400)
@pytest.mark.parametrize("script", [script.name for script in all_scripts()])
def test_nothing_promised_is_lost_and_nothing_half_done_is_seen_wherever_it_breaks(script: str) -> None:
    code, reports = steps("--script", script, "--share", SHARE)
    struck: Counter[str] = Counter()
    for report in reports:
        struck[report["fault"]] += sum(report["struck"].values())
        sys.stdout.write(f"{report['script']} {report['fault']}: {report['struck']} {report['outcomes']}\n")
    wrong = [line for report in reports for line in report["wrong"]]
    assert not wrong, "\n".join(wrong)
    assert code == 0
    assert set(struck) == set(KINDS)
    assert all(struck.values()), f"a fault that never struck proves nothing: {struck}"
