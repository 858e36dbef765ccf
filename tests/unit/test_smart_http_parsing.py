"""The pure parts: command lists, fetch requests, screening and reports."""

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.fetch_request import BadFetchRequest, LsRefs, Nothing, Objects, read_request
from api.pkt import BadPktLine, TooManyBytes, pkt
from api.push_commands import (
    PUSH_OPTION_BYTES_MAX,
    PUSH_OPTIONS_MAX,
    BadPushRequest,
    Command,
    PushRequest,
    PushRequestParser,
)
from api.report_status import reasons_of, remark, report, screen
from node.protocol.ids import ZERO_OID, Oid, RefName, TxnId
from node.protocol.outcome import Outcome, OutcomeKind
from tests.unit.fake_git_service import committed

A, B = Oid("a" * 40), Oid("b" * 40)
OIDS = st.sampled_from([A, B, ZERO_OID])
REFS = st.binary(min_size=1, max_size=40).filter(lambda ref: b"\x00" not in ref and b"\n" not in ref)
COMMANDS = st.lists(st.builds(Command, REFS, OIDS, OIDS), min_size=1, max_size=10)


def line(command: Command, capabilities: bytes = b"") -> bytes:
    text = f"{command.old} {command.new} ".encode() + command.ref
    return pkt(text + (b"\x00 " + capabilities if capabilities else b""))


def encoded(commands: list[Command], capabilities: bytes = b"report-status", options: list[bytes] | None = None) -> bytes:
    lines = [line(command, capabilities if n == 0 else b"") for n, command in enumerate(commands)]
    tail = b"".join(pkt(option) for option in options or []) + b"0000" if options is not None else b""
    return b"".join(lines) + b"0000" + tail


def parse(data: bytes, bytes_max: int = 1 << 20) -> tuple[PushRequest | None, bytes]:
    parser = PushRequestParser(bytes_max)
    return parser.feed(data), parser.rest()


@given(COMMANDS, st.integers(1, 50), st.binary(max_size=100))
def test_commands_come_back_wherever_the_bytes_are_cut(commands: list[Command], size: int, pack: bytes) -> None:
    data = encoded(commands) + pack
    parser, request, fed = PushRequestParser(1 << 20), None, 0
    while request is None:
        request = parser.feed(data[fed : fed + size])
        fed += size
    assert request.commands == tuple(commands)
    assert request.capabilities == {b"report-status"}
    assert parser.rest() + data[fed:] == pack


@given(st.binary(max_size=400))
def test_garbage_is_no_push(garbage: bytes) -> None:
    try:
        request, _ = parse(garbage)
    except (BadPktLine, BadPushRequest):
        return
    assert request is None or not request.commands


