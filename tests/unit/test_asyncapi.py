"""The AsyncAPI document: valid by AsyncAPI's own JSON Schema, whole, and strict enough to refuse what is no message."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft7Validator, ValidationError

from broker.asyncapi import KINDS, document
from broker.codec import Codec
from broker.kinds import BY_MESSAGE
from broker.topology import definitions
from node.protocol.ids import NodeId
from node.protocol.messages import Message
from tests.asyncapi_check import validator
from tests.unit.broker_samples import EVERY_KIND, keyrings

SCHEMA = Path(__file__).parents[1] / "schemas" / "asyncapi-3.0.0.json"
ONE, TWO = NodeId("node-1"), NodeId("node-2")
SAMPLES = {BY_MESSAGE[type(message)].word: message for message in EVERY_KIND if BY_MESSAGE[type(message)] in KINDS}


def test_it_is_an_asyncapi_3_document() -> None:
    schema = Draft7Validator(json.loads(SCHEMA.read_text()))
    schema.validate(document())
    for broken in ({"asyncapi": "2.0.0"}, {"operations": {"x": {"action": "shout"}}}, {"channels": {"a": {"address": 5}}}):
        with pytest.raises(ValidationError):
            schema.validate({**document(), **broken})


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere_and_every_reply_is_one_of_its_channels_messages() -> None:
    page = document()
    for reference in references(page):
        found: Any = page
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
        assert found, reference
    for name, operation in page["operations"].items():
        for side in (operation, operation.get("reply", operation)):
            channel = side["channel"]["$ref"]
            assert all(message["$ref"].startswith(f"{channel}/messages/") for message in side["messages"]), name


def test_its_queues_are_those_of_the_definitions() -> None:
    made = {queue["name"]: queue["arguments"] for queue in definitions([ONE], {"node-1": "x"}, 1000)["queues"]}
    channels = document()["channels"].values()
    told = {each["bindings"]["amqp"]["queue"]["name"]: each["x-arguments"] for each in channels if "x-arguments" in each}
    assert told == made


def test_headers_are_ours_and_what_rabbitmq_adds() -> None:
    ours = {"sender": "node-1", "receiver": "node-2", "deadline": "2026-01-01T00:00:00.000+00:00", "repository": "a/b"}
    headers, known = validator("refused", "headers"), {**ours, "ballot": "3.node-1.1"}
    for added in ({}, {"x-delivery-count": 1}, {"x-death": [{"count": 1}], "x-first-death-queue": "gitquorum.node-2.inbox"}):
        headers.validate({**known, **added})
    for spoilt in (ours, {**known, "more": 1}, {**known, "ax-death": 1}):
        with pytest.raises(ValidationError):
            headers.validate(spoilt)


def test_a_dead_letter_may_be_anything() -> None:
    assert list(document()["channels"]["deadLetters"]["messages"]) == ["anything"]
    for payload in (None, "bytes", {"v": 2}):
        validator("anything", "payload").validate(payload)
    validator("anything", "headers").validate({"x-first-death-reason": "rejected", "whatever": 1})


def envelope(message: Message) -> dict[str, Any]:
    sealed = Codec("test", ONE, 1, keyrings(ONE, TWO)[ONE]).seal(message, TWO, timeout_s=2)
    read: dict[str, Any] = json.loads(sealed.data)
    return read


@pytest.mark.parametrize("word", [kind.word for kind in KINDS])
def test_a_sealed_message_is_what_the_document_says_and_a_spoilt_one_is_not(word: str) -> None:
    payload = validator(word, "payload")
    good = envelope(SAMPLES[word])
    payload.validate(good)
    (other,) = (kind.name for kind in KINDS if kind.word == ("vote" if word != "vote" else "claim"))
    for spoilt in (
        {**good, "v": 2},
        {**good, "kind": other},
        {**good, "more": 1},
        {name: value for name, value in good.items() if name != "signature"},
        {**good, "incarnation": "1"},
        {**good, "body": {name: value for name, value in good["body"].items() if name != "repository"}},
        {**good, "body": {**good["body"], "repository": 5}},
    ):
        with pytest.raises(ValidationError):
            payload.validate(spoilt)
