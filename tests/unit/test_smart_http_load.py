"""Smart HTTP over real sockets: big packs in flat memory, clients that vanish, answers that come before the body's end."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from api.pkt import pkt
from node.protocol.ids import ZERO_OID
from tests.unit.fake_git_service import FakeGitService
from tests.unit.git_server import Server, serve

BIG_BYTES = 100 * 1024**2
GROWTH_BYTES_MAX = 40 * 1024**2
"""What the server may grow by, whatever goes through it: a few buffers of each of its connections."""

UNPACKED = ("-c", "core.compression=0", "-c", "pack.compression=0", "-c", "core.bigFileThreshold=1m", "-c", "pack.depth=0")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve(tmp_path, body_timeout_s=5) as running:
        running.service.create("alice/project")
        yield running


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[tuple[Server, psutil.Process]]:
    """A server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.git_server", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout
        port = int(process.stdout.readline())
        yield Server(FakeGitService(tmp_path / "repositories"), port, tmp_path), psutil.Process(process.pid)
        process.communicate("", timeout=20)
    finally:
        process.kill()
        process.wait()


@contextmanager
def peak_of(process: psutil.Process) -> Iterator[list[int]]:
    """The most resident memory while the block runs."""
    peak, done = [process.memory_info().rss], threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def big_work(server: Server, size_bytes: int) -> Path:
    work = server.work(commits=1)
    for number in range(10):
        (work / f"noise{number}").write_bytes(os.urandom(size_bytes // 10))
    server.git(*UNPACKED, "add", ".", cwd=work)
    server.git("commit", "--quiet", "-m", "big", cwd=work)
    return work


def test_a_pack_of_100_mb_goes_in_and_out_in_flat_memory(foreign: tuple[Server, psutil.Process]) -> None:
    server, process = foreign
    server.git("ls-remote", server.url())
    work = big_work(server, BIG_BYTES)
    before = process.memory_info().rss
    with peak_of(process) as peak:
        server.git(*UNPACKED, "push", "--quiet", "origin", "main", cwd=work)
        server.git("clone", "--quiet", "--bare", server.url(), "copy")
    print(f"resident: {before / 1e6:.0f} MB before, {peak[0] / 1e6:.0f} MB at most")  # noqa: T201
    assert peak[0] - before < GROWTH_BYTES_MAX
    assert server.git("rev-parse", "main", cwd=server.folder / "copy").out == server.git("rev-parse", "main", cwd=work).out


def test_a_refusal_reaches_a_client_that_is_still_sending_its_pack(server: Server) -> None:
    work = big_work(server, 20 * 1024**2)
    ran = server.git(*UNPACKED, "push", "origin", "main:refs/changes/1", cwd=work, ok=False)
    assert "(only refs/heads/, refs/tags/, refs/notes/ can be written)" in ran.err
    assert "intake" not in server.service.calls


def connect(server: Server, body: bytes, announced: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    head = (
        "POST /alice/project.git/git-receive-pack HTTP/1.1\r\nHost: x\r\n"
        f"Content-Type: application/x-git-receive-pack-request\r\nContent-Length: {announced}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def wait_until(condition: object, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def test_a_client_that_vanishes_while_sending_leaves_nothing(server: Server) -> None:
    command = pkt(f"{ZERO_OID} {'1' * 40} refs/heads/x".encode() + b"\x00report-status") + b"0000"
    connection = connect(server, command + b"PACK" + bytes([0, 0, 0, 2, 0, 0, 0, 9]), 100_000)
    objects = server.service.root / "alice" / "project.git" / "objects"

    def incoming() -> bool:  # not below it: a walk that meets a folder just removed raises
        return any(name.startswith("incoming-") for name in os.listdir(objects))

    wait_until(incoming)
    connection.close()
    wait_until(lambda: not incoming())
    assert "push" not in server.service.calls


def test_two_hundred_garbage_pushes_do_not_disturb_an_honest_one(server: Server) -> None:
    work = server.work()
    connections = [connect(server, os.urandom(500), 10_000_000) for _ in range(200)]
    try:
        began = time.monotonic()
        server.git("push", "--quiet", "origin", "main", cwd=work)
        assert time.monotonic() - began < 5
        answers = [connection.recv(65_536) for connection in connections]
    finally:
        for connection in connections:
            connection.close()
    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 400 Bad Request"}
    assert all(b"connection: close" in answer for answer in answers)
    assert server.service.quarantines == 1, "of the honest one"


def exchange(connection: socket.socket, request: bytes) -> bytes:
    """One request, and its answer up to its end: a flush packet."""
    connection.sendall(request)
    answer = b""
    while not answer.endswith(b"0000") or b"\r\n\r\n" not in answer:
        piece = connection.recv(65_536)
        assert piece, answer
        answer += piece
    return answer


def test_one_connection_carries_request_after_request(server: Server) -> None:
    ask = b"GET /alice/project.git/info/refs?service=git-receive-pack HTTP/1.1\r\nHost: x\r\n\r\n"
    command = pkt(f"{ZERO_OID} {'1' * 40} refs/changes/1".encode() + b"\x00report-status") + b"0000" + b"x" * 50_000
    head = b"POST /alice/project.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(command)
    head += b"Content-Type: application/x-git-receive-pack-request\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for request in (ask, ask, head + command, ask):
            assert exchange(connection, request).startswith(b"HTTP/1.1 200 OK")


def test_a_refused_push_reads_the_rest_away_before_it_ends_its_answer(server: Server) -> None:
    command = pkt(f"{ZERO_OID} {'1' * 40} refs/changes/1".encode() + b"\x00report-status") + b"0000"
    connection = connect(server, command + bytes(600_000), 3_000_000 + len(command))
    with connection:
        answer = b""
        while b"ng refs/changes/1" not in answer:
            answer += connection.recv(65_536)
        assert not answer.endswith(b"0\r\n\r\n")
        connection.sendall(bytes(2_400_000))
        while piece := connection.recv(65_536):
            answer += piece
        assert answer.endswith(b"0\r\n\r\n")
