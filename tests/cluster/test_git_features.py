"""Real git clients push to one node and look from another: every protocol, shape of push, refusal and size."""

import io
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest
from dulwich import porcelain
from dulwich.refs import Ref
from dulwich.repo import Repo

from tests.cluster.harness import NODES, Cluster, Work, git, refs_of
from tests.cluster.wire import ZERO, push
from tests.unit.storage_kit import history, pack_of

pytestmark = pytest.mark.cluster

PROTOCOLS = ("0", "1", "2")
MIB = 1024**2
NOT_WRITABLE = "(only refs/heads/, refs/tags/, refs/notes/ can be written)"


def speaking(protocol: str) -> tuple[str, str]:
    return ("-c", f"protocol.version={protocol}")


def fill(work: Work, commits: int = 5) -> None:
    """A line of commits, one a day from 2026-01-01 on, each with its own content."""
    lines = []
    for number in range(commits):
        text = b"line %d\n" % number
        data = b"data %d\n%s\n" % (len(text), text)
        who = b"Ada <ada@example.org> %d +0000" % (1_767_225_600 + number * 86_400)
        lines.append(b"commit refs/heads/main\ncommitter %s\ndata 4\nwork\n" % who)
        lines.append(b"M 644 inline file\n%sM 644 inline f%d\n%s" % (data, number, data))
    git("fast-import", "--quiet", cwd=work.path, stdin=b"".join(lines))
    work.git("reset", "--quiet", "--hard", "main")


@pytest.fixture
def filled(rabbitmq: Cluster, work: Work) -> str:
    """A repository with the five commits of ``work``, pushed to node 1."""
    name = rabbitmq.create(label="git")
    fill(work)
    work.git("push", "--quiet", rabbitmq.url(1, name), "main")
    return name


def same_everywhere(cluster: Cluster, name: str) -> dict[str, str]:
    """The refs, on which every node's API, git door and disk agree."""
    cluster.agree(name)
    refs = cluster.refs(1, name)
    for node in NODES:
        assert cluster.refs(node, name) == cluster.ls_remote(node, name) == cluster.disk_refs(node, name) == refs
    return refs


# ---------------------------------------------------------------- protocols, clone, fetch


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_pushes_to_one_node_clones_and_fetches_from_others(
    rabbitmq: Cluster, work: Work, tmp_path: Path, protocol: str
) -> None:
    name = rabbitmq.create(label="git")
    fill(work)
    work.git("tag", "-a", "-m", "v1", "v1")
    work.git(*speaking(protocol), "push", "--quiet", rabbitmq.url(1, name), "main", "v1")
    git(*speaking(protocol), "clone", "--quiet", rabbitmq.url(2, name), "copy", cwd=tmp_path)
    copy = Work(tmp_path / "copy")
    assert copy.tip() == work.tip()
    assert copy.tip("v1") == work.tip("v1")
    assert copy.git("symbolic-ref", "HEAD").out == "refs/heads/main\n"
    assert copy.git("fsck", "--strict").code == 0
    later = work.commit("later")
    work.git(*speaking(protocol), "push", "--quiet", rabbitmq.url(3, name), "main")
    traced = copy.git(*speaking(protocol), "fetch", rabbitmq.url(2, name), "main", GIT_TRACE_PACKET="1")
    assert copy.tip("FETCH_HEAD") == later
    assert ("version 2" in traced.err) == (protocol == "2")
    listed = git(*speaking(protocol), "ls-remote", "--symref", rabbitmq.url(3, name), cwd=tmp_path).out
    assert "ref: refs/heads/main\tHEAD" in listed
    assert f"{work.tip('v1^{}')}\trefs/tags/v1^{{}}" in listed


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shallow_clones_by_depth_and_date_deepen_from_another_node(
    rabbitmq: Cluster, filled: str, tmp_path: Path, protocol: str
) -> None:
    version = speaking(protocol)

    def count(copy: Work) -> int:
        return int(copy.git("rev-list", "--count", "HEAD").out)

    git(*version, "clone", "--quiet", "--depth=2", rabbitmq.url(2, filled), "deep", cwd=tmp_path)
    copy = Work(tmp_path / "deep")
    assert count(copy) == 2
    copy.git("remote", "set-url", "origin", rabbitmq.url(3, filled))
    copy.git(*version, "fetch", "--quiet", "--deepen=1")
    assert count(copy) == 3
    copy.git(*version, "fetch", "--quiet", "--unshallow")
    assert count(copy) == 5
    assert copy.git("fsck", "--strict").code == 0
    since = "--shallow-since=2026-01-03T12:00:00Z"
    git(*version, "clone", "--quiet", since, rabbitmq.url(3, filled), "since", cwd=tmp_path)
    assert count(Work(tmp_path / "since")) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_clone_without_blobs_fetches_them_later_from_another_node(
    rabbitmq: Cluster, filled: str, tmp_path: Path, protocol: str
) -> None:
    version = speaking(protocol)
    git(*version, "clone", "--quiet", "--bare", "--filter=blob:none", rabbitmq.url(2, filled), "copy", cwd=tmp_path)
    copy = Work(tmp_path / "copy")
    listed = copy.git("rev-list", "--objects", "--missing=print", "main").out.splitlines()
    assert len([line for line in listed if line.startswith("?")]) == 5
    copy.git("remote", "set-url", "origin", rabbitmq.url(3, filled))
    assert copy.git(*version, "cat-file", "-p", "main~2:file").out == "line 2\n"


