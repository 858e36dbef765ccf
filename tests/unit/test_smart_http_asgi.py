"""Smart HTTP without a socket: statuses, headers, outcomes, and what garbage costs."""

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from api import side_band
from api.git_body import Budget
from api.pkt import packets, pkt
from api.smart_http import SmartHttp
from node.ports.errors import Busy, DiskRefused, PackRefused, ReadUnavailable, RepositoryAbsent, StorageError
from node.ports.service import Consistency, Service
from node.protocol.ids import ZERO_OID, Position, RefName, TxnId, digest_of
from node.protocol.names import RepositoryName
from node.protocol.outcome import Outcome, OutcomeKind
from node.protocol.register import Register
from tests.unit.asgi_client import Answer, call
from tests.unit.fake_git_service import FakeGitService, config_for, git

REPOSITORY = "/alice/project.git"
UPLOAD = f"{REPOSITORY}/git-upload-pack"
RECEIVE = f"{REPOSITORY}/git-receive-pack"
UPLOAD_TYPE = ("Content-Type", "application/x-git-upload-pack-request")
RECEIVE_TYPE = ("Content-Type", "application/x-git-receive-pack-request")
V2 = ("Git-Protocol", "version=2")
CAPABILITIES = b"report-status side-band-64k"
EMPTY_PACK = bytes.fromhex("5041434b0000000200000000029d08823bd8a8eab510ad6ac75c823cfd3ed31e")


@pytest.fixture
def service(tmp_path: Path) -> FakeGitService:
    service = FakeGitService(tmp_path / "repositories")
    path = service.create("alice/project")
    tree = git("mktree", cwd=path).decode().strip()
    who = {f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    oid = git("commit-tree", "-m", "one", tree, cwd=path, env=who).decode().strip()
    git("update-ref", "refs/heads/main", oid, cwd=path)
    git("update-ref", "refs/heads/a.b-c", oid, cwd=path)
    git("update-ref", "refs/heads/ü", oid, cwd=path)
    git("tag", "-a", "v1", "-m", "v1", "main", cwd=path, env=who)
    git("tag", "light", "main", cwd=path)
    return service


@pytest.fixture
def app(service: FakeGitService, tmp_path: Path) -> SmartHttp:
    config = config_for(tmp_path, body_timeout_s=0.3, pack_bytes_max=10_000, fetch_request_bytes_max=8192)
    return SmartHttp(cast(Service, service), config)


def main_of(service: FakeGitService) -> str:
    return git("rev-parse", "main", cwd=service.root / "alice/project.git").decode().strip()


def push_of(service: FakeGitService, *refs: str, capabilities: bytes = CAPABILITIES, pack: bytes = EMPTY_PACK) -> bytes:
    lines = [f"{ZERO_OID} {main_of(service)} {ref}".encode() for ref in refs]
    lines[0] += b"\x00 " + capabilities
    return b"".join(map(pkt, lines)) + b"0000" + pack


async def push(app: SmartHttp, body: bytes | list[bytes], *headers: tuple[str, str], **options: Any) -> Answer:
    return await call(app, "POST", RECEIVE, body, (RECEIVE_TYPE, *headers), **options)


def bands(answer: Answer) -> dict[int, bytes]:
    """The side-bands of a push's answer, each joined."""
    joined = {1: b"", 2: b""}
    for packet in packets(answer.body):
        if isinstance(packet, bytes):
            # ``packets`` strips one newline, which lines on band 2 end in.
            joined[packet[0]] += packet[1:] + (b"\n" if packet[0] == 2 else b"")
    return joined


# ---------------------------------------------------------------- advertisements


def agentless(advertisement: bytes) -> list[object]:
    """Its packets, without the agent's name and the one command that is left out."""
    lines = [line if isinstance(line, bytes) else str(line).encode() for line in packets(advertisement)]
    return [b" ".join(w for w in line.split(b" ") if not w.startswith(b"agent=")) for line in lines if line != b"object-info"]


@pytest.mark.parametrize("protocol", ["", "version=1", "version=2"])
@pytest.mark.parametrize("repository", ["project", "empty"])
async def test_what_is_offered_for_fetches_is_what_git_itself_offers(
    app: SmartHttp, service: FakeGitService, protocol: str, repository: str
) -> None:
    service.create("alice/empty")
    answer = await call(
        app, "GET", f"/alice/{repository}.git/info/refs?service=git-upload-pack", headers=[("Git-Protocol", protocol)]
    )
    env = {"GIT_PROTOCOL": "" if protocol == "version=1" else protocol}
    real = git("upload-pack", "--http-backend-info-refs", str(service.root / f"alice/{repository}.git"), env=env)
    assert answer.body.startswith(b"001e# service=git-upload-pack\n0000")
    assert agentless(answer.body.removeprefix(b"001e# service=git-upload-pack\n0000")) == agentless(real)
    assert answer.headers["content-type"] == "application/x-git-upload-pack-advertisement"


@pytest.mark.parametrize("repository", ["project", "empty"])
async def test_what_is_offered_for_pushes_is_what_git_itself_offers(
    app: SmartHttp, service: FakeGitService, repository: str
) -> None:
    path = service.create("alice/empty").parent / f"{repository}.git"
    answer = await call(app, "GET", f"/alice/{repository}.git/info/refs?service=git-receive-pack")
    real = git("-c", "receive.advertisePushOptions=true", "receive-pack", "--http-backend-info-refs", str(path))
    assert agentless(answer.body.removeprefix(b"001f# service=git-receive-pack\n0000")) == agentless(real)
    assert answer.headers["content-type"] == "application/x-git-receive-pack-advertisement"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["peel"],
        ["symrefs"],
        ["peel", "symrefs", "unborn"],
        ["ref-prefix refs/tags/", "peel"],
        ["ref-prefix HEAD", "symrefs"],
    ],
)
@pytest.mark.parametrize("repository", ["project", "empty"])
async def test_ls_refs_answers_what_git_itself_answers(
    app: SmartHttp, service: FakeGitService, arguments: list[str], repository: str
) -> None:
    service.create("alice/empty", head="refs/heads/trunk")
    body = pkt(b"command=ls-refs\n") + b"0001" + b"".join(pkt(argument.encode() + b"\n") for argument in arguments) + b"0000"
    answer = await call(app, "POST", f"/alice/{repository}.git/git-upload-pack", body, [UPLOAD_TYPE, V2])
    path = str(service.root / f"alice/{repository}.git")
    assert answer.body == git("upload-pack", "--stateless-rpc", path, env={"GIT_PROTOCOL": "version=2"}, stdin=body)
    assert "upload_pack" not in service.calls, "answered in process"


