"""``gitquorum init --compose``: what ``compose.yaml`` needs and nobody should choose by hand: keys, passwords, configurations.

    .env                       beside compose.yaml: where the secrets are, who may read them, ports; no secret in it
    .gitquorum-compose/        mode 0700
      passwords.json           of the broker's users          ┐ the sources: made once, never again
      node-1/key.pem           a node's private key           ┘
      node-1/node.toml         its configuration              ┐
      broker/definitions.json  vhost, users, limits, queues   │ made from the sources: one that was removed is made anew
      broker/rabbitmq.conf                                    │
      broker/erlang.cookie     of the broker cluster          ┘

Nothing that exists is changed; what is missing is made, and lines that ``.env`` lacks are added at its end. What was asked for
and is otherwise there is said. The user of the node containers has to read files that nobody else may read. For an ordinary
user it is that user; for root, whom a node shall not run as, it is the image's user, and the nodes' files are given to it;
symbolic links are refused, because root would give away what they lead to. RabbitMQ's user has another number in every image:
its two files are readable by all in the container, and protected out here by the folder's mode (passwords are in them as salted
hashes); the cookie is read by the container's root.
"""

import json
import os
import re
import secrets
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from broker.topology import VHOST, definitions
from node.command.brokers import passwords
from node.command.init import check_name, toml_string
from node.command.output import CommandError, Exit, Output
from node.command.state import BrokerChoice, Cluster, Home, write_private_text
from node.config import Config
from node.keys import KeyRefused, public_text, read_private, write_private
from node.protocol.ids import NodeId

FOLDER = ".gitquorum-compose"
NODES = 3
"""As many as compose.yaml has."""
BROKERS = ("rabbitmq", "rabbitmq-2", "rabbitmq-3")
"""Host names of its brokers; the first is always there, the others with the profile."""
PROFILE = "broker-cluster"
NODE_PORT = 3001
"""Inside every container."""
MANAGEMENT_PORT = 15672
IMAGE_UID = 10001
"""The user in the Dockerfile."""

