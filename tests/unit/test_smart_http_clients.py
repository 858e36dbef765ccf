"""Stock git clients against smart HTTP: what they see is what they see from any good server."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.ports.errors import Busy, ReadUnavailable
from node.ports.service import Consistency
from tests.unit.git_server import Server, serve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve(tmp_path) as running:
        running.service.create("alice/project")
        yield running


@pytest.fixture
def filled(server: Server) -> Server:
    work = server.work(commits=5)
    server.git("push", "origin", "main", "v1", cwd=work)
    return server


PROTOCOLS = ("0", "1", "2")


def test_push_is_committed_and_says_so(server: Server) -> None:
    work = server.work()
    ran = server.git("push", "origin", "main", "v1", cwd=work)
    assert "remote: gitquorum: version 2 committed on 3/3 (quorum 2) tx txn-" in ran.err
    head = server.git("rev-parse", "HEAD", "v1", cwd=work).out.split()
    assert server.refs() == dict(zip(("refs/heads/main", "refs/tags/v1"), head, strict=True))
    assert server.service.quarantines == 1


def test_the_quarantine_goes_when_the_client_has_its_answer(server: Server) -> None:
    server.git("push", "origin", "main", cwd=server.work())
    deadline = time.monotonic() + 10
    while not server.service.discarded:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_progress_is_shown_at_a_terminal_only_and_the_outcome_always(server: Server) -> None:
    async def stage(progress: Callable[[str], None]) -> None:
        progress("staged on node-2")

    server.service.before_decision = stage
    work = server.work()
    loud = server.git("push", "--progress", "origin", "main:loud", cwd=work).err
    quiet = server.git("push", "--quiet", "origin", "main:quiet", cwd=work).err
    assert "remote: staged on node-2" in loud
    assert "staged" not in quiet
    assert "committed on 3/3" in loud
    assert "committed on 3/3" in quiet


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_clone_is_whole_in_every_protocol(filled: Server, protocol: str) -> None:
    filled.git("-c", f"protocol.version={protocol}", "clone", "--quiet", filled.url(), "copy")
    copy = filled.folder / "copy"
    assert (
        filled.git("rev-parse", "HEAD", "v1^{}", cwd=copy).out
        == filled.git("rev-parse", "main", "main", cwd=filled.folder / "work").out
    )
    assert filled.git("symbolic-ref", "HEAD", cwd=copy).out.strip() == "refs/heads/main"
    assert filled.git("fsck", "--strict", cwd=copy).code == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ls_remote_shows_peeled_tags_and_head(filled: Server, protocol: str) -> None:
    ran = filled.git("-c", f"protocol.version={protocol}", "ls-remote", "--symref", filled.url())
    main, tag = filled.git("rev-parse", "main", "v1", cwd=filled.folder / "work").out.split()
    assert ran.out.splitlines() == [
        "ref: refs/heads/main\tHEAD",
        f"{main}\tHEAD",
        f"{main}\trefs/heads/main",
        f"{tag}\trefs/tags/v1",
        f"{main}\trefs/tags/v1^{{}}",
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_empty_repository_is_cloned_and_its_branch_name_learned(server: Server, protocol: str) -> None:
    server.service.create("alice/empty", head="refs/heads/trunk")
    ran = server.git("-c", f"protocol.version={protocol}", "clone", server.url("alice/empty"), "empty")
    assert "empty repository" in ran.err
    if protocol == "2":
        assert server.git("symbolic-ref", "HEAD", cwd=server.folder / "empty").out.strip() == "refs/heads/trunk"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fetch_brings_only_what_is_new(filled: Server, protocol: str) -> None:
    filled.git("clone", "--quiet", filled.url(), "copy")
    oid = filled.commit(filled.folder / "work", "later")
    filled.git("push", "--quiet", "origin", "main", cwd=filled.folder / "work")
    copy = filled.folder / "copy"
    filled.git("-c", f"protocol.version={protocol}", "fetch", "origin", cwd=copy)
    assert filled.git("rev-parse", "origin/main", cwd=copy).out.strip() == oid


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shallow_clone_by_depth_and_deepening(filled: Server, protocol: str) -> None:
    version = ("-c", f"protocol.version={protocol}")
    filled.git(*version, "clone", "--quiet", "--depth=2", filled.url(), "copy")
    copy = filled.folder / "copy"
    assert filled.git("rev-list", "--count", "HEAD", cwd=copy).out.strip() == "2"
    filled.git(*version, "fetch", "--quiet", "--deepen=1", cwd=copy)
    assert filled.git("rev-list", "--count", "HEAD", cwd=copy).out.strip() == "3"
    filled.git(*version, "fetch", "--quiet", "--unshallow", cwd=copy)
    assert filled.git("rev-list", "--count", "HEAD", cwd=copy).out.strip() == "5"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shallow_clone_by_date(filled: Server, protocol: str) -> None:
    since = "--shallow-since=2026-01-03T12:00:00Z"
    filled.git("-c", f"protocol.version={protocol}", "clone", "--quiet", since, filled.url(), "copy")
    assert filled.git("rev-list", "--count", "HEAD", cwd=filled.folder / "copy").out.strip() == "2"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_partial_clone_leaves_blobs_and_fetches_them_later(filled: Server, protocol: str) -> None:
    version = ("-c", f"protocol.version={protocol}")
    filled.git(*version, "clone", "--quiet", "--bare", "--filter=blob:none", filled.url(), "copy")
    copy = filled.folder / "copy"
    missing = filled.git("rev-list", "--objects", "--missing=print", "main", cwd=copy).out
    assert "?" in missing
    assert filled.git(*version, "cat-file", "-p", "main:file", cwd=copy).out.startswith("commit 4")


def test_one_reachable_commit_is_fetched_by_name(filled: Server) -> None:
    oid = filled.git("rev-parse", "main~2", cwd=filled.folder / "work").out.strip()
    filled.git("init", "--quiet", "one")
    filled.git("-c", "protocol.version=0", "fetch", "--quiet", filled.url(), oid, cwd=filled.folder / "one")


def test_push_from_a_shallow_clone(filled: Server) -> None:
    filled.git("clone", "--quiet", "--depth=1", filled.url(), "copy")
    copy = filled.folder / "copy"
    oid = filled.commit(copy, "from the shallows")
    filled.git("push", "origin", "main", cwd=copy)
    assert filled.refs()["refs/heads/main"] == oid
    assert len(filled.service.shallow) == 1


def test_push_in_chunks_when_the_client_buffers_little(server: Server) -> None:
    work = server.work(commits=1)
    (work / "noise").write_bytes(os.urandom(300_000))
    server.commit(work, "big")
    server.git("-c", "http.postBuffer=1024", "push", "origin", "main", cwd=work)
    posts = [request for request in server.requests if request["method"] == "POST"]
    assert posts[-1]["headers"]["transfer-encoding"] == "chunked"
    assert len(posts) == 2, "git tries out whether it may post, with a lone flush packet"
    assert server.service.calls.count("push") == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_fetch_with_a_gzip_request_body(filled: Server, protocol: str) -> None:
    filled.git("clone", "--quiet", filled.url(), "copy")
    copy = filled.folder / "copy"
    for number in range(70):
        filled.git("commit", "-q", "--allow-empty", "-m", f"own {number}", cwd=copy, GIT_COMMITTER_DATE="2026-06-01T00:00:00Z")
    oid = filled.commit(filled.folder / "work", "theirs")
    filled.git("push", "--quiet", "origin", "main", cwd=filled.folder / "work")
    filled.git("-c", f"protocol.version={protocol}", "fetch", "--quiet", "origin", cwd=copy)
    posts = [request["headers"] for request in filled.requests if request["path"].endswith("git-upload-pack")]
    assert any(headers.get("content-encoding") == "gzip" for headers in posts)
    assert filled.git("rev-parse", "origin/main", cwd=copy).out.strip() == oid


def test_atomic_push_fails_as_a_whole_when_one_ref_is_refused(filled: Server) -> None:
    work = filled.folder / "work"
    before = filled.refs()
    ran = filled.git("push", "--atomic", "origin", "main:refs/heads/good", "main:refs/changes/1", cwd=work, ok=False)
    assert "[remote rejected] main -> good (atomic push failure)" in ran.err
    assert "main -> refs/changes/1 (only refs/heads/, refs/tags/, refs/notes/ can be written)" in ran.err
    assert filled.refs() == before
    assert filled.service.calls.count("push") == 1, "of the first push"


def test_atomic_push_succeeds_as_a_whole(filled: Server) -> None:
    filled.git("push", "--atomic", "origin", "main:a", "main:b", cwd=filled.folder / "work")
    assert {"refs/heads/a", "refs/heads/b"} <= filled.refs().keys()


def test_one_refused_ref_does_not_stop_the_others(filled: Server) -> None:
    ran = filled.git("push", "origin", "main:good", "main:refs/replace/1", cwd=filled.folder / "work", ok=False)
    assert ran.code == 1
    assert "main -> good" in ran.err
    assert "(only refs/heads/, refs/tags/, refs/notes/ can be written)" in ran.err
    assert "refs/heads/good" in filled.refs()
    assert "refs/replace/1" not in filled.refs()


def test_a_push_of_refused_refs_only_starts_nothing(filled: Server) -> None:
    calls = list(filled.service.calls)
    oid = filled.commit(filled.folder / "work", "never stored")
    ran = filled.git("push", "origin", "main:refs/changes/1", cwd=filled.folder / "work", ok=False)
    assert "remote rejected" in ran.err
    assert set(filled.service.calls[len(calls) :]) == {"read"}
    path = filled.service.root / "alice" / "project.git"
    assert filled.git("cat-file", "-e", oid, cwd=path, ok=False).code


def test_mirror_push_writes_what_may_be_written(filled: Server) -> None:
    work = filled.folder / "work"
    filled.git("update-ref", "refs/notes/commits", "main", cwd=work)
    ran = filled.git("push", "--mirror", "origin", cwd=work, ok=False)
    assert "origin/main -> origin/main (only refs/heads/, refs/tags/, refs/notes/ can be written)" in ran.err
    assert filled.refs().keys() == {"refs/heads/main", "refs/tags/v1", "refs/notes/commits"}


def test_push_options_are_taken(filled: Server) -> None:
    work = filled.folder / "work"
    filled.git("push", "-o", "ci.skip", "-o", "x=ü", "origin", "main:one", cwd=work)
    filled.git("-c", "push.pushOption=two", "push", "origin", "main:two", cwd=work)
    assert {"refs/heads/one", "refs/heads/two"} <= filled.refs().keys()


def test_branches_and_tags_are_deleted(filled: Server) -> None:
    work = filled.folder / "work"
    filled.git("push", "--quiet", "origin", "main:gone", cwd=work)
    quarantines = filled.service.calls.count("receive")
    filled.git("push", "origin", ":gone", ":v1", cwd=work)
    assert filled.refs().keys() == {"refs/heads/main"}
    assert filled.service.calls.count("receive") == quarantines, "no pack is sent, none is received"


def test_the_current_branch_is_not_deleted(filled: Server) -> None:
    ran = filled.git("push", "origin", ":main", cwd=filled.folder / "work", ok=False)
    assert "[remote rejected] main (deletion of the current branch prohibited)" in ran.err


def test_history_is_rewritten_by_force(filled: Server) -> None:
    work = filled.folder / "work"
    filled.git("reset", "--quiet", "--hard", "main~3", cwd=work)
    oid = filled.commit(work, "another way")
    assert "non-fast-forward" in filled.git("push", "origin", "main", cwd=work, ok=False).err
    filled.git("push", "--force-with-lease", "origin", "+main", cwd=work)
    assert filled.refs()["refs/heads/main"] == oid


def test_many_refs_are_pushed_and_listed(filled: Server) -> None:
    work = filled.folder / "work"
    commands = "".join(f"create refs/tags/t{n:05} main\n" for n in range(1000))
    subprocess.run(["git", "-c", "core.fsync=none", "update-ref", "--stdin"], cwd=work, input=commands.encode(), check=True)
    filled.git("push", "--quiet", "origin", "--tags", cwd=work)
    for protocol in PROTOCOLS:
        out = filled.git("-c", f"protocol.version={protocol}", "ls-remote", "--tags", filled.url()).out
        assert len(out.splitlines()) == 1002


def test_one_branch_is_listed_without_the_others(filled: Server) -> None:
    assert filled.git("ls-remote", filled.url(), "main").out.endswith("\trefs/heads/main\n")


def test_an_absent_repository_is_named_to_the_person(server: Server) -> None:
    ran = server.git("clone", server.url("alice/absent"), ok=False)
    assert "remote: repository alice/absent does not exist" in ran.err
    assert "not found" in ran.err


def test_a_name_in_other_capitals_is_absent_for_pushes(server: Server) -> None:
    work = server.work()
    assert "not found" in server.git("push", server.url("Alice/Project"), "main", cwd=work, ok=False).err
    assert server.service.calls == ["read"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_ls_remote_asks_the_others_once_and_local_asks_nobody(filled: Server, protocol: str) -> None:
    version = ("-c", f"protocol.version={protocol}")
    for header, consistency in (("X-Gitquorum-Consistency: local", "local"), ("X-Nothing: 1", "linearizable")):
        filled.service.consistencies.clear()
        filled.git(*version, "-c", f"http.extraHeader={header}", "ls-remote", filled.url())
        assert [each.value for each in filled.service.consistencies] == [consistency]


def test_a_clone_asks_for_its_refs_and_for_its_objects_and_no_more(filled: Server) -> None:
    filled.service.consistencies.clear()
    filled.git("clone", "--quiet", filled.url(), "copy")
    assert len(filled.service.consistencies) == 2


def test_a_fetch_of_an_exact_id_shows_no_refs_and_is_linearizable_all_the_same(filled: Server) -> None:
    oid = filled.git("rev-parse", "main~2", cwd=filled.folder / "work").out.strip()
    filled.git("init", "--quiet", "copy")
    filled.service.consistencies.clear()
    filled.git("fetch", "--quiet", filled.url(), oid, cwd=filled.folder / "copy")
    assert Consistency.LINEARIZABLE in filled.service.consistencies


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_read_that_cannot_be_served_is_said_in_words_that_git_shows(filled: Server, protocol: str) -> None:
    """Also where only a later request of the command finds out: of that one's status git says nothing but the number."""
    why = "a linearizable read needs 2 of 3 voters; no answer from node-2, node-3"
    filled.service.fails["read"] = ReadUnavailable(why)
    for command in (("ls-remote", filled.url()), ("clone", filled.url(), "copy")):
        ran = filled.git("-c", f"protocol.version={protocol}", *command, ok=False)
        assert ran.code == 128
        assert f"remote error: {why}" in ran.err or f"remote: {why}" in ran.err


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_busy_node_is_said_in_words_that_git_shows_at_the_last_request_too(filled: Server, protocol: str) -> None:
    filled.service.fails["upload_pack"] = Busy("16 fetches run on this node already")
    ran = filled.git("-c", f"protocol.version={protocol}", "clone", filled.url(), "copy", ok=False)
    assert ran.code == 128
    assert "remote error: 16 fetches run on this node already" in ran.err


