"""Disks that are lost, set back or doubled, under real processes (replication.md R4): noticed and mended with no operator, but
where a majority is gone. What each fault did is asserted (a new incarnation), so that one that did nothing fails.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from node.command import processes
from node.command.client import NodeSilent, get
from node.command.state import Home
from tests.cluster.harness import Cluster, Work, free_port_range, wait

pytestmark = pytest.mark.cluster

REJOIN_S = 60.0


def data(cluster: Cluster, node: int) -> Path:
    return cluster.home / f"node-{node}" / "data"


def health(url: str) -> dict[str, Any]:
    try:
        answer = get(url, "/health", 3.0)
    except NodeSilent:
        return {"standing": "silent"}
    return dict(answer.body)


def standing(cluster: Cluster, node: int) -> str:
    return str(health(cluster.url(node))["standing"])


def incarnation(cluster: Cluster, node: int) -> int:
    return int(health(cluster.url(node))["incarnation"])


def pushed(cluster: Cluster, work: Work, name: str, count: int = 1, node: int = 1) -> str:
    for _ in range(count):
        tip = work.commit()
        work.git("push", cluster.url(node, name), "HEAD:main")
    return tip


def whole(cluster: Cluster, name: str) -> None:
    wait(cluster.ready, REJOIN_S, "the cluster is ready again")
    cluster.agree(name, 1, 2, 3, timeout_s=30)


def test_a_wiped_node_rejoins_and_its_vote_counts_again(cluster: Cluster, work: Work) -> None:
    name = cluster.create()
    pushed(cluster, work, name, 3)
    before = incarnation(cluster, 3)
    cluster.kill(3)
    shutil.rmtree(data(cluster, 3))
    pushed(cluster, work, name)  # they go on meanwhile
    cluster.start(3)
    assert incarnation(cluster, 3) == before + 1
    whole(cluster, name)
    cluster.kill(2)
    tip = pushed(cluster, work, name)  # node-1 and node-3 are the quorum
    assert cluster.ls_remote(3, name)["refs/heads/main"] == tip
    cluster.start(2)
    whole(cluster, name)


def test_an_older_copy_of_a_data_directory_is_noticed(direct: Cluster, work: Work, tmp_path: Path) -> None:
    name = direct.create()
    pushed(direct, work, name)
    direct.kill(3)
    shutil.copytree(data(direct, 3), tmp_path / "old", symlinks=True)
    direct.start(3)
    before = incarnation(direct, 3)
    pushed(direct, work, name, 2)
    direct.agree(name, 1, 2, 3)
    direct.kill(3)
    shutil.rmtree(data(direct, 3))
    shutil.copytree(tmp_path / "old", data(direct, 3), symlinks=True)
    direct.start(3)
    wait(lambda: incarnation(direct, 3) > before or None, REJOIN_S, "node-3 is in a newer incarnation")
    whole(direct, name)


@contextmanager
def double(cluster: Cluster, folder: Path, copy: Path) -> Iterator[str]:
    """Another process of node-3, on a copy of its disk and another port."""
    port = free_port_range(1)
    shutil.copytree(cluster.home / "node-3", folder, symlinks=True, ignore=shutil.ignore_patterns("data"))
    shutil.copytree(copy, folder / "data", symlinks=True)
    config = folder / "node.toml"
    lines = [f"port = {port}" if line.startswith("port = ") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines))
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "node", "serve", "--config", str(config)], stdout=log, stderr=log, cwd=folder
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(40)
        log.close()


def test_of_a_cloned_data_directory_one_process_survives(direct: Cluster, work: Work, tmp_path: Path) -> None:
    name = direct.create()
    pushed(direct, work, name)
    direct.kill(3)
    shutil.copytree(data(direct, 3), tmp_path / "copy", symlinks=True)
    direct.start(3)
    direct.tainted(3)
    with double(direct, tmp_path / "double", tmp_path / "copy") as url:

        def ends() -> list[str] | None:
            both = sorted((standing(direct, 3), str(health(url)["standing"])))
            return both if both == ["member", "stopped"] else None

        wait(ends, 120.0, "one process is left")
        stopped = direct.url(3) if standing(direct, 3) == "stopped" else url
        assert "another process uses the identity node-3" in health(stopped)["problem"]
        pushed(direct, work, name)  # two healthy nodes and one that speaks: nobody is in doubt
    if standing(direct, 3) == "stopped":
        direct.kill(3)
        direct.start(3)  # its double is gone: it takes the next incarnation
    whole(direct, name)


def test_a_majority_wiped_refuses_until_an_operator_says_so(direct: Cluster, work: Work) -> None:
    name = direct.create()
    tip = pushed(direct, work, name)
    direct.agree(name, 1, 2, 3)
    direct.kill(2, 3)
    for node in (2, 3):
        shutil.rmtree(data(direct, node))
        processes.start(Home(direct.home).load().node(str(node)))  # nobody waits until it serves: it will not
    wait(lambda: {standing(direct, 2), standing(direct, 3)} == {"rejoining"} or None, REJOIN_S, "both wait")
    work.commit()
    assert work.git("push", direct.url(1, name), "HEAD:main", ok=False).code != 0
    refused = direct.cli("rejoin", "--node", "2", "--from", "node-1", ok=False)
    assert "--accept-loss" in refused.err
    dry = direct.cli("rejoin", "--node", "2", "--from", "node-1", "--accept-loss", "--json").json()
    assert dry["begun"] is False
    assert standing(direct, 2) == "rejoining"
    direct.cli("rejoin", "--node", "2", "--from", "node-1", "--accept-loss", "--yes")
    whole(direct, name)  # node-3 finds a majority then, and rejoins by itself
    assert direct.ls_remote(3, name)["refs/heads/main"] == tip
    pushed(direct, work, name)
    healthy = direct.cli("rejoin", "--node", "1", "--from", "none", "--accept-loss", "--yes", ok=False)
    assert "is a member" in healthy.err