def test_a_push_from_a_shallow_clone_is_whole_on_every_node(rabbitmq: Cluster, filled: str, tmp_path: Path) -> None:
    copy = rabbitmq.clone(3, filled, tmp_path / "copy", "--depth=1")
    oid = copy.commit("from the shallows")
    copy.git("push", "--quiet", rabbitmq.url(2, filled), "main")
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": oid}
    whole = rabbitmq.clone(1, filled, tmp_path / "whole")
    assert whole.git("rev-list", "--count", "HEAD").out.strip() == "6"
    for node in NODES:
        assert git("fsck", "--strict", cwd=rabbitmq.bare(node, filled)).code == 0


def test_a_commit_is_fetched_by_its_name_alone(rabbitmq: Cluster, filled: str, work: Work, tmp_path: Path) -> None:
    old = work.tip("main~3")
    for protocol in PROTOCOLS:
        one = Work.init(tmp_path / f"one-{protocol}")
        one.git(*speaking(protocol), "fetch", "--quiet", rabbitmq.url(2, filled), old)
        assert one.tip("FETCH_HEAD") == old


def test_an_empty_repository_is_cloned_and_filled_through_another_node(rabbitmq: Cluster, tmp_path: Path) -> None:
    name = rabbitmq.create(label="git")
    assert "empty repository" in git("clone", rabbitmq.url(2, name), "copy", cwd=tmp_path).err
    copy = Work(tmp_path / "copy")
    assert copy.git("symbolic-ref", "HEAD").out == "refs/heads/main\n"
    oid = copy.commit("first")
    copy.git("push", "--quiet", rabbitmq.url(3, name), "main")
    assert same_everywhere(rabbitmq, name) == {"refs/heads/main": oid}


# ---------------------------------------------------------------- shapes of pushes


def test_an_atomic_push_with_one_bad_ref_changes_nothing_on_any_node(rabbitmq: Cluster, filled: str, work: Work) -> None:
    before, version = rabbitmq.refs(1, filled), rabbitmq.agree(filled)
    ran = work.git("push", "--atomic", rabbitmq.url(2, filled), "main:good", "main:refs/changes/1", ok=False)
    assert "main -> good (atomic push failure)" in ran.err
    assert f"main -> refs/changes/1 {NOT_WRITABLE}" in ran.err
    assert rabbitmq.agree(filled) == version
    assert same_everywhere(rabbitmq, filled) == before
    work.git("push", "--atomic", rabbitmq.url(3, filled), "main:a", "main~1:refs/heads/b", "main:refs/tags/c")
    assert same_everywhere(rabbitmq, filled).keys() == {"refs/heads/main", "refs/heads/a", "refs/heads/b", "refs/tags/c"}
    assert rabbitmq.agree(filled) == version + 1, "one change"


