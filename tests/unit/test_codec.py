"""The envelope: whole round trips, and nothing but the sender's own bytes is taken (replication.md, "Signatures")."""

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.codec import Codec, EnvelopeRefused
from broker.kinds import BY_MESSAGE, ENVELOPE_BYTES_MAX, KINDS, TRANSPORT_REPLIES, TRANSPORT_REQUESTS
from node.protocol.change import Change, ChangeKind, RefUpdate, Request
from node.protocol.ids import Ballot, Digest, NodeId, Oid, Position, RefName, RepoId, TxnId
from node.protocol.messages import InlinePack, Message, Ping, Prepare, Query, TransportReply, TransportRequest
from tests.unit.broker_samples import EVERY_KIND, VOTERS, keyrings, prepare

RINGS = keyrings("node-1", "node-2", "node-3")
ONE, TWO, THREE = (NodeId(f"node-{number}") for number in (1, 2, 3))


def codec(node: NodeId, cluster: str = "test", **options: object) -> Codec:
    return Codec(cluster, node, 7, RINGS[node], wall_ms=lambda: 1_000_000, **options)  # type: ignore[arg-type]


def reason_of(taker: Codec, data: bytes) -> str:
    with pytest.raises(EnvelopeRefused) as caught:
        taker.open(data)
    assert taker.refused[caught.value.reason] == 1
    return caught.value.reason


def changed(data: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(data), **fields}, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize("message", EVERY_KIND, ids=lambda message: type(message).__name__)
def test_every_kind_comes_back_equal(message: Message) -> None:
    sealed = codec(ONE).seal(message, TWO, timeout_s=2.0)
    opened = codec(TWO).open(sealed.data)
    assert opened.message == message
    assert (opened.sender, opened.incarnation, opened.id, opened.correlation) == (ONE, 7, sealed.id, sealed.id)
    assert (opened.sent_at_ms, opened.deadline_at_ms) == (1_000_000, 1_002_000)


def test_the_samples_and_the_table_cover_every_message() -> None:
    assert {type(message) for message in EVERY_KIND} == set(get_args(Message)) == set(BY_MESSAGE)
    assert {kind.message for kind in TRANSPORT_REQUESTS} == set(get_args(TransportRequest))
    assert {kind.message for kind in TRANSPORT_REPLIES} == set(get_args(TransportReply))
    assert len({kind.word for kind in KINDS}) == len(KINDS)


def test_an_envelope_is_json_that_a_person_can_read() -> None:
    envelope = json.loads(codec(ONE).seal(prepare(), TWO, timeout_s=2.0).data)
    assert envelope["kind"] == "gitquorum.prepare.v1"
    assert (envelope["v"], envelope["cluster"], envelope["sender"], envelope["receiver"]) == (1, "test", "node-1", "node-2")
    assert envelope["body"]["change"]["requests"][0]["updates"][0]["ref"] == "refs/heads/main"


def test_a_reply_correlates_with_its_request_and_ids_differ() -> None:
    sealer = codec(ONE)
    request, again = (sealer.seal(Ping(), TWO, timeout_s=1.0) for _ in range(2))
    reply = codec(TWO).seal(Ping(), ONE, timeout_s=1.0, correlation=request.id)
    assert request.id != again.id
    assert codec(ONE).open(reply.data).correlation == request.id


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "gitquorum.query.v1"),
        ("sender", "node-3"),
        ("incarnation", 8),
        ("id", "other"),
        ("correlation", "other"),
        ("sent_at_ms", 1_000_001),
        ("deadline_at_ms", 9_999_999),
        ("body", {"repository": "alice/other"}),
    ],
)
def test_every_field_is_bound_by_the_signature(field: str, value: object) -> None:
    data = codec(ONE).seal(Query(RepoId("alice/project")), TWO, timeout_s=1.0).data
    if field == "kind":
        data = codec(ONE).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(TWO), changed(data, **{field: value})) == "bad signature"


