"""Problem documents, request ids, media types, bodies, dispatch to smart HTTP and to the direct endpoint."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.edge import Edge
from api.git_problems import GIT_KINDS
from api.idempotency import Content, KeyMemory
from api.problems import KINDS, problem
from api.replicate import ENVELOPE_BYTES_MAX
from node.ports.transport import DirectAnswer
from node.protocol.change import ChangeKind
from node.protocol.ids import RepoId
from tests.unit.fake_service import FakeService, make_config
from tests.unit.rest_client import ask

ALL_KINDS = {**KINDS, **GIT_KINDS}


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def app(service: FakeService, tmp_path: Path) -> Any:
    return create_app(service, make_config(tmp_path))


# ---------------------------------------------------------------- problems and ids


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/repos", 405),
        ("TRACE", "/health", 405),
        ("GET", "/repos/", 404),
        ("GET", "/docs", 404),
    ],
)
async def test_what_the_router_refuses_is_a_problem_document(app: Any, method: str, target: str, status: int) -> None:
    answer = await ask(app, method, target)
    assert answer.status == answer.json["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "detail", "instance", "request_id"} <= set(answer.json)
    assert answer.json["instance"] == target
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(("target", "allowed"), [("/repos", "GET, POST"), ("/repos/a/b", "DELETE, GET"), ("/health", "GET")])
async def test_a_405_names_all_methods_of_the_path(app: Any, target: str, allowed: str) -> None:
    assert (await ask(app, "PUT", target)).headers["allow"] == allowed


async def test_a_sane_request_id_is_kept_and_in_the_body_too(app: Any) -> None:
    answer = await ask(app, "GET", "/nothing", headers={"X-Request-Id": "Job_7.a-b"})
    assert answer.headers["x-request-id"] == answer.json["request_id"] == "Job_7.a-b"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "é", 'a"b'])
async def test_an_insane_request_id_is_replaced(app: Any, given: str) -> None:
    answer = await ask(app, "GET", "/livez", headers={"X-Request-Id": given})
    assert answer.status == 200
    assert len(answer.headers["x-request-id"]) == 16


async def test_two_request_ids_are_replaced_by_one(app: Any) -> None:
    answer = await ask(app, "GET", "/livez", headers=[("X-Request-Id", "a"), ("X-Request-Id", "b")])
    assert answer.headers["x-request-id"] not in ("a", "b")


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*, text/*;q=0.1"])
async def test_a_client_that_takes_no_json_is_406(app: Any, accept: str) -> None:
    assert (await ask(app, "GET", "/livez", headers={"Accept": accept})).status == 406


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html, application/*;q=0.2", ""])
async def test_a_client_that_takes_json_is_served(app: Any, accept: str) -> None:
    assert (await ask(app, "GET", "/livez", headers={"Accept": accept})).status == 200


@pytest.mark.parametrize("slug", sorted(ALL_KINDS))
async def test_every_problem_type_can_be_looked_up(app: Any, slug: str) -> None:
    kind = ALL_KINDS[slug]
    answer = await ask(app, "GET", kind.type)
    assert answer.json == {"type": kind.type, "status": kind.status, "title": kind.title, "advice": kind.advice}


@pytest.mark.parametrize("slug", sorted(ALL_KINDS))
def test_every_problem_type_is_explained_in_the_docs(slug: str) -> None:
    assert f"`{ALL_KINDS[slug].type}`" in (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def test_a_problem_never_repeats_input_at_length() -> None:
    body = problem("bad-name", "x" * 100_000).body(path="/" + "y" * 100_000, request_id="r")
    assert len(body) < 1500


# ---------------------------------------------------------------- bodies

BAD_JSON: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b'{"repo_id": NaN}', 400),
    (b'{"repo_id": "a\xff/b"}', 400),
    (b'{"repo_id": "\\ud800/b"}', 400),
    (b'\xef\xbb\xbf{"repo_id": "a/b"}', 400),
    (b'{"repo_id": "a/b"} {"repo_id": "a/c"}', 400),
    (b"null", 422),
    (b"[]", 422),
    (b'"a/b"', 422),
    (b"{}", 422),
    (b'{"repo_id": null}', 422),
    (b'{"repo_id": ["a/b"]}', 422),
    (b'{"repo_id": "a/b", "admin": true}', 422),
    (b'{"repo_id": "a/b", "repo_id": "c/d"}', 422),
    (b'{"repo_id": "a/b", "repo\\u005fid": "c/d"}', 422),
    (b'{"repo_id": 1e999}', 422),
    (b'{"repo_id": ' + b"9" * 60_000 + b"}", 422),
    (b'{"' + b"x" * 60_000 + b'": 1}', 422),
    (b"[" * 65_000, 422),
    (b'{"repo_id": ' + b"[" * 60_000, 422),
    (b'{"repo_id": "a/b", "head": ' + b'{"a":' * 10_000, 422),
    (b'{"x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", 422),
]


@pytest.mark.parametrize(("body", "status"), BAD_JSON, ids=range(len(BAD_JSON)))
async def test_json_of_any_wrong_shape_or_depth_is_4xx_and_touches_nothing(
    app: Any, service: FakeService, body: bytes, status: int
) -> None:
    answer = await ask(app, "POST", "/repos", body=body, headers={"Content-Type": "application/json"})
    assert answer.status == status, answer.body
    assert len(answer.body) < 1500
    assert service.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/jsonx"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "multipart/form-data; boundary=x"},
    ],
)
async def test_another_media_type_is_415(app: Any, service: FakeService, headers: dict[str, str]) -> None:
    answer = await ask(app, "POST", "/repos", body=b'{"repo_id": "a/b"}', headers=headers)
    assert (answer.status, service.calls) == (415, [])


async def test_json_with_a_charset_is_taken(app: Any) -> None:
    headers = {"Content-Type": 'Application/JSON; charset="UTF-8"'}
    assert (await ask(app, "POST", "/repos", body=b'{"repo_id": "a/b"}', headers=headers)).status == 201


async def test_a_body_declared_too_large_is_413_before_it_is_read(app: Any) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Length", "99999999999999999999")]
    assert (await ask(app, "POST", "/repos", body=[b"{"], headers=headers)).status == 413


async def test_a_body_that_grows_too_large_is_413(app: Any) -> None:
    answer = await ask(app, "POST", "/repos", body=[b" " * 40_000] * 9, headers={"Content-Type": "application/json"})
    assert answer.status == 413


async def test_a_body_that_does_not_come_is_408(service: FakeService, tmp_path: Path) -> None:
    app = create_app(service, make_config(tmp_path, body_timeout_s=0.05))
    sent: list[Any] = []

    async def receive() -> Any:
        import asyncio

        await asyncio.sleep(30)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/repos",
        "raw_path": b"/repos",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 408


async def test_a_client_that_leaves_is_not_answered_and_nothing_is_created(app: Any, service: FakeService) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/repos",
        "raw_path": b"/repos",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await app(scope, receive, send)
    assert (sent, service.calls) == ([], [])


def test_the_memory_of_keys_is_bounded() -> None:
    memory = KeyMemory(keys_max=3)
    for n in range(10):
        memory.check(f"k{n}", Content(ChangeKind.CREATE, RepoId(f"a/{n}")))
    memory.check("k0", Content(ChangeKind.CREATE, RepoId("a/other")))  # forgotten, so nothing is wrong with it


# ---------------------------------------------------------------- the other doors


@pytest.mark.parametrize(
    ("target", "smart"),
    [
        ("/alice/project.git/info/refs?service=git-upload-pack", True),
        ("/alice/project.git/git-receive-pack", True),
        ("/repos/x.git/info/refs", True),
        ("/alice/project.git", True),
        ("/alice/project", False),
        ("/repos/alice/project.git", False),
        ("/a/b/c.git/x", False),
    ],
)
async def test_git_paths_go_to_smart_http_and_nothing_else_does(
    service: FakeService, tmp_path: Path, target: str, smart: bool
) -> None:
    seen: list[str] = []

    async def smart_http(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["request_id"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"git"})

    app = create_app(service, make_config(tmp_path), smart_http=smart_http)
    answer = await ask(app, "GET", target, headers={"Accept": "application/x-git-upload-pack-result"})
    assert (len(seen) == 1) == smart
    if smart:
        assert answer.headers["x-request-id"] == seen[0]


async def test_a_failure_in_smart_http_is_a_500_without_a_traceback() -> None:
    async def smart_http(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("secret")

    answer = await ask(Edge(smart_http), "GET", "/a/b.git/info/refs")
    assert (answer.status, answer.json["type"]) == (500, "/problems/internal-error")
    assert b"secret" not in answer.body


async def test_a_failure_after_the_answer_began_is_left_to_the_server_to_cut() -> None:
    async def smart_http(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        await ask(Edge(smart_http), "GET", "/a/b.git/info/refs")


class FakeDirect:
    """Echoes, or streams."""

    def __init__(self) -> None:
        self.closed = False

    async def serve(self, kind: str, body: bytes) -> DirectAnswer:
        if kind == "fetch":
            return DirectAnswer(200, self._stream(), "application/octet-stream")
        if kind == "ping":
            return DirectAnswer(503, b'{"status": 503}', "application/problem+json", 3)
        return DirectAnswer(403, kind.encode() + b":" + body[:10])

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            self.closed = True


async def test_envelopes_reach_the_direct_endpoint_and_answers_come_back(service: FakeService, tmp_path: Path) -> None:
    direct = FakeDirect()
    app = create_app(service, make_config(tmp_path), direct=direct)
    answer = await ask(app, "POST", "/replicate/prepare", body=b"envelope")
    assert (answer.status, answer.body, answer.headers["content-type"]) == (403, b"prepare:envelope", "application/json")
    assert "retry-after" not in answer.headers
    busy = await ask(app, "POST", "/replicate/ping", body=b"envelope")
    assert (busy.status, busy.headers["retry-after"]) == (503, "3")
    stream = await ask(app, "POST", "/replicate/fetch", body=b"x")
    assert (stream.body, stream.headers["content-type"]) == (b"onetwo", "application/octet-stream")
    assert direct.closed
    assert "content-length" not in stream.headers


async def test_an_envelope_too_large_is_413(service: FakeService, tmp_path: Path) -> None:
    app = create_app(service, make_config(tmp_path), direct=FakeDirect())
    answer = await ask(app, "POST", "/replicate/prepare", body=[b"x" * (ENVELOPE_BYTES_MAX // 2 + 1)] * 2)
    assert answer.status == 413


async def test_many_envelopes_at_once_are_refused_before_memory_is(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.replicate.READING_BYTES_MAX", 4)
    app = create_app(service, make_config(tmp_path), direct=FakeDirect())
    assert (await ask(app, "POST", "/replicate/prepare", body=b"12345")).status == 503
    for _ in range(2):  # the room is given back
        assert (await ask(app, "POST", "/replicate/prepare", body=b"1234")).status == 403


async def test_without_a_direct_endpoint_there_is_no_such_path(app: Any) -> None:
    assert (await ask(app, "POST", "/replicate/prepare", body=b"x")).status == 404
