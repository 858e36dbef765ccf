"""Nodes and broker that die, at the worst moments (issue: Shows 3, 4, 5 and 7; replication.md C3–C8, R1, V6).

A push that is in doubt is made with git's ``pre-push`` hook: it runs when git has read the refs and has sent nothing yet. The
coordinator's death between votes and decision is a fault point of the node (node/faults.py); its log line is counted, so that
a fault which never fired fails the test.
"""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.harness import (
    ABORT_S,
    DEADLINE_S,
    NODES,
    Cluster,
    Ran,
    Work,
    git,
    timed,
    txns_of,
    wait,
)
from tests.cluster.wire import ZERO, push

pytestmark = pytest.mark.cluster

GIT_S = 1.0
"""What git itself and a busy machine may add to a wait."""

OLD_SINS = [
    word for sin in ("badTimezone", "missingSpaceBeforeDate", "zeroPaddedFilemode") for word in ("-c", f"fsck.{sin}=ignore")
]
"""What honest old histories may carry (architecture.md); other tests' repositories do."""


def clear(ran: Ran) -> str:
    """The line with which a refused push was explained: one, in words, with a reason."""
    assert ran.code != 0, ran.said
    assert "Traceback" not in ran.said
    lines = [line for line in ran.err.splitlines() if "remote rejected" in line or line.startswith("remote: ")]
    assert lines, f"no line says why:\n{ran.said}"
    return lines[-1]


def where(cluster: Cluster, name: str, oid: str) -> set[int]:
    """Nodes whose history made ``oid`` the value of some ref."""
    return {
        node
        for node in NODES
        for change in cluster.history(node, name)
        for each in change["requests"]
        if any(update["new"] == oid for update in each["updates"])
    }


# ---------------------------------------------------------------- Shows 3


def test_two_of_three_go_on_one_alone_refuses_and_both_come_back_by_themselves(cluster: Cluster, work: Work) -> None:
    name = cluster.create()
    url = cluster.url(1, name)
    work.commit()
    assert "committed on 3/3" in work.git("push", url, "HEAD:main").err

    cluster.cli("kill", "node-3")
    cluster.tainted(3)
    second = work.commit()
    pushed = work.git("push", url, "HEAD:main")
    assert "committed on 2/3 (quorum 2)" in pushed.err

    cluster.cli("kill", "node-2")
    cluster.tainted(2)
    third = work.commit()
    refused = work.git("push", url, "HEAD:main", ok=False)
    line = clear(refused)
    assert refused.seconds < DEADLINE_S + GIT_S
    assert "node-2" in line
    assert "node-3" in line
    for _ in range(3):
        later = work.git("push", url, "HEAD:main", ok=False)
        assert "node-2" in clear(later)
        assert later.seconds < GIT_S, "refused at once"

    cluster.start(2)
    cluster.start(3)
    with timed() as seconds:
        cluster.agree(name, timeout_s=10)
        print(f"\n{cluster.broker}: refused after {refused.seconds:.2f} s; equal {seconds():.2f} s after both served again")  # noqa: T201
        assert seconds() < 10
    for node in NODES:
        assert cluster.refs(node, name)["refs/heads/main"] in (second, third)
    held = where(cluster, name, third)
    assert held in (set(), {1, 2, 3})
    if "outcome unknown" in line:
        shown = wait(lambda: told(cluster, refused.transaction, 1), 10, "the doubtful push is settled")
        assert shown["outcome"] == ("committed" if held else "aborted")
        assert shown["settled_by"]
    else:
        assert not held, "aborted is for ever"
    assert re.search("committed on|Everything up-to-date", work.git("push", url, "HEAD:main").err)


def test_peers_that_fall_silent_cost_one_deadline_and_no_more(cluster: Cluster, work: Work) -> None:
    """Frozen before git reads the refs: that look must not be paid for on top of the deadline."""
    name = cluster.create()
    url = cluster.url(1, name)
    work.commit()
    work.git("push", url, "HEAD:main")
    work.commit()
    cluster.pause(2)
    cluster.pause(3)
    refused = work.git("push", url, "HEAD:main", ok=False)
    cluster.resume(2)
    cluster.resume(3)
    line = clear(refused)
    assert "node-2" in line
    assert "node-3" in line
    assert refused.seconds < DEADLINE_S + 1.0 + GIT_S / 2
    cluster.agree(name)


