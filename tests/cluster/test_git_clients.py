"""What stock git (and dulwich, a second implementation) can do with a cluster that has no broker (issue: Shows 7).

``test_git_features`` and ``test_rest`` do the like around RabbitMQ, and more; here the direct transport carries it.
"""

import gzip
import http.client
import re
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from dulwich import porcelain
from dulwich.repo import Repo

from tests.cluster.harness import ABORT_S, DEADLINE_S, NODES, Cluster, Work, git, refs_of, timed, wait

pytestmark = pytest.mark.cluster

ZERO = "0" * 40


@pytest.fixture
def filled(direct: Cluster, work: Work) -> tuple[Cluster, str, Work]:
    """A repository with some history, an annotated tag and a second branch; pushed to node 1."""
    cluster = direct
    name = cluster.create()
    for number in range(5):
        date = f"2026-01-0{number + 1}T00:00:00Z"
        (work.path / f"f{number}").write_text(f"{number}\n" * 500)
        work.git("add", ".")
        work.git("commit", "-q", "-m", f"commit {number}", GIT_AUTHOR_DATE=date, GIT_COMMITTER_DATE=date)
    work.git("tag", "-a", "v1", "-m", "v1")
    work.git("branch", "side", "HEAD~2")
    work.git("remote", "add", "origin", cluster.url(1, name))
    work.git("push", "origin", "main", "side", "v1")
    return cluster, name, work


Filled = tuple[Cluster, str, Work]


@pytest.mark.parametrize("protocol", ["0", "2"])
def test_clone_fetch_and_ls_remote_in_every_protocol(filled: Filled, tmp_path: Path, protocol: str) -> None:
    cluster, name, work = filled
    clone = cluster.clone(2, name, tmp_path / "clone", "-c", f"protocol.version={protocol}")
    assert clone.git("fsck", "--strict").code == 0
    assert clone.tip() == work.tip()
    listing = clone.git("ls-remote", "origin").out
    assert f"{work.tip('v1^{commit}')}\trefs/tags/v1^{{}}" in listing
    assert refs_of(listing) == {ref: oid for ref, oid in work.refs().items() if not ref.startswith("refs/remotes/")}
    new = work.commit("news")
    work.git("push", "origin", "main")
    clone.git("pull", "--quiet")
    assert clone.tip() == new


@pytest.mark.parametrize("protocol", ["0", "2"])
def test_shallow_and_partial_clones(filled: Filled, tmp_path: Path, protocol: str) -> None:
    cluster, name, work = filled
    version = ("-c", f"protocol.version={protocol}")
    depth = cluster.clone(2, name, tmp_path / "depth", *version, "--depth=2")
    assert depth.git("rev-list", "--count", "HEAD").out.strip() == "2"
    depth.git("fetch", "--quiet", "--deepen=1")
    assert depth.git("rev-list", "--count", "HEAD").out.strip() == "3"
    depth.git("fetch", "--quiet", "--unshallow")
    assert depth.git("rev-list", "--count", "HEAD").out.strip() == "5"
    since = cluster.clone(3, name, tmp_path / "since", *version, "--shallow-since=2026-01-03T12:00:00Z")
    assert since.git("rev-list", "--count", "HEAD").out.strip() == "2"
    blobless = cluster.clone(3, name, tmp_path / "blobless", *version, "--filter=blob:none", "--no-checkout")
    assert blobless.git("rev-list", "--objects", "--missing=print", "HEAD").out.count("?") >= 5
    blobless.git("checkout", "--quiet", "main")
    assert (blobless.path / "f4").read_text() == "4\n" * 500
    assert blobless.tip() == work.tip()


def test_a_push_from_a_shallow_clone(filled: Filled, tmp_path: Path) -> None:
    cluster, name, work = filled
    shallow = cluster.clone(2, name, tmp_path / "shallow", "--depth=1")
    new = shallow.commit("from a shallow clone")
    shallow.git("push", "origin", "HEAD:main")
    assert cluster.ls_remote(3, name)["refs/heads/main"] == new
    cluster.agree(name)
    for node in NODES:
        assert not (cluster.bare(node, name) / "shallow").exists()
        git("fsck", "--strict", cwd=cluster.bare(node, name))
    work.git("pull", "--quiet", "origin", "main")
    assert work.git("rev-list", "--count", "HEAD").out.strip() == "6"


