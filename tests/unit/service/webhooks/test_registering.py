"""Webhooks over HTTP: made, shown without their secret, tried, removed."""

import base64
import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import insert

from service.database.queries.deliveries import MOST_WAITING
from service.database.tables import deliveries
from tests.fakes.control_plane import ControlPlane
from tests.fakes.receiver import Receiver
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient
from tests.unit.service.telemetry.samples import shown
from tests.unit.service.webhooks.harness import WebhookHarness

URL = "https://example.com/hook"


def test_its_secret_is_shown_once(harness: WebhookHarness, receiver: Receiver) -> None:
    key = {"Idempotency-Key": "one"}
    body = {"url": receiver.url}
    first = harness.plane.client.post("/v1/webhooks", json=body, headers=key)
    again = harness.plane.client.post("/v1/webhooks", json=body, headers=key)
    secret = first.json()["secret"]
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert first.headers["cache-control"] == "no-store"
    assert first.headers["location"] == f"/v1/webhooks/{first.json()['id']}"
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == {**first.json(), "secret": None}
    listed = harness.plane.client.get("/v1/webhooks")
    shown = harness.plane.client.get(first.headers["location"])
    assert secret not in listed.text + shown.text
    assert [item["id"] for item in listed.json()["items"]] == [shown.json()["id"]]


