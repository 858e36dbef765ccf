"""The private broker: found again by a later process, ended by it, and nothing else is ever touched."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from node.command.rabbitmq import PrivateRabbitmq, RabbitmqRefused, server_script

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(server_script() is None, reason="rabbitmq-server is not installed"),
]
DEFINITIONS = {"vhosts": [{"name": "gitquorum"}], "users": []}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateRabbitmq]:
    made = PrivateRabbitmq(tmp_path / "broker")
    yield made
    made.kill()


def answers(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_a_later_process_finds_stops_and_restarts_it_on_the_same_ports(server: PrivateRabbitmq) -> None:
    first = server.start(DEFINITIONS)
    assert PrivateRabbitmq(server.folder).endpoints() == first
    assert server.start(DEFINITIONS) == first
    listening = {c.laddr for c in psutil.Process(first.pid).net_connections() if c.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    # Killed from under it: the broker would start one of its own, which has to go, too.
    os.kill(int((server.folder / "epmd.pid").read_text()), signal.SIGKILL)
    subprocess.run([shutil.which("epmd") or "epmd", "-daemon"], env=psutil.Process(first.pid).environ(), check=True, timeout=10)
    place = json.loads((server.folder / "place.json").read_text())
    code = (
        f"from pathlib import Path; from node.command.rabbitmq import *; PrivateRabbitmq(Path({str(server.folder)!r})).stop()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert server.endpoints() is None
    assert not answers(first.amqp_port)
    assert not answers(place["epmd_port"])
    again = server.start(DEFINITIONS)
    assert (again.amqp_port, again.management_port) == (first.amqp_port, first.management_port)
    assert again.pid != first.pid


def test_files_with_secrets_are_their_owners_only(server: PrivateRabbitmq) -> None:
    server.start(DEFINITIONS)
    for name in ("definitions.json", "place.json", "home/.erlang.cookie"):
        assert (server.folder / name).stat().st_mode & 0o077 == 0


def test_a_broker_that_cannot_start_is_refused_with_the_reason_and_leaves_nothing_running(server: PrivateRabbitmq) -> None:
    with pytest.raises(RabbitmqRefused, match=r"ended with status"):
        server.start({"vhosts": "nonsense", "users": 5})
    assert server.endpoints() is None
    assert not (server.folder / "epmd.pid").exists()
    mine = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(server.folder)]
    assert not mine


def test_a_foreign_process_with_the_remembered_pid_is_not_touched(server: PrivateRabbitmq) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        server.folder.mkdir()
        (server.folder / "broker.pid").write_text(str(stranger.pid))
        server.kill()
        server.stop()
        assert stranger.poll() is None
        os.kill(stranger.pid, signal.SIGKILL)