def test_atomic_pushes_are_one_version_or_nothing(filled: Filled) -> None:
    cluster, name, work = filled
    before = cluster.agree(name)
    refs = cluster.ls_remote(2, name)
    work.commit()
    refused = work.git("push", "--atomic", "origin", "main", "main:refs/heads/new", "side~1:refs/heads/side", ok=False)
    assert refused.code != 0
    refused = work.git("push", "--atomic", "origin", "main", "+main:refs/replace/bad", ok=False)
    assert refused.code != 0
    assert "atomic push fail" in refused.err
    assert cluster.agree(name) == before
    assert cluster.ls_remote(3, name) == refs
    work.git("push", "--atomic", "origin", "main", "main:refs/heads/new")
    assert cluster.agree(name) == before + 1
    assert cluster.ls_remote(3, name) == refs | {"refs/heads/main": work.tip(), "refs/heads/new": work.tip()}


def test_one_refused_ref_does_not_stop_the_others(filled: Filled) -> None:
    cluster, name, work = filled
    pushed = work.git("push", "origin", "HEAD:refs/heads/good", "HEAD:refs/pull/1/head", ok=False)
    assert pushed.code != 0
    assert "refs/pull/1/head" in pushed.err or "pull/1/head" in pushed.err
    refs = cluster.ls_remote(2, name)
    assert refs["refs/heads/good"] == work.tip()
    assert "refs/pull/1/head" not in refs


@pytest.mark.parametrize(
    "ref", ["refs/replace/" + "1" * 40, "refs/pull/1/head", "refs/internal/x", "refs/stash", "refs/remotes/o/x"]
)
def test_refs_outside_the_writable_namespaces_are_refused_and_move_nothing(filled: Filled, ref: str) -> None:
    cluster, name, work = filled
    before = cluster.agree(name)
    refused = work.git("push", "origin", f"HEAD:{ref}", ok=False)
    assert re.search("only refs/heads/, refs/tags/, refs/notes/ can be written|a ref is named refs/<kind>/<name>", refused.err)
    assert cluster.agree(name) == before
    assert ref not in cluster.disk_refs(2, name)


def test_push_options_are_taken_and_notes_are_pushed(filled: Filled) -> None:
    cluster, name, work = filled
    work.git("notes", "add", "-m", "seen")
    work.git("push", "-o", "reviewer=bob", "-o", "ci.skip", "origin", "refs/notes/commits")
    assert cluster.ls_remote(3, name)["refs/notes/commits"] == work.tip("refs/notes/commits")


def test_tags_branches_deletions_and_force(filled: Filled, tmp_path: Path) -> None:
    cluster, name, work = filled
    work.git("tag", "light", "HEAD~1")
    work.git("push", "--tags", "origin")
    work.git("push", "origin", ":side", "--delete", "v1", ok=False)
    work.git("push", "origin", "--delete", "side", "v1")
    refs = cluster.ls_remote(2, name)
    assert set(refs) == {"refs/heads/main", "refs/tags/light"}
    gone = work.git("push", "origin", "--delete", "side", ok=False)
    assert "remote ref does not exist" in gone.err
    old = work.tip()
    work.git("commit", "--amend", "-q", "-m", "rewritten")
    refused = work.git("push", "origin", "main", ok=False)
    assert "non-fast-forward" in refused.err
    stale = work.git("push", "--force-with-lease=main:" + "1" * 40, "origin", "main", ok=False)
    assert "stale info" in stale.err
    work.git("push", f"--force-with-lease=main:{old}", "origin", "main")
    assert cluster.ls_remote(3, name)["refs/heads/main"] == work.tip()
    cluster.agree(name)
    assert cluster.clone(2, name, tmp_path / "after").tip() == work.tip()


