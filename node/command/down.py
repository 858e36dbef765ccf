"""Take the local cluster down: nodes first (they finish what they do), then the broker if it is ours.

``--purge`` also removes what the cluster was: repositories, keys, the broker's data. Only names that this package makes
are removed, never the whole folder: somebody may have pointed ``--directory`` at a folder with other things in it.
"""

import shutil
from typing import Any

from node.command import brokers, processes
from node.command.output import Output
from node.command.state import Cluster, Home

STOP_TIMEOUT_S = 15.0


def down(home: Home, output: Output, *, purge: bool = False) -> dict[str, Any]:
    """End every process of the cluster; returns how each one went. Without a cluster there is nothing to do."""
    if not home.exists:
        output.progress(f"no cluster in {home.folder}: nothing to stop")
        if purge and home.folder.is_dir():
            with home.locked():
                _remove(home)
        return {"nodes": {}, "broker": "none", "purged": purge}
    with home.locked():
        cluster = home.load()
        how = _stop(home, cluster, output)
        if purge:
            _remove(home)
            output.progress(f"removed the cluster's data in {home.folder}")
    return {**how, "purged": purge}


def _stop(home: Home, cluster: Cluster, output: Output) -> dict[str, Any]:
    with output.waiting(f"stopping {len(cluster.nodes)} nodes …"):
        nodes = processes.stop(cluster.nodes, STOP_TIMEOUT_S)
    for name, how in nodes.items():
        output.progress(f"{name}: {how}")
    broker = brokers.broker_of(home, cluster)
    if not broker.ours:
        return {"nodes": nodes, "broker": "not ours" if cluster.broker.kind == "url" else "none"}
    was_running = broker.running()
    with output.waiting("stopping the broker …"):
        # Also when it does not run: its helpers, or a stopped container, may be left.
        broker.stop()
    output.progress(f"broker: {'stopped' if was_running else 'was not running'}")
    return {"nodes": nodes, "broker": "stopped" if was_running else "was not running"}


def _remove(home: Home) -> None:
    for folder in [*home.folder.glob("node-*"), home.broker_folder]:
        if folder.is_dir():
            shutil.rmtree(folder)
    for name in ("cluster.json", "passwords.json", "drill.lock", "lock"):
        (home.folder / name).unlink(missing_ok=True)
    if not any(home.folder.iterdir()):
        home.folder.rmdir()
