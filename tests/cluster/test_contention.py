"""Two clones push different commits to the same branch through two nodes in the same moment (issue: Shows 6 and 7).

Exactly one wins every round, the other hears git's own words, and nobody waits longer than the deadline. The number of rounds
is ``GITQUORUM_TEST_ROUNDS``; figures are printed with ``-s``.
"""

import os
import re
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier

import pytest

from tests.cluster.harness import DEADLINE_S, GIT, NODES, Cluster, Ran, Work, git, wait

pytestmark = pytest.mark.cluster

ROUNDS = int(os.environ.get("GITQUORUM_TEST_ROUNDS", "20"))

GIT_S = 1.0
"""What git itself, twice at once on a small machine, may add to a wait."""

STALE = re.compile(r"fetch first|stale info|non-fast-forward|remote rejected.*(fetch first|stale|changed|moved)")


@dataclass
class Tally:
    """What the rounds brought."""

    waits: list[float] = field(default_factory=list)
    """Of every push, in seconds."""
    wins: list[int] = field(default_factory=list)
    """The node through which each round was won."""
    words: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        waits = sorted(self.waits)
        share = {node: self.wins.count(node) for node in set(self.wins)}
        return (
            f"{len(self.wins)} rounds, wins {share}, a push took median {statistics.median(waits) * 1000:.0f} ms, "
            f"p95 {waits[int(len(waits) * 0.95)] * 1000:.0f} ms, max {waits[-1] * 1000:.0f} ms; losers heard {self.words}"
        )


@pytest.mark.timeout(60 + 6 * ROUNDS)
def test_of_two_pushes_to_one_branch_exactly_one_wins_every_round(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.create()
    clones = [cluster.clone(node, name, tmp_path / f"clone-{node}") for node in (1, 2)]
    clones[0].commit("start")
    clones[0].git("push", "origin", "HEAD:main")
    tally, barrier = Tally(), Barrier(2)

    def push(clone: Work) -> Ran:
        barrier.wait(30)
        return clone.git("push", "origin", "HEAD:main", ok=False)

    with ThreadPoolExecutor(2) as pool:
        for number in range(ROUNDS):
            oids = [begin_round(clone, number) for clone in clones]
            ran = list(pool.map(push, clones))
            tally.waits += [each.seconds for each in ran]
            winners = [index for index in (0, 1) if ran[index].code == 0]
            assert len(winners) == 1, f"round {number}: {len(winners)} won:\n{ran[0].said}\n{ran[1].said}"
            (won,) = winners
            heard = STALE.search(ran[1 - won].err)
            assert heard, f"round {number}: the loser heard\n{ran[1 - won].said}"
            tally.words[heard[0]] = tally.words.get(heard[0], 0) + 1
            tally.wins.append(won + 1)
            assert cluster.ls_remote(3, name)["refs/heads/main"] == oids[won], f"round {number}"
    print(f"\n{cluster.broker}: {tally}")  # noqa: T201
    assert max(tally.waits) < DEADLINE_S + GIT_S, tally
    assert cluster.agree(name) == ROUNDS + 2
    assert set(tally.wins) <= {1, 2}
    for node in NODES:
        assert cluster.disk_refs(node, name) == {"refs/heads/main": oids[won]}


def begin_round(clone: Work, number: int) -> str:
    """On top of what the last round left, a commit that the other does not have."""
    clone.git("fetch", "--quiet", "origin")
    clone.git("reset", "--quiet", "--hard", "origin/main")
    return clone.commit(f"round {number} by {clone.path.name}")


def test_pushes_to_different_branches_through_all_nodes_all_win(cluster: Cluster, tmp_path: Path) -> None:
    """They meet in one register, and must not refuse each other: nobody's old value was touched."""
    name = cluster.create()
    works = [Work.init(tmp_path / f"work-{number}") for number in range(6)]
    for work in works:
        work.commit("start")
    barrier = Barrier(len(works))

    def push(number: int) -> list[Ran]:
        barrier.wait(30)
        ran = []
        for turn in range(4):
            works[number].commit(f"turn {turn}")
            url = cluster.url(1 + (number + turn) % 3, name)
            ran.append(works[number].git("push", url, f"HEAD:refs/heads/b{number}", ok=False))
        return ran

    with ThreadPoolExecutor(len(works)) as pool:
        ran = [each for several in pool.map(push, range(len(works))) for each in several]
    refused = [each.said for each in ran if each.code != 0]
    assert not refused, "\n".join(refused)
    cluster.agree(name)
    expected = {f"refs/heads/b{number}": work.tip() for number, work in enumerate(works)}
    for node in NODES:
        assert cluster.refs(node, name) == cluster.disk_refs(node, name) == expected


def test_creations_of_one_name_through_all_nodes_have_one_winner(cluster: Cluster) -> None:
    for number in range(5):
        name = f"contest/{cluster.broker}-{number}-{time.monotonic_ns()}"
        barrier = Barrier(3)

        def create(node: int, name: str = name, barrier: Barrier = barrier) -> int:
            barrier.wait(30)
            return cluster.post(node, "/repos", {"repo_id": name}).status

        with ThreadPoolExecutor(3) as pool:
            answers = sorted(pool.map(create, NODES))
        assert answers == [201, 409, 409]
        assert cluster.agree(name) == 1


def test_readers_under_a_stream_of_pushes_never_go_back_in_time(cluster: Cluster, work: Work) -> None:
    """Each read on any node sees at least what the read before it saw, on whatever node that was."""
    name = cluster.create()
    order = [work.commit(f"commit {number}") for number in range(15)]
    seen: list[str] = []
    with ThreadPoolExecutor(1) as pool:

        def push_all() -> None:
            for oid in order:
                git("push", "--quiet", cluster.url(1, name), f"{oid}:refs/heads/main", cwd=work.path)

        pushing = pool.submit(push_all)
        while not pushing.done():
            for node in (2, 3, 1):
                answer = cluster.get(node, f"/repos/{name}/refs")
                assert answer.ok, answer
                seen += [ref["oid"] for ref in answer.body["refs"]]
        pushing.result()
    places = [order.index(oid) for oid in seen]
    assert places == sorted(places)
    assert len(set(places)) > 3, "the reads met the pushes"


def test_a_killed_client_leaves_its_push_whole_or_absent(cluster: Cluster, work: Work) -> None:
    name = cluster.create()
    first = work.commit()
    work.git("push", cluster.url(1, name), "HEAD:main")
    oid = work.commit(size=3_000_000)
    with cluster.leaving_nothing(stage=False, timeout_s=10):
        for delay_s in (0.03, 0.08, 0.15):
            pushing = subprocess.Popen(
                [GIT, "-C", str(work.path), "push", "-q", cluster.url(1, name), "HEAD:main"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            time.sleep(delay_s)
            pushing.kill()
            pushing.wait(10)
            assert cluster.ls_remote(2, name)["refs/heads/main"] in (first, oid)
    # A push whose client is gone may still be under way, and win.
    wait(lambda: work.git("push", cluster.url(1, name), "HEAD:main", ok=False).code == 0, 5, "pushed in the end")
    assert cluster.ls_remote(3, name) == {"refs/heads/main": oid}
    cluster.agree(name)
    git("fsck", "--strict", cwd=cluster.bare(1, name))
