"""REST over a fake node: statuses, bodies, headers, and what touches nothing."""

from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from node.ports.errors import Busy, DiskRefused
from node.protocol.change import RefUpdate
from node.protocol.ids import ZERO_OID, Oid, RefName, RepoId
from node.protocol.names import RepositoryName
from node.protocol.outcome import OutcomeKind
from tests.unit.fake_service import FakeService, make_config
from tests.unit.rest_client import ask


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def app(service: FakeService, tmp_path: Path) -> Any:
    return create_app(service, make_config(tmp_path))


async def create(app: Any, name: str = "alice/project", **headers: str) -> Any:
    return await ask(app, "POST", "/repos", json_body={"repo_id": name}, headers=headers)


async def test_a_created_repository_is_answered_with_201_and_who_holds_it(app: Any) -> None:
    answer = await create(app)
    assert answer.status == 201
    assert answer.json == {
        "repo_id": "alice/project",
        "created": True,
        "replicated": True,
        "peers_confirmed": 1,
        "quorum": 2,
        "version": 1,
        "transaction_id": "tx-1",
        "committed_on": ["node-1", "node-2"],
    }
    assert answer.headers["x-gitquorum-version"] == "1"


@pytest.mark.parametrize("again", ["alice/project", "Alice/Project"])
async def test_a_second_creation_is_409_also_with_other_capitals(app: Any, again: str) -> None:
    await create(app)
    answer = await create(app, again)
    assert answer.status == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["type"] == "/problems/repository-exists"


async def test_an_aborted_creation_is_503_with_the_votes_and_retry_after(app: Any, service: FakeService) -> None:
    service.fate = OutcomeKind.ABORTED
    answer = await create(app)
    assert answer.status == 503
    assert answer.json["type"] == "/problems/quorum-not-reached"
    assert {"node_id": "node-2", "vote": "no answer", "reason": ""} in answer.json["votes"]
    assert "node-2 no answer" in answer.json["detail"]
    assert int(answer.headers["retry-after"]) > 0


async def test_an_unknown_outcome_is_202_and_points_to_its_transaction(app: Any, service: FakeService) -> None:
    service.fate = OutcomeKind.UNKNOWN
    answer = await create(app)
    assert answer.status == 202
    assert answer.json["outcome"] == "unknown"
    record = await ask(app, "GET", answer.headers["location"])
    assert record.status == 200
    assert record.json["outcome"] == "unknown"
    assert record.json["votes"][1] == {"node_id": "node-2", "vote": "no answer", "reason": ""}
    assert record.json["phases_ms"] == {"prepare": 3.25}


async def test_a_repeated_request_with_its_key_gets_the_original_answer(app: Any, service: FakeService) -> None:
    first = await create(app, **{"Idempotency-Key": "k1"})
    again = await create(app, **{"Idempotency-Key": "k1"})
    assert (again.status, again.json) == (201, first.json)
    assert len(service.entries[RepoId("alice/project")]) == 1


async def test_a_key_used_with_another_repository_is_422(app: Any, service: FakeService) -> None:
    await create(app, **{"Idempotency-Key": "k1"})
    answer = await create(app, "alice/other", **{"Idempotency-Key": "k1"})
    assert (answer.status, answer.json["type"]) == (422, "/problems/key-reused")
    assert RepoId("alice/other") not in service.registers


async def test_a_key_used_with_other_content_is_422_also_on_a_node_that_never_saw_it(
    service: FakeService, tmp_path: Path
) -> None:
    await create(create_app(service, make_config(tmp_path)), **{"Idempotency-Key": "k1"})
    other = create_app(service, make_config(tmp_path))
    body = {"repo_id": "alice/project", "head": "refs/heads/trunk"}
    answer = await ask(other, "POST", "/repos", json_body=body, headers={"Idempotency-Key": "k1"})
    assert (answer.status, answer.json["type"]) == (422, "/problems/key-reused")


@pytest.mark.parametrize("key", ["", "two words", "k" * 129, "ü"])
async def test_a_malformed_key_is_422(app: Any, service: FakeService, key: str) -> None:
    assert (await create(app, **{"Idempotency-Key": key})).status == 422
    assert service.calls == []


@pytest.mark.parametrize(
    "name",
    ["", "alice", "a/b/c", "/b", "a/", "../etc", "a/..", "a/b..c", "a/b.git", "a/b.LOCK", "-a/b", "a/b c", "ä/b",
     "a/" + "b" * 65, "a/b\x00", "a\\b/c", "a/b\n", "a/.b"],
)  # fmt: skip
async def test_a_bad_name_is_422_and_touches_nothing(app: Any, service: FakeService, name: str) -> None:
    answer = await create(app, name)
    assert (answer.status, answer.json["type"]) == (422, "/problems/bad-name")
    assert service.calls == []