def test_a_push_through_a_node_that_wakes_up_behind_is_taken(cluster: Cluster, work: Work) -> None:
    """A load balancer showed the client the refs of node 1; its push waits at node 2, which is frozen meanwhile and lacks the
    commit that the push builds on when it looks at it."""
    name = cluster.create()
    work.commit("on all nodes")
    work.git("push", cluster.url(1, name), "HEAD:main")
    cluster.agree(name)
    rounds = behind = 0
    while behind < 2 and rounds < 8:
        number, rounds = rounds, rounds + 1
        cluster.pause(2)
        seen = work.commit(f"seen on node 1, {number}")
        assert "committed on 2/3" in work.git("push", cluster.url(1, name), "HEAD:main").err
        new = work.commit(f"on top, {number}")
        pack = work.pack(new, seen)
        with ThreadPoolExecutor(1) as pool:
            pushed = pool.submit(push, cluster.url(2), name, [(ZERO, new, f"refs/heads/b{number}")], pack)
            wait(lambda: cluster.knocking(2), 5, "the push waits at the frozen node")
            cluster.resume(2)
            report = pushed.result()
        assert (report.unpack, report.refs) == ("ok", {f"refs/heads/b{number}": "ok"})
        wait(cluster.ready, 10, "node-2 is trusted again")
        behind = cluster.log(2).count("caught up for a push")
    print(f"\n{cluster.broker}: behind in {behind} of {rounds} pushes")  # noqa: T201
    assert behind, "node-2 was never behind"
    cluster.agree(name)


def test_a_push_that_loses_its_quorum_on_the_way_is_answered_in_time_and_settled(cluster: Cluster, work: Work) -> None:
    """Node 2 dies when git has read the refs: the coordinator may have sent a prepare before it learned of it."""
    name = cluster.create()
    url = cluster.url(1, name)
    first = work.commit()
    work.git("push", url, "HEAD:main")
    cluster.kill(3)
    doubtful = work.commit()
    work.hook("pre-push", cluster.will_be_killed(2))
    refused = work.git("push", url, "HEAD:main", ok=False)
    line = clear(refused)
    assert refused.seconds < DEADLINE_S + GIT_S + ABORT_S
    assert re.search(r"quorum not reached|outcome unknown|nothing was sent", line), line
    assert "node-2" in line
    cluster.start(2, 3)
    cluster.agree(name)
    held = where(cluster, name, doubtful)
    assert held in (set(), {1, 2, 3})
    if "outcome unknown" in line:
        shown = wait(lambda: told(cluster, refused.transaction, 1), 10, "the doubtful push is settled")
        assert (shown["outcome"] == "committed") == bool(held)
    else:
        assert not held, "aborted is for ever"
    assert cluster.ls_remote(2, name) == {"refs/heads/main": doubtful if held else first}


def told(cluster: Cluster, txn: str, node: int) -> dict[str, object] | None:
    """What ``tx show`` says, once it is certain."""
    shown = cluster.tx_show(txn, node)
    return shown if shown["outcome"] in ("committed", "aborted") else None