def test_an_atomic_push_with_one_stale_ref_fails_as_a_whole_by_hand_too(rabbitmq: Cluster, filled: str, work: Work) -> None:
    """git finds a stale ref by itself; a client that does not is told by the server."""
    old, new = work.tip("main~1"), work.tip("main")
    commands = [(ZERO, new, "refs/heads/good"), (old, new, "refs/heads/main")]
    capabilities = "report-status side-band-64k atomic object-format=sha1"
    report = push(rabbitmq.url(2), filled, commands, pack_of(), capabilities=capabilities)
    assert report.unpack == "ok"
    assert "fetch first" in report.refs["refs/heads/main"]
    assert "atomic" in report.refs["refs/heads/good"]
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": new}
    loose = push(rabbitmq.url(2), filled, commands, pack_of())
    assert loose.refs["refs/heads/good"] == "ok"
    assert "fetch first" in loose.refs["refs/heads/main"]
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": new, "refs/heads/good": new}


def test_push_options_are_taken_by_every_node(rabbitmq: Cluster, filled: str, work: Work) -> None:
    for node in NODES:
        work.git("push", "-o", "ci.skip", "-o", "note=ü", rabbitmq.url(node, filled), f"main:by-{node}")
    assert {f"refs/heads/by-{node}" for node in NODES} < same_everywhere(rabbitmq, filled).keys()


def test_annotated_and_light_tags_notes_and_deletions_are_seen_by_the_others(
    rabbitmq: Cluster, filled: str, work: Work, tmp_path: Path
) -> None:
    work.git("tag", "light", "main~1")
    work.git("tag", "-a", "-m", "annotated", "heavy", "main~2")
    work.git("notes", "add", "-m", "well done", "main")
    work.git("push", "--quiet", rabbitmq.url(2, filled), "light", "heavy", "refs/notes/commits", "main:gone")
    assert same_everywhere(rabbitmq, filled) == {**work.refs(), "refs/heads/gone": work.tip()}
    shown = {ref["name"]: ref for ref in rabbitmq.local(3, f"/repos/{filled}/refs").body["refs"]}
    assert shown["refs/tags/heavy"]["peeled"] == work.tip("main~2")
    assert shown["refs/tags/light"]["peeled"] is None
    copy = rabbitmq.clone(3, filled, tmp_path / "copy")
    copy.git("fetch", "--quiet", "origin", "refs/notes/*:refs/notes/*")
    assert copy.git("notes", "show", "HEAD").out == "well done\n"
    assert copy.git("cat-file", "-t", "heavy").out == "tag\n"
    work.git("push", "--quiet", rabbitmq.url(3, filled), "--delete", "gone", "light", "heavy")
    assert same_everywhere(rabbitmq, filled).keys() == {"refs/heads/main", "refs/notes/commits"}
    copy.git("fetch", "--quiet", "--prune", "--prune-tags", "origin")
    assert copy.git("tag").out == ""


def test_force_rewrites_history_and_a_stale_lease_is_refused(
    rabbitmq: Cluster, filled: str, work: Work, tmp_path: Path
) -> None:
    other = rabbitmq.clone(2, filled, tmp_path / "other")
    work.git("reset", "--quiet", "--hard", "main~3")
    mine = work.commit("another way")
    assert "non-fast-forward" in work.git("push", rabbitmq.url(1, filled), "main", ok=False).err
    work.git("push", f"--force-with-lease=main:{other.tip()}", rabbitmq.url(3, filled), "main")
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": mine}
    other.commit("unaware")
    assert "stale info" in other.git("push", "--force-with-lease", "origin", "main", ok=False).err
    assert re.search("fetch first|non-fast-forward", other.git("push", "origin", "main", ok=False).err)
    other.git("push", "--force", "origin", "main")
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": other.tip()}