def test_a_mirror_push_makes_the_repository_equal_and_deletes_what_is_not_there(filled: Filled) -> None:
    cluster, name, work = filled
    work.git("branch", "-D", "side")
    work.git("branch", "other")
    work.git("push", "--mirror", cluster.url(2, name), ok=False)  # refs/remotes/… is refused, and said
    work.git("remote", "remove", "origin")
    work.git("push", "--mirror", cluster.url(2, name))
    for node in NODES:
        assert cluster.ls_remote(node, name) == work.refs()


def test_a_directory_cannot_stand_where_a_branch_stands(filled: Filled) -> None:
    cluster, name, work = filled
    refused = work.git("push", "origin", "main:refs/heads/main/sub", ok=False)
    assert refused.code != 0
    assert "refs/heads/main" in refused.err
    assert "refs/heads/main/sub" not in cluster.ls_remote(2, name)
    work.git("push", "--atomic", "origin", ":side", "main:refs/heads/side/sub")
    assert cluster.ls_remote(3, name)["refs/heads/side/sub"] == work.tip()
    cluster.agree(name)
    for node in NODES:
        assert cluster.disk_refs(node, name) == cluster.refs(node, name)


def test_a_chunked_push_and_a_large_one(filled: Filled, tmp_path: Path) -> None:
    cluster, name, work = filled
    new = work.commit("chunked", size=5_000_000)
    work.git("-c", "http.postBuffer=65536", "push", "origin", "main")
    for node in NODES:
        assert cluster.ls_remote(node, name)["refs/heads/main"] == new
    assert cluster.clone(3, name, tmp_path / "clone").tip() == new


def test_gzip_request_bodies_are_read(filled: Filled) -> None:
    cluster, name, work = filled
    for number in range(60):  # so many haves that git compresses its request
        work.git("commit", "-q", "--allow-empty", "-m", f"local {number}")
    theirs = cluster.clone(1, name, work.path.parent / "theirs")
    new = theirs.commit("news")
    theirs.git("push", "origin", "HEAD:main")
    traced = work.git("fetch", cluster.url(2, name), "main", GIT_TRACE_CURL="1", GIT_TRACE_CURL_NO_DATA="1")
    assert "content-encoding: gzip" in traced.err.lower()
    assert work.tip("FETCH_HEAD") == new
    status, body = post_gzip(cluster, name, command(ZERO, new, "refs/heads/zipped") + empty_pack())
    assert status == 200, body
    assert b"ok refs/heads/zipped" in body
    assert cluster.ls_remote(3, name)["refs/heads/zipped"] == new


def command(old: str, new: str, ref: str) -> bytes:
    line = f"{old} {new} {ref}\0report-status side-band-64k agent=test".encode()
    return b"%04x" % (len(line) + 4) + line + b"0000"


def empty_pack() -> bytes:
    from hashlib import sha1

    body = b"PACK\0\0\0\x02\0\0\0\0"
    return body + sha1(body).digest()


