"""RabbitMQ as a Docker container on loopback ports, when the machine has no rabbitmq-server but a Docker engine.

The container is made, the definitions are copied into it, then it is started: that works with an engine on another
filesystem, where a bind mount would not. Its name is derived from the cluster's folder; its ports are fixed at creation, so
that a killed one comes back where the nodes look for it.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from io import BytesIO
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
        _docker(
            "create",
            *("--name", self.name),
            *("--hostname", self.name),
            *("--publish", f"127.0.0.1:{amqp_port}:5672"),
            *("--publish", f"127.0.0.1:{management_port}:15672"),
            self.image,
            timeout_s=PULL_TIMEOUT_S,
        )
        try:
            # As an archive, which brings folders that an image may lack; not every image has conf.d.
            _docker("cp", "-", f"{self.name}:/", stdin=_archive(definitions))
            _docker("start", self.name)
        except CommandError:
            self.remove()  # nobody would know of it: it is remembered when it serves
            raise

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


def _archive(definitions: Mapping[str, Any]) -> bytes:
    """What the broker reads when it starts; readable by all in there, where the broker is another user."""
    files = {"gitquorum.json": json.dumps(definitions), "conf.d/90-gitquorum.conf": _CONF}
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"etc/rabbitmq/{name}")
            entry.size, entry.mode = len(text.encode()), 0o644
            archive.addfile(entry, BytesIO(text.encode()))
    return buffer.getvalue()


def _docker(*arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, accept: str = "", stdin: bytes = b"") -> str:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, timeout=timeout_s, check=False, input=stdin)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"docker {arguments[0]} did not work ({error}); try --broker local or --broker direct") from error
    complaint = done.stderr.decode("utf-8", "replace")
    if done.returncode != 0 and not (accept and accept in complaint):
        said = (complaint.strip().splitlines() or ["no reason given"])[-1]
        raise CommandError(f"docker {arguments[0]} failed: {said}; try --broker local or --broker direct")
    return done.stdout.decode("utf-8", "replace")