def test_its_secret_is_not_kept_with_the_answer(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    key = {"Idempotency-Key": "one"}
    response = harness.plane.client.post("/v1/webhooks", json={"url": receiver.url}, headers=key)
    with harness.plane.context.database.read() as connection:
        kept = connection.exec_driver_sql("SELECT body FROM idempotency").all()
    assert response.json()["id"] in str(kept)
    assert response.json()["secret"] not in str(kept)


def test_a_webhook_gets_the_actionable_events_by_default(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    made = harness.plane.client.post("/v1/webhooks", json={"url": receiver.url}).json()
    assert {"version.published", "job.failed", "job.rejected", "job.held"} <= set(made["kinds"])
    assert "job.running" not in made["kinds"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": "http://192.168.0.1/hook"}, "url"),
        ({"url": 7}, "url"),
        ({"url": "https://example.com/" + "x" * 2000}, "url"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["job.exploded"]}, "kinds[0]"),
        ({"model": "Not A Name"}, "model"),
        ({"secret": "whsec_mine"}, "secret"),
    ],
)
def test_a_bad_webhook_is_refused_by_field(
    plane_without_prefixes: ControlPlane, changes: dict[str, object], field: str
) -> None:
    body = {"url": URL, **changes}
    response = plane_without_prefixes.client.post("/v1/webhooks", json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == field


def test_a_webhook_of_an_unknown_model_is_refused(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    body = {"url": receiver.url, "model": "nowhere"}
    assert harness.plane.client.post("/v1/webhooks", json=body).status_code == 404


def test_a_password_in_an_address_is_not_repeated(plane_without_prefixes: ControlPlane) -> None:
    body = {"url": "https://user:hunter2@example.com/"}
    response = plane_without_prefixes.client.post("/v1/webhooks", json=body)
    assert response.status_code == 422
    assert "hunter2" not in response.text


def test_a_look_alike_name_is_shown_as_what_it_is(plane_without_prefixes: ControlPlane) -> None:
    body = {"url": "https://ехample.com/hook"}
    response = plane_without_prefixes.client.post("/v1/webhooks", json=body)
    assert response.json()["url"].startswith("https://xn--ample-")


def test_a_test_message_reaches_the_receiver(harness: WebhookHarness, receiver: Receiver) -> None:
    webhook = harness.make(receiver.url)
    response = harness.plane.client.post(f"/v1/webhooks/{webhook['id']}/test")
    assert response.status_code == 202
    assert response.json()["next_at"] is not None
    harness.deliver()
    assert b'"type":"webhook.test"' in receiver.received[0].body
    (delivery,) = harness.deliveries(webhook["id"])
    assert (delivery["id"], delivery["status"]) == (response.json()["id"], 204)


def test_deliveries_come_in_pages_with_the_newest_first(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    webhook = harness.make(receiver.url)["id"]
    jobs = [harness.plane.post_dataset(f"set-{number}") for number in range(5)]
    delivered, cursor = [], ""
    while cursor is not None:
        query = f"?limit=2&cursor={cursor}" if cursor else "?limit=2"
        page = harness.plane.client.get(f"/v1/webhooks/{webhook}/deliveries{query}").json()
        delivered += [item["payload"]["data"]["job"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert delivered == jobs[::-1]


def test_a_message_beyond_what_may_wait_is_counted_and_logged_and_not_written(
    harness: WebhookHarness, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    webhook = harness.make(receiver.url)["id"]
    now = harness.plane.clock.now
    row = {"webhook": webhook, "payload": {}, "attempts": 0, "next_at": now, "created_at": now}
    waiting = [{"id": f"dl-{number}", **row} for number in range(MOST_WAITING)]
    with harness.plane.context.database.write() as connection:
        connection.execute(insert(deliveries), waiting)
    with caplog.at_level(logging.INFO):
        harness.plane.post_dataset()
    assert harness.deliveries(webhook)[0]["id"] == f"dl-{MOST_WAITING - 1}"
    assert shown(harness.plane, "webhook_deliveries_total", outcome="skipped") == 1
    assert any("for 1 webhooks of owner 'default'" in line for line in caplog.messages)
    response = harness.plane.client.post(f"/v1/webhooks/{webhook}/test")
    assert (response.status_code, str(MOST_WAITING) in response.json()["detail"]) == (409, True)


def test_a_deleted_webhook_receives_no_further_events(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    webhook = harness.make(receiver.url)["id"]
    harness.plane.post_dataset()
    response = harness.plane.client.request("DELETE", f"/v1/webhooks/{webhook}")
    assert response.status_code == 204
    harness.plane.post_dataset("another")
    harness.deliver()
    assert receiver.received == []
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/test")):
        found = harness.plane.client.request(method, f"/v1/webhooks/{webhook}{path}")
        assert found.status_code == 404


def test_another_owner_sees_no_webhook_and_no_event(tmp_path: Path, receiver: Receiver) -> None:
    prefixes = (f"http://127.0.0.1:{receiver.port}",)
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY, webhook_prefixes=prefixes)
    operator = KeyClient(plane, ADMIN_KEY)
    red, blue = (operator.client_with_key(owner, owner=owner) for owner in ("red", "blue"))
    plane.client = red
    harness = WebhookHarness(plane)
    webhook = harness.make(receiver.url)["id"]
    plane.client = blue
    plane.create_model("blue")
    plane.post_dataset(model="blue")
    harness.deliver()
    assert receiver.received == []
    assert blue.get("/v1/webhooks").json()["items"] == []
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/test")):
        assert blue.request(method, f"/v1/webhooks/{webhook}{path}").status_code == 404
    assert operator.get(f"/v1/webhooks/{webhook}").json()["id"] == webhook
    plane.close()


def test_webhooks_are_for_administrators(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    user = KeyClient(plane, ADMIN_KEY).client_with_key("user", ("read", "write", "train"))
    assert user.get("/v1/webhooks").status_code == 403
    assert user.post("/v1/webhooks", json={"url": URL}).status_code == 403
    plane.close()


def test_webhooks_of_one_owner_take_14_of_16_places(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    lock, enough = threading.Lock(), threading.Event()
    present: list[int] = []
    most = []

    def answer(connection: socket.socket) -> None:
        with lock:
            present.append(1)
            most.append(len(present))
            if len(present) == 14:
                enough.set()
        enough.wait(60)
        # A fifteenth would arrive during this pause.
        time.sleep(0.3)
        with lock:
            present.pop()
        connection.sendall(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n")

    receiver.answers = [answer]
    for number in range(16):
        harness.make(f"{receiver.url}/{number}")
    harness.plane.post_dataset()
    deadline = time.monotonic() + 30
    while len(receiver.received) < 16 and time.monotonic() < deadline:
        # A place is free once its delivery is recorded, which may be after the next round began.
        harness.deliver()
        time.sleep(0.05)
    assert len(receiver.received) == 16
    assert max(most) == 14
