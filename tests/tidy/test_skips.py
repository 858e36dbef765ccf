"""Continuous integration promises that nothing is skipped: ``tests/conftest.py`` keeps the promise, and says what broke it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("required", "code"), [("", 0), ("1", 1)])
@pytest.mark.parametrize(
    "skip", ["@pytest.mark.skip('no git')\ndef test_it(): ...", "pytest.skip('no git', allow_module_level=True)"]
)
def test_a_skipped_test_fails_the_run_where_none_may_be(tmp_path: Path, required: str, code: int, skip: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(f"import pytest\n\n{skip}\n")
    (tmp_path / "test_other.py").write_text("def test_other(): ...\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env = {**kept, "PYTHONPATH": str(ROOT), "GITQUORUM_TEST_REQUIRE_DOCKER": required}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("skipped, which is a failure here: test_some.py" in done.stdout) is bool(required)
    assert "no git" in done.stdout or not required
