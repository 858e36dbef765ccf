"""The image: who runs in it, what is in it, and what is not."""

import os
import re
from pathlib import Path

import pytest

from tests.cluster.harness import wait
from tests.containers.containers import settings
from tests.containers.engine import ROOT, Engine, docker, inspect

pytestmark = pytest.mark.container


def sh(image: str, script: str) -> str:
    return docker("run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", image, "-c", script).out.strip()


def test_it_says_how_it_is_run(image: str) -> None:
    config = inspect(image)["Config"]
    assert isinstance(config, dict)
    assert config["User"] == "10001:0"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "gitquorum-healthcheck"]
    assert (list(config["Volumes"]), list(config["ExposedPorts"])) == (["/data"], ["3001/tcp"])
    assert docker("run", "--rm", "--network", "none", image, "--version").out.startswith("gitquorum ")


def test_a_node_can_write_to_its_data_and_nowhere_else(image: str) -> None:
    """As the image's own user and as any other in group 0."""
    script = "touch /data/x && echo data; touch /opt/gitquorum/x 2>&1; touch /usr/local/bin/x 2>&1; id -u"
    for user in ("10001:0", "4711:0"):
        said = docker("run", "--rm", "--network", "none", "--user", user, "--entrypoint", "sh", image, "-c", script).out
        assert said.splitlines()[0] == "data"
        assert said.count("ermission denied") == 2
        assert said.split()[-1] == user.split(":")[0]


def test_nothing_is_in_it_that_is_for_building_and_testing(image: str) -> None:
    found = sh(
        image,
        "cd /opt/gitquorum/lib/python3*/site-packages && ls -d pytest mypy hatchling pip node broker api 2>/dev/null || true",
    )
    assert found.split() == ["api", "broker", "node"]
    assert sh(image, "command -v gcc cc g++ make || echo none") == "none"
    names = "-name .git -o -name key.pem -o -name '.env*' -o -name 'requirements*.lock' -o -name '*.whl'"
    assert sh(image, f"find / -xdev \\( {names} \\) -not -path '/usr/*' 2>/dev/null || true") == ""


def test_its_modules_are_compiled_so_that_a_read_only_container_starts_as_fast(image: str) -> None:
    done = docker("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-v", "-c", "import node.config")
    assert "import 'node.config'" in done.err, "it says what it does"
    compiled = [line for line in done.err.splitlines() if re.search(r"code object from .*site-packages.*\.py'?$", line)]
    assert compiled == []


def test_a_node_without_its_configuration_says_so_in_one_line(image: str) -> None:
    done = docker("run", "--rm", "--network", "none", image, ok=False)
    assert done.code == 1
    assert done.err.strip() == "gitquorum: /etc/gitquorum/node.toml does not exist; make one with: gitquorum init"


def test_an_ordinary_user_needs_nothing_but_docker(engine: Engine, image: str, tmp_path: Path) -> None:
    """The image makes the secrets too; whoever made them runs the nodes, and may read the key and write to the volume."""
    (tmp_path / "compose.yaml").write_bytes((ROOT / "compose.yaml").read_bytes())
    uid = os.geteuid() or 4711
    os.chown(tmp_path, uid, -1)
    project = ("--volume", f"{tmp_path}:/project", "--workdir", "/project")
    docker("run", "--rm", "--network", "none", "--user", f"{uid}:0", *project, image, "init", "--compose")
    assert settings(tmp_path)["GITQUORUM_UID"] == str(uid)
    name = f"{engine.token}-alone"
    mounted = ("--volume", f"{tmp_path}/.gitquorum-compose/node-1:/etc/gitquorum:ro")
    docker("run", "--detach", "--name", name, "--user", f"{uid}:0", "--read-only", "--tmpfs", "/tmp", *mounted, image)
    try:
        wait(lambda: "true" in docker("inspect", "--format", "{{.State.Running}}", name).out, 5, "the node runs")
        check = ("exec", name, "gitquorum-healthcheck")
        ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:3001/health').read().decode())"
        health = ("exec", name, "python", "-c", ask)
        wait(lambda: "its cluster is not founded yet" in docker(*health, ok=False).out, 60, "it waits for the others", 0.5)
        assert docker(*check, ok=False).code != 0, "a node alone of three takes nothing at its first start"
    finally:
        print(docker("logs", name).said)  # noqa: T201  # pytest shows it with a failure
        docker("rm", "--force", "--volumes", name)


def test_what_docker_build_is_sent_holds_no_secret_and_no_history() -> None:
    """``.dockerignore`` names what may be sent; the rest never reaches the engine."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert sent == {
        "pyproject.toml",
        "README.md",
        "requirements-runtime.lock",
        "requirements-build.lock",
        "node",
        "broker",
        "api",
        "tools/healthcheck",
    }


def test_what_is_copied_into_it_is_less_than_a_hundred_megabytes(image: str) -> None:
    """Dependencies and gitquorum. Where the base has no git and no tini, the layer that installs them is its base's matter."""
    history = docker("history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", image, "--human=false").out
    sizes = [int(line.split()[0]) for line in history.splitlines() if " COPY " in line][:3]  # newest first
    print(f"image: {len(sizes)} layers copied, {sum(sizes) / 1e6:.0f} MB")  # noqa: T201  # pytest shows it when asked
    assert len(sizes) >= 3, history
    assert sum(sizes) < 100e6
