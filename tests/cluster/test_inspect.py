"""A prepare message can be fetched from gitquorum.inspect, read, and is still there afterwards."""

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.cluster.harness import Cluster, Work, wait
from tests.cluster.wire import Reply, call_json

pytestmark = pytest.mark.cluster

VHOST = "gitquorum"
QUEUE = f"/api/queues/{VHOST}/gitquorum.inspect"


class Management:
    """The management UI's API, as its user for people sees it."""

    def __init__(self, cluster: Cluster) -> None:
        broker = cluster.status()["broker"]
        with open(broker["passwords"]) as file:
            password = json.load(file)[broker["management_user"]]
        self._url = broker["management_url"].rstrip("/")
        self._login = "Basic " + b64encode(f"{broker['management_user']}:{password}".encode()).decode()

    def ask(self, method: str, path: str, body: object = None) -> Reply:
        return call_json(self._url, method, path, body, Authorization=self._login)

    def messages(self) -> list[dict[str, Any]]:
        """All that the queue holds, put back after it was looked at: what the button of the management UI does."""
        asked = {"count": 1000, "ackmode": "ack_requeue_true", "encoding": "auto"}
        answer = self.ask("POST", f"{QUEUE}/get", asked)
        assert answer.status == 200, answer
        found: list[dict[str, Any]] = answer.json
        return found


@pytest.fixture
def management(own_rabbitmq: Cluster) -> Management:
    return Management(own_rabbitmq)


def of(messages: list[dict[str, Any]], name: str, kind: str) -> list[dict[str, Any]]:
    """The messages of one kind about one repository."""
    kept = [each for each in messages if each["properties"].get("type") == kind]
    return [each for each in kept if each["properties"]["headers"].get("repository") == name.lower()]


def test_a_prepare_can_be_fetched_read_and_is_still_there(own_rabbitmq: Cluster, management: Management, work: Work) -> None:
    name = own_rabbitmq.create(label="inspect")
    oid = work.commit("seen by people")
    txn = work.git("push", own_rabbitmq.url(1, name), "HEAD:main").transaction
    prepares = wait(
        lambda: [each for each in of(management.messages(), name, "gitquorum.prepare.v1") if txn in each["payload"]],
        10,
        "the push's prepares are in the inspect queue",
    )
    assert {each["routing_key"] for each in prepares} == {"node-1.node-2.prepare", "node-1.node-3.prepare"}
    properties, body = prepares[0]["properties"], json.loads(prepares[0]["payload"])
    assert prepares[0]["exchange"] == "gitquorum"
    assert prepares[0]["payload_encoding"] == "string"
    assert properties["content_type"] == "application/json"
    assert properties["message_id"] == body["id"]
    assert properties["correlation_id"] == body["correlation"]
    assert properties["reply_to"] == "gitquorum.node-1.replies"
    assert properties["app_id"] == "gitquorum"
    assert properties["user_id"] == "node-1"
    assert properties["delivery_mode"] in (1, 2)
    sent_at = datetime.fromtimestamp(properties["timestamp"], UTC)
    assert abs(datetime.now(UTC) - sent_at) < timedelta(minutes=5), "a POSIX timestamp in seconds, as AMQP wants it"
    headers = properties["headers"]
    assert headers["repository"] == name
    assert headers["sender"] == "node-1"
    assert int(headers["version"]) == 2
    assert headers["ballot"].split(".")[1] == "node-1"
    assert headers["deadline"], "when the coordinator stops counting"
    update = body["body"]["change"]["requests"][0]["updates"][0]
    assert (update["ref"], update["new"]) == ("refs/heads/main", oid)
    again = [each for each in of(management.messages(), name, "gitquorum.prepare.v1") if txn in each["payload"]]
    assert [each["payload"] for each in again] == [each["payload"] for each in prepares]
    assert all(each["redelivered"] for each in again), "the very ones, not new copies"


def test_the_whole_conversation_of_a_push_can_be_followed(own_rabbitmq: Cluster, management: Management, work: Work) -> None:
    name = own_rabbitmq.create(label="inspect")
    work.commit()
    work.git("push", own_rabbitmq.url(2, name), "HEAD:main")
    own_rabbitmq.agree(name)
    wait(lambda: len(of(management.messages(), name, "gitquorum.commit.v1")) >= 2, 10, "commits are seen, too")
    messages = management.messages()
    (prepare, *_) = of(messages, name, "gitquorum.prepare.v1")
    votes = of(messages, name, "gitquorum.vote.v1")
    answer = [each for each in votes if each["properties"]["correlation_id"] == prepare["properties"]["message_id"]]
    assert len(answer) == 1, "a vote correlates with its prepare"
    assert answer[0]["properties"]["user_id"] == prepare["routing_key"].split(".")[1]
    assert json.loads(answer[0]["payload"])["body"]["kind"] == "yes"


def test_looking_disturbs_nothing(own_rabbitmq: Cluster, management: Management, work: Work) -> None:
    name = own_rabbitmq.create(label="inspect")
    for _ in range(5):
        work.commit()
        work.git("push", own_rabbitmq.url(1, name), "HEAD:main")
        assert management.messages()
    assert own_rabbitmq.agree(name) == 6
    queue = management.ask("GET", QUEUE).json
    assert queue["arguments"]["x-max-length"] == 1000
    assert queue["arguments"]["x-overflow"] == "drop-head"


def test_the_person_who_looks_cannot_publish_declare_delete_or_read_the_protocols_own_queues(
    own_rabbitmq: Cluster, management: Management
) -> None:
    published = management.ask(
        "POST",
        f"/api/exchanges/{VHOST}/gitquorum/publish",
        {"properties": {}, "routing_key": "node-1.node-2.prepare", "payload": "{}", "payload_encoding": "string"},
    )
    assert published.status in (400, 401, 403), published
    for method, path in (("DELETE", QUEUE), ("PUT", QUEUE), ("PUT", f"/api/queues/{VHOST}/mine")):
        assert management.ask(method, path, {}).status in (400, 401, 403)
    for node in (1, 2, 3):
        taken = management.ask(
            "POST",
            f"/api/queues/{VHOST}/gitquorum.node-{node}.inbox/get",
            {"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"},
        )
        assert taken.status in (400, 401, 403), "the protocol's own queues are not for people"
    assert own_rabbitmq.ready()
