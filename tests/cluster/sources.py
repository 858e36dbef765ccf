"""Where the cluster tests take their RabbitMQ from: a URL that is given, a Docker engine, or this machine's rabbitmq-server.

Decided once for a run, in that order, and said in a line of the run's own. A URL that is given and cannot be used is an error;
the others are passed over with the reason. Tests kill brokers, and look into them as their administrator: what a URL cannot
serve takes its broker from the next source, and the line says so.

    GITQUORUM_TEST_BROKER_URL              amqp://user:password@host:port/vhost
    GITQUORUM_TEST_BROKER_MANAGEMENT_URL   its management UI, if it is not http://host:15672
    GITQUORUM_TEST_RABBITMQ_IMAGE          what the Docker engine shall run

Its partner ``brokers.py`` runs what is decided here.
"""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from node.command import docker
from node.command.rabbitmq import server_script
from node.command.sockets import speaks_amqp
from tests.cluster.management import Management, ManagementSilent

URL = "GITQUORUM_TEST_BROKER_URL"
MANAGEMENT_URL = "GITQUORUM_TEST_BROKER_MANAGEMENT_URL"
IMAGE = "GITQUORUM_TEST_RABBITMQ_IMAGE"
IMAGES = (docker.IMAGE, "local/rabbitmq:3-management")
"""The first that is here is taken: what a person gets, and a stand-in for a machine without a registry."""

REGISTRY = "https://registry-1.docker.io/v2/"
REGISTRY_TIMEOUT_S = 2.0
PULL_TIMEOUT_S = 180.0


class SourceRefused(Exception):
    """A source that was asked for by name and cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """One place to take brokers from."""

    kind: str
    """``url``, ``docker``, ``local``."""
    title: str
    image: str = ""
    url: str = field(default="", repr=False)
    """With a password."""
    management: Management | None = None
    """Of a URL whose user is an administrator."""

    @property
    def mortal(self) -> bool:
        """Whether tests may kill its brokers, and give each node a user of its own by ``gitquorum up``."""
        return self.kind != "url"


@dataclass(frozen=True, slots=True)
class Sources:
    """What this run uses."""

    first: Source | None
    """For everything that it can serve."""
    own: Source | None
    """For tests that kill the broker."""
    passed_over: tuple[str, ...]

    @property
    def users(self) -> Source | None:
        """For tests that need an administrator: they make users and look into queues."""
        return self.first if self.first and (self.first.mortal or self.first.management) else self.own

    def missing(self) -> str:
        """Why there is none, for a skip."""
        return "no RabbitMQ: " + "; ".join(self.passed_over)

    def lines(self) -> list[str]:
        """What the run prints."""
        if self.first is None:
            return [f"RabbitMQ: none, tests that need one are skipped ({'; '.join(self.passed_over)})"]
        told = [f"RabbitMQ: {self.first.title}"]
        if not self.first.mortal:
            what = "" if self.users is self.first else ", look into queues or make users (its user is no administrator)"
            whose = self.own.title if self.own else "none, they are skipped"
            told.append(f"RabbitMQ for tests that kill the broker{what}: {whose}")
        return [*told, *(f"RabbitMQ: passed over: {why}" for why in self.passed_over)]


@cache
def sources() -> Sources:
    """Of this run."""
    return find(os.environ)


def find(environ: Mapping[str, str]) -> Sources:
    """Look at each source, in order, until there is one that may be killed.

    Raises:
        SourceRefused: a URL is given that cannot be used.
    """
    given = _given(environ) if environ.get(URL) else None
    passed_over: list[str] = []
    own: Source | None = None
    for look in (_docker, _local):
        found = look(environ)
        if isinstance(found, Source):
            own = found
            break
        passed_over.append(found)
    return Sources(given or own, own, tuple(passed_over))


def _given(environ: Mapping[str, str]) -> Source:
    parts = urlsplit(environ[URL])
    if parts.scheme != "amqp" or not parts.hostname:
        raise SourceRefused(f"{URL} is not amqp://user:password@host:port/vhost")
    host, port = parts.hostname, parts.port or 5672
    if not speaks_amqp(host, port, 3.0):
        raise SourceRefused(f"{URL}: no AMQP broker answers at {host}:{port}")
    url = environ.get(MANAGEMENT_URL) or f"http://{host}:15672"
    management: Management | None = Management(url, unquote(parts.username or "guest"), unquote(parts.password or "guest"))
    assert management is not None
    try:
        if "administrator" not in management.tags():
            management = None
    except ManagementSilent as silent:
        if environ.get(MANAGEMENT_URL):
            raise SourceRefused(f"{MANAGEMENT_URL}: {silent}") from silent
        management = None
    what = "its user is an administrator" if management else "its user is no administrator"
    return Source("url", f"{host}:{port}{parts.path or '/'} from {URL} ({what})", url=environ[URL], management=management)


def _docker(environ: Mapping[str, str]) -> "Source | str":
    if not docker.engine():
        return "no Docker engine answers"
    wanted = (environ[IMAGE],) if environ.get(IMAGE) else IMAGES
    image = next((each for each in wanted if _is_here(each)), None)
    if image is None:
        if why := _not_pulled(wanted[0]):
            return why
        image = wanted[0]
    return Source("docker", f"{image} in Docker, by testcontainers and by gitquorum up --broker docker", image=image)


def _local(environ: Mapping[str, str]) -> "Source | str":
    script = server_script()
    return "rabbitmq-server is not installed" if script is None else Source("local", f"{script} of this machine, private")


def _is_here(image: str) -> bool:
    command = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def _not_pulled(image: str) -> str:
    """Pull it; empty, or why that was not done."""
    if not registry_answers():
        return f"the image {image} is not here, and no registry answers within {REGISTRY_TIMEOUT_S:g} s"
    try:
        done = subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, text=True, timeout=PULL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the image {image} was not pulled within {PULL_TIMEOUT_S:g} s"
    return "" if done.returncode == 0 else f"the image {image} could not be pulled: {done.stderr.strip()[-200:]}"


def registry_answers() -> bool:
    """Whether a pull has any chance: Docker would try for a minute and more."""
    try:
        with urlopen(Request(REGISTRY, method="HEAD"), timeout=REGISTRY_TIMEOUT_S):
            return True
    except HTTPError as error:
        error.close()
        return error.code == HTTPStatus.UNAUTHORIZED
    except (URLError, TimeoutError, OSError):
        return False
