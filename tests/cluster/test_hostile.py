"""Hostile packs, clients and forged messages are refused and leave nothing behind on any node."""

import json
import os
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.codec import Codec
from node.config import Config
from node.fetching import WAIT_S
from node.keys import Keyring, public_text, read_private
from node.protocol.certificate import Certificate, SignedVote
from node.protocol.change import Change, ChangeKind, RefUpdate, Request
from node.protocol.ids import Ballot, Digest, NodeId, Oid, Position, RefName, RepoId, TxnId
from node.protocol.messages import Abort, Claim, Commit, Message, Ping, Prepare, Query, Stage
from tests.cluster.harness import NODES, Cluster, Work, git, timed, wait
from tests.cluster.wire import ZERO, call, call_json, pkt, push
from tests.unit.storage_kit import Thing, blob, commit, history, pack_of, ref_delta, tree, varint

pytestmark = pytest.mark.cluster

MAIN = "refs/heads/main"
MIB = 1024**2
LARGE = os.urandom(200_000)
"""Makes a pack too large to ride in a message (64 KiB): it goes another way on every node."""


# ---------------------------------------------------------------- nothing is left


def litter(cluster: Cluster) -> dict[int, set[str]]:
    """Files of pushes under way. A warm index-pack waits in its own quarantine for the next push, which is no litter."""
    return {node: {path for path in cluster.leftovers(node) if "/.warm-" not in path} for node in NODES}


def places(cluster: Cluster, name: str) -> dict[int, tuple[int, str, dict[str, str], list[str]]]:
    """Version, digest, refs and packs of the repository, by each node's own knowledge."""
    found = {}
    for node in NODES:
        shown = cluster.local(node, f"/repos/{name}").body
        packs = sorted(path.name for path in (cluster.bare(node, name) / "objects").rglob("*") if path.is_file())
        found[node] = (shown["version"], shown["digest"], cluster.disk_refs(node, name), packs)
    return found


@contextmanager
def moving_nothing(cluster: Cluster, name: str) -> Iterator[None]:
    """What the block does changes the repository on no node, and leaves no file on any."""
    before, littered = places(cluster, name), litter(cluster)
    yield

    def clean() -> bool:
        return all(not litter(cluster)[node] - littered[node] for node in NODES)

    wait(clean, 5, f"litter is gone: {litter(cluster)}")
    assert places(cluster, name) == before


@pytest.fixture
def target(rabbitmq: Cluster) -> tuple[str, list[Thing]]:
    """A repository with one small commit, current on all nodes, and what is in it."""
    name = rabbitmq.create(label="hostile")
    things = history()
    report = push(rabbitmq.url(1), name, [(ZERO, things[-1].oid, MAIN)], pack_of(*things))
    assert report.refs == {MAIN: "ok"}
    rabbitmq.agree(name)
    return name, things


# ---------------------------------------------------------------- packs