@pytest.mark.parametrize(
    ("cluster", "fate"), [("rabbitmq", "goes on"), ("direct", "goes on"), ("rabbitmq", "restarts")], indirect=["cluster"]
)
def test_a_push_that_nobody_answers_is_unknown_then_settled_and_tx_show_tells_how(
    cluster: Cluster, work: Work, fate: str
) -> None:
    """Both peers are frozen when the prepare is sent; then they thaw, or die and start again."""
    name = cluster.create()
    url = cluster.url(1, name)
    first = work.commit()
    work.git("push", url, "HEAD:main")
    doubtful = work.commit()
    work.hook("pre-push", cluster.will_be_paused(2, 3))
    refused = work.git("push", url, "HEAD:main", ok=False)
    line = clear(refused)
    assert "outcome unknown" in line, line
    assert "node-2" in line, "it names the nodes"
    assert "node-3" in line
    assert f"/transactions/{refused.transaction}" in line
    assert refused.seconds < DEADLINE_S + ABORT_S + GIT_S
    if fate == "restarts":
        cluster.kill(2, 3)
        cluster.start(2, 3)
    else:
        cluster.resume(2)
        cluster.resume(3)
    with timed() as seconds:
        cluster.agree(name)
        shown = wait(lambda: told(cluster, refused.transaction, 1), 10, "the doubtful push is settled")
        print(f"\n{cluster.broker}, {fate}: unknown after {refused.seconds:.2f} s, {shown['outcome']} within {seconds():.2f} s")  # noqa: T201
        assert seconds() < 12
    assert shown["settled_by"], shown
    held = where(cluster, name, doubtful)
    assert held == ({1, 2, 3} if shown["outcome"] == "committed" else set())
    for node in NODES:
        assert cluster.ls_remote(node, name) == {"refs/heads/main": doubtful if held else first}
    (work.path / ".git/hooks/pre-push").unlink()
    assert "Everything up-to-date" in work.git("push", url, "HEAD:main").err or not held


# ---------------------------------------------------------------- Shows 4


@pytest.mark.parametrize(
    ("cluster", "fault"),
    [("rabbitmq", "before-decision"), ("direct", "before-decision"), ("rabbitmq", "before-commit-sent")],
    indirect=["cluster"],
)
def test_a_coordinator_that_dies_between_votes_and_commit_is_finished_by_another(
    cluster: Cluster, work: Work, fault: str
) -> None:
    """A quorum holds the change, so whoever settles must finish it (C3): it is never aborted."""
    name = cluster.create()
    first = work.commit()
    work.git("push", cluster.url(2, name), "HEAD:main")
    cluster.arm(fault, 1)
    doubtful = work.commit()
    cut = work.git("push", cluster.url(1, name), "HEAD:main", ok=False)
    died_at = time.monotonic()
    assert cut.code != 0
    assert cluster.fired(1, fault) == 1, "the fault did not fire"
    wait(
        lambda: all(len(cluster.history(node, name)) == 3 for node in (2, 3)),
        2 * DEADLINE_S,
        "the others settle within two deadlines",
    )
    settled_s = time.monotonic() - died_at
    print(f"\n{cluster.broker}, {fault}: settled {settled_s:.2f} s after the coordinator's death")  # noqa: T201
    assert settled_s < 2 * DEADLINE_S
    cluster.agree(name, 2, 3, timeout_s=2)
    assert cluster.ls_remote(3, name) == {"refs/heads/main": doubtful}, first
    cluster.start(1)
    cluster.agree(name)
    assert where(cluster, name, doubtful) == {1, 2, 3}
    (txn,) = txns_of(cluster.history(2, name)[2])
    for node in NODES:
        shown = wait(lambda node=node: told(cluster, txn, node), 10, f"node-{node} can tell")  # type: ignore[misc]
        assert shown["outcome"] == "committed"
        assert shown["version"] == 3
        assert shown["node_id"] == "node-1"
    shown = cluster.tx_show(txn, 1)
    assert re.search(r"decided by node-[123] at ballot|found in history", str(shown["settled_by"])), shown


def test_voters_that_die_after_their_yes_leave_a_doubt_that_is_settled_when_they_return(rabbitmq: Cluster, work: Work) -> None:
    """Both peers have accepted durably and told nobody: the coordinator may not say aborted, and the three must agree."""
    cluster = rabbitmq
    name = cluster.create()
    first = work.commit()
    work.git("push", cluster.url(1, name), "HEAD:main")
    cluster.arm("after-accept", 2, 3)
    doubtful = work.commit()
    refused = work.git("push", cluster.url(1, name), "HEAD:main", ok=False)
    line = clear(refused)
    assert "outcome unknown" in line, line
    wait(lambda: cluster.fired(2, "after-accept") == cluster.fired(3, "after-accept") == 1, 2, "both faults fire")
    cluster.start(2, 3)
    cluster.agree(name)
    shown = wait(lambda: told(cluster, refused.transaction, 1), 10, "the doubtful push is settled")
    held = where(cluster, name, doubtful)
    assert held == ({1, 2, 3} if shown["outcome"] == "committed" else set())
    assert cluster.ls_remote(2, name) == {"refs/heads/main": doubtful if held else first}


