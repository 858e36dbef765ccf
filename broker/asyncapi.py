"""What travels through the broker, as an AsyncAPI 3 document: emitted from the tables that the code itself runs on.

Exchanges, queues and their arguments are ``topology.py``'s, kinds and sizes ``kinds.py``'s, the envelope ``codec.py``'s, bodies
the message classes', properties and headers ``publisher.py``'s. ``docs/asyncapi.json`` is this document for one node;
``docs/generate_asyncapi.py`` writes it. What nodes say by HTTP is not here.
"""

from dataclasses import fields
from inspect import cleandoc, getdoc
from typing import Any

import msgspec

from broker.codec import VERSION, Envelope
from broker.kinds import TRANSPORT_REPLIES, TRANSPORT_REQUESTS, Kind
from broker.publisher import EXPIRATION_MS, PERSISTENT, VERSIONED
from broker.topology import DEAD_QUEUE, EXCHANGE, INSPECT_QUEUE, VHOST, Queue, Topology, inbox, replies, whole
from node.protocol.ids import NodeId
from node.protocol.messages import Prepare

EXAMPLE = NodeId("node-1")
INSPECT_LENGTH = 1000
KINDS = (*TRANSPORT_REQUESTS, *TRANSPORT_REPLIES)
ANYTHING = "anything"
_SCHEMAS = "#/components/schemas/{name}"


def document() -> dict[str, Any]:
    """Of a cluster, with the queues of one node; those of the others differ in its name only."""
    topology = whole([EXAMPLE], INSPECT_LENGTH)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "gitquorum between nodes",
            "version": str(VERSION),
            "description": (
                "Claim, prepare, abort and commit, and their replies, as signed JSON envelopes through RabbitMQ. The broker "
                "is a wake-up channel that is trusted with nothing: it may lose, duplicate and delay anything."
            ),
        },
        "defaultContentType": "application/json",
        "servers": {
            "rabbitmq": {
                "host": "127.0.0.1:5672",
                "pathname": f"/{VHOST}",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "description": "RabbitMQ 3.10 to 4.x; every node has a user of its own name.",
                "security": [{"type": "userPassword"}],
            }
        },
        "channels": _channels(topology),
        "operations": _operations(),
        "components": {
            "messages": {**{kind.word: _message(kind) for kind in KINDS}, ANYTHING: _anything()},
            "schemas": _schemas(),
        },
    }


# ---------------------------------------------------------------- channels


def _channels(topology: Topology) -> dict[str, Any]:
    queues = {queue.name: queue for queue in (*topology.queues, topology.inspect) if queue}
    keys: dict[str, list[str]] = {}
    for binding in (*topology.bindings, *topology.inspect_bindings):
        keys.setdefault(binding.queue, []).append(f"{binding.source}: {binding.key}")
    request, reply = [kind.word for kind in TRANSPORT_REQUESTS], [kind.word for kind in TRANSPORT_REPLIES]
    return {
        "requests": _routed("Requests of a node to another.", request),
        "answers": _routed("The answer to a request, to its sender.", reply),
        "inbox": _queue(queues[inbox(EXAMPLE)], keys, "Where requests for a node arrive.", request),
        "replies": _queue(queues[replies(EXAMPLE)], keys, "Where answers to a node's own requests arrive.", reply),
        "inspect": _queue(queues[INSPECT_QUEUE], keys, "Copies of the last messages, for people.", request + reply),
        "deadLetters": _queue(
            queues[DEAD_QUEUE],
            keys,
            "What was no envelope of ours, forged, expired, or pushed out, with RabbitMQ's x-death headers.",
            [ANYTHING],
        ),
    }


def _routed(description: str, words: list[str]) -> dict[str, Any]:
    return {
        "address": "{sender}.{receiver}.{kind}",
        "description": description,
        "parameters": {
            "sender": {
                "description": (
                    "The node that sends; a dot in its id is written %2E. RabbitMQ refuses to publish by any but one's own, "
                    "but a queue may dead-letter by any: who spoke is said by the signature, with user_id."
                )
            },
            "receiver": {"description": "The node that is meant, written the same way."},
            "kind": {"enum": words},
        },
        "messages": _references(words),
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False, "vhost": VHOST},
            }
        },
    }


def _queue(queue: Queue, keys: dict[str, list[str]], description: str, words: list[str]) -> dict[str, Any]:
    name = queue.name.replace(EXAMPLE, "{node}")
    described: dict[str, Any] = {
        "address": name,
        "description": description,
        "messages": _references(words),
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {"name": queue.name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": VHOST},
            }
        },
        "x-arguments": dict(queue.arguments),
        "x-bindings": keys[queue.name],
    }
    if name != queue.name:
        described["parameters"] = {"node": {"description": "A node's id."}}
    return described


def _references(words: list[str]) -> dict[str, Any]:
    return {word: {"$ref": f"#/components/messages/{word}"} for word in words}


# ---------------------------------------------------------------- operations