def test_a_mirror_push_makes_every_node_equal_to_its_source(rabbitmq: Cluster, filled: str, work: Work, tmp_path: Path) -> None:
    work.git("branch", "topic", "main~1")
    work.git("tag", "v1")
    work.git("push", "--quiet", "--mirror", rabbitmq.url(2, filled))
    assert same_everywhere(rabbitmq, filled) == work.refs()
    work.git("tag", "-d", "v1")
    work.git("branch", "-m", "topic", "theme")
    work.git("push", "--quiet", "--mirror", rabbitmq.url(3, filled))
    assert same_everywhere(rabbitmq, filled) == work.refs() == rabbitmq.clone(1, filled, tmp_path / "m", "--mirror").refs()


def test_small_buffers_push_in_chunks(rabbitmq: Cluster, filled: str, work: Work) -> None:
    oid = work.commit("chunky", size=300_000)
    settings = ("-c", "http.postBuffer=1024")
    ran = work.git(*settings, "push", rabbitmq.url(3, filled), "main", GIT_TRACE_CURL="1", GIT_TRACE_CURL_NO_DATA="1")
    assert "transfer-encoding: chunked" in ran.err.lower()
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": oid}


def test_compressed_requests_are_read_for_fetch_and_push(rabbitmq: Cluster, filled: str, work: Work, tmp_path: Path) -> None:
    copy = rabbitmq.clone(2, filled, tmp_path / "copy")
    own = (b"commit refs/heads/own\ncommitter A <a@b.c> %d +0000\ndata 1\nx\n" % (4_000_000_000 + n) for n in range(100))
    git("fast-import", "--quiet", cwd=copy.path, stdin=b"".join(own))
    for protocol in PROTOCOLS:
        oid = work.commit("theirs")
        work.git("push", "--quiet", rabbitmq.url(1, filled), "main")
        ran = copy.git(
            *speaking(protocol), "fetch", rabbitmq.url(3, filled), "main", GIT_TRACE_CURL="1", GIT_TRACE_CURL_NO_DATA="1"
        )
        assert "content-encoding: gzip" in ran.err.lower()
        assert copy.tip("FETCH_HEAD") == oid
    things = history(3, b"compressed\n")
    report = push(rabbitmq.url(2), filled, [(ZERO, things[-1].oid, "refs/heads/gzip")], pack_of(*things), compressed=True)
    assert (report.unpack, report.refs) == ("ok", {"refs/heads/gzip": "ok"})
    assert same_everywhere(rabbitmq, filled)["refs/heads/gzip"] == things[-1].oid


# ---------------------------------------------------------------- refusals


def test_refs_outside_the_writable_namespaces_are_refused_one_by_one(rabbitmq: Cluster, filled: str, work: Work) -> None:
    foreign = [f"refs/replace/{work.tip('main~1')}", "refs/pull/1/head", "refs/changes/01/1/1", "refs/meta/config"]
    refused = work.git(
        "push", rabbitmq.url(2, filled), "main:good", "main:refs/stash", *(f"main:{ref}" for ref in foreign), ok=False
    )
    assert refused.code == 1
    assert refused.err.count(NOT_WRITABLE) == len(foreign)
    assert "main -> refs/stash (a ref is named refs/<kind>/<name>)" in refused.err
    assert "main -> good" in refused.err
    assert same_everywhere(rabbitmq, filled).keys() == {"refs/heads/main", "refs/heads/good"}