@given(COMMANDS, st.integers(0, 2**32))
def test_a_damaged_command_list_raises_nothing_unexpected(commands: list[Command], seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(encoded(commands, b"report-status push-options", [b"x"]))
    for _ in range(chance.randint(1, 5)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    with contextlib.suppress(BadPktLine, BadPushRequest):
        parse(bytes(data))


def test_shallow_lines_capabilities_and_options_are_read() -> None:
    head = pkt(b"shallow " + A.encode() + b"\n")
    capabilities = b"report-status-v2 side-band-64k atomic push-options quiet object-format=sha1 agent=git/2.39.5"
    data = head + encoded([Command(b"refs/heads/a", ZERO_OID, B)], capabilities, [b"ci.skip", b"a=b"])
    request, rest = parse(data + b"PACK")
    assert request
    assert (request.shallow, request.options, rest) == ((A,), (b"ci.skip", b"a=b"), b"PACK")
    assert request.atomic
    assert request.quiet
    assert request.side_band
    assert request.wants_report
    assert request.sends_pack


def test_deletes_alone_come_without_a_pack() -> None:
    request, _ = parse(encoded([Command(b"refs/heads/a", A, ZERO_OID)]))
    assert request
    assert not request.sends_pack


@pytest.mark.parametrize(
    "data",
    [
        pkt(b"push-cert\x00report-status"),
        pkt(b"hello"),
        line(Command(b"refs/heads/a", A, B), b"object-format=sha256"),
        line(Command(b"refs/heads/a", A, B), b"atomic") * 2,
        pkt(b"A" * 40 + b" " + b"b" * 40 + b" refs/heads/a"),
        pkt(b"shallow x"),
        encoded([Command(b"refs/heads/a", A, B)], b"push-options", [b"o"] * (PUSH_OPTIONS_MAX + 1)),
        encoded([Command(b"refs/heads/a", A, B)], b"push-options", [b"o" * (PUSH_OPTION_BYTES_MAX + 1)]),
    ],
)
def test_what_no_client_sends_is_refused(data: bytes) -> None:
    with pytest.raises(BadPushRequest):
        parse(data)


def test_a_delimiter_is_no_part_of_a_push() -> None:
    with pytest.raises(BadPktLine):
        parse(b"0001")


def test_a_command_list_beyond_its_bound_is_refused() -> None:
    with pytest.raises(TooManyBytes):
        parse(encoded([Command(b"refs/heads/%d" % n, A, B) for n in range(100)]), bytes_max=4096)


# ---------------------------------------------------------------- screening and reports


def test_screening_names_the_reason_for_every_command_it_takes_out() -> None:
    commands = (
        Command(b"refs/heads/good", ZERO_OID, A),
        Command(b"refs/replace/x", ZERO_OID, A),
        Command(b"refs/heads/a..b", ZERO_OID, A),
        Command(b"refs/heads/\xff", ZERO_OID, A),
        Command(b"HEAD", ZERO_OID, A),
        Command(b"refs/heads/twice", ZERO_OID, A),
        Command(b"refs/heads/twice", A, B),
        Command(b"refs/heads/none", ZERO_OID, ZERO_OID),
    )
    updates, refused = screen(commands)
    assert [update.ref for update in updates] == ["refs/heads/good"]
    assert refused == {
        b"refs/replace/x": "only refs/heads/, refs/tags/, refs/notes/ can be written",
        b"refs/heads/a..b": "git-check-ref-format refuses this ref name",
        b"refs/heads/\xff": "a ref name must be UTF-8",
        b"HEAD": "a ref is named refs/<kind>/<name>",
        b"refs/heads/twice": "multiple updates for one ref are not allowed",
        b"refs/heads/none": "reference does not exist",
    }


def test_more_refs_than_a_request_may_carry_are_left_for_the_next_push(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.report_status.UPDATES_PER_REQUEST_MAX", 2)
    updates, refused = screen(tuple(Command(b"refs/tags/%d" % n, ZERO_OID, A) for n in range(3)))
    assert len(updates) == 2
    assert list(refused) == [b"refs/tags/2"]


def test_a_report_has_a_line_per_command_and_no_newline_from_a_reason() -> None:
    commands = (Command(b"refs/heads/a", A, B), Command(b"refs/heads/b", A, B))
    said = report(commands, "ok", {b"refs/heads/b": "disk\nfull " + "x" * 5000})
    assert said.startswith(pkt(b"unpack ok\n") + pkt(b"ok refs/heads/a\n"))
    assert b"ng refs/heads/b disk full xxx" in said
    assert len(said) < 1200
    assert said.endswith(b"0000")


REF = RefName("refs/heads/main")
OTHER = RefName("refs/heads/other")


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (committed(TxnId("t1"), 42), None),
        (
            Outcome(OutcomeKind.ABORTED, TxnId("t1"), reason="quorum not reached (1/2): node-2 no answer"),
            "quorum not reached (1/2): node-2 no answer",
        ),
        (
            Outcome(OutcomeKind.UNKNOWN, TxnId("t1")),
            "outcome unknown, transaction t1; it is being settled, see http://node-1:3001/transactions/t1",
        ),
        (
            Outcome(OutcomeKind.UNKNOWN, TxnId("t1"), reason="quorum not reached (1/2): node-2 no answer"),
            "outcome unknown, transaction t1; it is being settled, see http://node-1:3001/transactions/t1 "
            "(quorum not reached (1/2): node-2 no answer)",
        ),
        (Outcome(OutcomeKind.REJECTED, TxnId("t1"), rejections=((REF, "fetch first"),)), "fetch first"),
        (Outcome(OutcomeKind.REJECTED, TxnId("t1"), reason="repository does not exist"), "repository does not exist"),
    ],
)
def test_every_outcome_has_its_words(outcome: Outcome, reason: str | None) -> None:
    reasons = reasons_of(outcome, [REF], atomic=False, url="http://node-1:3001")
    assert reasons.get(REF.encode()) == reason


def test_a_committed_push_may_leave_refs_out() -> None:
    outcome = committed(TxnId("t1"), 42, ((OTHER, "fetch first"),))
    assert reasons_of(outcome, [REF, OTHER], atomic=False, url="") == {OTHER.encode(): "fetch first"}


def test_an_atomic_push_fails_for_all_refs_when_it_fails_for_one() -> None:
    outcome = Outcome(OutcomeKind.REJECTED, TxnId("t1"), rejections=((OTHER, "fetch first"),))
    reasons = reasons_of(outcome, [REF, OTHER], atomic=True, url="")
    assert reasons == {REF.encode(): "atomic push failure", OTHER.encode(): "fetch first"}


def test_the_remark_shows_the_quorum_at_work() -> None:
    assert remark(committed(TxnId("t1"), 42)) == "gitquorum: version 42 committed on 3/3 (quorum 2) tx t1"
    assert remark(Outcome(OutcomeKind.ABORTED, TxnId("t1"))) == ""


# ---------------------------------------------------------------- fetch requests

WANT = pkt(b"want " + A.encode() + b" multi_ack ofs-delta\n")
FETCH = pkt(b"command=fetch") + pkt(b"agent=git/2.39.5") + pkt(b"object-format=sha1") + b"0001" + pkt(b"done\n") + b"0000"


def test_well_formed_fetches_are_recognised() -> None:
    assert read_request(b"0000", 0) == read_request(b"0000", 2) == Nothing()
    assert read_request(WANT + b"0000" + pkt(b"have " + B.encode()) + pkt(b"done\n"), 0) == Objects()
    assert (
        read_request(WANT + pkt(b"shallow " + B.encode()) + pkt(b"deepen 1") + pkt(b"filter blob:none") + b"00000000", 0)
        == Objects()
    )
    assert read_request(FETCH, 2) == Objects()
    assert read_request(pkt(b"command=ls-refs\n") + b"0000", 2) == LsRefs()


def test_a_client_may_name_its_object_format_before_its_command() -> None:
    """git 2.30 (Debian 11) does, for fetches."""
    old = pkt(b"object-format=sha1") + pkt(b"command=fetch") + pkt(b"agent=git/2.30.2") + b"0001" + pkt(b"done\n") + b"0000"
    assert read_request(old, 2) == Objects()


def test_ls_refs_arguments_are_read_and_prefixes_made_the_shortest() -> None:
    arguments = (b"peel\n", b"symrefs\n", b"unborn\n", b"ref-prefix refs/tags/v", b"ref-prefix HEAD", b"ref-prefix refs/tags/")
    asked = read_request(pkt(b"command=ls-refs\n") + b"0001" + b"".join(map(pkt, arguments)) + b"0000", 2)
    assert asked == LsRefs(True, True, True, ("HEAD", "refs/tags/"))


@given(st.lists(st.text("ab/", max_size=4), max_size=8), st.text("ab/", max_size=6))
def test_prefixes_match_as_the_simple_way_would(prefixes: list[str], name: str) -> None:
    lines = b"".join(pkt(b"ref-prefix " + prefix.encode()) for prefix in prefixes)
    asked = read_request(pkt(b"command=ls-refs") + b"0001" + lines + b"0000", 2)
    assert isinstance(asked, LsRefs)
    assert asked.wants(name) == (not prefixes or any(name.startswith(prefix) for prefix in prefixes))


@pytest.mark.parametrize(
    ("version", "body"),
    [
        (0, b""),
        (0, pkt(b"have " + A.encode()) + b"0000"),
        (0, WANT + pkt(b"gimme")),
        (0, WANT + b"0001"),
        (0, WANT + b"0000" + b"00"),
        (0, WANT + b"0000" + b"0032have"),
        (0, b"GARBAGE"),
        (0, FETCH),
        (2, WANT + b"0000"),
        (2, FETCH[:-4]),
        (2, FETCH + FETCH),
        (2, pkt(b"command=object-info") + b"0000"),
        (2, pkt(b"command=fetch") + pkt(b"sudo") + b"0000"),
        (2, pkt(b"command=fetch") + pkt(b"object-format=sha256") + b"0000"),
        (2, pkt(b"command=ls-refs") + b"0001" + pkt(b"bogus") + b"0000"),
        (2, pkt(b"command=ls-refs") + b"0002"),
        (2, pkt(b"command=fetch") + pkt(b"command=fetch") + b"0000"),
        (2, pkt(b"object-format=sha1") + b"0000"),
        (2, b"0001"),
    ],
)
def test_what_is_no_fetch_is_refused(version: int, body: bytes) -> None:
    with pytest.raises((BadFetchRequest, BadPktLine)):
        read_request(body, version)


@given(st.binary(max_size=300), st.sampled_from([0, 2]))
def test_garbage_is_no_fetch(garbage: bytes, version: int) -> None:
    try:
        asked = read_request(garbage, version)
    except (BadFetchRequest, BadPktLine):
        return
    assert asked == Nothing()
