"""A real history through the cluster: pushed to one node, cloned from the others at once (issue: Shows 2 and 7)."""

from pathlib import Path

import pytest

from tests.cluster.harness import Cluster, Work, git

pytestmark = pytest.mark.cluster


def fsck(path: Path) -> list[str]:
    """What ``git fsck --strict`` says of old sins; fails if it finds more than those."""
    ran = git("fsck", "--strict", "--no-dangling", "--no-progress", cwd=path, ok=False, timeout_s=120)
    return sorted(ran.said.splitlines())


def test_a_real_history_is_on_every_node_when_the_push_returns(cluster: Cluster, starlette: Work, tmp_path: Path) -> None:
    name = cluster.create()
    source = starlette.refs()
    assert len(source) > 170
    with cluster.leaving_nothing(stage=False):
        pushed = starlette.git("push", "--mirror", cluster.url(1, name))
    assert "gitquorum: version 2 committed on 3/3 (quorum 2) tx " in pushed.err
    expected = fsck(starlette.path)
    for node in (2, 3):
        clone = cluster.clone(node, name, tmp_path / f"clone-{node}", "--mirror")
        assert clone.refs() == source
        assert fsck(clone.path) == expected
    for node in (1, 2, 3):
        assert cluster.disk_refs(node, name) == source
        assert fsck(cluster.bare(node, name)) == expected
    assert cluster.agree(name) == 2


def test_a_second_mirror_push_changes_nothing_and_says_so(cluster: Cluster, work: Work) -> None:
    name = cluster.create()
    work.commit()
    work.git("tag", "-a", "v1", "-m", "v1")
    work.git("push", "--mirror", cluster.url(1, name))
    again = work.git("push", "--mirror", cluster.url(2, name))
    assert "Everything up-to-date" in again.err
    assert cluster.agree(name) == 2


def test_every_push_is_read_from_another_node_at_once(cluster: Cluster, work: Work) -> None:
    """Read your writes, anywhere: the read barrier, not luck."""
    name = cluster.create()
    for number in range(12):
        oid = work.commit(f"commit {number}")
        taker, reader = 1 + number % 3, 1 + (number + 1) % 3
        work.git("push", cluster.url(taker, name), "HEAD:main")
        assert cluster.ls_remote(reader, name) == {"refs/heads/main": oid}
    assert cluster.agree(name) == 13


def test_a_large_push_travels_as_a_claim_check_and_leaves_no_quarantine(cluster: Cluster, work: Work) -> None:
    name = cluster.create()
    oid = work.commit("large", size=9_000_000)
    with cluster.leaving_nothing(stage=False):
        pushed = work.git("push", "--progress", cluster.url(3, name), "HEAD:main")
    assert "gitquorum: staging " in pushed.err
    assert "committed on 3/3" in pushed.err
    for node in (1, 2, 3):
        assert cluster.ls_remote(node, name) == {"refs/heads/main": oid}
        assert git("fsck", "--strict", cwd=cluster.bare(node, name)).code == 0


def test_the_certificate_of_a_push_is_shown_by_every_node(cluster: Cluster, work: Work) -> None:
    name = cluster.create()
    work.commit()
    txn = work.git("push", cluster.url(1, name), "HEAD:main").transaction
    cluster.agree(name)
    for node in (1, 2, 3):
        change = cluster.history(node, name)[1]
        assert [each["transaction_id"] for each in change["requests"]] == [txn]
        certificate = change["certificate"]
        assert certificate is not None, f"node-{node}"
        assert certificate["digest"] == change["digest"]
        assert len({vote["node_id"] for vote in certificate["votes"]}) >= certificate["quorum"] == 2
        assert certificate["decision"]["node_id"] == "node-1"
