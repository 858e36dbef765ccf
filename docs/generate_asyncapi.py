"""Writes ``asyncapi.json`` from ``broker.asyncapi``; a test runs it with ``--check``."""

import json
import sys
from pathlib import Path

from broker.asyncapi import document

PAGE = Path(__file__).with_name("asyncapi.json")


def rendered() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    if "--check" in sys.argv:
        return int(not PAGE.exists() or PAGE.read_text() != rendered())
    PAGE.write_text(rendered())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