def test_one_voter_that_dies_after_its_yes_is_not_missed(direct: Cluster, work: Work) -> None:
    name = direct.create()
    work.commit()
    work.git("push", direct.url(1, name), "HEAD:main")
    direct.arm("after-accept", 2)
    work.commit()
    pushed = work.git("push", direct.url(1, name), "HEAD:main")
    assert "committed on 2/3" in pushed.err
    assert direct.fired(2, "after-accept") == 1
    direct.start(2)
    assert direct.agree(name) == 3


# ---------------------------------------------------------------- Shows 5


class Pusher(threading.Thread):
    """Pushes one commit after another to its own branch until told to stop; remembers what became of each."""

    def __init__(self, cluster: Cluster, node: int, name: str, work: Work) -> None:
        super().__init__(name=f"pusher to node-{node}")
        self.branch = f"refs/heads/from-{node}"
        self.work = work
        self.acknowledged: list[tuple[float, str]] = []
        """(when, commit)."""
        self.refused: list[tuple[float, Ran]] = []
        self._url = cluster.url(node, name)
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            oid = self.work.commit()
            pushed = self.work.git("push", self._url, f"HEAD:{self.branch}", ok=False)
            if pushed.code == 0:
                self.acknowledged.append((time.monotonic(), oid))
            else:
                self.refused.append((time.monotonic(), pushed))
                self._ended.wait(0.1)

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=60)
        assert not self.is_alive()


def test_a_broker_that_is_killed_during_pushes_costs_clean_failures_and_no_acknowledged_push(
    own_rabbitmq: Cluster, tmp_path: Path
) -> None:
    cluster = own_rabbitmq
    name = cluster.create()
    pushers = [Pusher(cluster, node, name, Work.init(tmp_path / f"work-{node}")) for node in (1, 2)]
    for pusher in pushers:
        pusher.start()
    try:
        time.sleep(1.5)
        cluster.broker_kill()
        killed_at = time.monotonic()
        time.sleep(2.5)
        for node in NODES:
            assert cluster.ls_remote(node, name), "reads need no broker"
            assert cluster.get(node, f"/repos/{name}").ok
        created = cluster.post(3, "/repos", {"repo_id": "without/broker"})
        assert created.status == 503, created
        assert created.body["type"] == "/problems/quorum-not-reached"
        assert cluster.get(1, "/readyz?role=write").status == 503
        assert cluster.get(1, "/readyz").ok
        cluster.broker_start()
        back_at = time.monotonic()
        wait(
            lambda: all(pusher.acknowledged and pusher.acknowledged[-1][0] > back_at for pusher in pushers),
            5,
            "pushes work again within 5 s",
        )
        firsts = [min(at for at, _ in pusher.acknowledged if at > back_at) - back_at for pusher in pushers]
        time.sleep(1)
    finally:
        for pusher in pushers:
            pusher.stop()
    cluster.agree(name)
    counts = [(len(pusher.acknowledged), len(pusher.refused)) for pusher in pushers]
    print(f"\n(acknowledged, refused) {counts}; first pushes {firsts} s after the broker's return")  # noqa: T201
    for pusher in pushers:
        assert any(at > killed_at for at, _ in pusher.refused), "the broker's death was noticed"
        assert len([at for at, _ in pusher.acknowledged if at < killed_at]) >= 2
        for _, ran in pusher.refused:
            assert re.search(r"quorum not reached|nothing was sent|outcome unknown|not in reach", clear(ran)), ran.said
        for node in NODES:
            tip = cluster.refs(node, name)[pusher.branch]
            lost = [oid for _, oid in pusher.acknowledged if not pusher.work.is_ancestor(oid, tip)]
            assert not lost, f"node-{node} lost {lost}"
            git("fsck", "--strict", cwd=cluster.bare(node, name))


# ---------------------------------------------------------------- crashes of everything


