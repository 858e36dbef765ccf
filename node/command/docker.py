"""RabbitMQ as a Docker container on loopback ports, when the machine has no rabbitmq-server but a Docker engine.

The container is made, the definitions are copied into it, then it is started: that works with an engine on another
filesystem, where a bind mount would not. Its name is derived from the cluster's folder; its ports are fixed at creation, so
that a killed one comes back where the nodes look for it.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.command.output import CommandError

IMAGE = "rabbitmq:4-management"
COMMAND_TIMEOUT_S = 60
PULL_TIMEOUT_S = 600

_CONF = "management.load_definitions = /etc/rabbitmq/gitquorum.json\nload_definitions = /etc/rabbitmq/gitquorum.json\n"


def engine() -> bool:
    """Whether a Docker engine answers, not just the command."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(
            ["docker", "info", "--format", "{{.ServerVersion}}"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0 and asked.stdout.strip() != ""


class Container:
    """The broker's container of the cluster in ``folder``."""

    def __init__(self, folder: Path, image: str = IMAGE) -> None:
        self.name = "gitquorum-" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
        self.folder = folder
        self.image = image

    def create(self, definitions: Mapping[str, Any], amqp_port: int, management_port: int) -> None:
        """Make it anew and start it; pulls the image if need be."""
        self.remove()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Readable by all inside the container, where the broker is another user; out here the folder is ours alone.
        for name, text in (("gitquorum.json", json.dumps(definitions)), ("90-gitquorum.conf", _CONF)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o644)
        _docker(
            "create",
            *("--name", self.name),
            *("--hostname", self.name),
            *("--publish", f"127.0.0.1:{amqp_port}:5672"),
            *("--publish", f"127.0.0.1:{management_port}:15672"),
            self.image,
            timeout_s=PULL_TIMEOUT_S,
        )
        _docker("cp", str(self.folder / "gitquorum.json"), f"{self.name}:/etc/rabbitmq/gitquorum.json")
        _docker("cp", str(self.folder / "90-gitquorum.conf"), f"{self.name}:/etc/rabbitmq/conf.d/90-gitquorum.conf")
        _docker("start", self.name)

    def exists(self) -> bool:
        try:
            _docker("inspect", "--format", "{{.Id}}", self.name)
        except CommandError:
            return False
        return True

    def running(self) -> bool:
        try:
            return _docker("inspect", "--format", "{{.State.Running}}", self.name).strip() == "true"
        except CommandError:
            return False

    def start(self) -> None:
        _docker("start", self.name)

    def kill(self) -> None:
        _docker("kill", self.name)

    def remove(self) -> None:
        """With its data; no error if there is none."""
        _docker("rm", "--force", "--volumes", self.name, accept="No such container")


def _docker(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, accept: str = "") -> str:
    try:
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"docker {arguments[0]} did not work ({error}); try --broker local or --broker direct") from error
    if done.returncode != 0 and not (accept and accept in done.stderr):
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CommandError(f"docker {arguments[0]} failed: {said}; try --broker local or --broker direct")
    return done.stdout
