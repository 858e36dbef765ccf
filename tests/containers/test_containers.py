"""The image in a cluster: pushes through published ports, containers killed, stopped and started again."""

import http.client
import re
import threading
import time
from urllib.parse import urlsplit

import pytest

from node.command.client import NodeSilent, request
from tests.cluster.harness import NODES, Work, git, wait
from tests.cluster.wire import CAPABILITIES, ZERO, report_of, request_body
from tests.containers.containers import STOP_TIMEOUT_S, Containers

pytestmark = [pytest.mark.container, pytest.mark.timeout(300)]

MAIN = "refs/heads/main"
DRAIN_S = 10.0
"""``Limits.drain_s``: how long requests under way may take after SIGTERM."""


def test_a_push_to_one_container_is_cloned_from_another(containers: Containers, work: Work) -> None:
    name = containers.create()
    tip = work.commit("first")
    pushed = work.git("push", containers.url(1, name), "HEAD:main")
    # The answer waits 0.1 s for the slowest node; the copy on the other two is what an acknowledgement says.
    assert re.search("committed on [23]/3", pushed.err), pushed.err
    wait(lambda: containers.states(1, name) == ["current"] * 3, 30, "all three replicas are current")
    git("clone", "--quiet", "--branch", "main", containers.url(3, name), "copy", cwd=work.path.parent)
    assert Work(work.path.parent / "copy").tip() == tip


def test_a_container_that_was_killed_misses_nothing(containers: Containers, work: Work) -> None:
    name = containers.create()
    containers.node(2).kill()
    tip = work.commit("without node-2")
    assert "committed on 2/3" in work.git("push", containers.url(1, name), "HEAD:main").err
    containers.node(2).start()
    wait(lambda: containers.ready(), 60, "node-2 is back")
    wait(lambda: containers.states(1, name) == ["current"] * 3, 30, "all three replicas are current")
    assert containers.refs(2, name)[MAIN] == tip


def test_pushes_go_on_after_rabbitmqs_container_was_restarted(containers: Containers, work: Work) -> None:
    name = containers.create()
    work.commit("before")
    work.git("push", containers.url(1, name), "HEAD:main")
    containers.rabbitmq.stop(timeout=2)
    tip = work.commit("without a broker")
    refused = work.git("push", containers.url(1, name), "HEAD:main", ok=False)
    assert refused.code != 0
    containers.rabbitmq.start()
    wait(containers.ready, 90, "the nodes found the broker again")

    def pushed() -> bool:
        return work.git("push", containers.url(1, name), "HEAD:main", ok=False).code == 0

    wait(pushed, 30, "a push goes through")
    assert {containers.refs(node, name)[MAIN] for node in NODES} == {tip}


def test_a_push_under_way_at_sigterm_is_finished_and_kept(containers: Containers, work: Work) -> None:
    """Half of its request was sent when SIGTERM comes; the other half follows, and is answered."""
    name = containers.create()
    first = work.commit("first")
    work.git("push", containers.url(2, name), "HEAD:main")
    tip = work.commit("under way", size=20_000)
    body = request_body([(first, tip, MAIN)], work.pack(tip, first), CAPABILITIES, compressed=False)
    parts = urlsplit(containers.url(1))
    client = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    client.putrequest("POST", f"/{name}.git/git-receive-pack")
    client.putheader("Content-Type", "application/x-git-receive-pack-request")
    client.putheader("Content-Length", str(len(body)))
    client.endheaders(body[: len(body) // 2])
    time.sleep(0.5)  # the node has begun to read it

    node, since = containers.node(1), time.time()
    stopping = threading.Thread(target=node.stop, kwargs={"timeout": STOP_TIMEOUT_S})
    began = time.monotonic()
    stopping.start()
    wait(lambda: b'"draining"' in node.logs(since=since), 10, "node-1 drains")
    with pytest.raises(NodeSilent):
        request(f"http://{parts.netloc}", "GET", "/livez", timeout_s=5)
    client.send(body[len(body) // 2 :])
    answer = client.getresponse()
    report = report_of(answer.read())
    client.close()
    stopping.join(STOP_TIMEOUT_S + 5)
    seconds = time.monotonic() - began

    assert (answer.status, report.refs) == (200, {MAIN: "ok"})
    assert (exit_code(node), seconds < DRAIN_S) == (0, True)
    assert containers.refs(3, name)[MAIN] == tip


def test_a_push_that_never_ends_does_not_outlast_the_deadline(containers: Containers, work: Work) -> None:
    name = containers.create()
    tip = work.commit("never sent whole", size=20_000)
    body = request_body([(ZERO, tip, MAIN)], b"PACK", CAPABILITIES, compressed=False)
    parts = urlsplit(containers.url(1))
    client = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    client.putrequest("POST", f"/{name}.git/git-receive-pack")
    client.putheader("Content-Type", "application/x-git-receive-pack-request")
    client.putheader("Content-Length", str(len(body) + 1000))
    client.endheaders(body)
    time.sleep(0.5)
    node, began = containers.node(1), time.monotonic()
    node.stop(timeout=STOP_TIMEOUT_S)
    seconds = time.monotonic() - began
    client.close()
    assert exit_code(node) == 0
    assert seconds < DRAIN_S + 8
    assert containers.refs(2, name) == {}


def test_pushes_while_a_node_is_stopped_are_kept_or_refused(containers: Containers, work: Work) -> None:
    """One after the other at the node that gets SIGTERM; what was acknowledged is in the history of the others."""
    name = containers.create()
    url, node = containers.url(1, name), containers.node(1)
    acknowledged: list[str] = []
    stopping = threading.Timer(1.0, node.stop, kwargs={"timeout": STOP_TIMEOUT_S})
    give_up_at = time.monotonic() + 60
    while True:
        assert time.monotonic() < give_up_at, "pushes to a node that was told to stop are still taken"
        tip = work.commit(f"push {len(acknowledged)}")
        pushed = work.git("push", url, "HEAD:main", ok=False)
        if pushed.code != 0:
            break
        acknowledged.append(tip)
        if len(acknowledged) == 1:
            stopping.start()
    assert acknowledged, f"the first push was refused, before SIGTERM: {pushed.err}"
    stopping.join(STOP_TIMEOUT_S + 5)
    assert exit_code(node) == 0
    there = containers.refs(2, name)[MAIN]
    assert there in (acknowledged[-1], tip), "what was acknowledged last is the tip, or the one after it, told unknown"
    assert there == acknowledged[-1] or "unknown" in pushed.err


def test_process_1_reaps_orphans_and_there_is_one_node_in_a_container(containers: Containers) -> None:
    node = containers.node(1)
    assert node.exec_run(["sh", "-c", "(sleep 0.2 &) ; exit 0"]).exit_code == 0
    time.sleep(0.6)
    rows = [" ".join(row) for row in node.top()["Processes"]]
    assert not [row for row in rows if "defunct" in row]
    assert sum("gitquorum serve" in row and "tini" not in row for row in rows) == 1
    assert sum("tini" in row for row in rows) == 1


def exit_code(container: object) -> int:
    container.reload()  # type: ignore[attr-defined]
    state = container.attrs["State"]  # type: ignore[attr-defined]
    assert state["Status"] == "exited", state
    return int(state["ExitCode"])
