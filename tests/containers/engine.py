"""The Docker engine for tests: whether one answers, which base images it has, and names that no other run uses.

Everything is made under a name with this run's token in it, and removed by whoever made it; ``left`` finds what was not.
"""

import json
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.harness import Ran, run

ROOT = Path(__file__).resolve().parents[2]
PULL_TIMEOUT_S = 300.0
BUILD_TIMEOUT_S = 600.0
PYTHON_IMAGES = ("python:3.13-slim", "local/python:3.11-slim")
RABBITMQ_IMAGES = ("rabbitmq:4-management", "local/rabbitmq:3-management")
"""The public image, then its stand-in of Debian's packages (``../shared/images/build``)."""

os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
"""Its image could not be pulled where the others cannot; fixtures remove what they made."""
os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
"""Where ports are published; in a sandbox testcontainers takes itself for a container, and asks the network's gateway."""


@dataclass(frozen=True)
class Engine:
    """An engine that answers, and the images to use with it."""

    python_image: str
    rabbitmq_image: str
    token: str = field(default_factory=lambda: f"gqtest{secrets.token_hex(4)}")

    @property
    def image(self) -> str:
        """Of a node, built by this run."""
        return f"{self.token}:latest"

    @property
    def stage(self) -> str:
        """What the image is copied from: without a name of its own it would stay behind as ``<none>``."""
        return f"{self.token}:application"

    def build(self) -> Ran:
        arguments = ("--build-arg", f"BASE_IMAGE={self.python_image}", str(ROOT))
        docker("build", "--quiet", "--target", "application", "--tag", self.stage, *arguments, timeout_s=BUILD_TIMEOUT_S)
        return docker("build", "--quiet", "--tag", self.image, *arguments, timeout_s=BUILD_TIMEOUT_S)

    def forget(self) -> None:
        """The image and what it was built from, as far as nobody else's image needs it."""
        docker("rmi", self.image, self.stage)

    def left(self) -> list[str]:
        """What bears this run's token and still exists."""
        kinds = {"container": "{{.Names}}", "network": "{{.Name}}", "volume": "{{.Name}}"}
        found = []
        for kind, name in kinds.items():
            every = ("--all",) if kind == "container" else ()
            listed = docker(kind, "ls", *every, "--filter", f"name={self.token}", "--format", name).out.split()
            found += [f"{kind} {each}" for each in listed]
        images = docker("image", "ls", "--filter", f"reference={self.token}*", "--format", "{{.Repository}}:{{.Tag}}")
        return found + [f"image {each}" for each in images.out.split()]


def find() -> Engine | str:
    """The engine, or why the tests cannot have one."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    try:
        answered = docker("info", "--format", "{{json .ServerErrors}}", ok=False, timeout_s=20)
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer within 20 s"
    if answered.code != 0 or answered.out.strip() not in ("null", "[]"):
        return f"no Docker engine answers: {(answered.said.strip().splitlines() or ['no reason given'])[-1]}"
    python = _image("GITQUORUM_TEST_PYTHON_IMAGE", PYTHON_IMAGES)
    rabbitmq = _image("GITQUORUM_TEST_RABBITMQ_IMAGE", RABBITMQ_IMAGES)
    if python is None or rabbitmq is None:
        wanted = PYTHON_IMAGES if python is None else RABBITMQ_IMAGES
        return f"the engine has none of {', '.join(wanted)}, and cannot pull the first"
    return Engine(python, rabbitmq)


def _image(variable: str, usual: tuple[str, ...]) -> str | None:
    """The one that the environment names, else the first that is there, else the public one if it can be pulled."""
    if named := os.environ.get(variable):
        return named
    for name in usual:
        if docker("image", "inspect", "--format", "{{.Id}}", name, ok=False).code == 0:
            return name
    return usual[0] if docker("pull", "--quiet", usual[0], ok=False, timeout_s=PULL_TIMEOUT_S).code == 0 else None


def docker(*arguments: str, ok: bool = True, timeout_s: float = 60.0) -> Ran:
    """The command ``docker``."""
    return run(["docker", *arguments], os.environ, ROOT, timeout_s, ok)


def inspect(name: str) -> dict[str, object]:
    """Of a container or an image."""
    found: list[dict[str, object]] = json.loads(docker("inspect", name).out)
    return found[0]


def compose_commands() -> list[str]:
    """Compose v2 and docker-compose 1, as far as this machine has them."""
    found = ["docker-compose"] if shutil.which("docker-compose") else []
    if shutil.which("docker") and docker("compose", "version", ok=False).code == 0:
        found.append("docker compose")
    return found
