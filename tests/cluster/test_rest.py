"""The REST interface through real nodes: repositories, histories, certificates, consistency, health."""

import re
import secrets
from base64 import b64decode
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from node.command.repos import next_page
from node.config import Config
from node.keys import Keyring, read_private
from node.protocol.certificate import Certificate, SignedVote
from node.protocol.ids import Ballot, Digest, NodeId, Position, RepoId
from tests.cluster.harness import DEADLINE_S, NODES, Cluster, Work, timed, wait
from tests.cluster.wire import Reply, call, call_json

pytestmark = pytest.mark.cluster

LOCAL = {"X-Gitquorum-Consistency": "local"}


def fresh(label: str = "rest") -> str:
    return f"{label}/{secrets.token_hex(6)}"


def create(cluster: Cluster, node: int, name: str, **headers: str) -> Reply:
    return call_json(cluster.url(node), "POST", "/repos", {"repo_id": name}, **headers)


def get(cluster: Cluster, node: int, path: str, **headers: str) -> Reply:
    return call(cluster.url(node), "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def problem(reply: Reply, status: int, slug: str) -> dict[str, Any]:
    """The problem document, whole (RFC 9457)."""
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = reply.json
    assert body["type"] == f"/problems/{slug}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == reply.headers["x-request-id"]
    return body


# ---------------------------------------------------------------- create, delete


def test_a_repository_is_created_once_by_whatever_node(rabbitmq: Cluster) -> None:
    name = fresh()
    created = create(rabbitmq, 2, name)
    assert created.status == 201
    body = created.json
    assert body.pop("transaction_id")
    on = body.pop("committed_on")
    assert body == {
        "repo_id": name,
        "created": True,
        "replicated": True,
        "peers_confirmed": len(on) - 1,
        "quorum": 2,
        "version": 1,
    }
    assert {"node-2"} < set(on) <= {"node-1", "node-2", "node-3"}
    assert created.headers["x-gitquorum-version"] == "1"
    for node in NODES:
        again = create(rabbitmq, node, name)
        assert problem(again, 409, "repository-exists")["repo_id"] == name
        shown = get(rabbitmq, node, f"/repos/{name}").json
        assert (shown["exists"], shown["version"], shown["head"]) == (True, 1, "refs/heads/main")
        assert shown["path"] == str(rabbitmq.bare(node, name))
        assert Path(shown["path"]).is_dir()
    assert rabbitmq.agree(name) == 1


def test_deletion_is_a_version_and_re_creation_continues_the_history(rabbitmq: Cluster, work: Work) -> None:
    name = fresh()
    create(rabbitmq, 1, name)
    work.commit()
    work.git("push", "--quiet", rabbitmq.url(2, name), "HEAD:main")
    deleted = call(rabbitmq.url(3), "DELETE", f"/repos/{name}")
    assert deleted.status == 200
    assert (deleted.json["deleted"], deleted.json["version"]) == (True, 3)
    for node in NODES:
        problem(get(rabbitmq, node, f"/repos/{name}"), 404, "repository-absent")
        wait(lambda node=node: not rabbitmq.bare(node, name).exists(), 5, "its files are gone")  # type: ignore[misc]
    problem(call(rabbitmq.url(1), "DELETE", f"/repos/{name}"), 404, "repository-absent")
    assert "not found" in work.git("push", rabbitmq.url(1, name), "HEAD:main", ok=False).err
    again = create(rabbitmq, 1, name)
    assert (again.status, again.json["version"]) == (201, 4)
    assert rabbitmq.agree(name) == 4
    kinds = [change["kind"] for change in rabbitmq.history(2, name)]
    assert kinds == ["create", "update", "delete", "create"]
    assert rabbitmq.refs(3, name) == {}
    work.git("push", "--quiet", rabbitmq.url(3, name), "HEAD:main")
    assert rabbitmq.agree(name) == 5


def test_a_repeated_idempotency_key_gets_the_same_answer_from_every_node(rabbitmq: Cluster) -> None:
    name, key = fresh(), secrets.token_hex(16)
    first = create(rabbitmq, 1, name, Idempotency_Key=key)
    assert first.status == 201
    for node in (2, 3, 1):
        again = create(rabbitmq, node, name, Idempotency_Key=key)
        assert again.status == 201, again
        same = ("repo_id", "created", "replicated", "quorum", "version", "transaction_id")
        assert {field: again.json[field] for field in same} == {field: first.json[field] for field in same}
        assert len(again.json["committed_on"]) >= 2
    assert rabbitmq.agree(name) == 1
    problem(create(rabbitmq, 2, name), 409, "repository-exists")
    problem(create(rabbitmq, 2, name, Idempotency_Key=secrets.token_hex(16)), 409, "repository-exists")
    problem(create(rabbitmq, 1, fresh(), Idempotency_Key=key), 422, "key-reused")
    key = secrets.token_hex(16)
    removed = [call(rabbitmq.url(node), "DELETE", f"/repos/{name}", headers={"Idempotency-Key": key}) for node in (3, 1, 2)]
    assert [answer.status for answer in removed] == [200, 200, 200]
    assert len({answer.json["transaction_id"] for answer in removed}) == 1


def test_a_key_is_honoured_by_a_node_that_was_away(direct: Cluster) -> None:
    name, key = fresh(), secrets.token_hex(16)
    direct.kill(3)
    first = create(direct, 1, name, Idempotency_Key=key)
    assert first.json["committed_on"] == ["node-1", "node-2"]
    direct.start(3)
    again = create(direct, 3, name, Idempotency_Key=key)
    assert again.status == 201, again
    assert again.json["transaction_id"] == first.json["transaction_id"]
    assert again.json["version"] == 1


# ---------------------------------------------------------------- lists


def test_pages_of_the_list_may_come_from_any_node(rabbitmq: Cluster) -> None:
    owner = f"pages-{secrets.token_hex(4)}"
    names = sorted(f"{owner}/r{number}" for number in range(7))
    for number, name in enumerate(names):
        assert create(rabbitmq, 1 + number % 3, name).status == 201
        rabbitmq.agree(name)
    found: list[str] = []
    path: str | None = "/repos?limit=3"
    turn = 0
    while path is not None:
        page = get(rabbitmq, 1 + turn % 3, path)
        assert page.status == 200
        assert page.headers["x-gitquorum-consistency"] == "local"
        assert len(page.json["repositories"]) <= 3
        found += [each["repo_id"] for each in page.json["repositories"]]
        path = next_page(page.headers.get("link"))
        assert (path is None) == (page.json["next"] is None)
        turn += 1
    assert [name for name in found if name.startswith(owner)] == names
    assert found == sorted(found, key=str.lower)
    assert len(set(found)) == len(found)


def test_refs_are_paged_in_order_with_their_peeled_targets(rabbitmq: Cluster, work: Work) -> None:
    name = fresh()
    create(rabbitmq, 1, name)
    work.commit()
    for number in range(5):
        work.git("tag", "-a", "-m", "x", f"v{number}")
    work.git("push", "--quiet", rabbitmq.url(1, name), "HEAD:main", "--tags")
    shown: list[dict[str, Any]] = []
    path: str | None = f"/repos/{name}/refs?limit=2"
    while path is not None:
        page = get(rabbitmq, 1 + len(shown) % 3, path)
        assert (page.json["version"], page.headers["x-gitquorum-version"]) == (2, "2")
        shown += page.json["refs"]
        path = next_page(page.headers.get("link"))
    assert {ref["name"]: ref["oid"] for ref in shown} == {**work.refs()}
    assert [ref["name"] for ref in shown] == sorted(ref["name"] for ref in shown)
    assert {ref["peeled"] for ref in shown if ref["name"].startswith("refs/tags/")} == {work.tip()}


def test_replicas_show_equal_digests_on_every_node(rabbitmq: Cluster, work: Work) -> None:
    name = fresh()
    create(rabbitmq, 1, name)
    for _ in range(3):
        work.commit()
        work.git("push", "--quiet", rabbitmq.url(2, name), "HEAD:main")
    rabbitmq.agree(name)
    views = [get(rabbitmq, node, f"/repos/{name}/replicas").json for node in NODES]
    for view in views:
        assert (view["repo_id"], view["version"]) == (name, 4)
        assert [each["node_id"] for each in view["replicas"]] == ["node-1", "node-2", "node-3"]
        assert {each["state"] for each in view["replicas"]} == {"current"}
        assert {each["digest"] for each in view["replicas"]} == {view["digest"]}
        assert {(each["version"], each["applied"]) for each in view["replicas"]} == {(4, 4)}
    assert len({view["digest"] for view in views}) == 1


# ---------------------------------------------------------------- certificates


def certificate_of(shown: dict[str, Any]) -> Certificate:
    round_, node, attempt = re.fullmatch(r"(\d+)\.(.+)\.(\d+)", shown["ballot"]).groups()  # type: ignore[union-attr]

    def vote(each: dict[str, Any]) -> SignedVote:
        return SignedVote(NodeId(each["node_id"]), each["incarnation"], b64decode(each["signature"]))

    return Certificate(
        RepoId(shown["repository"]),
        Digest(shown["voters"]),
        shown["quorum"],
        Position(shown["version"], Digest(shown["digest"])),
        Ballot(int(round_), NodeId(node), int(attempt)),
        tuple(vote(each) for each in shown["votes"]),
        vote(shown["decision"]),
    )


def test_every_change_has_a_certificate_that_holds_offline_with_the_members_public_keys(rabbitmq: Cluster, work: Work) -> None:
    name = fresh()
    create(rabbitmq, 3, name)
    for node in NODES:
        work.commit()
        work.git("push", "--quiet", rabbitmq.url(node, name), "HEAD:main")
    rabbitmq.agree(name)
    config = Config.from_file(rabbitmq.home / "node-1" / "node.toml")
    public = {NodeId(member.id): member.public_keys for member in config.members}
    keys = Keyring(config.me, read_private(config.private_key), public)
    for node in NODES:
        changes = get(rabbitmq, node, f"/repos/{name}/history").json["changes"]
        assert [change["version"] for change in changes] == [1, 2, 3, 4]
        assert all(after["base_digest"] == before["digest"] for before, after in pairwise(changes))
        for change in changes:
            certificate = certificate_of(change["certificate"])
            assert certificate.flaw(config.voters, keys.verify) is None
            assert certificate.position == Position(change["version"], Digest(change["digest"]))
            forged = certificate_of({**change["certificate"], "digest": "ab" * 32})
            assert "signature" in str(forged.flaw(config.voters, keys.verify)), "it is bound to its change"
            short = certificate_of({**change["certificate"], "votes": change["certificate"]["votes"][:1]})
            assert "1 votes of a quorum of 2" in str(short.flaw(config.voters, keys.verify))


def test_history_is_paged_and_says_who_did_what(rabbitmq: Cluster, work: Work) -> None:
    name = fresh()
    create(rabbitmq, 1, name)
    oids = []
    for _ in range(4):
        oids.append(work.commit())
        work.git("push", "--quiet", rabbitmq.url(3, name), "HEAD:main")
    page = get(rabbitmq, 2, f"/repos/{name}/history?since=1&limit=2")
    assert [change["version"] for change in page.json["changes"]] == [2, 3]
    assert page.json["next"] == 3
    rest = get(rabbitmq, 1, str(next_page(page.headers["link"])))
    assert [change["version"] for change in rest.json["changes"]] == [4, 5]
    assert rest.json["next"] is None
    updates = [change["requests"][0]["updates"][0] for answer in (page, rest) for change in answer.json["changes"]]
    assert [update["new"] for update in updates] == oids
    assert all(after["old"] == before["new"] for before, after in pairwise(updates))
    assert {change["requests"][0]["node_id"] for change in rest.json["changes"]} == {"node-3"}


# ---------------------------------------------------------------- transactions


def test_a_transaction_is_told_by_every_node(rabbitmq: Cluster, work: Work) -> None:
    name = fresh()
    made = create(rabbitmq, 1, name).json["transaction_id"]
    work.commit()
    pushed = work.git("push", rabbitmq.url(2, name), "HEAD:main").transaction
    for txn, kind, taker, version in ((made, "create", "node-1", 1), (pushed, "update", "node-2", 2)):
        for node in NODES:
            shown = get(rabbitmq, node, f"/transactions/{txn}")
            assert shown.status == 200, shown
            body = shown.json
            assert (body["transaction_id"], body["repo_id"], body["kind"]) == (txn, name, kind)
            assert (body["outcome"], body["node_id"], body["version"], body["quorum"]) == ("committed", taker, version, 2)
            assert len([vote for vote in body["votes"] if vote["vote"] == "yes"]) >= 2
            assert {"prepare", "decide", "apply"} <= body["phases_ms"].keys()
    problem(get(rabbitmq, 2, "/transactions/20200101-00000000000000000000"), 404, "transaction-absent")


# ---------------------------------------------------------------- failures


def test_reads_and_writes_without_a_majority_say_what_they_are(cluster: Cluster, work: Work) -> None:
    name = cluster.create(label="rest")
    oid = work.commit()
    work.git("push", "--quiet", cluster.url(1, name), "HEAD:main")
    cluster.agree(name)
    cluster.kill(2, 3)
    wait(lambda: get(cluster, 1, "/readyz?role=write").status == 503, 5, "node-1 knows that it is alone")

    path = f"/repos/{name}"
    for part in ("", "/refs", "/history", "/replicas"):
        stale = get(cluster, 1, path + part, X_Gitquorum_Consistency="local")
        assert stale.status == 200, stale
        assert stale.headers["x-gitquorum-consistency"] == "local"
        assert stale.headers["x-gitquorum-version"] == "2"
    for headers in ({}, {"X_Gitquorum_Consistency": "linearizable"}):
        with timed() as seconds:
            refused = get(cluster, 1, path, **headers)
            assert seconds() < 6
        problem(refused, 503, "read-unavailable")
        assert "retry-after" in refused.headers
    problem(get(cluster, 1, path, X_Gitquorum_Consistency="tomorrow"), 400, "bad-header")
    assert (
        "refs/heads/main"
        in work.git("-c", "http.extraHeader=X-Gitquorum-Consistency: local", "ls-remote", cluster.url(1, name)).out
    )
    assert work.git("ls-remote", cluster.url(1, name), ok=False).code != 0

    replicas = {
        each["node_id"]: each for each in get(cluster, 1, f"{path}/replicas", X_Gitquorum_Consistency="local").json["replicas"]
    }
    assert [replicas[f"node-{node}"]["state"] for node in NODES] == ["current", "offline", "offline"]
    with timed() as seconds:
        answers = [create(cluster, 1, fresh()), call(cluster.url(1), "DELETE", path)]
        assert seconds() < 2 * DEADLINE_S
    for answer in answers:
        told = problem(answer, 503, "quorum-not-reached")
        assert "node-2" in told["detail"]
        assert "node-3" in told["detail"]
        assert told["transaction_id"]
        assert told["sent"] is False, "refused at once: nothing was sent"
        assert "retry-after" in answer.headers
    cluster.start(2, 3)
    assert cluster.agree(name) == 2
    assert cluster.refs(1, name) == {"refs/heads/main": oid}


def test_health_tells_of_lost_peers_and_of_their_return(rabbitmq: Cluster) -> None:
    def health(node: int) -> dict[str, Any]:
        body: dict[str, Any] = get(rabbitmq, node, "/health").json
        return body

    whole = health(1)
    assert (whole["node_id"], whole["status"], whole["peer_count"]) == ("node-1", "ok", 2)
    assert (whole["broker"]["name"], whole["broker"]["state"]) == (rabbitmq.broker, "up")
    assert 0 <= whole["cpu_percent"] <= 100
    assert 0 < whole["memory_percent"] < 100
    rabbitmq.kill(3)
    wait(lambda: health(1)["status"] == "degraded", 5, "one peer's loss is noticed")
    seen = {peer["node_id"]: peer for peer in health(1)["peers"]}
    assert (seen["node-2"]["state"], seen["node-3"]["state"]) == ("alive", "suspected")
    assert seen["node-3"]["reason"]
    assert get(rabbitmq, 1, "/readyz?role=write").status == 200, "two of three write"
    rabbitmq.kill(2)
    wait(lambda: get(rabbitmq, 1, "/readyz?role=write").status == 503, 5, "the quorum's loss is noticed")
    told = problem(get(rabbitmq, 1, "/readyz?role=write"), 503, "not-ready")
    assert told["role"] == "write"
    assert get(rabbitmq, 1, "/livez").json == {"status": "alive"}
    assert get(rabbitmq, 1, "/readyz").json == {"status": "ready", "role": "read"}
    assert health(1)["write_ready"] is False
    rabbitmq.start(2, 3)
    wait(lambda: health(1)["status"] == "ok", 10, "all is well again")
    assert get(rabbitmq, 1, "/readyz?role=write").status == 200


def test_health_and_doctor_tell_of_a_lost_broker_and_the_fix_works(own_rabbitmq: Cluster) -> None:
    own_rabbitmq.broker_kill()
    wait(lambda: get(own_rabbitmq, 2, "/readyz?role=write").status == 503, 5, "the broker's loss is noticed")
    body = get(own_rabbitmq, 2, "/health").json
    assert (body["status"], body["broker"]["state"]) == ("degraded", "down")
    assert body["broker"]["detail"]
    wait(
        lambda: {peer["reason"] for peer in get(own_rabbitmq, 2, "/health").json["peers"]} == {"its broker connection is down"},
        5,
        "it is said that the peers answer, and what they lack",
    )
    assert get(own_rabbitmq, 2, "/readyz").status == 200
    doctor = own_rabbitmq.cli("doctor", "--json", ok=False)
    assert doctor.code == 1
    fixes = {each["check"]: each["fix"] for each in doctor.json() if each["state"] == "problem"}
    assert fixes["broker in use"] == "gitquorum broker start"
    own_rabbitmq.broker_start()
    wait(lambda: get(own_rabbitmq, 2, "/health").json["status"] == "ok", 10, "it is back")


# ---------------------------------------------------------------- the document


def test_every_node_serves_its_own_description_and_explains_its_problems(rabbitmq: Cluster) -> None:
    documents = [get(rabbitmq, node, "/openapi.json").json for node in NODES]
    assert documents[0]["paths"].keys() == documents[1]["paths"].keys() == documents[2]["paths"].keys()
    assert {"/repos", "/repos/{owner}/{repo}/history", "/transactions/{transaction_id}", "/health"} <= documents[0][
        "paths"
    ].keys()
    refused = get(rabbitmq, 3, "/repos/no/such")
    kind = get(rabbitmq, 1, problem(refused, 404, "repository-absent")["type"])
    assert (kind.status, kind.json["status"]) == (200, 404)
    named = get(rabbitmq, 1, "/repos/no/such", X_Request_Id="asked-by-a-test")
    assert named.json["request_id"] == named.headers["x-request-id"] == "asked-by-a-test"