def test_spaces_in_the_body_break_the_signature_since_bytes_are_signed() -> None:
    data = codec(ONE).seal(Query(RepoId("alice/project")), TWO, timeout_s=1.0).data
    assert reason_of(codec(TWO), data.replace(b'{"repository":', b'{"repository": ')) == "bad signature"


def test_a_message_for_another_node_or_cluster_is_refused() -> None:
    data = codec(ONE).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(THREE), data) == "wrong receiver"
    assert reason_of(codec(TWO, "other"), data) == "wrong cluster"


def test_a_replay_under_another_receiver_is_refused_even_when_the_field_is_rewritten() -> None:
    data = codec(ONE).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(THREE), changed(data, receiver="node-3")) == "bad signature"


def test_a_stranger_is_refused() -> None:
    stranger = keyrings("node-9")[NodeId("node-9")]
    data = Codec("test", NodeId("node-9"), 1, stranger).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(TWO), data) == "bad signature"
    assert reason_of(codec(TWO, members=[ONE, TWO]), data) == "unknown sender"


def test_another_members_key_does_not_speak_for_a_node() -> None:
    forged = Codec("test", ONE, 1, RINGS[THREE]).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(TWO), forged) == "bad signature"


def test_versions_and_kinds_not_known_are_refused_by_name() -> None:
    data = codec(ONE).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(TWO), changed(data, v=2)) == "wrong version"
    assert reason_of(codec(TWO), changed(data, kind="gitquorum.ping.v2")) == "unknown kind"


def test_ids_cannot_carry_a_newline_into_the_signed_header() -> None:
    data = codec(ONE).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(TWO), changed(data, id="a\nb")) == "malformed"
    assert reason_of(codec(TWO), changed(data, deadline_at_ms=10**18)) == "malformed"
    assert reason_of(codec(TWO), changed(data, incarnation=-1)) == "malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"v":1,"body":' + b"[" * 100_000,
        b'{"v":1,"body":' + b'{"a":' * 100_000,
        b"\xff\xfe",
        b'{"v":1,"kind":"\xff"}',
        b'{"v":1e400}',
        b'{"v":' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "null", "array", "deep", "deep body", "deep object", "no utf-8", "no utf-8 within", "huge", "long number"],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    assert reason_of(codec(TWO), data) == "malformed"


def test_unknown_and_missing_fields_are_refused() -> None:
    data = codec(ONE).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(TWO), changed(data, extra=1)) == "malformed"
    fields = json.loads(data)
    del fields["deadline_at_ms"]
    assert reason_of(codec(TWO), json.dumps(fields).encode()) == "malformed"


def signed_body(kind_of: Message, body: bytes) -> bytes:
    """What a member with a bug, or an evil one, could sign: any body under any kind."""

    class Lying:
        def encode(self, value: object) -> bytes:
            return body if value is kind_of else real.encode(value)

    import broker.codec as module

    real = module._encoder
    module._encoder = Lying()  # type: ignore[assignment]
    try:
        return codec(ONE).seal(kind_of, TWO, timeout_s=1.0).data
    finally:
        module._encoder = real


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'{"repository":"../../etc/passwd"}', b'{"repository":"a/' + b"b" * 100 + b'"}', b'{"repository":"\xff"}'],
    ids=["empty", "array", "path", "long", "no utf-8"],
)
def test_a_signed_body_still_has_to_be_a_legal_message(body: bytes) -> None:
    message = Query(RepoId("alice/project"))
    assert reason_of(codec(TWO), signed_body(message, body)) in ("bad body", "malformed")


def test_a_deep_signed_body_is_refused() -> None:
    message = Query(RepoId("alice/project"))
    depth = 100_000
    body = b'{"repository":' + b"[" * depth + b"]" * depth + b"}"
    data = signed_body(Query(RepoId("alice/project")), b"{}")
    assert reason_of(codec(TWO), data[: data.index(b'"body":') + 7] + body + data[data.index(b',"signature"') :])
    assert codec(TWO).open(codec(ONE).seal(message, TWO, timeout_s=1.0).data).message == message


