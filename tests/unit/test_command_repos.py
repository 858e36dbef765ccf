"""``gitquorum repo`` and ``tx``: each outcome of a write has its exit code; against a server that answers what it is told."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from node.command import client, repos, transactions
from node.command.output import CommandError, Exit
from node.command.sockets import free_ports
from tests.unit.command_cluster import Recorder

COMMITTED = {"version": 1, "quorum": 2, "transaction_id": "tx-1", "committed_on": ["node-1", "node-2"]}


@dataclass
class Server:
    """What to answer to "METHOD path", and what was asked."""

    url: str = ""
    answers: dict[str, tuple[int, Any, dict[str, str]]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def answer(self, request: str, status: int, body: Any, **headers: str) -> None:
        self.answers[request] = (status, body, headers)


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.asked.append((self.command, self.path, dict(self.headers), body))
            status, answer, headers = told.answers[f"{self.command} {self.path}"]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            """Quiet."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield told
    made.shutdown()
    thread.join()
    made.server_close()


@contextmanager
def refused(code: Exit, match: str) -> Iterator[None]:
    with pytest.raises(CommandError, match=match) as error:
        yield
    assert error.value.code is code


def test_create_sends_the_name_and_an_idempotency_key(server: Server) -> None:
    server.answer("POST /repos", 201, {"created": True, **COMMITTED})
    assert repos.create(server.url, "alice/project", Recorder(as_json=True))["version"] == 1
    _, _, headers, body = server.asked[0]
    assert json.loads(body) == {"repo_id": "alice/project"}
    assert len(headers["Idempotency-Key"]) == 32


def test_an_existing_repository_is_a_failure(server: Server) -> None:
    server.answer("POST /repos", 409, {"title": "Repository exists"})
    with refused(Exit.FAILED, "exists already"):
        repos.create(server.url, "alice/project", Recorder())


def test_an_aborted_write_is_exit_4_and_says_why(server: Server) -> None:
    server.answer("POST /repos", 503, {"title": "Quorum not reached", "detail": "quorum not reached (1/2): node-2 no answer"})
    with refused(Exit.UNAVAILABLE, r"alice/project was not created: quorum not reached \(1/2\)"):
        repos.create(server.url, "alice/project", Recorder())


def test_an_unknown_outcome_is_exit_5_and_names_the_transaction(server: Server) -> None:
    server.answer("POST /repos", 202, {}, Location="/transactions/tx-7")
    with refused(Exit.UNKNOWN, "gitquorum tx show tx-7"):
        repos.create(server.url, "alice/project", Recorder())


def test_a_write_whose_answer_never_comes_is_unknown_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repos, "request", partial(client.request, timeout_s=0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with refused(Exit.UNKNOWN, "outcome unknown: .* timed out"):
            repos.create(url, "alice/project", Recorder())


def test_a_write_that_reaches_nobody_is_unavailable() -> None:
    with refused(Exit.UNAVAILABLE, "nothing listens there"):
        repos.create(f"http://127.0.0.1:{free_ports(1)[0]}", "alice/project", Recorder())


@pytest.mark.parametrize("name", ["project", "a/b/c", "alice/../etc", "alice/x.git", "-a/b"])
def test_a_bad_name_is_refused_before_anything_is_asked(server: Server, name: str) -> None:
    for call in (repos.create, repos.show):
        with refused(Exit.USAGE, "must|exactly one slash"):
            call(server.url, name, Recorder())
    assert server.asked == []


def test_delete_asks_first_and_a_no_changes_nothing(server: Server) -> None:
    server.answer("GET /repos/alice/project", 200, {"version": 7})
    questions: list[str] = []

    def no(question: str) -> bool:
        questions.append(question)
        return False

    with refused(Exit.FAILED, "was not deleted"):
        repos.delete(server.url, "alice/project", Recorder(), no)
    assert questions == ["Delete alice/project (version 7) on every node?"]
    assert [method for method, *_ in server.asked] == ["GET"]


def test_delete_after_a_yes_deletes(server: Server) -> None:
    server.answer("GET /repos/alice/project", 200, {"version": 7})
    server.answer("DELETE /repos/alice/project", 200, {"deleted": True, **COMMITTED})
    assert repos.delete(server.url, "alice/project", Recorder(as_json=True), lambda _: True)["deleted"]


def test_a_missing_repository_is_not_found(server: Server) -> None:
    server.answer("GET /repos/alice/project", 404, {"detail": "there is no such repository"})
    with refused(Exit.NOT_FOUND, "alice/project: there is no such repository"):
        repos.show(server.url, "alice/project", Recorder())


def test_the_list_follows_its_pages_and_stops_at_the_bound(server: Server) -> None:
    def page(*names: str) -> dict[str, Any]:
        return {"repositories": [{"repo_id": name} for name in names]}

    more = '<http://elsewhere:99/repos?cursor=b>; rel="next"'
    server.answer("GET /repos?limit=100", 200, page("a/a", "b/b"), Link=more)
    server.answer("GET /repos?cursor=b", 200, page("c/c"))
    found, left = repos.list_repos(server.url, 1000)
    assert ([repo["repo_id"] for repo in found], left) == (["a/a", "b/b", "c/c"], False)
    server.answer("GET /repos?limit=2", 200, page("a/a", "b/b"), Link=more)
    found, left = repos.list_repos(server.url, 2)
    assert ([repo["repo_id"] for repo in found], left) == (["a/a", "b/b"], True)


@pytest.mark.parametrize(
    ("link", "path"),
    [
        (None, None),
        ('</repos?a=1>; rel="prev", </repos?a=2>; rel="next"', "/repos?a=2"),
        ("<http://h:1/repos?a=3>; rel=next", "/repos?a=3"),
        ('</repos>; rel="nextish"', None),
    ],
)
def test_the_next_page_is_read_from_the_link_header(link: str | None, path: str | None) -> None:
    assert repos.next_page(link) == path


def test_tx_show_returns_what_the_node_knows(server: Server) -> None:
    record: dict[str, Any] = {
        "transaction_id": "tx-1",
        "outcome": "committed",
        "votes": [{"node_id": "node-2", "vote": "yes", "reason": ""}],
        "phases_ms": {"prepare": 3.2},
        "rejections": [{"ref": "refs/heads/x", "reason": "fetch first"}],
    }
    server.answer("GET /transactions/tx-1", 200, record)
    assert transactions.show(server.url, "tx-1", Recorder(as_json=True)) == record
    assert transactions.show(server.url, "tx-1", Recorder()) == record


def test_tx_show_of_a_bad_or_unknown_id(server: Server) -> None:
    with refused(Exit.USAGE, "a/b"):
        transactions.show(server.url, "a/b", Recorder())
    server.answer("GET /transactions/tx-9", 404, {"detail": "no node knows it"})
    with refused(Exit.NOT_FOUND, "no node knows it"):
        transactions.show(server.url, "tx-9", Recorder())


def test_the_first_node_that_answers_is_asked(server: Server) -> None:
    server.answer("GET /livez", 200, {"status": "alive"})
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert client.first_alive([dead, server.url]) == server.url
    with refused(Exit.UNAVAILABLE, "gitquorum up"):
        client.first_alive([dead])


def test_the_environments_proxy_is_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.answer("GET /livez", 200, {})
    assert client.get(server.url, "/livez").ok
