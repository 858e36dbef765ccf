"""What the scripts push, vote on and learn: real packs, a chain of changes, certificates of two others. Always the same."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.config import Config, Member
from node.keys import Keyring, public_text
from node.protocol.certificate import Certificate, SignedVote, StatementKind
from node.protocol.change import Change, ChangeKind, PackRef, RefUpdate, Request
from node.protocol.ids import ORIGIN, ZERO_OID, Ballot, NodeId, Oid, RefName, TxnId
from node.protocol.messages import InlinePack
from node.protocol.names import RepositoryName
from node.protocol.quorum import VoterSet
from node.storage.packfile import describe
from tests.unit.storage_kit import Thing, git, history, pack_of

A, B, C = NodeId("node-1"), NodeId("node-2"), NodeId("node-3")
NAME = RepositoryName("alice", "project")
MAIN = RefName("refs/heads/main")

_KEYS = {node: Ed25519PrivateKey.from_private_bytes(sha256(node.encode()).digest()) for node in (A, B, C)}
_PUBLIC = {node: (public_text(key),) for node, key in _KEYS.items()}


def keyring(node: NodeId) -> Keyring:
    return Keyring(node, _KEYS[node], _PUBLIC)


def config(data_dir: Path, nodes: tuple[NodeId, ...], **settings: object) -> Config:
    members = tuple(Member(id=node, url=f"http://{node}.example:3001", public_keys=_PUBLIC[node]) for node in nodes)
    values: dict[str, object] = {"free_bytes_min": 0, "prepare_timeout_s": 2.0, "abort_timeout_s": 0.2, **settings}
    return Config(node_id=A, members=members, data_dir=data_dir, private_key=data_dir / "key", **values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Packed:
    """A pack that git has indexed, and the git commit at its tip."""

    ref: PackRef
    inline: InlinePack
    tip: Oid

    @property
    def content(self) -> bytes:
        return self.inline.pack


def packed(folder: Path, label: str, *, size: int, parent: Thing | None = None) -> tuple[Packed, Thing]:
    """One git commit with a file of ``size`` bytes that do not compress, on ``parent``."""
    things = history(1, Random(label).randbytes(size), parent)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{label}.pack"
    path.write_bytes(pack_of(*things))
    name = git("index-pack", path).strip().splitlines()[-1].split()[-1]
    ref = describe(f"pack-{name}", path, path.with_suffix(".idx"))
    return Packed(
        ref, InlinePack(ref.sha256, path.read_bytes(), path.with_suffix(".idx").read_bytes()), things[-1].oid
    ), things[-1]


class Chain:
    """History that node-2 coordinates: each change stands on the one before; ``certificate`` proves any of them."""

    def __init__(self, voters: tuple[NodeId, ...] = (A, B, C)) -> None:
        self.voters = VoterSet.of(voters)
        self.position = ORIGIN
        self.changes: list[Change] = []
        self._main = ZERO_OID

    def create(self) -> Change:
        return self._add(Change(NAME.key, self.position, ChangeKind.CREATE, (self._request(),), str(NAME), self.voters))

    def push(self, pack: Packed, ref: RefName = MAIN) -> Change:
        old = self._main if ref == MAIN else ZERO_OID
        update = RefUpdate(ref, old, pack.tip)
        if ref == MAIN:
            self._main = pack.tip
        return self._add(Change(NAME.key, self.position, ChangeKind.UPDATE, (self._request((update,), (pack.ref,)),)))

    def _add(self, change: Change) -> Change:
        self.changes.append(change)
        self.position = change.position
        return change

    def _request(self, updates: tuple[RefUpdate, ...] = (), packs: tuple[PackRef, ...] = ()) -> Request:
        return Request(TxnId(f"chain-{len(self.changes) + 1}"), "anonymous", B, 1, updates, packs=packs)

    def certificate(self, change: Change) -> Certificate:
        ballot = Ballot(1, B, change.position.version)
        empty = Certificate(change.repository, self.voters.digest, 2, change.position, ballot, (), SignedVote(B, 1, b""))

        def signed(node: NodeId, kind: StatementKind) -> SignedVote:
            return SignedVote(node, 1, keyring(node).sign(empty.statement(kind, 1).encode()))

        votes = tuple(signed(node, StatementKind.YES_CHANGE) for node in (B, C))
        decision = signed(B, StatementKind.DECISION)
        return Certificate(change.repository, self.voters.digest, 2, change.position, ballot, votes, decision)
