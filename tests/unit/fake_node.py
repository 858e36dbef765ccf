"""A stand-in for a node process: reads ``node.toml``, answers a few paths, ends on SIGTERM; run as a script by the tests.

It can be told, by a file beside the configuration, to refuse writes (``not-ready``), to die at start (``die``), or to
ignore SIGTERM (``stubborn``).
"""

import json
import os
import signal
import sys
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def main(config: Path) -> None:
    settings = tomllib.loads(config.read_text())
    told = config.parent
    if (told / "die").exists():
        sys.exit("gitquorum: the journal is damaged")
    if (told / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/readyz") and (told / "not-ready").exists():
                self.answer(503, {"title": "Node not ready", "detail": "node-2 and node-3 are suspected"})
            elif self.path.startswith("/repos?"):
                self.answer(200, {"repositories": [{"repo_id": "alice/project", "version": 4, "head": "refs/heads/main"}]})
            elif self.path.endswith("/replicas"):
                replicas = [{"node_id": "node-1", "version": 4, "state": "current", "digest": "9c", "applied": 4}]
                self.answer(200, {"replicas": replicas})
            else:
                self.answer(200, {"node_id": settings["node_id"], "status": "ok"})

        def answer(self, status: int, body: dict[str, Any]) -> None:
            payload = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    ThreadingHTTPServer(("127.0.0.1", settings["port"]), Handler).serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[sys.argv.index("--config") + 1]))