def test_oversize_is_refused_by_kind_on_both_sides() -> None:
    data = codec(ONE).seal(Ping(), TWO, timeout_s=1.0).data
    assert reason_of(codec(TWO), changed(data, body={"pad": "x" * 20_000})) == "oversize"
    assert reason_of(codec(TWO), b" " * (ENVELOPE_BYTES_MAX + 1)) == "oversize"
    with pytest.raises(EnvelopeRefused, match="oversize"):
        codec(ONE).seal(prepare(pack_bytes=12 * 1024 * 1024), TWO, timeout_s=1.0)


def test_text_that_is_no_unicode_cannot_be_sealed() -> None:
    change = Change(RepoId("a/b"), Position(0, Digest("0" * 64)), ChangeKind.UPDATE, (Request(TxnId("t"), "\ud800", ONE, 1),))
    with pytest.raises(EnvelopeRefused, match="not UTF-8"):
        codec(ONE).seal(Prepare(RepoId("a/b"), VOTERS.digest, Ballot(1, ONE, 1), change, 2, 1.0), TWO, timeout_s=1.0)


def test_a_signature_has_one_spelling() -> None:
    data = codec(ONE).seal(Ping(), TWO, timeout_s=1.0).data
    signature = json.loads(data)["signature"]
    assert signature.endswith("==")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = signature[:-3] + alphabet[alphabet.index(signature[-3]) ^ 1] + "=="
    assert reason_of(codec(TWO), changed(data, signature=twin)) == "bad signature"


SEALED = codec(ONE).seal(prepare(pack_bytes=64), TWO, timeout_s=2.0).data


@given(st.integers(0, len(SEALED) - 1), st.integers(1, 255))
@settings(max_examples=600, deadline=None)
def test_any_flipped_byte_is_refused(place: int, flip: int) -> None:
    broken = bytearray(SEALED)
    broken[place] ^= flip
    with pytest.raises(EnvelopeRefused):
        codec(TWO).open(bytes(broken))


@given(st.integers(0, len(SEALED) - 1), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_any_piece_cut_out_is_refused(place: int, length: int) -> None:
    with pytest.raises(EnvelopeRefused):
        codec(TWO).open(SEALED[:place] + SEALED[place + length + 1 :])


oids = st.text("0123456789abcdef", min_size=40, max_size=40).map(Oid)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map(Digest)
ballots = st.builds(Ballot, st.integers(0, 2**40), st.sampled_from([ONE, TWO]), st.integers(0, 1000))
refs = st.text("abcé-", min_size=1, max_size=20).map(lambda name: RefName("refs/heads/x" + name))
requests = st.builds(
    Request,
    st.text("abc123", min_size=1, max_size=20).map(TxnId),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    st.just(ONE),
    st.integers(0, 2**50),
    st.lists(st.builds(RefUpdate, refs, oids, oids, st.none() | oids), max_size=4).map(tuple),
    st.none() | refs,
    st.just(()),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
)
changes = st.builds(
    Change,
    st.just(RepoId("alice/project")),
    st.builds(Position, st.integers(0, 2**40), digests),
    st.sampled_from([ChangeKind.UPDATE, ChangeKind.DELETE]),
    st.lists(requests, min_size=1, max_size=3).map(tuple),
)
prepares = st.builds(
    Prepare,
    st.just(RepoId("alice/project")),
    digests,
    ballots,
    changes,
    st.integers(1, 7),
    st.floats(0, 1e6),
    st.lists(st.builds(InlinePack, digests, st.binary(max_size=200), st.binary(max_size=200)), max_size=3).map(tuple),
    st.just((ONE,)),
)


@given(prepares)
@settings(max_examples=150, deadline=None)
def test_any_prepare_comes_back_equal_and_keeps_its_position(message: Prepare) -> None:
    opened = codec(TWO).open(codec(ONE).seal(message, TWO, timeout_s=1.0).data).message
    assert opened == message
    assert isinstance(opened, Prepare)
    assert opened.change.position == message.change.position


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_and_never_anything_else(noise: bytes) -> None:
    with pytest.raises(EnvelopeRefused):
        codec(TWO).open(noise)
