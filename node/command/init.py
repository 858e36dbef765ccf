"""Make a local cluster's folder: one key per node, everybody's public keys in every configuration, data directories.

Nothing existing is overwritten unless ``force`` says so; then the old keys and data of the cluster go, and with them all
its repositories. ``set_transport`` changes the two lines of a ``node.toml`` that depend on the broker and nothing else,
so that settings a person added stay.
"""

import json
import re
import shutil
import tomllib
from pathlib import Path

from node.command.output import CommandError, Exit
from node.command.state import BrokerChoice, Cluster, Home, NodePlace, write_private_text
from node.keys import write_private

NODES_MAX = 15
"""More than any sensible voter set; every one is a process on this machine."""

PORT = 3001


def init(home: Home, *, nodes: int = 3, base_port: int = PORT, name: str = "gitquorum", force: bool = False) -> Cluster:
    """Make the folder of a cluster with ``nodes`` nodes on ports ``base_port`` …; the caller holds its lock.

    Raises:
        CommandError: USAGE for impossible numbers; FAILED if something is there already.
    """
    if not 1 <= nodes <= NODES_MAX:
        raise CommandError(f"a local cluster has 1 to {NODES_MAX} nodes, not {nodes}", Exit.USAGE)
    if not 1024 <= base_port <= 65_535 - nodes:
        raise CommandError(f"ports are between 1024 and 65535; --base-port {base_port} does not fit", Exit.USAGE)
    check_name(name)
    places = tuple(home.place(f"node-{number}", base_port + number - 1) for number in range(1, nodes + 1))
    _make_room(home, places, force)
    home.make()
    keys = {place.id: _make_files(place) for place in places}
    for place in places:
        write_private_text(place.config, node_toml(place, name, places, keys))
    cluster = Cluster(name, places, BrokerChoice())
    home.save(cluster)
    return cluster


def check_name(name: str) -> None:
    """Raises ``CommandError`` for what cannot be a cluster's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise CommandError("a cluster's name is 1 to 64 letters, digits, '.', '_' or '-'", Exit.USAGE)


def _make_room(home: Home, places: tuple[NodePlace, ...], force: bool) -> None:
    old = sorted(home.folder.glob("node-*"))
    if not home.exists and not old:
        return
    if not force:
        raise CommandError(f"{home.folder} holds a cluster already; --force replaces it, with all its repositories")
    for folder in old:
        shutil.rmtree(folder)
    home.file.unlink(missing_ok=True)


def _make_files(place: NodePlace) -> str:
    """Folders and private key of one node; returns the public key."""
    place.folder.mkdir(mode=0o700)
    place.data.mkdir(mode=0o700)
    return write_private(place.key)


def node_toml(place: NodePlace, cluster: str, places: tuple[NodePlace, ...], keys: dict[str, str]) -> str:
    """The configuration of one node; paths are relative to the file's folder."""
    head = [
        "# Made by gitquorum init. Every setting is described in docs/operations.md and node/config.py;",
        "# the environment (GITQUORUM_PREPARE_TIMEOUT_S=5 …) overrides this file.",
        f"node_id = {toml_string(place.id)}",
        f"cluster = {toml_string(cluster)}",
        'host = "127.0.0.1"',
        f"port = {place.port}",
        f"data_dir = {toml_string(place.data.name)}",
        f"private_key = {toml_string(place.key.name)}",
        "",
        "# Set by gitquorum up: it follows the broker that was chosen.",
        'transport = "direct"',
    ]
    members = [
        [
            "",
            "[[members]]",
            f"id = {toml_string(peer.id)}",
            f"url = {toml_string(peer.url)}",
            f"public_keys = [{toml_string(keys[peer.id])}]",
        ]
        for peer in places
    ]
    return "\n".join([*head, *(line for member in members for line in member)]) + "\n"


def set_transport(path: Path, amqp_url: str | None) -> None:
    """Point one ``node.toml`` at a broker, or (``None``) at the direct transport; every other line stays as it is."""
    lines = [line for line in path.read_text().splitlines() if not re.match(r"amqp_url\s*=", line)]
    wanted = ['transport = "direct"'] if amqp_url is None else ['transport = "amqp"', f"amqp_url = {toml_string(amqp_url)}"]
    at = next((number for number, line in enumerate(lines) if re.match(r"transport\s*=", line)), None)
    if at is None:
        at = next((number for number, line in enumerate(lines) if line.startswith("[")), len(lines))
        lines.insert(at, "")
    lines[at : at + 1] = wanted
    text = "\n".join(lines) + "\n"
    parsed = tomllib.loads(text)
    if parsed.get("transport") != ("direct" if amqp_url is None else "amqp") or parsed.get("amqp_url") != amqp_url:
        raise CommandError(f"{path} could not be changed; set transport and amqp_url in it by hand, then run it again")
    if text != path.read_text():
        write_private_text(path, text)


def toml_string(text: str) -> str:
    """A basic string of TOML is a JSON string, for what occurs here (no lone surrogates, no U+007F)."""
    return json.dumps(text, ensure_ascii=False)