def corrupt(filling: bytes) -> tuple[bytes, str]:
    things = history(1, filling)
    pack = bytearray(pack_of(*things))
    pack[len(pack) // 2] ^= 0xFF
    return bytes(pack), things[-1].oid


def truncated(filling: bytes) -> tuple[bytes, str]:
    things = history(1, filling)
    return pack_of(*things)[:-40], things[-1].oid


def with_a_hole(filling: bytes) -> tuple[bytes, str]:
    file, root, tip = history(1, filling)
    unsent = commit(root, message=b"never sent\n")
    child = commit(root, tip, unsent)
    return pack_of(file, root, tip, child), child.oid


def with_dot_git(filling: bytes) -> tuple[bytes, str]:
    file = blob(b"[core]\n\tfsmonitor = rm -rf ~\n" + filling)
    inner = tree((b"100644", b"config", file))
    root = tree((b"40000", b".GIT", inner))
    tip = commit(root)
    return pack_of(file, inner, root, tip), tip.oid


def delta_bomb(filling: bytes) -> tuple[bytes, str]:
    """A few hundred bytes that become 500 MiB, or in a large pack more than git's share of memory: 1.2 GiB."""
    base = blob(bytes(65536))
    copies = 8000 if len(filling) < 65536 else 20_000
    bomb = ref_delta(base, varint(65536) + varint(65536 * copies) + b"\x80" * copies)
    things = history(1, filling)
    return pack_of(base, *things, extra=[bomb]), things[-1].oid


def not_a_pack(filling: bytes) -> tuple[bytes, str]:
    return b"<html>" + filling, "12" * 20


@pytest.mark.parametrize("filling", [b"small\n", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (corrupt, "inflate|SHA1 mismatch|bad object|unknown object type"),
        (truncated, "early EOF"),
        (with_a_hole, "did not receive expected object"),
        (with_dot_git, "fsck error in packed object"),
        (delta_bomb, "delta expands 65536 bytes to 524288000|[Oo]ut of memory"),
        (not_a_pack, "pack signature mismatch"),
    ],
)
def test_a_bad_pack_is_refused_in_gits_words_and_leaves_nothing(
    rabbitmq: Cluster, target: tuple[str, list[Thing]], make: Callable[[bytes], tuple[bytes, str]], words: str, filling: bytes
) -> None:
    name, _ = target
    pack, tip = make(filling)
    with moving_nothing(rabbitmq, name):
        began = time.monotonic()
        report = push(rabbitmq.url(2), name, [(ZERO, tip, "refs/heads/bad")], pack)
        assert time.monotonic() - began < 15
    assert re.search(words, report.unpack), report
    assert report.refs == {"refs/heads/bad": "unpacker error"}
    assert "Traceback" not in report.remote
    assert str(rabbitmq.folder) not in report.unpack + report.remote, "no path of the server is told"
    for node in NODES:
        assert git("cat-file", "-e", tip, cwd=rabbitmq.bare(node, name), ok=False).code != 0
    more = history(1, b"honest\n")
    assert push(rabbitmq.url(2), name, [(ZERO, more[-1].oid, "refs/heads/good")], pack_of(*more)).refs == {
        "refs/heads/good": "ok"
    }


def test_stock_git_shows_the_pusher_why_a_tree_was_refused(rabbitmq: Cluster, work: Work) -> None:
    name = rabbitmq.create(label="hostile")
    work.commit()
    entry = f"100644 blob {work.tip('HEAD:file')}\t.git\n"
    bad_tree = git("mktree", cwd=work.path, stdin=entry.encode()).out.strip()
    oid = work.git("commit-tree", "-m", "bad", bad_tree).out.strip()
    with moving_nothing(rabbitmq, name):
        refused = work.git("push", rabbitmq.url(3, name), f"{oid}:refs/heads/bad", ok=False)
    assert refused.code == 1
    assert "contains '.git'" in refused.err
    assert "remote unpack failed" in refused.err
    assert "(unpacker error)" in refused.err


def test_a_wrong_old_value_is_refused_with_the_right_one_named(rabbitmq: Cluster, target: tuple[str, list[Thing]]) -> None:
    name, things = target
    tip = things[-1]
    child = commit(things[1], tip)
    with moving_nothing(rabbitmq, name):
        stale = push(rabbitmq.url(2), name, [("34" * 20, child.oid, MAIN)], pack_of(child))
        exists = push(rabbitmq.url(3), name, [(ZERO, child.oid, MAIN)], pack_of(child))
        absent = push(rabbitmq.url(1), name, [(tip.oid, child.oid, "refs/heads/none")], pack_of(child))
        deleted = push(rabbitmq.url(2), name, [("34" * 20, ZERO, MAIN)], b"")
    assert re.search(rf"fetch first.*{tip.oid[:10]}", stale.refs[MAIN])
    assert re.search(rf"already exists.*{tip.oid[:10]}", exists.refs[MAIN])
    assert absent.refs["refs/heads/none"] == "reference does not exist"
    assert re.search(f"fetch first.*{tip.oid[:10]}", deleted.refs[MAIN])


def test_a_ref_to_an_object_that_was_not_sent_is_refused(rabbitmq: Cluster, target: tuple[str, list[Thing]]) -> None:
    name, things = target
    with moving_nothing(rabbitmq, name):
        report = push(rabbitmq.url(2), name, [(ZERO, "56" * 20, "refs/heads/nothing")], pack_of())
        blobs = push(rabbitmq.url(3), name, [(ZERO, things[0].oid, "refs/heads/blob")], pack_of())
    assert report.refs == {"refs/heads/nothing": "missing necessary objects"}
    assert "non-commit object" in blobs.refs["refs/heads/blob"]


def test_a_pusher_that_vanishes_leaves_nothing(rabbitmq: Cluster, target: tuple[str, list[Thing]]) -> None:
    name, _ = target
    things = history(1, LARGE)
    line = f"{ZERO} {things[-1].oid} refs/heads/gone\0report-status side-band-64k".encode()
    body = f"{len(line) + 4:04x}".encode() + line + b"0000" + pack_of(*things)
    head = (
        f"POST /{name}.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/x-git-receive-pack-request\r\n\r\n"
    ).encode()
    with moving_nothing(rabbitmq, name):
        for sent in (len(head) // 2, len(head) + 20, len(head) + 300, len(head) + 150_000):
            with socket.create_connection(("127.0.0.1", port(rabbitmq, 2)), timeout=10) as client:
                client.sendall((head + body)[:sent])
                time.sleep(0.1)


@pytest.mark.parametrize("sin", ["badTimezone", "missingSpaceBeforeDate", "zeroPaddedFilemode"])
def test_honest_old_histories_are_taken_and_cloned_from_every_node(rabbitmq: Cluster, tmp_path: Path, sin: str) -> None:
    name = rabbitmq.create(label="honest")
    file = blob(b"old\n")
    root = tree((b"100644", b"file", file))
    padded = tree((b"040000", b"folder", root), (b"0100644", b"zfile", file))
    tip = {
        "badTimezone": commit(root, who=b"A <a@example.org> 1700000000 +051800"),
        "missingSpaceBeforeDate": commit(root, who=b"A <a@example.org>1700000000 +0000"),
        "zeroPaddedFilemode": commit(padded),
    }[sin]
    report = push(rabbitmq.url(1), name, [(ZERO, tip.oid, MAIN)], pack_of(file, root, padded, tip))
    assert (report.unpack, report.refs) == ("ok", {MAIN: "ok"})
    rabbitmq.agree(name)
    for node in NODES:
        copy = rabbitmq.clone(node, name, tmp_path / f"copy-{node}", "--bare")
        assert copy.tip("main") == tip.oid
        assert sin in copy.git("-c", f"fsck.{sin}=error", "fsck", "--strict", ok=False).err
        assert sin in git("fsck", "--strict", cwd=rabbitmq.bare(node, name), ok=False).err


# ---------------------------------------------------------------- connections


def port(cluster: Cluster, node: int) -> int:
    return cluster.base_port + node - 1


class Crowd(Thread):
    """Clients that send garbage, or nothing, or a byte now and then, and never go by themselves."""

    def __init__(self, port: int, name: str, count: int) -> None:
        super().__init__(name="crowd")
        self._port = port
        self._count = count
        self._ended = Event()
        self.connected = Event()
        self.answers = [b""] * count
        self.closed_after: dict[int, float] = {}
        slow = f"POST /{name}.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n0".encode()
        chunked = f"POST /{name}.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n"
        self._openings = [
            b"",
            b"GET /health HTTP/1.1\r\nX-Slow: ",
            os.urandom(3000),
            slow,
            b"POST /repos HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n" + b"[" * 400,
            chunked.encode(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST /replicate/prepare HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n{",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]

    def run(self) -> None:
        began = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for number in range(self._count):
                client = socket.create_connection(("127.0.0.1", self._port), timeout=10)
                client.setblocking(False)
                selector.register(client, selectors.EVENT_READ, number)
                with suppress(OSError):
                    client.send(self._openings[number % len(self._openings)])
            self.connected.set()
            while not self._ended.is_set() and selector.get_map():
                for key, _ in selector.select(timeout=0.2):
                    self._read(selector, key, began)
                for key in list(selector.get_map().values()):
                    with suppress(OSError):
                        key.fileobj.send(b"z")  # type: ignore[union-attr]
                self._ended.wait(0.2)
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def _read(self, selector: selectors.BaseSelector, key: selectors.SelectorKey, began: float) -> None:
        try:
            data = key.fileobj.recv(65536)  # type: ignore[union-attr]
        except OSError:
            data = b""
        self.answers[key.data] += data
        if not data:
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            self.closed_after[key.data] = time.monotonic() - began

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=20)
        assert not self.is_alive()


def test_a_crowd_of_two_hundred_bad_clients_does_not_delay_a_push(rabbitmq: Cluster, work: Work) -> None:
    name = rabbitmq.create(label="crowd")
    work.commit()
    work.git("push", "--quiet", rabbitmq.url(1, name), "HEAD:main")
    process = psutil.Process(rabbitmq.pid(1))
    before = process.memory_info().rss
    crowd = Crowd(port(rabbitmq, 1), name, 200)
    crowd.start()
    try:
        assert crowd.connected.wait(15)
        for _ in range(3):
            work.commit()
            pushed = work.git("push", rabbitmq.url(1, name), "HEAD:main")
            assert pushed.seconds < 3, "served meanwhile"
            assert "committed on 3/3" in pushed.err
            assert rabbitmq.get(1, "/health").body["status"] == "ok"
        wait(lambda: len(crowd.closed_after) >= 160, 14, "most are told, and cut off, within the time for headers")
    finally:
        crowd.stop()
    grown = process.memory_info().rss - before
    assert grown < 64 * MIB, grown
    statuses = {answer[9:12] for answer in crowd.answers if answer.startswith(b"HTTP/1.1 ")}
    assert statuses, "some are answered"
    assert all(status.startswith(b"4") or status == b"503" for status in statuses), statuses
    assert not any(b"Traceback" in answer for answer in crowd.answers)
    assert "Traceback" not in rabbitmq.log(1)
    print(f"crowd: {len(crowd.closed_after)} of 200 cut off, latest after {max(crowd.closed_after.values()):.1f} s; statuses")  # noqa: T201
    print(f"{sorted(statuses)}; grown {grown / MIB:.1f} MiB")  # noqa: T201
    assert rabbitmq.agree(name) == 5


def test_readers_that_do_not_read_keep_nobody_from_a_clone(direct: Cluster, work: Work, tmp_path: Path) -> None:
    """As many as there are turns for fetches; each holds one with an answer that it never takes."""
    name = direct.create(label="slow")
    (work.path / "noise").write_bytes(os.urandom(16 * MIB))
    work.git("add", "noise")
    oid = work.commit("noise")
    work.git("push", "--quiet", direct.url(2, name), "HEAD:main")
    direct.agree(name)
    turns = int(Config.model_fields["fetches_max"].default)
    body = pkt(f"want {oid} ofs-delta\n".encode()) + b"0000" + pkt(b"done\n")
    head = (
        f"POST /{name}.git/git-upload-pack HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/x-git-upload-pack-request\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with ExitStack() as clients:
        for _ in range(turns):
            client = clients.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port(direct, 2)))
            client.sendall(head.encode() + body)
        with timed() as seconds:
            copy = direct.clone(2, name, tmp_path / "copy", "--no-checkout")
            took_s = seconds()
    gave_way = direct.log(2).count("slow fetch gave way")
    print(f"\nbehind {turns} readers that do not read a clone took {took_s:.1f} s, {gave_way} gave way")  # noqa: T201
    assert copy.tip("origin/main") == oid
    assert gave_way, "nobody was in the way"
    assert took_s < WAIT_S
    direct.cli("repo", "delete", name, "--yes")


# ---------------------------------------------------------------- forged messages


class Forger:
    """Speaks to nodes as other nodes do, with whatever key."""

    def __init__(self, cluster: Cluster, name: str, *, key_of: int | None, cluster_name: str | None = None) -> None:
        """``key_of``: that node's own key, stolen; ``None``: a key that the sender made up."""
        self.cluster = cluster
        self.repository = RepoId(name.lower())
        config = Config.from_file(cluster.home / f"node-{key_of or 2}" / "node.toml")
        self.voters = config.voters
        self.me = NodeId(f"node-{key_of or 2}")
        if key_of is None:
            key = Ed25519PrivateKey.generate()
            keyring = Keyring(self.me, key, {self.me: [public_text(key)]})
        else:
            public = {NodeId(member.id): member.public_keys for member in config.members}
            keyring = Keyring(self.me, read_private(config.private_key), public)
        self.codec = Codec(cluster_name or config.cluster, self.me, 1, keyring)

    def send(self, message: Message, to: int, *, claiming: int | None = None, spoil: tuple[bytes, bytes] | None = None) -> int:
        """HTTP status of the answer; ``claiming``: the receiver that the envelope names."""
        sealed = self.codec.seal(message, NodeId(f"node-{claiming or to}"), timeout_s=5)
        data = sealed.data
        if spoil is not None:
            assert spoil[0] in data
            data = data.replace(*spoil)
        return self.post(to, sealed.kind.word, data)

    def post(self, to: int, word: str, data: bytes) -> int:
        answer = call(self.cluster.url(to), "POST", f"/replicate/{word}", data, {"Content-Type": "application/json"})
        assert b"Traceback" not in answer.data
        return answer.status

    def change(self, base: Position, oid: str) -> Change:
        request = Request(
            TxnId("20261123-" + "0" * 20),
            "mallory",
            self.me,
            0,
            (RefUpdate(RefName(MAIN), Oid(oid), Oid(ZERO)),),
        )
        return Change(self.repository, base, ChangeKind.UPDATE, (request,))

    def messages(self, base: Position, oid: str) -> list[Message]:
        """Everything that could move something, at a ballot above all others."""
        ballot = Ballot(10**9, self.me, 1)
        change, digest = self.change(base, oid), self.voters.digest
        votes = tuple(SignedVote(node, 1, b"\0" * 64) for node in self.voters.nodes)
        certificate = Certificate(
            self.repository, digest, 2, change.position, ballot, votes, SignedVote(self.me, 1, b"\0" * 64)
        )
        return [
            Claim(self.repository, digest, replace(ballot, attempt=0), 5.0),
            Prepare(self.repository, digest, ballot, change, 2, 5.0),
            Abort(self.repository, digest, ballot, base, 2, 5.0),
            Commit(self.repository, digest, change.position, certificate),
            Stage(self.repository, (), (self.me,)),
            Query(self.repository),
            Ping(),
        ]


def standing(cluster: Cluster, name: str) -> tuple[Position, str]:
    shown = cluster.local(1, f"/repos/{name}").body
    return Position(shown["version"], Digest(shown["digest"])), cluster.refs(1, name)[MAIN]


@pytest.fixture
def aimed(cluster: Cluster, work: Work) -> tuple[Cluster, str]:
    """A repository with one branch. With a broker, only questions are taken by HTTP; without one, everything is."""
    name = cluster.create(label="forged")
    work.commit()
    work.git("push", "--quiet", cluster.url(1, name), "HEAD:main")
    cluster.agree(name)
    return cluster, name


def assert_nobody_was_moved(cluster: Cluster, name: str, work: Work) -> None:
    """The next push needs no round above a forged one, and finds everybody where they were."""
    work.commit()
    pushed = work.git("push", cluster.url(3, name), "HEAD:main")
    assert "version 3 committed on 3/3" in pushed.err
    ballot = cluster.get(3, f"/transactions/{pushed.transaction}").body["ballot"]
    assert int(ballot.split(".")[0]) < 1000, ballot
    assert cluster.agree(name) == 3


def test_messages_signed_with_a_made_up_key_are_refused_and_move_nothing(aimed: tuple[Cluster, str], work: Work) -> None:
    cluster, name = aimed
    base, oid = standing(cluster, name)
    forger = Forger(cluster, name, key_of=None)
    with moving_nothing(cluster, name):
        for node in (1, 3):
            statuses = [forger.send(message, node) for message in forger.messages(base, oid)]
            closed = 403 if cluster.broker == "direct" else 404
            assert statuses == [closed] * 4 + [403] * 3
    assert_nobody_was_moved(cluster, name, work)


def test_a_genuine_message_counts_once_for_its_receiver_as_it_was_sent_and_for_nobody_else(
    aimed: tuple[Cluster, str], work: Work
) -> None:
    cluster, name = aimed
    peer = Forger(cluster, name, key_of=2)
    question = Query(peer.repository)
    assert peer.send(question, 1) == 200, "the key is genuine: what follows is refused for its own reason"
    with moving_nothing(cluster, name):
        assert peer.send(question, 3, claiming=1) == 421
        assert peer.send(question, 1, spoil=(b'"repository":"forged', b'"repository":"forger')) == 403
        assert peer.send(question, 1, spoil=(b'"sender":"node-2"', b'"sender":"node-3"')) == 403
        assert peer.send(question, 1, spoil=(b'"sender":"node-2"', b'"sender":"node-9"')) == 403
        assert peer.send(question, 1, spoil=(b'"incarnation":1', b'"incarnation":2')) == 403
        assert peer.send(question, 1, spoil=(b'"v":1', b'"v":2')) == 400
        assert peer.post(1, "ping", peer.codec.seal(question, NodeId("node-1"), timeout_s=5).data) == 400
        elsewhere = Forger(cluster, name, key_of=2, cluster_name="another")
        assert elsewhere.send(question, 1) == 403
    assert_nobody_was_moved(cluster, name, work)


def test_a_commit_without_a_quorum_of_signatures_is_taken_from_no_node(direct: Cluster, work: Work) -> None:
    """Even a member's own key cannot make the others commit what they did not vote for."""
    name = direct.create(label="forged")
    work.commit()
    work.git("push", "--quiet", direct.url(1, name), "HEAD:main")
    direct.agree(name)
    base, oid = standing(direct, name)
    liar = Forger(direct, name, key_of=2)
    (made_up,) = (message for message in liar.messages(base, oid) if isinstance(message, Commit))
    with moving_nothing(direct, name):
        for node in (1, 3):
            liar.send(made_up, node)
        time.sleep(0.5)
    assert_nobody_was_moved(direct, name, work)


@pytest.mark.parametrize("word", ["prepare", "commit", "claim", "abort", "query", "stage", "fetch", "nonsense"])
def test_what_is_no_envelope_is_refused_in_plain_words(direct: Cluster, word: str) -> None:
    bodies = [b"", b"null", b"{}", b"[" * 50_000, os.urandom(500), b'{"v":1e400}', json.dumps({"v": "x" * 100_000}).encode()]
    for body in bodies:
        answer = call(direct.url(2), "POST", f"/replicate/{word}", body, {"Content-Type": "application/json"})
        assert 400 <= answer.status < 500, (body[:20], answer)
        assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in direct.log(2)


# ---------------------------------------------------------------- names


BAD_NAMES = [
    "..",
    "../..",
    "a/..",
    "../a",
    "a/b.git",
    "a/b.git.git",
    "a/x.lock",
    "x.lock/a",
    "a/.hidden",
    "-a/b",
    "a",
    "a/b/c",
    "a//b",
    "/a/b",
    "a/b/",
    "a/b\n",
    "a/ü",
    "a/b..c",
    "a/" + "x" * 65,
    "",
    "a/b\u0000",
]


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_a_bad_name_is_422_and_touches_nothing(rabbitmq: Cluster, bad: str) -> None:
    before = {node: rabbitmq.local(node, "/repos?limit=1000").body for node in NODES}
    for node in NODES:
        answer = call_json(rabbitmq.url(node), "POST", "/repos", {"repo_id": bad})
        assert answer.status == 422, answer
        assert answer.json["type"] == "/problems/bad-name"
        assert answer.headers["content-type"] == "application/problem+json"
    assert {node: rabbitmq.local(node, "/repos?limit=1000").body for node in NODES} == before
    outside = rabbitmq.home / "node-1"
    assert sorted(path.name for path in outside.iterdir()) == sorted(["data", "key.pem", "log", "node.toml", "process.json"])


@pytest.mark.parametrize(
    "path",
    ["/repos/a/..", "/repos/../a", "/repos/a/b.git", "/repos/a/x.lock", "/repos/a/%2e%2e", "/repos/a/b%00", "/repos/a%2fb/c"],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_bad_name_in_a_path_is_422_too(rabbitmq: Cluster, method: str, path: str) -> None:
    answer = call(rabbitmq.url(2), method, path)
    assert (answer.status, answer.json["type"]) == (422, "/problems/bad-name"), answer


@pytest.mark.parametrize("bad", ["a/b.git.git", "../x.git", "a/x.lock.git", "a/...git", "%2e%2e/x.git"])
@pytest.mark.parametrize("service", ["git-upload-pack", "git-receive-pack"])
def test_a_bad_name_is_422_for_git_clients_too(rabbitmq: Cluster, bad: str, service: str) -> None:
    listed = call(rabbitmq.url(3), "GET", f"/{bad}/info/refs?service={service}")
    posted = call(rabbitmq.url(3), "POST", f"/{bad}/{service}", b"0000", {"Content-Type": f"application/x-{service}-request"})
    assert (listed.status, posted.status) == (422, 422), (listed, posted)