async def test_answers_are_never_cached_and_carry_the_version(app: SmartHttp, service: FakeGitService) -> None:
    service.version = 41
    answer = await call(app, "GET", f"{REPOSITORY}/info/refs?service=git-upload-pack")
    assert answer.headers["cache-control"] == "no-cache, max-age=0, must-revalidate"
    assert answer.headers["expires"] == "Fri, 01 Jan 1980 00:00:00 GMT"
    assert answer.headers["pragma"] == "no-cache"
    assert answer.headers["x-gitquorum-version"] == "41"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.headers["x-gitquorum-digest"] == digest_of("41")
    assert answer.headers["x-gitquorum-consistency"] == "linearizable"


async def test_a_local_read_says_that_it_is_one(app: SmartHttp) -> None:
    local = [("X-Gitquorum-Consistency", "local")]
    answer = await call(app, "GET", f"{REPOSITORY}/info/refs?service=git-upload-pack", headers=local)
    assert answer.headers["x-gitquorum-consistency"] == "local"


async def test_every_answer_carries_version_digest_and_consistency(app: SmartHttp, service: FakeGitService) -> None:
    """The capabilities of v2 are made without a question, and say so; a push's answer shows the version it made."""
    ls_refs = b"".join(map(pkt, (b"command=ls-refs\n", b"object-format=sha1"))) + b"0000"
    fetch = pkt(f"want {main_of(service)} side-band-64k".encode()) + b"0000" + pkt(b"done\n")
    answers = [
        ("linearizable", await call(app, "GET", f"{REPOSITORY}/info/refs?service=git-receive-pack")),
        ("local", await call(app, "GET", f"{REPOSITORY}/info/refs?service=git-upload-pack", headers=[V2])),
        ("linearizable", await call(app, "POST", UPLOAD, ls_refs, [UPLOAD_TYPE, V2])),
        ("linearizable", await call(app, "POST", UPLOAD, fetch, [UPLOAD_TYPE])),
        (None, await push(app, push_of(service, "refs/heads/x"))),
    ]
    for consistency, answer in answers:
        assert answer.status == 200, answer
        version = "1" if consistency else "2"
        assert answer.headers["x-gitquorum-version"] == version
        assert answer.headers["x-gitquorum-digest"] == digest_of(version)
        assert answer.headers.get("x-gitquorum-consistency") == consistency