def test_what_was_acknowledged_survives_the_death_of_all_nodes_at_once(cluster: Cluster, work: Work, tmp_path: Path) -> None:
    names = [cluster.create(node) for node in NODES]
    expected: dict[str, dict[str, str]] = {name: {} for name in names}
    for number in range(9):
        name, node = names[number % 3], 1 + (number // 2) % 3
        oid = work.commit(size=200 if number != 4 else 300_000)
        work.git("push", cluster.url(node, name), f"HEAD:refs/heads/b{number}")
        expected[name][f"refs/heads/b{number}"] = oid
    cluster.kill(*NODES)
    cluster.up()
    for name in names:
        cluster.agree(name)
        for node in NODES:
            assert cluster.refs(node, name) == expected[name]
            assert cluster.disk_refs(node, name) == expected[name]
            assert cluster.ls_remote(node, name) == expected[name]
            git("fsck", "--strict", cwd=cluster.bare(node, name))
    for node in NODES:
        for bare in (cluster.home / f"node-{node}" / "data").glob("*/*.git"):
            ran = git(*OLD_SINS, "fsck", "--strict", "--no-dangling", "--no-progress", cwd=bare, ok=False)
            assert ran.code == 0, f"{bare}: {ran.said}"


def test_a_push_that_was_not_synced_is_replayed_from_the_journal(direct: Cluster, work: Work) -> None:
    """As after a power cut: the node is killed before it synced the repository, and the repository's files are lost."""
    name = direct.create()
    first = work.commit()
    work.git("push", direct.url(1, name), "HEAD:main")
    time.sleep(1.6)  # synced by now (replica.SYNC_DELAY_S)
    second = work.commit()
    work.git("push", direct.url(1, name), "HEAD:main", "HEAD:refs/heads/new")
    direct.kill(1)
    bare = direct.bare(1, name)
    assert direct.disk_refs(1, name) == {"refs/heads/main": second, "refs/heads/new": second}
    packs = sorted((bare / "objects" / "pack").iterdir(), key=lambda path: path.stat().st_mtime)
    newest = packs[-1].stem
    for path in packs:
        if path.stem == newest:
            path.unlink()
    (bare / "packed-refs").unlink(missing_ok=True)
    for ref in [path for path in (bare / "refs").rglob("*") if path.is_file()]:
        ref.unlink()
    direct.start(1)
    assert direct.disk_refs(1, name) == direct.refs(1, name) == {"refs/heads/main": second, "refs/heads/new": second}
    git("fsck", "--strict", cwd=bare)
    assert direct.agree(name) == 3, first


def test_a_node_killed_right_after_it_answered_shows_the_push_on_its_disk(rabbitmq: Cluster, work: Work) -> None:
    cluster = rabbitmq
    name = cluster.create()
    for _ in range(3):
        oid = work.commit()
        work.git("push", cluster.url(1, name), "HEAD:main")
        cluster.kill(1)
        cluster.start(1)
        assert cluster.disk_refs(1, name) == cluster.refs(1, name) == {"refs/heads/main": oid}
        git("fsck", "--strict", cwd=cluster.bare(1, name))
        wait(cluster.ready, 20, "all well again")
    cluster.agree(name)


def test_a_lagging_node_catches_up_with_small_and_large_packs_and_deletions(direct: Cluster, work: Work) -> None:
    name, doomed = direct.create(), direct.create()
    work.commit()
    work.git("push", direct.url(1, name), "HEAD:main", "HEAD:refs/heads/gone")
    direct.kill(3)
    work.commit(size=400_000)
    work.git("push", direct.url(2, name), "HEAD:main")
    work.git("push", direct.url(1, name), ":refs/heads/gone")
    work.git("push", direct.url(1, name), "HEAD:refs/tags/v1")
    assert direct.cli("repo", "delete", doomed, "--yes", "--node", "1").code == 0
    fresh = direct.create()
    work.git("push", direct.url(1, fresh), "HEAD:main")
    direct.start(3)
    direct.agree(name)
    direct.agree(fresh)
    assert direct.disk_refs(3, name) == {"refs/heads/main": work.tip(), "refs/tags/v1": work.tip()}
    git("fsck", "--strict", cwd=direct.bare(3, name))
    wait(lambda: direct.local(3, f"/repos/{doomed}").status == 404, 10, "node-3 learns of the deletion")
    assert not direct.bare(3, doomed).exists()