@pytest.mark.parametrize("path", ["a..b/c", "a/b.git", "a%2Fb/c", "a/%00", "a/%ff", "a/b%0a", "%2e%2e/b", "a/b%5cc"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_bad_name_in_a_path_is_422_and_touches_nothing(app: Any, service: FakeService, method: str, path: str) -> None:
    assert (await ask(app, method, f"/repos/{path}")).status == 422
    assert service.calls == []


@pytest.mark.parametrize(
    "head", ["main", "refs/tags/v1", "refs/heads/a..b", "refs/heads/", "refs/replace/x", 7, "refs/heads/\ud800"]
)
async def test_a_head_that_is_no_branch_is_422(app: Any, service: FakeService, head: Any) -> None:
    answer = await ask(app, "POST", "/repos", json_body={"repo_id": "a/b", "head": head})
    assert answer.status in (400, 422)
    assert service.calls == []


async def test_the_head_asked_for_is_the_head_made(app: Any) -> None:
    await ask(app, "POST", "/repos", json_body={"repo_id": "a/b", "head": "refs/heads/trunk"})
    assert (await ask(app, "GET", "/repos/a/b")).json["head"] == "refs/heads/trunk"


async def test_a_repository_is_shown_with_version_digest_and_size(app: Any, service: FakeService) -> None:
    await create(app)
    answer = await ask(app, "GET", "/repos/alice/project")
    assert answer.json == {
        "repo_id": "alice/project",
        "exists": True,
        "path": "/data/alice/project.git",
        "head": "refs/heads/main",
        "version": 1,
        "digest": service.registers[RepoId("alice/project")].position.digest,
        "size": 4096,
    }
    assert answer.headers["x-gitquorum-version"] == "1"
    assert answer.headers["x-gitquorum-consistency"] == "linearizable"


@pytest.mark.parametrize("path", ["", "/refs", "/replicas", "/history"])
async def test_an_absent_repository_is_404_everywhere(app: Any, path: str) -> None:
    answer = await ask(app, "GET", f"/repos/alice/none{path}")
    assert (answer.status, answer.json["type"]) == (404, "/problems/repository-absent")


@pytest.mark.parametrize("path", ["", "/refs", "/replicas", "/history"])
async def test_without_a_majority_a_linearizable_read_is_503_and_a_local_one_is_served(
    app: Any, service: FakeService, path: str
) -> None:
    await create(app)
    service.reads_fail = True
    answer = await ask(app, "GET", f"/repos/alice/project{path}")
    assert (answer.status, answer.json["type"]) == (503, "/problems/read-unavailable")
    assert "retry-after" in answer.headers
    local = await ask(app, "GET", f"/repos/alice/project{path}", headers={"X-Gitquorum-Consistency": "local"})
    assert local.status == 200
    assert local.headers["x-gitquorum-consistency"] == "local"
    assert local.headers["x-gitquorum-version"] == "1"


async def test_the_configured_consistency_counts_where_none_is_asked_for(service: FakeService, tmp_path: Path) -> None:
    app = create_app(service, make_config(tmp_path, consistency="local"))
    await create(app)
    service.reads_fail = True
    assert (await ask(app, "GET", "/repos/alice/project")).headers["x-gitquorum-consistency"] == "local"


@pytest.mark.parametrize("path", ["", "/refs", "/replicas", "/history"])
@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ([("X-Gitquorum-Consistency", "fresh")], "must be linearizable or local"),
        ([("X-Gitquorum-Consistency", "local"), ("X-Gitquorum-Consistency", "linearizable")], "must be linearizable or local"),
        ([("X-Gitquorum-Consistency", "")], "must be linearizable or local"),
        *(
            ([("X-Gitquorum-Min-Version", value)], "must be a version, a whole number from 0 to 9007199254740991")
            for value in ("", "-1", "1.5", "0x2a", "latest", "+4", "1_0", "9007199254740992", "9" * 40)
        ),
        ([("X-Gitquorum-Min-Version", "1"), ("X-Gitquorum-Min-Version", "1")], "given once"),
    ],
    ids=str,
)
async def test_a_freshness_that_is_not_understood_is_400_and_reads_nothing(
    app: Any, service: FakeService, path: str, given: list[tuple[str, str]], allowed: str
) -> None:
    await create(app)
    service.calls.clear()
    answer = await ask(app, "GET", f"/repos/alice/project{path}", headers=given)
    assert (answer.status, answer.json["type"]) == (400, "/problems/bad-header")
    assert answer.headers["content-type"] == "application/problem+json"
    assert given[0][0] in answer.json["detail"]
    assert allowed in answer.json["detail"]
    assert service.calls == []