def test_a_reader_names_the_version_it_has_seen(filled: Server) -> None:
    seen = ("-c", f"http.extraHeader=X-Gitquorum-Min-Version: {filled.service.version}")
    local = ("-c", "http.extraHeader=X-Gitquorum-Consistency: local")
    assert "refs/heads/main" in filled.git(*seen, *local, "ls-remote", filled.url()).out
    unseen = ("-c", f"http.extraHeader=X-Gitquorum-Min-Version: {filled.service.version + 1}")
    refused = filled.git(*unseen, *local, "ls-remote", filled.url(), ok=False)
    assert f"version {filled.service.version + 1} is not here yet" in refused.err
    garbage = filled.git("-c", "http.extraHeader=X-Gitquorum-Min-Version: latest", "ls-remote", filled.url(), ok=False)
    assert "remote: X-Gitquorum-Min-Version must be a version, a whole number" in garbage.err
    assert "returned error: 400" in garbage.err


def test_a_push_that_finds_no_room_is_told_before_it_sends_its_pack_and_in_words(server: Server) -> None:
    """At the first request by its status, which git shows with the text; later by the report: of a status git shows no more."""
    work = server.work()
    why = "64 writes of this repository are under way and 128 wait; try again in a second"
    server.service.fails["check_push"] = Busy(why)
    early = server.git("push", "origin", "main", cwd=work, ok=False)
    assert f"remote: {why}" in early.err
    assert "returned error: 503" in early.err
    del server.service.fails["check_push"]
    server.service.fails["push"] = Busy(why)
    late = server.git("push", "origin", "main", cwd=work, ok=False)
    assert "! [remote rejected] main -> main (too busy, nothing was written)" in late.err
    assert why in late.err
    assert server.refs() == {}


def test_a_pack_with_a_forbidden_tree_is_refused_in_gits_words(server: Server) -> None:
    work = server.work()
    blob = server.git("hash-object", "-w", "file", cwd=work).out.strip()
    entry = f"100644 blob {blob}\t.git\n".encode()
    tree = subprocess.run(["git", "mktree"], cwd=work, input=entry, capture_output=True, check=True).stdout.decode().strip()
    oid = server.git("commit-tree", "-m", "bad", tree, cwd=work).out.strip()
    ran = server.git("push", "origin", f"{oid}:refs/heads/bad", cwd=work, ok=False)
    assert "remote: error: object" in ran.err
    assert "contains '.git'" in ran.err
    assert "remote unpack failed: fatal: fsck error in packed object" in ran.err
    assert "(unpacker error)" in ran.err
    assert server.refs() == {}
    assert list((server.service.root / "alice" / "project.git" / "objects").glob("incoming-*")) == []
