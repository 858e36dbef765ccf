"""How long objects take on this machine: `python -m bench.objects` prints intake and apply times.

The 1-commit intake is measured cold and warm (a `git index-pack` already waiting), from the first byte handed over to a
quarantine that is ready to be sent to the voters; so is a mirror push of the starlette bundle, where it is found.
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

from node.protocol.change import Change, ChangeKind, RefUpdate, Request
from node.protocol.ids import ZERO_OID, NodeId, Oid, RefName, RepoId, TxnId
from node.protocol.names import RepositoryName
from node.protocol.quorum import VoterSet
from node.protocol.register import Register
from node.storage.git import GitLimits
from node.storage.objects import DiskObjects

BUNDLE = Path("/work/shared/data/starlette.bundle")
ROUNDS = 60
NAME = RepositoryName("bench", "project")
VOTERS = VoterSet.of([NodeId("node-1")])
IDENTITY = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]


async def main(bundle: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for label, warm_max in (("cold", 0), ("warm", 4)):
            intakes, applies = await _small(work / label, warm_max)
            print(f"1-commit intake, {label}: p50 {median(intakes):.2f} ms, best {min(intakes):.2f} ms")  # noqa: T201
            print(f"1-commit apply: p50 {median(applies):.2f} ms")  # noqa: T201
        if bundle:
            await _large(work / "large")


async def _small(work: Path, warm_max: int) -> tuple[list[float], list[float]]:
    objects = DiskObjects(work / "data", GitLimits(warm_max=warm_max))
    register = await _created(objects)
    source, tip = work / "source", ZERO_OID
    git("init", "-q", "-b", "main", str(source))
    intakes, applies = [], []
    for number in range(ROUNDS):
        (source / "file").write_text(f"{number}\n")
        git(*IDENTITY, "-C", str(source), "add", "file")
        git(*IDENTITY, "-C", str(source), "commit", "-qm", f"commit {number}")
        new = Oid(git("-C", str(source), "rev-parse", "HEAD").decode().strip())
        pack = thin_pack(source, new, tip)
        await asyncio.sleep(0.1)
        at = time.perf_counter()
        async with await objects.quarantine(NAME, TxnId(f"t{number}")).receive(chunks(pack)) as received:
            updates, _ = await received.examine([RefUpdate(RefName("refs/heads/main"), tip, new)])
            intakes.append((time.perf_counter() - at) * 1000)
            change = _update(register, f"t{number}", updates, received.packs)
            at = time.perf_counter()
            await objects.apply(register, change, register := register.applied(change), received.inline)
            applies.append((time.perf_counter() - at) * 1000)
        await objects.sync(str(NAME))
        tip = new
    await objects.close()
    return intakes, applies


async def _large(work: Path) -> None:
    objects = DiskObjects(work / "data", GitLimits())
    register = await _created(objects)
    git("clone", "-q", "--mirror", str(BUNDLE), str(work / "source"))
    listed = git("-C", str(work / "source"), "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags")
    refs = [line.split(" ") for line in listed.decode().splitlines()]
    pack = git("-C", str(work / "source"), "pack-objects", "--revs", "--stdout", "-q", "--all", stdin=b"")
    at = time.perf_counter()
    received = await objects.quarantine(NAME, TxnId("mirror")).receive(chunks(pack))
    print(f"starlette intake ({len(pack) / 1e6:.1f} MB): {time.perf_counter() - at:.2f} s")  # noqa: T201
    at = time.perf_counter()
    updates, refused = await received.examine([RefUpdate(RefName(ref), ZERO_OID, Oid(oid)) for oid, ref in refs])
    print(f"starlette examine ({len(updates)} refs, {len(refused)} refused): {(time.perf_counter() - at) * 1000:.1f} ms")  # noqa: T201
    at = time.perf_counter()
    await received.promote()
    print(f"starlette promote: {(time.perf_counter() - at) * 1000:.1f} ms")  # noqa: T201
    change = _update(register, "mirror", updates, received.packs)
    at = time.perf_counter()
    await objects.apply(register, change, register.applied(change), received.inline)
    print(f"starlette apply: {(time.perf_counter() - at) * 1000:.1f} ms")  # noqa: T201
    at = time.perf_counter()
    await objects.sync(str(NAME))
    print(f"starlette sync: {(time.perf_counter() - at) * 1000:.1f} ms")  # noqa: T201
    await received.discard()
    await objects.close()


async def _created(objects: DiskObjects) -> Register:
    register = Register(RepoId(NAME.key), VOTERS)
    request = Request(TxnId("create"), "bench", NodeId("node-1"), 0)
    change = Change(register.repository, register.position, ChangeKind.CREATE, (request,), str(NAME), VOTERS)
    after = register.applied(change)
    await objects.apply(register, change, after, ())
    return after


def _update(register: Register, txn: str, updates: tuple[RefUpdate, ...], packs: tuple) -> Change:  # type: ignore[type-arg]
    request = Request(TxnId(txn), "bench", NodeId("node-1"), 0, updates, None, packs)
    return Change(register.repository, register.position, ChangeKind.UPDATE, (request,))


def thin_pack(source: Path, new: str, old: str) -> bytes:
    wanted = f"{new}\n" + (f"^{old}\n" if old != ZERO_OID else "")
    return git("-C", str(source), "pack-objects", "--revs", "--thin", "--stdout", "-q", stdin=wanted.encode())


async def chunks(pack: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(pack), 65536):
        yield pack[at : at + 65536]


def git(*args: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run(["git", *args], input=stdin, stdout=subprocess.PIPE, check=True).stdout


if __name__ == "__main__":
    asyncio.run(main(BUNDLE.exists()), debug="--debug" in sys.argv)