async def test_every_answer_about_a_repository_carries_the_version_it_was_served_at(app: Any, service: FakeService) -> None:
    made = await create(app)
    digest = service.registers[RepoId("alice/project")].position.digest
    assert (made.headers["x-gitquorum-version"], made.headers["x-gitquorum-digest"]) == ("1", digest)
    for consistency in ("local", "linearizable"):
        for path in ("", "/refs", "/replicas", "/history"):
            asked = {"X-Gitquorum-Consistency": consistency.upper(), "X-Gitquorum-Min-Version": "1"}
            answer = await ask(app, "GET", f"/repos/alice/project{path}", headers=asked)
            shown = [answer.headers[f"x-gitquorum-{what}"] for what in ("version", "digest", "consistency")]
            assert shown == ["1", digest, consistency]
    for headers, status in (({"X-Gitquorum-Min-Version": "7"}, 503), ({}, 404)):
        if status == 404:
            await ask(app, "DELETE", "/repos/alice/project")
        answer = await ask(app, "GET", "/repos/alice/project", headers=headers)
        assert answer.status == status
        assert answer.headers["x-gitquorum-version"] == ("1" if status == 503 else "2")
    service.reads_fail = True
    answer = await ask(app, "GET", "/repos/alice/project")
    assert (answer.status, answer.headers["x-gitquorum-version"]) == (503, "2")


async def test_a_version_that_is_not_here_is_503_with_what_to_do(app: Any) -> None:
    await create(app)
    answer = await ask(app, "GET", "/repos/alice/project", headers={"X-Gitquorum-Min-Version": "2"})
    assert (answer.status, answer.json["type"]) == (503, "/problems/version-not-reached")
    assert answer.headers["retry-after"] == "1"
    assert answer.json["detail"].startswith("Version 2 is not here yet")


async def test_a_deleted_repository_is_gone_and_deleting_it_again_is_404(app: Any) -> None:
    await create(app)
    answer = await ask(app, "DELETE", "/repos/alice/project")
    assert (answer.status, answer.json["deleted"], answer.json["version"]) == (200, True, 2)
    assert (await ask(app, "GET", "/repos/alice/project")).status == 404
    assert (await ask(app, "DELETE", "/repos/alice/project")).status == 404


async def test_a_repeated_deletion_with_its_key_gets_the_original_answer(app: Any) -> None:
    await create(app)
    first = await ask(app, "DELETE", "/repos/alice/project", headers={"Idempotency-Key": "d1"})
    again = await ask(app, "DELETE", "/repos/alice/project", headers={"Idempotency-Key": "d1"})
    assert (again.status, again.json) == (200, first.json)


@pytest.mark.parametrize(("fate", "status"), [(OutcomeKind.ABORTED, 503), (OutcomeKind.UNKNOWN, 202)])
async def test_deletions_have_the_same_outcomes(app: Any, service: FakeService, fate: OutcomeKind, status: int) -> None:
    await create(app)
    service.fate = fate
    assert (await ask(app, "DELETE", "/repos/alice/project")).status == status


async def test_the_list_is_paged_by_cursor_and_link(app: Any) -> None:
    for n in range(5):
        await create(app, f"alice/p{n}")
    target, seen, pages = "/repos?limit=2", [], 0
    while target:
        answer = await ask(app, "GET", target)
        seen += [one["repo_id"] for one in answer.json["repositories"]]
        pages += 1
        link = answer.headers.get("link", "")
        assert bool(link) == (answer.json["next"] is not None)
        target = link.partition("<")[2].partition(">")[0]
    assert (seen, pages) == ([f"alice/p{n}" for n in range(5)], 3)
    assert answer.headers["x-gitquorum-consistency"] == "local"


async def test_refs_are_paged_in_the_order_of_their_names(app: Any, service: FakeService) -> None:
    await create(app)
    names = [f"refs/heads/b{n:02}" for n in range(7)]
    service.update("alice/project", [RefUpdate(RefName(name), ZERO_OID, Oid("ab" * 20)) for name in reversed(names)])
    first = await ask(app, "GET", "/repos/alice/project/refs?limit=4")
    rest = await ask(app, "GET", f"/repos/alice/project/refs?limit=4&cursor={first.json['next']}")
    assert [ref["name"] for ref in first.json["refs"] + rest.json["refs"]] == names
    assert rest.json["next"] is None
    assert first.headers["x-gitquorum-version"] == "2"