async def test_a_refused_read_shows_the_version_this_node_has(app: SmartHttp, service: FakeGitService) -> None:
    position = Position(41, digest_of("41"))
    for error, status in ((ReadUnavailable("no majority", position), 503), (RepositoryAbsent("gone", position), 404)):
        service.fails["read"] = error
        answer = await call(app, "GET", f"{REPOSITORY}/info/refs?service=git-upload-pack")
        assert (answer.status, answer.headers["x-gitquorum-version"]) == (status, "41")


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("method", "target", "headers", "status"),
    [
        ("GET", f"{REPOSITORY}/info/refs", [], 403),
        ("GET", f"{REPOSITORY}/HEAD", [], 403),
        ("GET", f"{REPOSITORY}/objects/info/packs", [], 403),
        ("GET", f"{REPOSITORY}/../../etc/passwd", [], 403),
        ("GET", f"{REPOSITORY}/info/refs?service=git-foo", [], 403),
        ("GET", f"{REPOSITORY}/info/refs?service=git-upload-pack&service=git-receive-pack", [], 403),
        ("GET", f"{REPOSITORY}/info/refs?" + "&".join(f"a{n}" for n in range(99)), [], 403),
        ("POST", f"{REPOSITORY}/info/refs?service=git-upload-pack", [], 405),
        ("GET", UPLOAD, [], 405),
        ("PUT", RECEIVE, [RECEIVE_TYPE], 405),
        ("POST", UPLOAD, [RECEIVE_TYPE], 415),
        ("POST", RECEIVE, [], 415),
        ("GET", "/alice/absent.git/info/refs?service=git-upload-pack", [], 404),
        ("POST", "/alice/absent.git/git-receive-pack", [RECEIVE_TYPE], 404),
        ("GET", "/Alice/Project.git/info/refs?service=git-receive-pack", [], 404),
        ("GET", "/-bad/project.git/info/refs?service=git-upload-pack", [], 422),
        ("GET", "/alice/a..b.git/info/refs?service=git-upload-pack", [], 422),
        ("GET", "/alice/a.git.git/info/refs?service=git-upload-pack", [], 422),
        ("GET", f"/alice/{'x' * 65}.git/info/refs?service=git-upload-pack", [], 422),
        ("GET", "/alice/ü.git/info/refs?service=git-upload-pack", [], 422),
        ("GET", "/nothing", [], 404),
        ("GET", f"{REPOSITORY}/info/refs?service=git-upload-pack", [("X-Gitquorum-Consistency", "strong")], 400),
    ],
)
async def test_what_cannot_be_answered_is_refused_with_a_problem(
    app: SmartHttp, service: FakeGitService, method: str, target: str, headers: list[tuple[str, str]], status: int
) -> None:
    answer = await call(app, method, target, headers=headers)
    assert answer.complete
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = json.loads(answer.body)
    assert problem["status"] == status
    assert problem["detail"]
    assert set(service.calls) <= {"read"}


