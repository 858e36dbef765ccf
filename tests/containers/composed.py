"""The real ``compose.yaml`` in a folder and under a project name of its own, driven by Compose v2 or docker-compose 1."""

import json
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from node.command.client import NodeSilent, request
from tests.cluster.harness import NODES, Ran, free_port_range, git, refs_of, run, wait
from tests.containers.containers import init_compose, settings
from tests.containers.engine import Engine, docker, inspect

UP_TIMEOUT_S = 240.0


class Composed:
    """A project. Numbers name nodes; ``with`` ends it, volumes included, whatever happened."""

    def __init__(self, engine: Engine, image: str, command: str, folder: Path, *options: str) -> None:
        self._command = shlex.split(command)
        self.folder = folder
        self.project = f"{engine.token}{folder.name.replace('_', '')[:20].lower()}"
        first = free_port_range(len(NODES) + 1)
        ports = ("--base-port", str(first), "--management-port", str(first + len(NODES)))
        images = {"BASE_IMAGE": engine.python_image, "RABBITMQ_IMAGE": engine.rabbitmq_image}
        self.made = init_compose(folder, *ports, *options, env=images)
        self._image = image
        self.settings = settings(folder)

    def __enter__(self) -> "Composed":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            print(self("logs", "--tail", "25", "--no-color", ok=False).said)  # noqa: T201  # pytest shows it with the failure
        self("down", "--volumes", "--timeout", "20", ok=False)

    def __call__(self, *arguments: str, ok: bool = True, timeout_s: float = 120.0) -> Ran:
        """``docker compose …`` in the project's folder."""
        return run([*self._command, *arguments], self._environment(), self.folder, timeout_s, ok)

    def _environment(self) -> Mapping[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITQUORUM_", "COMPOSE_"))}
        return {**kept, "COMPOSE_PROJECT_NAME": self.project, "GITQUORUM_IMAGE": self._image}

    def up(self) -> float:
        """``up -d``, and wait until every container says that it is healthy; the seconds from one to the other."""
        began = time.monotonic()
        self("up", "--detach", timeout_s=UP_TIMEOUT_S)
        wait(lambda: set(self.health().values()) == {"healthy"}, UP_TIMEOUT_S, "every container is healthy", 0.2)
        return time.monotonic() - began

    def container(self, service: str) -> str:
        """Its id. Compose v2 and 1 name containers differently."""
        return self("ps", "--all", "--quiet", service).out.strip() if "compose" in self._command[1:] else self._old(service)

    def _old(self, service: str) -> str:
        return self("ps", "--quiet", service).out.strip()

    def health(self) -> dict[str, str]:
        """Of every container of the project."""
        label = f"label=com.docker.compose.project={self.project}"
        ids = docker("ps", "--all", "--quiet", "--filter", label).out.split()
        shown = docker("inspect", "--format", "{{.Name}} {{.State.Health.Status}}", *ids).out.splitlines() if ids else []
        return dict(line.lstrip("/").split(" ") for line in shown)

    def names(self) -> set[str]:
        """Of all its containers, started or not."""
        label = f"label=com.docker.compose.project={self.project}"
        return set(docker("ps", "--all", "--format", "{{.Names}}", "--filter", label).out.split())

    def published(self) -> set[str]:
        """Addresses and ports on the host, of all containers."""
        found = set()
        for name in self.health():
            bindings = inspect(name)["HostConfig"]["PortBindings"] or {}  # type: ignore[index]
            found |= {f"{each['HostIp']}:{each['HostPort']}" for every in bindings.values() for each in every}
        return found

    def left(self) -> str:
        """Containers, networks and volumes of the project."""
        label = f"label=com.docker.compose.project={self.project}"
        return "".join(docker(kind, "ls", "--quiet", *all_, "--filter", label).out for kind, all_ in _KINDS)

    # ------------------------------------------------------------ a client

    def url(self, node: int, name: str = "") -> str:
        base = f"http://127.0.0.1:{self.settings[f'GITQUORUM_PORT_{node}']}"
        return f"{base}/{name}.git" if name else base

    def create(self, name: str, node: int = 1) -> str:
        answer = request(self.url(node), "POST", "/repos", body={"repo_id": name}, timeout_s=15)
        assert answer.status == 201, answer
        return name

    def refs(self, node: int, name: str) -> dict[str, str]:
        return refs_of(git("ls-remote", self.url(node, name), cwd=self.folder).out)

    def states(self, node: int, name: str) -> list[str]:
        try:
            answer = request(self.url(node), "GET", f"/repos/{name}/replicas", timeout_s=15)
        except NodeSilent:
            return []
        return [each["state"] for each in answer.body["replicas"]] if answer.ok else []

    def operator(self) -> str:
        """The password of the broker's user for people."""
        found: dict[str, str] = json.loads((self.folder / ".gitquorum-compose" / "passwords.json").read_text())
        return found["gitquorum-operator"]


_KINDS = (("container", ("--all",)), ("network", ()), ("volume", ()))
