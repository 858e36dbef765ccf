"""``ports.Service`` for tests of smart HTTP: one node, no quorum, real bare repositories, real git in subprocesses.

What the quorum would answer is a knob (``decide``), so is what a push waits for. Quarantine as git does it: objects go to a
folder of their own, with the repository's as an alternate.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from node.config import Config, Member
from node.ports.errors import PackRefused, RepositoryAbsent, VersionNotReached
from node.ports.service import Consistency
from node.protocol.change import RefUpdate
from node.protocol.ids import NodeId, Oid, Position, RefName, RepoId, TxnId, digest_of
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome, OutcomeKind, VoterReport
from node.protocol.quorum import VoterSet
from node.protocol.register import Draft, Ref, Register

VOTERS = VoterSet.of((NodeId("node-1"), NodeId("node-2"), NodeId("node-3")))
URL = "http://node-1.example:3001"


def config_for(folder: Path, **settings: Any) -> Config:
    members = tuple(Member(id=node, url=f"http://{node}.example:3001", public_keys=("x",)) for node in VOTERS.nodes)
    return Config(node_id="node-1", members=members, data_dir=folder, private_key=folder / "key", **settings)


def git(*arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> bytes:
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env={**os.environ, **(env or {})}, input=stdin, capture_output=True, check=False
    )
    if done.returncode:
        raise PackRefused(done.stderr.decode("utf-8", "replace").strip() or f"git {arguments[0]} failed")
    return done.stdout


class FakeGitService:
    """The part of ``ports.Service`` that smart HTTP uses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = 1
        self.calls: list[str] = []
        self.consistencies: list[Consistency] = []
        self.quarantines = 0
        self.discarded = 0
        self.submitted: list[tuple[RefUpdate, ...]] = []
        self.shallow: tuple[Oid, ...] = ()
        self.fetches_closed = 0
        self.fails: dict[str, Exception] = {}
        """Per method, what it raises instead of answering."""
        self.decide: Callable[[TxnId], Outcome | None] = lambda txn: None
        self.before_decision: Callable[[Callable[[str], None]], Any] | None = None
        self.behind: Callable[[], object] | None = None
        """Brings what the other nodes have; done by the first linearizable read."""

    def create(self, name: str, *, head: str = "refs/heads/main") -> Path:
        path = self.path_of(RepositoryName.parse(name))
        git("init", "--quiet", "--bare", str(path))
        git("symbolic-ref", "HEAD", head, cwd=path)
        for key in ("uploadpack.allowFilter", "uploadpack.allowReachableSHA1InWant"):
            git("config", key, "true", cwd=path)
        git("config", "core.fsync", "none", cwd=path)
        return path

    def path_of(self, name: RepositoryName) -> Path:
        return self.root / name.owner / f"{name.name}.git"

    def _noted(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fails:
            raise self.fails[call]

    async def look(self, name: RepositoryName, consistency: Consistency) -> Register:
        self._noted("look")
        return await asyncio.to_thread(self._register, name)

    async def read(self, name: RepositoryName, consistency: Consistency, at_least: int = 0) -> Register:
        self.consistencies.append(consistency)
        self._noted("read")
        if consistency is Consistency.LINEARIZABLE and self.behind is not None:
            bring, self.behind = self.behind, None
            await asyncio.to_thread(bring)
            self.version += 1
        register = await asyncio.to_thread(self._register, name)
        if register.position.version < at_least:
            raise VersionNotReached(f"version {at_least} is not here yet", register.position)
        return register

    def _register(self, name: RepositoryName) -> Register:
        path = self.path_of(name)
        if not path.is_dir():
            raise RepositoryAbsent(f"repository {name} does not exist")
        refs = {}
        for line in git("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", cwd=path).decode().splitlines():
            ref, oid, peeled = line.split(" ")
            refs[RefName(ref)] = Ref(Oid(oid), Oid(peeled) if peeled else None)
        head = RefName(git("symbolic-ref", "HEAD", cwd=path).decode().strip())
        position = Position(self.version, digest_of(str(self.version)))
        return Register(RepoId(str(name).lower()), VOTERS, position, True, str(name), head, refs)

    def new_txn(self) -> TxnId:
        self._noted("new_txn")
        return TxnId(f"txn-{len(self.calls)}")

    def check_push(self, name: RepositoryName) -> None:
        if "check_push" in self.fails:
            raise self.fails["check_push"]

    def intake(self, name: RepositoryName, txn: TxnId, shallow: Sequence[Oid]) -> "FakeIntake":
        self._noted("intake")
        self.shallow = tuple(shallow)
        return FakeIntake(self, self.path_of(name), txn, shallow)

    async def push(
        self,
        name: RepositoryName,
        txn: TxnId,
        quarantine: "FakeQuarantine",
        updates: Sequence[RefUpdate],
        *,
        actor: str,
        atomic: bool,
        progress: Callable[[str], None] = lambda line: None,
    ) -> Outcome:
        self._noted("push")
        self.submitted.append(tuple(updates))
        if self.before_decision is not None:
            await self.before_decision(progress)
        if decided := self.decide(txn):
            return decided
        return await asyncio.to_thread(self._push, name, txn, quarantine, updates, atomic)

    def _push(
        self, name: RepositoryName, txn: TxnId, quarantine: "FakeQuarantine", updates: Sequence[RefUpdate], atomic: bool
    ) -> Outcome:
        draft = Draft(self._register(name))
        taken, rejected = [], []
        for update in updates:
            if reason := draft.refuses(update):
                rejected.append((update.ref, reason))
            else:
                draft.take(update)
                taken.append(update)
        if not taken or (atomic and rejected):
            return Outcome(OutcomeKind.REJECTED, txn, rejections=tuple(rejected))
        quarantine.migrate()
        lines = "".join(f"delete {u.ref} {u.old}\n" if u.deletes else f"update {u.ref} {u.new} {u.old}\n" for u in taken)
        git("update-ref", "--stdin", cwd=self.path_of(name), stdin=lines.encode())
        self.version += 1
        return committed(txn, self.version, tuple(rejected))

    async def upload_pack(self, register: Register, *, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        self._noted("upload_pack")
        return self._upload_pack(self.path_of(RepositoryName.parse(register.name)), protocol, request)

    async def _upload_pack(self, path: Path, protocol: str, request: bytes) -> AsyncIterator[bytes]:
        process = await asyncio.create_subprocess_exec(
            "git", "upload-pack", "--stateless-rpc", str(path),
            env={**os.environ, "GIT_PROTOCOL": protocol}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin
        assert process.stdout
        feeding = asyncio.create_task(_feed(process.stdin, request))
        try:
            while piece := await process.stdout.read(64 * 1024):
                yield piece
        finally:
            self.fetches_closed += 1
            feeding.cancel()
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _feed(pipe: asyncio.StreamWriter, data: bytes) -> None:
    pipe.write(data)
    await pipe.drain()
    pipe.close()


class FakeIntake:
    """``ports.QuarantineIntake``."""

    def __init__(self, service: FakeGitService, repository: Path, txn: TxnId, shallow: Sequence[Oid]) -> None:
        self._service = service
        self._repository = repository
        self._folder = repository / "objects" / f"incoming-{txn}"
        self._shallow = shallow

    async def receive(self, chunks: AsyncIterator[bytes]) -> "FakeQuarantine":
        self._service._noted("receive")
        quarantine = await self.empty()
        (self._folder / "pack").mkdir(parents=True)
        try:
            process = await asyncio.create_subprocess_exec(
                "git", "index-pack", "--stdin", "--fix-thin", "--strict", cwd=self._repository,
                env={**os.environ, **quarantine.environment}, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdin
            try:
                async for chunk in chunks:
                    process.stdin.write(chunk)
                    await process.stdin.drain()
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has said why on stderr
            except BaseException:
                process.kill()
                raise
            finally:
                process.stdin.close()
                _, stderr = await process.communicate()
            if process.returncode:
                raise PackRefused(stderr.decode("utf-8", "replace").strip())
        except BaseException:
            await quarantine.discard()
            raise
        return quarantine

    async def empty(self) -> "FakeQuarantine":
        self._service.quarantines += 1
        return FakeQuarantine(self._service, self._repository, self._folder, self._shallow)


class FakeQuarantine:
    """``ports.Quarantine``."""

    packs = ()
    inline = ()
    oids = None

    def __init__(self, service: FakeGitService, repository: Path, folder: Path, shallow: Sequence[Oid]) -> None:
        self._service = service
        self._repository = repository
        self._folder = folder
        self._shallow = shallow
        self.environment = {
            "GIT_OBJECT_DIRECTORY": str(folder),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(repository / "objects"),
        }

    async def examine(self, updates: Sequence[RefUpdate]) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        return await asyncio.to_thread(self._examine, updates)

    def _examine(self, updates: Sequence[RefUpdate]) -> tuple[tuple[RefUpdate, ...], Mapping[RefName, str]]:
        faults: dict[RefName, str] = {}
        if self._shallow:
            (self._repository / "shallow").write_text("".join(f"{oid}\n" for oid in self._shallow))
        wanted = [update for update in updates if not update.deletes]
        if not self._connected(update.new for update in wanted):
            faults = {update.ref: "missing necessary objects" for update in wanted if not self._connected((update.new,))}
        return tuple(updates), faults

    def _connected(self, oids: Iterable[Oid]) -> bool:
        names = "".join(f"{oid}\n" for oid in oids).encode()
        try:
            git(
                "rev-list",
                "--objects",
                "--quiet",
                "--stdin",
                "--not",
                "--all",
                cwd=self._repository,
                env=self.environment,
                stdin=names,
            )
        except PackRefused:
            return False
        return True

    def migrate(self) -> None:
        for file in sorted(self._folder.glob("pack/*"), key=lambda file: file.suffix == ".idx"):
            file.rename(self._repository / "objects" / "pack" / file.name)

    async def promote(self) -> None:
        raise AssertionError("the runtime's business")

    async def discard(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    async def __aenter__(self) -> "FakeQuarantine":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._service.discarded += 1
        await self.discard()


def committed(txn: TxnId, version: int, rejections: tuple[tuple[RefName, str], ...] = ()) -> Outcome:
    return Outcome(
        OutcomeKind.COMMITTED,
        txn,
        quorum=2,
        voters=3,
        votes=tuple(VoterReport(node, "yes") for node in VOTERS.nodes),
        position=Position(version, digest_of(str(version))),
        rejections=rejections,
    )