@pytest.mark.parametrize("lonely", [False, True], ids=["others are slow", "no majority"])
async def test_a_push_to_what_this_node_has_not_heard_of_is_no_404_before_the_others_were_asked(
    app: SmartHttp, service: FakeGitService, monkeypatch: pytest.MonkeyPatch, lonely: bool
) -> None:
    """Created a moment ago on another node. The look at the others took longer than a push's look may, what this node knew
    by itself was taken for an answer, and git said that the repository was not found."""

    async def read(name: RepositoryName, consistency: Consistency, at_least: int = 0) -> Register:
        if consistency is Consistency.LOCAL:
            raise RepositoryAbsent(f"repository {name} does not exist")
        if lonely:
            raise ReadUnavailable("a linearizable read needs 2 of 3 voters")
        await asyncio.sleep(0.1)
        return await FakeGitService.read(service, name, consistency, at_least)

    monkeypatch.setattr("api.smart_http.READ_TO_PUSH_S", 0.02)
    monkeypatch.setattr(service, "read", read)
    answer = await call(app, "GET", f"{REPOSITORY}/info/refs?service=git-receive-pack")
    assert answer.status == (503 if lonely else 200)


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (ReadUnavailable("no majority answered in 2 s"), 503, "1"),
        (Busy("16 fetches are running"), 503, "1"),
        (StorageError("the journal refuses writes"), 503, "10"),
    ],
)
async def test_what_may_be_tried_again_says_when(
    app: SmartHttp, service: FakeGitService, error: Exception, status: int, retry: str
) -> None:
    service.fails["read"] = error
    answer = await call(app, "GET", f"{REPOSITORY}/info/refs?service=git-upload-pack", headers=[("User-Agent", "git/2.39.5")])
    assert (answer.status, answer.headers["retry-after"]) == (status, retry)
    assert answer.headers["content-type"].startswith("text/plain"), "git prints it"
    assert answer.body.decode() == f"{error}\n"


async def test_a_busy_upload_pack_is_503_before_anything_was_sent(app: SmartHttp, service: FakeGitService) -> None:
    service.fails["upload_pack"] = Busy("16 fetches are running")
    body = pkt(b"want " + main_of(service).encode() + b" ofs-delta\n") + b"0000" + pkt(b"done\n")
    assert (await call(app, "POST", UPLOAD, body, [UPLOAD_TYPE])).status == 503


@pytest.mark.parametrize(
    ("target", "content_type", "body", "headers", "status"),
    [
        (UPLOAD, UPLOAD_TYPE, b"garbage", [], 400),
        (UPLOAD, UPLOAD_TYPE, b"", [], 400),
        (UPLOAD, UPLOAD_TYPE, b"0000garbage!"[4:], [V2], 400),
        (UPLOAD, UPLOAD_TYPE, pkt(b"x" * 9000), [], 413),
        (UPLOAD, UPLOAD_TYPE, b"not gzip", [("Content-Encoding", "gzip")], 400),
        (UPLOAD, UPLOAD_TYPE, gzip.compress(bytes(9000)), [("Content-Encoding", "gzip")], 413),
        (UPLOAD, UPLOAD_TYPE, b"x", [("Content-Encoding", "br")], 400),
        (RECEIVE, RECEIVE_TYPE, b"garbage", [], 400),
        (RECEIVE, RECEIVE_TYPE, b"", [], 400),
        (RECEIVE, RECEIVE_TYPE, pkt(b"garbage"), [], 400),
        (RECEIVE, RECEIVE_TYPE, b"0032" + b"a" * 10, [], 400),
        (RECEIVE, RECEIVE_TYPE, b"0000", [("Content-Length", "5000000000")], 413),
    ],
)
async def test_malformed_and_oversized_bodies_are_refused_before_anything_is_started(
    app: SmartHttp,
    service: FakeGitService,
    target: str,
    content_type: tuple[str, str],
    body: bytes,
    headers: list[tuple[str, str]],
    status: int,
) -> None:
    answer = await call(app, "POST", target, body, [content_type, *headers])
    assert (answer.status, answer.complete) == (status, True)
    assert set(service.calls) <= {"read"}


async def test_a_client_that_stalls_hears_408_and_is_closed(app: SmartHttp) -> None:
    answer = await push(app, b"0032", then="stall")
    assert (answer.status, answer.headers["connection"]) == (408, "close")