def post_gzip(cluster: Cluster, name: str, body: bytes) -> tuple[int, bytes]:
    parts = urlsplit(cluster.url(1, name))
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=20)
    headers = {"Content-Type": "application/x-git-receive-pack-request", "Content-Encoding": "gzip"}
    try:
        connection.request("POST", f"{parts.path}/git-receive-pack", gzip.compress(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_first_push_of_master_moves_head_on_every_node(direct: Cluster, work: Work, tmp_path: Path) -> None:
    name = direct.create()
    oid = work.commit()
    work.git("push", direct.url(2, name), "HEAD:refs/heads/master")
    direct.agree(name)
    for node in NODES:
        assert direct.local(node, f"/repos/{name}").body["head"] == "refs/heads/master"
        assert git("symbolic-ref", "HEAD", cwd=direct.bare(node, name)).out.strip() == "refs/heads/master"
    clone = direct.clone(3, name, tmp_path / "clone")
    assert clone.tip() == oid
    assert clone.git("branch", "--show-current").out.strip() == "master"


def test_an_empty_repository_is_cloned_and_its_branch_name_learned(direct: Cluster, tmp_path: Path) -> None:
    name = direct.create()
    clone = direct.clone(3, name, tmp_path / "clone")
    assert clone.git("symbolic-ref", "HEAD").out.strip() == "refs/heads/main"


# ---------------------------------------------------------------- creation, deletion


def test_a_repository_is_deleted_and_made_again_with_its_history_kept(direct: Cluster, work: Work) -> None:
    name = direct.create()
    oid = work.commit()
    work.git("push", direct.url(1, name), "HEAD:main")
    assert direct.cli("repo", "delete", name, "--yes", "--node", "2").code == 0
    for node in NODES:
        assert direct.get(node, f"/repos/{name}").status == 404
        wait(lambda node=node: not direct.bare(node, name).exists(), 5, f"node-{node} removes it")  # type: ignore[misc]
    refused = work.git("push", direct.url(3, name), "HEAD:main", ok=False)
    assert "does not exist" in refused.err
    again = direct.post(3, "/repos", {"repo_id": name})
    assert (again.status, again.body["version"]) == (201, 4)
    assert direct.ls_remote(1, name) == {}
    work.git("push", direct.url(2, name), "HEAD:main")
    assert direct.agree(name) == 5
    for node in NODES:
        assert direct.disk_refs(node, name) == {"refs/heads/main": oid}
        git("fsck", "--strict", cwd=direct.bare(node, name))


def test_a_creation_without_a_quorum_is_503_and_one_in_doubt_is_202_with_where_to_ask(direct: Cluster) -> None:
    """In doubt is only what was sent: node 1 owns the ballot of a name that it wrote before (C2), so it prepares at once."""
    name = direct.create(1, "doubt")
    assert direct.cli("repo", "delete", name, "--yes", "--node", "1").code == 0
    direct.agree_on_absence(name)
    direct.pause(2)
    direct.pause(3)
    with timed() as seconds:
        unknown = direct.post(1, "/repos", {"repo_id": name})
        assert seconds() < DEADLINE_S + ABORT_S + 1
    assert unknown.status == 202, unknown
    assert unknown.location == f"/transactions/{unknown.body['transaction_id']}"
    assert "node-2" in unknown.body["detail"]
    assert direct.get(1, unknown.location).body["outcome"] == "unknown"
    wait(lambda: direct.get(1, "/readyz?role=write").status == 503, 5, "the silence is noticed")
    with timed() as seconds:
        refused = direct.post(1, "/repos", {"repo_id": f"{name}-2"})
        assert seconds() < 1, "refused at once"
    assert refused.status == 503
    assert refused.body["type"] == "/problems/quorum-not-reached"
    assert refused.body["sent"] is False
    assert "node-2" in refused.body["detail"]
    assert "node-3" in refused.body["detail"]
    direct.resume(2)
    direct.resume(3)
    wait(direct.ready, 10, "all well again")
    path = str(unknown.location)
    wait(lambda: direct.get(2, path).body.get("outcome") in ("committed", "aborted"), 10, "the doubtful creation is settled")
    outcome = direct.get(2, path).body["outcome"]
    assert {direct.get(node, f"/repos/{name}").status for node in NODES} == {200 if outcome == "committed" else 404}
    assert {direct.get(node, f"/repos/{name}-2").status for node in NODES} == {404}


# ---------------------------------------------------------------- another implementation of git


def test_dulwich_clones_and_pushes(filled: Filled, tmp_path: Path) -> None:
    cluster, name, work = filled
    path = tmp_path / "dulwich"
    with porcelain.clone(cluster.url(2, name), str(path), depth=None, errstream=BytesIO()) as repo:
        assert repo.head().decode() == work.tip()
    (path / "new").write_text("by dulwich\n")
    with Repo(str(path)) as repo:
        porcelain.add(repo, [str(path / "new")])
        oid = porcelain.commit(repo, message=b"by dulwich", author=b"D <d@example.org>", committer=b"D <d@example.org>")
        porcelain.push(repo, cluster.url(3, name), b"refs/heads/main", outstream=BytesIO(), errstream=BytesIO())
    assert cluster.ls_remote(1, name)["refs/heads/main"] == oid.decode()
    work.git("pull", "--quiet", "origin", "main")
    assert (work.path / "new").read_text() == "by dulwich\n"
    cluster.agree(name)
    git("fsck", "--strict", cwd=cluster.bare(2, name))
