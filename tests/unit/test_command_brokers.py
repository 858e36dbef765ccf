"""Which broker is taken, and how nodes are told; Docker is a script that writes down how it was called."""

import socket
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.command import brokers, docker, sockets
from node.command.init import init
from node.command.output import CommandError, Exit
from node.command.rabbitmq import Endpoints, PrivateRabbitmq, RabbitmqRefused
from node.command.state import BrokerChoice, Cluster, Home
from node.config import Config
from tests.unit.command_cluster import Recorder


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state")


@pytest.fixture
def cluster(home: Home) -> Cluster:
    return init(home, nodes=2, base_port=4001)


@pytest.fixture
def greeting() -> Iterator[tuple[int, list[bytes]]]:
    """A port that greets like an AMQP broker; it serves until the test ends."""
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    seen.append(peer.recv(8))
                    peer.sendall(b"\x01\x00\x00\x00\x00\x01\xf0\x00\x0a\x00\x0a" if seen[-1] else b"")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], seen
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "engine", lambda: False)


def rabbitmq_at(monkeypatch: pytest.MonkeyPatch, start: Endpoints | RabbitmqRefused) -> None:
    def started(self: PrivateRabbitmq, definitions: object) -> Endpoints:
        if isinstance(start, RabbitmqRefused):
            raise start
        return start

    monkeypatch.setattr(PrivateRabbitmq, "start", started)
    monkeypatch.setattr(brokers, "server_script", lambda: Path("/usr/lib/rabbitmq/bin/rabbitmq-server"))


