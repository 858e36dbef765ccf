"""``git upload-pack --stateless-rpc``: the answer to one fetch request, streamed with back-pressure.

The request is fed while the answer is read, so neither can block the other. The process starts with the first read and
is ended, its child too, when the iterator is closed or used up. What git cannot say in the protocol any more, because it
failed before its first byte, is said for it in an ``ERR`` packet.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from pathlib import Path

from dulwich.protocol import pkt_line

from node.storage.git import Git, GitProcess, Spawned
from node.storage.quarantine import git_words

CHUNK_BYTES = 32 * 1024
PROTOCOL_LENGTH_MAX = 256
_PROTOCOL = re.compile(r"version=[012](?::[a-z0-9-]+(?:=[A-Za-z0-9._/-]+)?)*")


def safe_protocol(text: str) -> str:
    """The client's ``Git-Protocol`` header if it is one, else nothing: it becomes an environment variable."""
    return text if len(text) <= PROTOCOL_LENGTH_MAX and _PROTOCOL.fullmatch(text) else ""


async def upload_pack(git: Git, folder: Path, protocol: str, request: bytes) -> AsyncGenerator[bytes, None]:
    """Chunks of at least 32 KiB, but for the last."""

    def spawn() -> Spawned:
        extra = {"GIT_PROTOCOL": protocol} if protocol else {}
        environment = git.environment({"pack.threads": "2"}, extra)
        return git.spawn(["upload-pack", "--stateless-rpc", "--strict", str(folder)], environment, folder)

    silent = True
    async with await git.start(spawn) as process:
        feeding = asyncio.create_task(_feed(process, request), name="upload-pack request")
        try:
            held = bytearray()
            while chunk := await process.read():
                silent = False
                held += chunk
                if len(held) >= CHUNK_BYTES:
                    yield bytes(held)
                    held.clear()
            if held:
                yield bytes(held)
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
        process.release()
        code, errors = await git.threads.finish(process.spawned.wait)
    if code and silent:
        yield pkt_line(b"ERR upload-pack: " + (git_words(errors) or f"failed ({code})").encode())


async def _feed(process: GitProcess, request: bytes) -> None:
    if await process.feed(request):
        process.end_input()
