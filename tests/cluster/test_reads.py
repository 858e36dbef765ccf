"""Strong reads on real nodes (R5) while a coordinator's work is taken over, on a node that is behind, and under a partition."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from node.command.client import request
from tests.cluster.harness import DEADLINE_S, Cluster, Work, timed, wait
from tests.cluster.wire import Reply, call

pytestmark = pytest.mark.cluster

TOKEN = "a secret for drills"
MAIN = "refs/heads/main"
LOCAL = {"X-Gitquorum-Consistency": "local"}


def get(cluster: Cluster, node: int, path: str, *headers: dict[str, str]) -> Reply:
    return call(cluster.url(node), "GET", path, headers={name: value for each in headers for name, value in each.items()})


def refs(reply: Reply) -> dict[str, str]:
    assert reply.status == 200, reply
    return {ref["name"]: ref["oid"] for ref in reply.json["refs"]}


def main(cluster: Cluster, node: int, name: str) -> str | None:
    """What a strong read shows as the branch; ``None`` where it is refused for want of a majority, and nothing else is said."""
    answer = get(cluster, node, f"/repos/{name}/refs")
    if answer.status == 503:
        assert answer.json["type"] == "/problems/read-unavailable", answer
        return None
    assert answer.headers["x-gitquorum-consistency"] == "linearizable"
    return refs(answer).get(MAIN)


@pytest.mark.parametrize(
    ("cluster", "fault"),
    [("rabbitmq", "before-decision"), ("direct", "before-decision"), ("direct", "before-commit-sent")],
    indirect=["cluster"],
)
def test_strong_reads_during_a_takeover_never_go_back_and_end_with_what_was_finished(
    cluster: Cluster, work: Work, fault: str
) -> None:
    """The coordinator dies with a quorum's votes. Until another finishes its change nobody may be shown the change by one node
    and then the value before it by the other; nor anything but what was acknowledged before, or that change."""
    name = cluster.create()
    first = work.commit()
    work.git("push", cluster.url(2, name), f"HEAD:{MAIN}")
    cluster.arm(fault, 1)
    doubtful = work.commit()
    seen: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(work.git, "push", cluster.url(1, name), f"HEAD:{MAIN}", ok=False)
        give_up_at = time.monotonic() + 2 * DEADLINE_S + 10
        while doubtful not in seen or not pushing.done():
            assert time.monotonic() < give_up_at, "nobody finished the change"
            seen += [shown for node in (2, 3) if (shown := main(cluster, node, name)) is not None]
        assert pushing.result().code != 0
    assert cluster.fired(1, fault) == 1, "the fault did not fire"
    cluster.start(1)
    assert seen[0] == first, "the reads began before the push"
    assert seen == sorted(seen, key=[first, doubtful].index), "a read went back"
    assert {main(cluster, node, name) for node in (1, 2, 3)} == {doubtful}


def test_a_node_that_wakes_up_behind_shows_strong_readers_what_was_acknowledged_meanwhile(cluster: Cluster, work: Work) -> None:
    """Frozen while five pushes are acknowledged; asked in the moment in which it goes on."""
    name = cluster.create()
    work.commit()
    work.git("push", cluster.url(1, name), f"HEAD:{MAIN}")
    version = cluster.agree(name)
    rounds = behind = 0
    while not behind and rounds < 5:
        rounds += 1
        cluster.pause(3)
        for _ in range(5):
            new = work.commit()
            assert "committed on 2/3" in work.git("push", cluster.url(1, name), f"HEAD:{MAIN}").err
        version += 5
        with ThreadPoolExecutor(3) as pool:
            path = f"/repos/{name}/refs"
            asked = [
                pool.submit(get, cluster, 3, path, *headers)
                for headers in ((LOCAL,), (), (LOCAL, {"X-Gitquorum-Min-Version": str(version)}))
            ]
            wait(lambda: cluster.knocking(3), 5, "the reads wait at the frozen node")
            cluster.resume(3)
            local, strong, mine = (each.result() for each in asked)
            while strong.status == 503:  # it suspects everybody for a moment: its own heartbeats had no answer in time
                assert strong.json["type"] == "/problems/read-unavailable", strong
                time.sleep(0.05)
                strong = get(cluster, 3, path)
        behind += int(local.headers["x-gitquorum-version"]) < version
        assert refs(strong) == refs(mine) == {MAIN: new}
        assert strong.headers["x-gitquorum-version"] == mine.headers["x-gitquorum-version"] == str(version)
        marks = [each.headers["x-gitquorum-consistency"] for each in (local, strong, mine)]
        assert marks == ["local", "linearizable", "local"]
        wait(cluster.ready, 10, "node-3 is trusted again")
    print(f"\n{cluster.broker}: a local read was behind in {behind} of {rounds} rounds")  # noqa: T201
    assert behind, "node-3 was never behind"


@contextmanager
def cut_off(cluster: Cluster, node: int) -> Iterator[None]:
    """It neither hears nor is heard by its peers; clients reach it."""
    headers = {"X-Gitquorum-Drill": TOKEN}
    begun = request(cluster.url(node), "PUT", "/drill/isolation", body={"seconds": 60.0}, headers=headers, timeout_s=5)
    assert begun.ok, begun
    try:
        yield
    finally:
        assert request(cluster.url(node), "DELETE", "/drill/isolation", headers=headers, timeout_s=5).ok


def test_under_a_partition_strong_reads_are_refused_and_local_ones_served_and_marked(cluster: Cluster, work: Work) -> None:
    """At once, before the cut-off node suspects anybody, and later, when it does; with git as with REST."""
    name = cluster.create()
    first = work.commit()
    work.git("push", cluster.url(1, name), f"HEAD:{MAIN}")
    version = cluster.agree(name)
    cluster.start_with({"GITQUORUM_DRILL_TOKEN": TOKEN}, 3)
    git_local = ("-c", "http.extraHeader=X-Gitquorum-Consistency: local")
    with cut_off(cluster, 3):
        second = work.commit()
        assert "committed on 2/3" in work.git("push", cluster.url(1, name), f"HEAD:{MAIN}").err
        for _ in range(3):
            with timed() as seconds:
                refused = get(cluster, 3, f"/repos/{name}/refs")
                assert seconds() < 6, "a stated bound"
            assert (refused.status, refused.json["type"]) == (503, "/problems/read-unavailable"), refused
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["x-gitquorum-version"] == str(version), "what it could show"
            stale = get(cluster, 3, f"/repos/{name}/refs", LOCAL)
            assert refs(stale) == {MAIN: first}
            assert stale.headers["x-gitquorum-consistency"] == "local"
            assert stale.headers["x-gitquorum-version"] == str(version)
            assert main(cluster, 1, name) == main(cluster, 2, name) == second, "the majority reads on"
            time.sleep(0.5)
        assert work.git("ls-remote", cluster.url(3, name), ok=False).code != 0
        assert first in work.git(*git_local, "ls-remote", cluster.url(3, name)).out
        ahead = get(cluster, 3, f"/repos/{name}", LOCAL, {"X-Gitquorum-Min-Version": str(version + 1)})
        assert (ahead.status, ahead.json["type"]) == (503, "/problems/version-not-reached"), ahead
        assert "retry-after" in ahead.headers
    shown = wait(lambda: main(cluster, 3, name), 10, "node-3 serves strong reads again")
    assert shown == second, "the first one that is served is right"