def test_a_first_push_of_master_moves_head_on_every_node(rabbitmq: Cluster, work: Work, tmp_path: Path) -> None:
    name = rabbitmq.create(label="git")
    fill(work, 1)
    work.git("push", "--quiet", rabbitmq.url(1, name), "main:master")
    same_everywhere(rabbitmq, name)
    for node in NODES:
        listed = git("ls-remote", "--symref", rabbitmq.url(node, name), "HEAD", cwd=tmp_path).out
        assert "ref: refs/heads/master\tHEAD" in listed
        assert (rabbitmq.bare(node, name) / "HEAD").read_text() == "ref: refs/heads/master\n"
    copy = rabbitmq.clone(3, name, tmp_path / "copy")
    assert copy.git("symbolic-ref", "HEAD").out == "refs/heads/master\n"
    work.git("push", "--quiet", rabbitmq.url(2, name), "main")
    rabbitmq.agree(name)
    assert rabbitmq.local(1, f"/repos/{name}").body["head"] == "refs/heads/master", "HEAD stays once it names a branch"


def test_the_current_branch_cannot_be_deleted_and_others_can(rabbitmq: Cluster, filled: str, work: Work) -> None:
    work.git("push", "--quiet", rabbitmq.url(1, filled), "main:other")
    refused = work.git("push", rabbitmq.url(2, filled), ":main", ":other", ok=False)
    assert "main (deletion of the current branch prohibited)" in refused.err
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": work.tip()}


def test_a_name_that_differs_by_case_is_refused_and_leads_nowhere(rabbitmq: Cluster, filled: str, work: Work) -> None:
    shouted = filled.upper()
    for node in NODES:
        created = rabbitmq.post(node, "/repos", {"repo_id": shouted})
        assert created.status == 409, created
        assert "not found" in work.git("push", rabbitmq.url(node, shouted), "main:loud", ok=False).err
        assert "not found" in git("ls-remote", rabbitmq.url(node, shouted), cwd=work.path, ok=False).err
    assert same_everywhere(rabbitmq, filled).keys() == {"refs/heads/main"}


def test_a_directory_and_a_file_cannot_have_one_ref_name(rabbitmq: Cluster, filled: str, work: Work) -> None:
    refused = work.git("push", rabbitmq.url(2, filled), "main:refs/heads/main/below", ok=False)
    assert "cannot create 'refs/heads/main/below': 'refs/heads/main' exists" in refused.err
    work.git("push", "--quiet", rabbitmq.url(2, filled), "main:a/b")
    refused = work.git("push", rabbitmq.url(3, filled), "main:a", ok=False)
    assert "cannot create 'refs/heads/a': 'refs/heads/a/b' exists" in refused.err
    assert same_everywhere(rabbitmq, filled).keys() == {"refs/heads/main", "refs/heads/a/b"}


# ---------------------------------------------------------------- sizes


class Memory:
    """Resident memory of each node, sampled; with that of its git processes, too."""

    def __init__(self, cluster: Cluster) -> None:
        self._nodes = {node: psutil.Process(cluster.pid(node)) for node in NODES}
        self.before = self._own()
        self.peak = dict(self.before)
        self.peak_with_git = dict(self.before)

    def sample(self) -> None:
        for node, size in self._own().items():
            self.peak[node] = max(self.peak[node], size)
            self.peak_with_git[node] = max(self.peak_with_git[node], size + self._git(node))

    def _own(self) -> dict[int, int]:
        return {node: int(process.memory_info().rss) for node, process in self._nodes.items()}

    def _git(self, node: int) -> int:
        total = 0
        for child in self._nodes[node].children(recursive=True):
            try:
                memory = child.memory_info()
            except psutil.Error:
                continue
            # A pack mapped from the page cache is no memory that git asked for.
            total += memory.rss - memory.shared
        return total

    def growth(self, peak: dict[int, int]) -> dict[int, float]:
        """MiB."""
        return {node: round((peak[node] - self.before[node]) / MIB, 1) for node in NODES}


@contextmanager
def watched(cluster: Cluster) -> Iterator[Memory]:
    """Samples every 20 ms while the block runs."""
    memory, ended = Memory(cluster), Event()

    def watch() -> None:
        while not ended.wait(0.02):
            memory.sample()

    thread = Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()
    memory.sample()


