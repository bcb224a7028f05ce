"""The operator's webhook gets events of the whole deployment, under the rules of every other webhook."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.control_plane import ControlPlane
from tests.fakes.receiver import Receiver
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from tests.unit.service.webhooks.harness import WebhookHarness


@pytest.fixture
def plane(tmp_path: Path, receiver: Receiver) -> Iterator[ControlPlane]:
    """A control plane that requires keys; its client is the operator."""
    prefixes = (f"http://127.0.0.1:{receiver.port}",)
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY, webhook_prefixes=prefixes)
    plane.client = KeyClient(plane, ADMIN_KEY)
    yield plane
    plane.close()


def _post_as(plane: ControlPlane, owner: str) -> None:
    operator = KeyClient(plane, ADMIN_KEY)
    plane.client = operator.client_with_key(owner, owner=owner)
    plane.create_model(owner)
    plane.post_dataset(model=owner)
    plane.client = operator


def test_it_receives_events_of_every_owner_with_the_owner(
    plane: ControlPlane, receiver: Receiver
) -> None:
    harness = WebhookHarness(plane)
    made = harness.make(receiver.url, every_owner=True)
    assert made["every_owner"]
    for owner in ("red", "blue"):
        _post_as(plane, owner)
    harness.deliver()
    delivered = [json.loads(message.body)["data"] for message in receiver.received]
    assert [(data["owner"], data["model"]) for data in delivered] == [
        ("red", "red"),
        ("blue", "blue"),
    ]
    assert len(harness.deliveries(made["id"])) == 2


def test_no_owner_sees_or_makes_one(plane: ControlPlane, receiver: Receiver) -> None:
    webhook = WebhookHarness(plane).make(receiver.url, every_owner=True)["id"]
    red = KeyClient(plane, ADMIN_KEY).client_with_key("red", owner="red")
    response = red.post("/v1/webhooks", json={"url": receiver.url, "every_owner": True})
    assert response.status_code == 403
    assert response.json()["errors"][0]["field"] == "every_owner"
    assert red.get("/v1/webhooks").json()["items"] == []
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/test")):
        assert red.request(method, f"/v1/webhooks/{webhook}{path}").status_code == 404


def test_it_obeys_the_address_rules_of_every_webhook(plane: ControlPlane) -> None:
    body = {"url": "http://127.0.0.1:1/hook", "every_owner": True}
    response = plane.client.post("/v1/webhooks", json=body)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "url")


def test_one_model_has_one_owner(plane: ControlPlane, receiver: Receiver) -> None:
    _post_as(plane, "red")
    body = {"url": receiver.url, "model": "red", "every_owner": True}
    response = plane.client.post("/v1/webhooks", json=body)
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "every_owner")


def test_other_webhooks_receive_only_events_of_their_owner(
    plane: ControlPlane, receiver: Receiver
) -> None:
    """They do not see its name either."""
    harness = WebhookHarness(plane)
    assert not harness.make(receiver.url)["every_owner"]
    _post_as(plane, "red")
    plane.create_model("mine")
    plane.post_dataset(model="mine")
    harness.deliver()
    (message,) = receiver.received
    data = json.loads(message.body)["data"]
    assert (data["model"], "owner" in data) == ("mine", False)