async def test_a_client_that_hangs_up_hears_nothing_and_leaves_nothing(app: SmartHttp, service: FakeGitService) -> None:
    answer = await push(app, [push_of(service, "refs/heads/x")[:-10]], then="hang up")
    assert answer.events == []
    assert "push" not in service.calls
    assert list(service.root.rglob("incoming-*")) == []


async def test_a_pack_cut_off_by_a_stall_is_408_whatever_the_intake_makes_of_it(
    app: SmartHttp, service: FakeGitService
) -> None:
    assert (await push(app, [push_of(service, "refs/heads/x")[:-10]], then="stall")).status == 408
    assert list(service.root.rglob("incoming-*")) == []


async def test_a_pack_beyond_the_bound_is_413(app: SmartHttp, service: FakeGitService) -> None:
    noise = random.Random(1).randbytes(5_000_000)
    pack = b"PACK" + bytes([0, 0, 0, 2, 0, 0, 0, 1]) + bytes([0xB0, 0xB4, 0x89, 0x13]) + zlib.compress(noise, 0)
    pieces = [push_of(service, "refs/heads/x", pack=b""), *(pack[at : at + 50_000] for at in range(0, len(pack), 50_000))]
    answer = await push(app, pieces)
    assert (answer.status, "push" in service.calls) == (413, False)
    assert list(service.root.rglob("incoming-*")) == []


async def test_two_hundred_garbage_pushes_are_all_refused_and_cost_nothing(app: SmartHttp, service: FakeGitService) -> None:
    chance = random.Random(7)
    bodies = [chance.randbytes(chance.randint(0, 2000)) for _ in range(100)]
    whole = push_of(service, "refs/heads/x", capabilities=b"report-status push-options", pack=b"")
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[chance.randrange(80)] ^= 0x80
        bodies.append(bytes(damaged))
    answers = await asyncio.gather(*(push(app, body) for body in bodies))
    assert {answer.status for answer in answers} <= {400, 413}
    assert set(service.calls) == {"read"}, "no transaction, no intake"
    assert app._budget.held == 0


async def test_gathered_requests_of_all_clients_together_are_bounded(
    app: SmartHttp, service: FakeGitService, monkeypatch: pytest.MonkeyPatch
) -> None:
    app._budget = Budget(10_000)
    line = pkt(b"want " + b"a" * 40)
    slow = [asyncio.create_task(call(app, "POST", UPLOAD, [line * 100], [UPLOAD_TYPE], then="stall")) for _ in range(4)]
    answers = await asyncio.gather(*slow)
    assert sorted(answer.status for answer in answers) == [408, 408, 503, 503]
    assert app._budget.held == 0


# ---------------------------------------------------------------- pushes


async def test_a_quick_push_is_answered_in_one_piece(app: SmartHttp, service: FakeGitService) -> None:
    answer = await push(app, push_of(service, "refs/heads/x"))
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.headers["x-gitquorum-version"] == "2"
    assert "connection" not in answer.headers
    said = bands(answer)
    assert said[1] == pkt(b"unpack ok\n") + pkt(b"ok refs/heads/x\n") + b"0000"
    assert said[2] == b"gitquorum: version 2 committed on 3/3 (quorum 2) tx txn-2\n"


async def test_a_client_without_side_bands_gets_the_plain_report(app: SmartHttp, service: FakeGitService) -> None:
    answer = await push(app, push_of(service, "refs/heads/x", capabilities=b"report-status"))
    assert answer.body == pkt(b"unpack ok\n") + pkt(b"ok refs/heads/x\n") + b"0000"


async def test_a_client_that_wants_no_report_gets_none(app: SmartHttp, service: FakeGitService) -> None:
    answer = await push(app, push_of(service, "refs/heads/x", capabilities=b"ofs-delta"))
    assert (answer.status, answer.body) == (200, b"")
    assert len(service.submitted) == 1