def _operations() -> dict[str, Any]:
    """What a node does, and what a person who looks does."""
    found: dict[str, Any] = {}
    for kind in TRANSPORT_REQUESTS:
        found[f"send{kind.word.capitalize()}"] = {
            "action": "send",
            "channel": {"$ref": "#/channels/requests"},
            "summary": f"Ask another node: {kind.word}.",
            "messages": _of("requests", (kind.word,)),
            "reply": {"channel": {"$ref": "#/channels/replies"}, "messages": _of("replies", kind.answers)},
            "bindings": _sent(kind),
        }
        found[f"receive{kind.word.capitalize()}"] = {
            "action": "receive",
            "channel": {"$ref": "#/channels/inbox"},
            "summary": f"Be asked: {kind.word}. Acknowledged when its effects are durable and its answer is published.",
            "messages": _of("inbox", (kind.word,)),
            "reply": {"channel": {"$ref": "#/channels/answers"}, "messages": _of("answers", kind.answers)},
            "bindings": {"amqp": {"ack": True}},
        }
    for kind in TRANSPORT_REPLIES:
        found[f"answer{kind.word.capitalize()}"] = {
            "action": "send",
            "channel": {"$ref": "#/channels/answers"},
            "summary": f"Answer: {kind.word}.",
            "messages": _of("answers", (kind.word,)),
            "bindings": _sent(kind),
        }
    everything = [kind.word for kind in KINDS]
    for operation, channel, words in (
        ("lookAtTraffic", "inspect", everything),
        ("lookAtDeadLetters", "deadLetters", [ANYTHING]),
    ):
        found[operation] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{channel}"},
            "summary": "For people: look, and put everything back.",
            "messages": _of(channel, words),
            "bindings": {"amqp": {"ack": False}},
        }
    return found


def _of(channel: str, words: "list[str] | tuple[str, ...]") -> list[dict[str, str]]:
    return [{"$ref": f"#/channels/{channel}/messages/{word}"} for word in words]


def _sent(kind: Kind) -> dict[str, Any]:
    mode = 2 if issubclass(kind.message, PERSISTENT) else 1
    return {"amqp": {"expiration": EXPIRATION_MS, "mandatory": True, "deliveryMode": mode, "timestamp": True}}


# ---------------------------------------------------------------- messages


def _message(kind: Kind) -> dict[str, Any]:
    return {
        "name": kind.name,
        "title": kind.word.capitalize(),
        "summary": cleandoc(getdoc(kind.message) or ""),
        "contentType": "application/json",
        "correlationId": {
            "description": "A request's is its own id; its answer bears the same. The AMQP property says it, too.",
            "location": "$message.payload#/correlation",
        },
        "headers": _headers(kind),
        "payload": _payload(kind),
        "bindings": {"amqp": {"messageType": kind.name}},
        "x-bytes-max": kind.bytes_max,
    }


def _anything() -> dict[str, Any]:
    return {
        "name": ANYTHING,
        "title": "Anything",
        "summary": "What ended as a dead letter: an envelope, or any bytes that somebody published.",
        "headers": {"type": "object"},
        "payload": {},
    }


def _headers(kind: Kind) -> dict[str, Any]:
    """For people; no signature covers them. RabbitMQ adds some: how often it was delivered, and of what it died."""
    names = {field.name for field in fields(kind.message)}
    properties: dict[str, Any] = {
        "sender": {"type": "string"},
        "receiver": {"type": "string"},
        "deadline": {"type": "string", "format": "date-time", "description": "When the sender stops waiting, by its clock."},
    }
    if "repository" in names:
        properties["repository"] = {"type": "string"}
    if "ballot" in names:
        properties["ballot"] = {
            "type": "string",
            "pattern": r"^[0-9]+\.[A-Za-z0-9._-]*\.[0-9]+$",
            "description": "Round, node, attempt.",
        }
    if kind.message is Prepare or names & set(VERSIONED):
        properties["version"] = {"type": "integer", "description": "The version of the repository that it is about."}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
    }


def _payload(kind: Kind) -> dict[str, Any]:
    """The envelope around this kind's body."""
    ((_, envelope),) = msgspec.json.schema_components([Envelope], ref_template=_SCHEMAS)[1].items()
    properties = dict(envelope["properties"])
    properties["v"] = {"const": VERSION}
    properties["kind"] = {"const": kind.name}
    properties["body"] = {"$ref": _SCHEMAS.format(name=kind.message.__name__)}
    properties["signature"] = {**properties["signature"], "contentEncoding": "base64", "description": "Ed25519, by the sender."}
    described = {name: value for name, value in envelope.items() if name not in ("title", "description")}
    return {**described, "properties": properties}


def _schemas() -> dict[str, Any]:
    """Bodies, and what they are made of. A node takes fields that it does not know, so that they may be added."""
    _, components = msgspec.json.schema_components([kind.message for kind in KINDS], ref_template=_SCHEMAS)
    return {name: _plain(components[name]) for name in sorted(components)}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    told = {"description": cleandoc(schema["description"])} if "description" in schema else {}
    return {**_draft_07(schema), **told}


def _draft_07(schema: Any) -> Any:
    """AsyncAPI's schemas are of draft 7, which spells a tuple's ``prefixItems`` as a list in ``items``."""
    if isinstance(schema, list):
        return [_draft_07(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _draft_07(value) for name, value in schema.items()}
    if "prefixItems" in plain:
        plain["items"], plain["additionalItems"] = plain.pop("prefixItems"), False
    return plain
