"""README.md's transcript is run as it stands, and what it prints is compared word for word (tests/transcript.py).

What is different from a newcomer's first five minutes, and nothing else is:

- The folder of the clone is a temporary one with a link to everything that is in this repository, so that ``make up`` is run in
  it as it is written, and the cluster of whoever runs the tests is neither found nor disturbed.
- Nodes listen on a free range of ports: the Makefile's ``PORT`` is set, and 3001 to 3003 in the commands are replaced.
- Home and temporary folder are the test's own; git knows a name and an address.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.command.rabbitmq import server_script
from tests.cluster.harness import Cluster, free_port_range, run
from tests.transcript import Comparer, Shell, steps

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
STEP_TIMEOUT_S = 120.0
GITCONFIG = "[user]\n\tname = Ada\n\temail = ada@example.org\n"


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """The folder; what was started from it is ended, whatever happened."""
    up_to_date = run(["make", "-q", ".venv/.installed"], _environment(tmp_path, 0), ROOT, ok=False)
    assert up_to_date.code == 0, "requirements.lock or pyproject.toml changed since the environment was made: make setup"
    folder = tmp_path / "gitquorum"
    for made in (folder, tmp_path / "home", tmp_path / "tmp"):
        made.mkdir()
    (tmp_path / "home" / ".gitconfig").write_text(GITCONFIG)
    for entry in ROOT.iterdir():
        if entry.name not in (".git", ".gitquorum"):
            (folder / entry.name).symlink_to(entry)
    yield folder
    Cluster(folder, "rabbitmq").close()


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_the_first_five_minutes_are_as_the_readme_tells_them(clone: Path) -> None:
    if server_script() is None:
        pytest.skip("rabbitmq-server is not installed")
    base_port = free_port_range(3)
    comparer = Comparer({str(3001 + number): str(base_port + number) for number in range(3)})
    shell = Shell(clone, _environment(clone.parent, base_port))
    try:
        for step in steps((ROOT / "README.md").read_text()):
            comparer.check(step, shell.run(comparer.command(step), STEP_TIMEOUT_S))
    finally:
        shell.close()


def test_the_readme_has_a_transcript_that_says_what_is_printed() -> None:
    """So that the other test cannot pass for want of anything to compare."""
    found = steps((ROOT / "README.md").read_text())
    commands = [step.command for step in found]
    assert commands[0] == "make up"
    assert any("git push" in command for command in commands)
    assert any("gitquorum kill" in command for command in commands)
    silent = [step.command for step in found if set(step.words) <= {"…", ""}]
    assert len(silent) * 2 < len(found), f"nothing is said of what these print: {silent}"


def _environment(folder: Path, base_port: int) -> dict[str, str]:
    """A newcomer's: nothing of pytest's, of make's or of another cluster's."""
    return {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C.UTF-8",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "COLUMNS": "100",
        "PORT": str(base_port),
    }