async def test_a_lone_flush_packet_is_a_client_trying_out(app: SmartHttp, service: FakeGitService) -> None:
    for target, content_type in ((UPLOAD, UPLOAD_TYPE), (RECEIVE, RECEIVE_TYPE)):
        answer = await call(app, "POST", target, b"0000", [content_type])
        assert (answer.status, answer.body) == (200, b"")
    assert set(service.calls) == {"read"}


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (
            Outcome(
                OutcomeKind.ABORTED, TxnId("t9"), reason="quorum not reached (1/2): node-2 no answer, node-3 refused: disk full"
            ),
            b"quorum not reached (1/2): node-2 no answer, node-3 refused: disk full",
        ),
        (
            Outcome(OutcomeKind.UNKNOWN, TxnId("t9")),
            b"outcome unknown, transaction t9; it is being settled, see http://node-1.example:3001/transactions/t9",
        ),
        (Outcome(OutcomeKind.REJECTED, TxnId("t9"), rejections=((RefName("refs/heads/x"), "fetch first"),)), b"fetch first"),
    ],
)
async def test_what_the_quorum_says_is_told_for_the_ref(
    app: SmartHttp, service: FakeGitService, outcome: Outcome, reason: bytes
) -> None:
    service.decide = lambda txn: outcome
    answer = await push(app, push_of(service, "refs/heads/x"))
    assert bands(answer)[1] == pkt(b"unpack ok\n") + pkt(b"ng refs/heads/x " + reason + b"\n") + b"0000"
    assert b"committed" not in bands(answer)[2]
    assert service.discarded == 1


async def test_a_refused_pack_is_told_in_gits_words_for_every_ref(app: SmartHttp, service: FakeGitService) -> None:
    answer = await push(
        app, push_of(service, "refs/heads/x", "refs/heads/y", "refs/replace/z", pack=b"PACKgarbage" + bytes(30))
    )
    said = bands(answer)[1]
    assert said.startswith(b"0")
    assert b"unpack fatal: pack" in said
    assert said.count(b"unpacker error") == 3
    assert "push" not in service.calls


@pytest.mark.parametrize("error", [DiskRefused("the disk is nearly full"), PackRefused("object is corrupt")])
async def test_a_refusing_intake_is_told_to_the_person(app: SmartHttp, service: FakeGitService, error: Exception) -> None:
    service.fails["receive"] = error
    answer = await push(app, push_of(service, "refs/heads/x"))
    assert f"unpack {error}\n".encode() in bands(answer)[1]
    assert b"ng refs/heads/x unpacker error\n" in bands(answer)[1]


async def test_a_busy_intake_is_503(app: SmartHttp, service: FakeGitService) -> None:
    service.fails["receive"] = Busy("16 packs are being received")
    assert (await push(app, push_of(service, "refs/heads/x"))).status == 503


async def test_storage_that_fails_after_submission_is_never_called_a_failure(app: SmartHttp, service: FakeGitService) -> None:
    service.fails["push"] = StorageError("the journal refuses writes")
    assert b"outcome unknown, transaction txn-2" in bands(await push(app, push_of(service, "refs/heads/x")))[1]


async def test_missing_objects_take_out_their_ref_only(app: SmartHttp, service: FakeGitService) -> None:
    body = (
        push_of(service, "refs/heads/x", pack=b"")[:-4]
        + pkt(f"{ZERO_OID} {'1' * 40} refs/heads/gone".encode())
        + b"0000"
        + EMPTY_PACK
    )
    said = bands(await push(app, body))[1]
    assert pkt(b"ok refs/heads/x\n") in said
    assert b"ng refs/heads/gone missing necessary objects\n" in said
    assert [update.ref for update in service.submitted[0]] == ["refs/heads/x"]


async def test_an_atomic_push_with_missing_objects_submits_nothing(app: SmartHttp, service: FakeGitService) -> None:
    head = push_of(service, "refs/heads/x", capabilities=CAPABILITIES + b" atomic", pack=b"")[:-4]
    said = bands(await push(app, head + pkt(f"{ZERO_OID} {'1' * 40} refs/heads/gone".encode()) + b"0000" + EMPTY_PACK))[1]
    assert b"ng refs/heads/x atomic push failure\n" in said
    assert b"ng refs/heads/gone missing necessary objects\n" in said
    assert "push" not in service.calls