Kind = Literal["classic", "quorum"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line and the environment said."""

    nodes: int = NODES
    base_port: int = 3001
    management_port: int = MANAGEMENT_PORT
    name: str = "gitquorum"
    broker_cluster: bool = False
    images: dict[str, str] = field(default_factory=dict)
    """``BASE_IMAGE`` and ``RABBITMQ_IMAGE``, if they are set: written down, so that no later command needs them said again."""


def init_compose(project: Path, wish: Wish, output: Output) -> dict[str, list[str]]:
    """Make what is missing in ``project``, the folder of ``compose.yaml``; says and returns what was made or added to.

    Raises:
        CommandError: USAGE for what does not fit; FAILED if a source is missing that others were made from.
    """
    if not (project / "compose.yaml").is_file():
        raise CommandError(f"no compose.yaml in {project}; run it in gitquorum's own folder", Exit.USAGE)
    if wish.nodes != NODES:
        raise CommandError(f"compose.yaml has {NODES} nodes, not {wish.nodes}", Exit.USAGE)
    if not 1 <= wish.base_port <= 65_535 - NODES or not 1 <= wish.management_port <= 65_535:
        raise CommandError("ports are between 1 and 65535", Exit.USAGE)
    ports = range(wish.base_port, wish.base_port + NODES)
    if wish.management_port in ports:
        raise CommandError(f"port {wish.management_port} cannot be both a node's and the management UI's", Exit.USAGE)
    check_name(wish.name)
    task = _Project(project, wish)
    try:
        made = [str(path.relative_to(project)) for path in task.complete()]
    except PermissionError as error:
        raise CommandError(_not_permitted(Path(error.filename or project))) from error
    for line in task.kept():
        output.progress(line)
    output.progress(f"made {', '.join(made)}" if made else f"all is there ({FOLDER}/ and .env); nothing was changed")
    output.progress("next: docker compose up -d   (or: docker-compose up -d)")
    return {"made": made}


class _Project:
    """One folder with a ``compose.yaml``."""

    def __init__(self, project: Path, wish: Wish) -> None:
        self._wish = wish
        self._env = project / ".env"
        self._home = Home(project / FOLDER)
        self._broker = self._home.folder / "broker"
        places = tuple(self._home.place(f"node-{number}", NODE_PORT) for number in range(1, NODES + 1))
        self._cluster = Cluster(wish.name, places, BrokerChoice())
        self._made: list[Path] = []

    def complete(self) -> list[Path]:
        self._check_links()
        self._check_env()
        self._check_sources()
        kind = self._kind()
        self._check_profile(kind)
        self._home.make()
        with self._home.locked():
            self._make_sources()
            keys = {place.id: public_text(_key(place.key)) for place in self._cluster.nodes}
            for place in self._cluster.nodes:
                self._write(place.config, self._node_toml(place.id, keys, kind))
            self._make_broker(kind)
            self._give_to_nodes()
            self._complete_env(kind)
        return self._made

    def kept(self) -> Iterator[str]:
        """What was asked for and is otherwise there already, a line each; a default asks for nothing."""
        usual, there = Wish(), self._settings()
        asked = dict(self._wish.images)
        if self._wish.base_port != usual.base_port:
            asked |= self._ports()
        if self._wish.management_port != usual.management_port:
            asked["GITQUORUM_MANAGEMENT_PORT"] = str(self._wish.management_port)
        for name, value in asked.items():
            if there[name] != value:
                yield f"kept {name}={there[name]} (not {value}): {self._env} says so; change it there"
        for place in self._cluster.nodes:
            name = tomllib.loads(place.config.read_text()).get("cluster", usual.name)
            if self._wish.name not in (usual.name, name):
                yield f"kept cluster = {name!r} (not {self._wish.name!r}): {place.config} says so"
                return

    # ------------------------------------------------------------ what is there

    def _check_links(self) -> None:
        """Of everything that is written, given away or read from here."""
        folder = self._home.folder
        files = [self._env, self._home.passwords, folder / "lock"]
        files += [self._broker, *(self._broker / name for name in ("definitions.json", "rabbitmq.conf", "erlang.cookie"))]
        for place in self._cluster.nodes:
            files += [place.folder, place.key, place.config]
        fresh = [path.with_name(path.name + ".new") for path in files]
        for path in (folder, *files, *fresh):
            if path.is_symlink():
                raise CommandError(f"{path} is a symbolic link; put a file or folder of its own in its place")

    def _check_env(self) -> None:
        """An empty value is one that nothing fills: Compose would send people here, and this would find the line there."""
        there = self._settings()
        uid, secrets_in = there.get("GITQUORUM_UID"), there.get("GITQUORUM_SECRETS")
        if uid is not None and not re.fullmatch(r"[0-9]{1,10}", uid):
            raise CommandError(
                f"{self._env} says GITQUORUM_UID={uid}, which is no number of a user; remove the line, then run it again"
            )
        if secrets_in is not None and (self._env.parent / secrets_in).resolve() != self._home.folder.resolve():
            raise CommandError(
                f"{self._env} says GITQUORUM_SECRETS={secrets_in}, which is not {self._home.folder};"
                " remove the line, then run it again"
            )

    def _check_sources(self) -> None:
        """A new key or password beside configurations that name the old one would only look whole."""
        derived = [*(place.config for place in self._cluster.nodes), self._broker / "definitions.json"]
        if not (made_from := [path.name for path in derived if path.exists()]):
            return
        for source in (self._home.passwords, *(place.key for place in self._cluster.nodes)):
            if not source.exists():
                raise CommandError(f"{source} is missing, and {made_from[0]} was made from it: bring it back")

    def _kind(self) -> Kind:
        """Of the queues: as the configurations say that are there already, else as is wished."""
        wanted: Kind = "quorum" if self._wish.broker_cluster else "classic"
        for place in self._cluster.nodes:
            if place.config.exists():
                there = tomllib.loads(place.config.read_text()).get("queue_type", "classic")
                if there != wanted and self._wish.broker_cluster:
                    raise CommandError(
                        f"{self._home.folder} was made for a single broker; docs/containers.md says how to change that"
                    )
                return "quorum" if there == "quorum" else "classic"
        return wanted

    def _check_profile(self, kind: Kind) -> None:
        profiles = self._settings().get("COMPOSE_PROFILES")
        if kind == "quorum" and profiles is not None and PROFILE not in profiles.split(","):
            raise CommandError(f"{self._env} sets COMPOSE_PROFILES; add {PROFILE} to it, then run it again")

    def _settings(self) -> dict[str, str]:
        """The lines of ``.env``."""
        text = self._env.read_text() if self._env.exists() else ""
        found = re.findall(r"^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.MULTILINE)
        return {name: value.strip("'\"") for name, value in found}

    # ------------------------------------------------------------ what is made

    def _make_sources(self) -> None:
        if not self._home.passwords.exists():
            self._made.append(self._home.passwords)
        self._passwords = passwords(self._home, self._cluster)
        for place in self._cluster.nodes:
            place.folder.mkdir(mode=0o700, exist_ok=True)
            if not place.key.exists():
                write_private(place.key)
                self._made.append(place.key)

    def _node_toml(self, node: str, keys: dict[str, str], kind: Kind) -> str:
        """Paths, address and port come from the image's environment."""
        brokers = BROKERS if kind == "quorum" else BROKERS[:1]
        urls = [f"amqp://{node}:{self._passwords[node]}@{host}:5672/{quote(VHOST, safe='')}" for host in brokers]
        lines = [
            "# Made by gitquorum init --compose, which makes it again if it is removed, and else leaves it alone.",
            "# Every setting is described in docs/operations.md.",
            f"node_id = {toml_string(node)}",
            f"cluster = {toml_string(self._wish.name)}",
            'data_dir = "/data"',
            'private_key = "key.pem"',
            'transport = "amqp"',
            f"amqp_url = {toml_string(','.join(urls))}",
            f"queue_type = {toml_string(kind)}",
        ]
        for peer, public in keys.items():
            url = toml_string(f"http://{peer}:{NODE_PORT}")
            lines += ["", "[[members]]", f"id = {toml_string(peer)}", f"url = {url}", f"public_keys = [{toml_string(public)}]"]
        return "\n".join(lines) + "\n"

    def _make_broker(self, kind: Kind) -> None:
        self._broker.mkdir(mode=0o700, exist_ok=True)
        members = [NodeId(place.id) for place in self._cluster.nodes]
        inspect_length: int = Config.model_fields["inspect_length"].default
        described: dict[str, Any] = definitions(members, self._passwords, inspect_length, queue_type=kind)
        self._write(self._broker / "definitions.json", json.dumps(described, indent=1) + "\n", mode=0o644)
        self._write(self._broker / "rabbitmq.conf", "\n".join(rabbitmq_conf(kind)) + "\n", mode=0o644)
        self._write(self._broker / "erlang.cookie", secrets.token_hex(24))

    def _give_to_nodes(self) -> None:
        """Only root can, and only root has to."""
        if os.geteuid() != 0:
            return
        uid = self._uid()
        for place in self._cluster.nodes:
            for path in (place.key, place.config, place.folder):
                os.chown(path, uid, 0, follow_symlinks=False)

    def _uid(self) -> int:
        said = self._settings().get("GITQUORUM_UID", "")
        return int(said) if said.isdecimal() else (os.geteuid() or IMAGE_UID)

    def _ports(self) -> dict[str, str]:
        return {f"GITQUORUM_PORT_{number}": str(self._wish.base_port + number - 1) for number in range(1, NODES + 1)}

    def _complete_env(self, kind: Kind) -> None:
        there = self._settings()
        wanted = {
            "GITQUORUM_SECRETS": f"./{FOLDER}",
            "GITQUORUM_UID": str(self._uid()),
            **self._ports(),
            "GITQUORUM_MANAGEMENT_PORT": str(self._wish.management_port),
            **self._wish.images,
            **({"COMPOSE_PROFILES": PROFILE} if kind == "quorum" else {}),
        }
        lines = [f"{name}={value}" for name, value in wanted.items() if name not in there]
        if not lines:
            return
        if not self._env.exists():
            head = "# Made by gitquorum init --compose, which only adds what is missing; see docs/containers.md."
            write_private_text(self._env, "\n".join([head, *lines]) + "\n")
            self._env.chmod(0o644)  # no secret is in it, and whoever may use the engine needs it
        else:
            with open(self._env, "r+") as file:
                text = file.read()
                file.write(("" if text.endswith("\n") or not text else "\n") + "\n".join(lines) + "\n")
        self._made.append(self._env)

    def _write(self, path: Path, text: str, mode: int = 0o600) -> None:
        """Unless it is there."""
        if path.exists():
            return
        write_private_text(path, text)
        path.chmod(mode)
        self._made.append(path)


def rabbitmq_conf(kind: Kind) -> Iterator[str]:
    """``rabbitmq.conf`` beside the image's own, for RabbitMQ 3.10 and 4.x."""
    yield "# Made by gitquorum init --compose. Definitions are loaded at every start; with them there is no user guest."
    yield "load_definitions = /etc/rabbitmq/gitquorum.json"
    yield "log.console = true"
    if kind == "quorum":
        yield "cluster_formation.peer_discovery_backend = classic_config"
        for number, host in enumerate(BROKERS, start=1):
            yield f"cluster_formation.classic_config.nodes.{number} = rabbit@{host}"
        # A broker that sees no majority must not serve: its quorum queues could not, and the nodes shall try another one.
        yield "cluster_partition_handling = pause_minority"


def _not_permitted(path: Path) -> str:
    """Whose it is; root often made the folder the first time."""
    existing = next((each for each in (path, *path.parents) if _owner(each) is not None), path)
    owner = "root" if _owner(existing) == 0 else f"user {_owner(existing)}"
    return (
        f"not permitted: {path}; {existing} belongs to {owner}: run it as {owner} (sudo), or give it to yourself with chown -R"
    )


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None


def _key(path: Path) -> Any:
    try:
        return read_private(path)
    except KeyRefused as error:
        raise CommandError(str(error)) from error