def test_a_pack_of_a_hundred_megabytes_costs_no_node_its_memory(
    rabbitmq: Cluster, filled: str, work: Work, tmp_path: Path
) -> None:
    with open(work.path / "noise", "wb") as file:
        for _ in range(100):
            file.write(os.urandom(MIB))
    plain = ("-c", "core.bigFileThreshold=1m", "-c", "core.compression=0")
    work.git(*plain, "add", "noise")
    work.git("commit", "--quiet", "-m", "noise")
    with watched(rabbitmq) as memory:
        pushed = work.git(*plain, "push", "--progress", rabbitmq.url(1, filled), "main")
        began = time.monotonic()
        git("clone", "--quiet", "--bare", rabbitmq.url(2, filled), "copy", cwd=tmp_path)
        cloned_s = time.monotonic() - began
    own, with_git = memory.growth(memory.peak), memory.growth(memory.peak_with_git)
    print(f"100 MiB: push {pushed.seconds:.1f} s, clone {cloned_s:.1f} s, MiB grown {own}, with git {with_git}")  # noqa: T201
    assert "committed on 3/3" in pushed.err
    assert max(own.values()) < 80, own
    assert max(with_git.values()) < 160, with_git
    assert Work(tmp_path / "copy").tip("main") == work.tip()
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": work.tip()}
    rabbitmq.cli("repo", "delete", filled, "--yes")  # 300 MB that nobody needs any more


def test_a_thousand_refs_are_pushed_listed_paged_and_deleted(rabbitmq: Cluster, filled: str, work: Work) -> None:
    tip = work.tip()
    creates = "".join(f"create refs/tags/t{number:04} {tip}\n" for number in range(1000))
    git("update-ref", "--stdin", cwd=work.path, stdin=creates.encode())
    ran = work.git("push", "--quiet", rabbitmq.url(1, filled), "--tags")
    assert ran.seconds < 10
    assert len(same_everywhere(rabbitmq, filled)) == 1001
    for protocol in PROTOCOLS:
        listed = git(*speaking(protocol), "ls-remote", "--tags", rabbitmq.url(2, filled), cwd=work.path)
        assert refs_of(listed.out) == {ref: oid for ref, oid in work.refs().items() if ref.startswith("refs/tags/")}
    change = rabbitmq.history(3, filled)[-1]
    assert sum(each["update_count"] for each in change["requests"]) == 1000, "one change"
    git("update-ref", "--stdin", cwd=work.path, stdin=creates.replace("create", "delete").encode())
    work.git("push", "--quiet", "--prune", rabbitmq.url(3, filled), "refs/tags/*:refs/tags/*")
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": tip}


# ---------------------------------------------------------------- another implementation of git


def test_a_dulwich_client_clones_from_one_node_and_pushes_to_another(
    rabbitmq: Cluster, filled: str, work: Work, tmp_path: Path
) -> None:
    target = tmp_path / "dulwich"
    with porcelain.clone(rabbitmq.url(2, filled), str(target), errstream=io.BytesIO()) as repo:
        assert repo.head().decode() == work.tip()
        (target / "written").write_text(random.randbytes(50).hex())
        porcelain.add(repo, [str(target / "written")])
        oid = porcelain.commit(repo, message=b"by dulwich", author=b"D <d@e.org>", committer=b"D <d@e.org>")
        out = io.BytesIO()
        porcelain.push(repo, rabbitmq.url(3, filled), "refs/heads/main", outstream=out, errstream=out)
    assert same_everywhere(rabbitmq, filled) == {"refs/heads/main": oid.decode()}
    with Repo(str(target)) as repo:
        fetched = porcelain.fetch(repo, rabbitmq.url(1, filled), outstream=io.StringIO(), errstream=io.BytesIO())
    assert fetched.refs[Ref(b"refs/heads/main")] == oid