async def test_one_ref_named_twice_is_refused_and_the_others_go_on(app: SmartHttp, service: FakeGitService) -> None:
    said = bands(await push(app, push_of(service, "refs/heads/x", "refs/heads/y", "refs/heads/x")))[1]
    assert said.count(b"ng refs/heads/x multiple updates for one ref are not allowed\n") == 2
    assert pkt(b"ok refs/heads/y\n") in said


async def test_a_long_wait_shows_signs_of_life_and_progress(
    app: SmartHttp, service: FakeGitService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_band, "KEEPALIVE_S", 0.02)
    heard = asyncio.Event()

    async def watch(event: dict[str, Any]) -> None:
        if event.get("body") == side_band.KEEPALIVE_PKT:
            heard.set()

    async def wait(progress: Callable[[str], None]) -> None:
        await heard.wait()
        progress("staged on node-2")

    service.before_decision = wait
    answer = await push(app, push_of(service, "refs/heads/x"), sent=watch)
    said = bands(answer)
    assert said[2].startswith(b"staged on node-2\ngitquorum: version 2")
    assert b"ok refs/heads/x" in said[1]
    assert "content-length" not in answer.headers
    assert answer.complete


async def test_a_client_that_vanishes_after_submission_does_not_cancel_the_push(
    app: SmartHttp, service: FakeGitService
) -> None:
    async def lost(event: dict[str, Any]) -> None:
        await asyncio.Event().wait()  # nobody reads

    async def talk(progress: Callable[[str], None]) -> None:
        for n in range(5000):
            progress(f"{n} " + "x" * 900)
        await asyncio.sleep(0)

    service.before_decision = talk
    await push(app, push_of(service, "refs/heads/x"), sent=lost)
    assert git("rev-parse", "refs/heads/x", cwd=service.root / "alice/project.git").decode().strip() == main_of(service)
    assert service.discarded == 1


# ---------------------------------------------------------------- fetches


async def test_a_client_that_hangs_up_ends_its_upload_pack(app: SmartHttp, service: FakeGitService) -> None:
    stuck = asyncio.Event()

    async def endless() -> Any:
        try:
            yield b"PACK"
            stuck.set()
            await asyncio.Event().wait()
        finally:
            service.fetches_closed += 1

    async def upload_pack(*_: Any, **__: Any) -> Any:
        return endless()

    service.upload_pack = upload_pack  # type: ignore[method-assign]
    body = pkt(b"want " + main_of(service).encode() + b" ofs-delta\n") + b"0000" + pkt(b"done\n")

    async def receive() -> dict[str, Any]:
        if not sent:
            sent.append(True)
            return {"type": "http.request", "body": body, "more_body": False}
        await stuck.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        pass

    sent: list[bool] = []
    headers = [(b"content-type", UPLOAD_TYPE[1].encode()), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": "POST", "path": UPLOAD, "query_string": b"", "headers": headers, "root_path": ""}
    await asyncio.wait_for(app(scope, receive, send), 5)
    assert service.fetches_closed == 1


async def test_a_client_that_does_not_read_is_given_up_and_its_upload_pack_ended(
    app: SmartHttp, service: FakeGitService
) -> None:
    async def never(event: dict[str, Any]) -> None:
        if event["type"] == "http.response.body":
            await asyncio.Event().wait()

    body = pkt(b"want " + main_of(service).encode() + b" ofs-delta\n") + b"0000" + pkt(b"done\n")
    answer = await call(app, "POST", UPLOAD, body, [UPLOAD_TYPE], sent=never)
    assert not answer.complete
    assert service.fetches_closed == 1


async def test_an_answer_that_breaks_off_is_not_ended_properly(app: SmartHttp, service: FakeGitService) -> None:
    async def broken() -> Any:
        yield b"PACK"
        raise StorageError("git upload-pack was killed")

    async def upload_pack(*_: Any, **__: Any) -> Any:
        return broken()

    service.upload_pack = upload_pack  # type: ignore[method-assign]
    body = pkt(b"want " + main_of(service).encode() + b" ofs-delta\n") + b"0000" + pkt(b"done\n")
    answer = await call(app, "POST", UPLOAD, body, [UPLOAD_TYPE])
    assert (answer.body, answer.complete) == (b"PACK", False)