def test_rabbitmq_of_the_machine_comes_first(home: Home, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    rabbitmq_at(monkeypatch, Endpoints(5001, 5002, 1))
    chosen = brokers.choose(home, cluster, "auto", Recorder())
    assert (chosen.broker.kind, chosen.broker.amqp_port) == ("local", 5001)
    assert home.load() == chosen
    words = brokers.passwords(home, cluster)
    assert len(set(words.values())) == 3
    for node in cluster.nodes:
        assert Config.from_file(node.config).amqp_url == f"amqp://{node.id}:{words[node.id]}@127.0.0.1:5001/gitquorum"


def test_a_broker_that_does_not_start_is_passed_over_and_said(
    home: Home, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    rabbitmq_at(monkeypatch, RabbitmqRefused("rabbitmq-server was not ready within 60 s"))
    no_docker(monkeypatch)
    output = Recorder()
    assert brokers.choose(home, cluster, "auto", output).broker.kind == "direct"
    assert output.said[-2].startswith("rabbitmq-server was not ready within 60 s; looking for another broker")


def test_a_broker_asked_for_by_name_is_not_replaced_by_another(
    home: Home, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    rabbitmq_at(monkeypatch, RabbitmqRefused("rabbitmq-server is not installed"))
    with pytest.raises(CommandError, match="is not installed"):
        brokers.choose(home, cluster, "local", Recorder())
    no_docker(monkeypatch)
    with pytest.raises(CommandError, match="no Docker engine answers"):
        brokers.choose(home, cluster, "docker", Recorder())


def test_nothing_at_all_means_the_direct_transport(home: Home, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brokers, "server_script", lambda: None)
    no_docker(monkeypatch)
    assert brokers.choose(home, cluster, "auto", Recorder()).broker == BrokerChoice("direct", "auto")
    assert Config.from_file(cluster.nodes[0].config).transport == "direct"


def test_a_given_url_is_given_to_every_node(home: Home, cluster: Cluster, greeting: tuple[int, list[bytes]]) -> None:
    port, seen = greeting
    url = f"amqp://app:secret@127.0.0.1:{port}/team"
    chosen = brokers.choose(home, cluster, url, Recorder())
    assert (chosen.broker.kind, chosen.broker.wanted) == ("url", url)
    assert "secret" not in chosen.broker.title
    assert {Config.from_file(node.config).amqp_url for node in cluster.nodes} == {url}
    assert not brokers.broker_of(home, chosen).ours
    assert seen[0] == b"AMQP\x00\x00\x09\x01"


def test_several_brokers_of_a_rabbitmq_cluster_are_given_whole_and_one_that_answers_is_enough(
    home: Home, cluster: Cluster, greeting: tuple[int, list[bytes]]
) -> None:
    dead = sockets.free_ports(1)[0]
    urls = f"amqp://app:secret@127.0.0.1:{dead}/team,amqp://app:secret@127.0.0.1:{greeting[0]}/team"
    chosen = brokers.choose(home, cluster, brokers.check_wanted(urls), Recorder())
    assert {Config.from_file(node.config).amqp_url for node in cluster.nodes} == {urls}
    assert brokers.broker_of(home, chosen).running()
    with pytest.raises(CommandError, match=rf"no AMQP broker answers at 127\.0\.0\.1:{dead} or 127\.0\.0\.1:{dead}; start it"):
        brokers.choose(home, cluster, f"amqp://a:b@127.0.0.1:{dead}/,amqp://a:b@127.0.0.1:{dead}/", Recorder())


def test_a_url_whose_user_is_a_nodes_name_is_refused(home: Home, cluster: Cluster, greeting: tuple[int, list[bytes]]) -> None:
    with pytest.raises(CommandError, match="must not bear the name"):
        brokers.choose(home, cluster, f"amqp://node-1:x@127.0.0.1:{greeting[0]}/", Recorder())


def test_a_url_without_a_broker_behind_it_is_unavailable(home: Home, cluster: Cluster) -> None:
    port = sockets.free_ports(1)[0]
    with pytest.raises(CommandError, match=f"no AMQP broker answers at 127.0.0.1:{port}") as refused:
        brokers.choose(home, cluster, f"amqp://a:b@127.0.0.1:{port}/", Recorder())
    assert refused.value.code is Exit.UNAVAILABLE


@pytest.mark.parametrize(
    "wanted",
    [
        "rabbit",
        "http://host",
        "amqp://",
        "amqp://a:b@host/,",
        "amqp://a:b@host/,http://host",
        "amqp://host:99999/",
        "amqp://host:x/",
    ],
)
def test_what_is_no_broker_is_a_usage_error(wanted: str) -> None:
    with pytest.raises(CommandError) as refused:
        brokers.check_wanted(wanted)
    assert refused.value.code is Exit.USAGE


def test_a_port_that_is_no_broker_is_not_taken_for_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not sockets.speaks_amqp("127.0.0.1", listener.getsockname()[1], timeout_s=0.2)


def fake_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    calls = tmp_path / "calls"
    file = tmp_path / "bin" / "docker"
    file.parent.mkdir()
    file.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n{script}\n')
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}:/usr/bin:/bin")
    return calls


def test_a_docker_command_without_an_engine_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_docker(tmp_path, monkeypatch, "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert not docker.engine()


def test_the_container_listens_on_loopback_and_loads_the_definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = tmp_path / "copied.tar"
    calls = fake_docker(tmp_path, monkeypatch, f"[ $1 != info ] || echo 28.2.2; [ $1 != cp ] || cat >{copied}")
    assert docker.engine()
    box = docker.Container(tmp_path / "broker", "rabbitmq:4.1-management")
    box.create({"vhosts": []}, 5001, 5002)
    said = calls.read_text().splitlines()
    created = next(line for line in said if line.startswith("create"))
    assert "--publish 127.0.0.1:5001:5672 --publish 127.0.0.1:5002:15672 rabbitmq:4.1-management" in created
    assert [line.split()[0] for line in said] == ["info", "rm", "create", "cp", "start"]
    with tarfile.open(copied) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.mode == 0o644}
        read = {name: file.read().decode() for name, file in files.items() if file}
    assert read["etc/rabbitmq/gitquorum.json"] == '{"vhosts": []}'
    assert "load_definitions = /etc/rabbitmq/gitquorum.json" in read["etc/rabbitmq/conf.d/90-gitquorum.conf"]


def test_a_container_that_cannot_be_started_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_docker(tmp_path, monkeypatch, "[ $1 != start ] || { echo 'port is already allocated' >&2; exit 1; }")
    with pytest.raises(CommandError, match="port is already allocated"):
        docker.Container(tmp_path / "broker").create({}, 5001, 5002)
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["rm", "create", "cp", "start", "rm"]


def test_dockers_own_words_reach_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_docker(tmp_path, monkeypatch, "echo 'no such image: rabbitmq:9' >&2; exit 125")
    with pytest.raises(CommandError, match="no such image: rabbitmq:9"):
        docker.Container(tmp_path / "broker").start()
