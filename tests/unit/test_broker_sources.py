"""Where the cluster tests take RabbitMQ from: the order, what is said, and what a URL cannot serve."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import sources
from tests.cluster.management import Management, ManagementSilent
from tests.cluster.sources import IMAGE, IMAGES, MANAGEMENT_URL, URL, Source, SourceRefused, Sources, find


@pytest.fixture
def amqp() -> Iterator[int]:
    """A port that greets like a broker."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(8)
                    peer.sendall(b"\x01\x00\x00\x00\x00\x01\xf0\x00\x0a\x00\x0a")

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def machine(
    monkeypatch: pytest.MonkeyPatch, *, engine: bool = False, images: tuple[str, ...] = (), server: bool = False
) -> None:
    """What is installed here; no registry answers."""
    monkeypatch.setattr(sources.docker, "engine", lambda: engine)
    monkeypatch.setattr(sources, "_is_here", lambda image: image in images)
    monkeypatch.setattr(sources, "server_script", lambda: Path("/usr/lib/rabbitmq/bin/rabbitmq-server") if server else None)
    monkeypatch.setattr(sources, "registry_answers", lambda: False)


def administrator(monkeypatch: pytest.MonkeyPatch, tags: list[str] | None) -> None:
    def answer(self: Management) -> list[str]:
        if tags is None:
            raise ManagementSilent("nobody there")
        return tags

    monkeypatch.setattr(Management, "tags", answer)


def kind(source: Source | None) -> str | None:
    return source.kind if source else None


def kinds(found: Sources) -> tuple[str | None, str | None, str | None]:
    return kind(found.first), kind(found.users), kind(found.own)


def test_a_docker_engine_comes_before_this_machines_server(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, engine=True, images=IMAGES, server=True)
    found = find({})
    assert kinds(found) == ("docker", "docker", "docker")
    assert found.first
    assert found.first.image == IMAGES[0]
    assert found.lines() == [f"RabbitMQ: {IMAGES[0]} in Docker, by testcontainers and by gitquorum up --broker docker"]


def test_the_image_is_the_one_named_else_the_first_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, engine=True, images=(IMAGES[1], "mine:1"))
    assert (found := find({}).first)
    assert found.image == IMAGES[1]
    assert (named := find({IMAGE: "mine:1"}).first)
    assert named.image == "mine:1"


def test_without_image_and_registry_the_next_source_is_taken_and_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, engine=True, server=True)
    found = find({})
    assert kinds(found) == ("local", "local", "local")
    assert found.lines()[1] == (
        "RabbitMQ: passed over: the image rabbitmq:4-management is not here, and no registry answers within 2 s"
    )


def test_nothing_at_all_is_said_and_the_reason_of_every_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    found = find({})
    assert kinds(found) == (None, None, None)
    assert found.missing() == "no RabbitMQ: no Docker engine answers; rabbitmq-server is not installed"
    assert found.lines()[0].startswith("RabbitMQ: none, tests that need one are skipped")


@pytest.mark.parametrize(("tags", "users"), [(["administrator"], "url"), (["monitoring"], "local"), (None, "local")])
def test_a_url_comes_first_and_what_it_cannot_serve_has_the_next_source(
    monkeypatch: pytest.MonkeyPatch, amqp: int, tags: list[str] | None, users: str
) -> None:
    machine(monkeypatch, server=True)
    administrator(monkeypatch, tags)
    found = find({URL: f"amqp://a:geheim@127.0.0.1:{amqp}/v"})
    assert kinds(found) == ("url", users, "local")
    said = "\n".join(found.lines())
    assert f"127.0.0.1:{amqp}/v from {URL}" in said
    assert "RabbitMQ for tests that kill the broker" in said
    assert "geheim" not in said


def test_a_url_that_cannot_be_used_is_an_error_and_not_passed_over(monkeypatch: pytest.MonkeyPatch, amqp: int) -> None:
    machine(monkeypatch, server=True)
    administrator(monkeypatch, None)
    with pytest.raises(SourceRefused, match=r"no AMQP broker answers at 127\.0\.0\.1:1"):
        find({URL: "amqp://a:b@127.0.0.1:1/"})
    with pytest.raises(SourceRefused, match="is not amqp://"):
        find({URL: "http://a:b@127.0.0.1/"})
    with pytest.raises(SourceRefused, match=f"{MANAGEMENT_URL}: nobody there"):
        find({URL: f"amqp://a:b@127.0.0.1:{amqp}/", MANAGEMENT_URL: "http://127.0.0.1:2"})


def test_a_source_that_a_failure_shows_has_no_password_in_it() -> None:
    shown = repr(Source("url", "title", url="amqp://a:geheim@h/v", management=Management("http://h", "a", "geheim")))
    assert "title" in shown
    assert "geheim" not in shown