async def test_history_shows_changes_with_their_certificates(app: Any, service: FakeService) -> None:
    await create(app, **{"Idempotency-Key": "secret-key"})
    service.update("alice/project", [RefUpdate(RefName("refs/heads/main"), ZERO_OID, Oid("ab" * 20))])
    answer = await ask(app, "GET", "/repos/alice/project/history?limit=1")
    assert [change["kind"] for change in answer.json["changes"]] == ["create"]
    assert answer.json["next"] == 1
    assert b"secret-key" not in answer.body
    rest = await ask(app, "GET", "/repos/alice/project/history?since=1")
    (change,) = rest.json["changes"]
    assert change["requests"][0]["updates"][0]["ref"] == "refs/heads/main"
    assert change["certificate"]["decision"] == {"node_id": "node-1", "incarnation": 1, "signature": "c2lnbmF0dXJl"}
    assert change["certificate"]["digest"] == change["digest"] == service.registers[RepoId("alice/project")].position.digest
    assert rest.json["next"] is None


async def test_a_history_page_ends_early_rather_than_list_every_update(app: Any, service: FakeService) -> None:
    await create(app)
    for batch in range(12):
        updates = [RefUpdate(RefName(f"refs/heads/{batch}/{n}"), ZERO_OID, Oid("ab" * 20)) for n in range(1200)]
        service.update("alice/project", updates)
    answer = await ask(app, "GET", "/repos/alice/project/history")
    assert len(answer.json["changes"]) == 11
    assert answer.json["next"] == 11
    request = answer.json["changes"][-1]["requests"][0]
    assert (len(request["updates"]), request["update_count"]) == (1000, 1200)


async def test_replicas_show_every_node(app: Any) -> None:
    await create(app)
    answer = await ask(app, "GET", "/repos/alice/project/replicas")
    states = {one["node_id"]: (one["state"], one["version"]) for one in answer.json["replicas"]}
    assert states == {"node-1": ("current", 1), "node-2": ("lagging", 1), "node-3": ("offline", None)}


@pytest.mark.parametrize(
    "target",
    ["/repos?limit=0", "/repos?limit=1001", "/repos?limit=x", "/repos?limit=1&limit=2", "/repos?lmit=1", "/repos?cursor=!!",
     "/repos?cursor=YQ", "/repos?cursor=" + "Y" * 3000, "/repos/a/b?x=1", "/repos/a/b/history?since=-1", "/health?x",
     "/repos/a/b/history?since=99999999999999999999", "/repos/a/b/refs?limit=1e3", "/readyz?role=admin", "/transactions/x?y="],
)  # fmt: skip
async def test_a_query_that_is_not_understood_is_422(app: Any, service: FakeService, target: str) -> None:
    answer = await ask(app, "GET", target)
    assert (answer.status, answer.json["type"]) == (422, "/problems/invalid-request"), answer.body
    assert len(answer.body) < 2000
    assert service.calls == []


async def test_transactions_unknown_are_404_and_malformed_ids_422(app: Any) -> None:
    assert (await ask(app, "GET", "/transactions/tx-none")).json["type"] == "/problems/transaction-absent"
    assert (await ask(app, "GET", "/transactions/-x")).status == 422
    assert (await ask(app, "GET", "/transactions/" + "x" * 129)).status == 422


@pytest.mark.parametrize(
    ("error", "slug"),
    [(Busy("full"), "busy"), (DiskRefused("ENOSPC"), "storage-failed"), (RuntimeError("secret"), "internal-error")],
)
async def test_what_a_node_raises_becomes_a_problem_without_its_text(
    app: Any, service: FakeService, error: Exception, slug: str
) -> None:
    service.error = error
    answer = await ask(app, "GET", "/repos")
    assert answer.json["type"] == f"/problems/{slug}"
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    assert "retry-after" in answer.headers


async def test_an_answer_from_history_without_votes_counts_the_certificates(service: FakeService, tmp_path: Path) -> None:
    app = create_app(service, make_config(tmp_path, node_id="node-3"))
    await service.create(RepositoryName("a", "b"), actor="x", head=None, key="k")
    answer = await create(app, "a/b", **{"Idempotency-Key": "k"})
    assert (answer.json["committed_on"], answer.json["peers_confirmed"]) == (["node-1", "node-2"], 1)
