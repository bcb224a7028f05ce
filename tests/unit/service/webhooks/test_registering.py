"""Webhooks: registered, tested, deleted; their owners, and how their secrets are stored."""

import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import insert
from standardwebhooks.webhooks import Webhook

from service.core.settings import Settings
from service.database.engine import Seek
from service.database.queries import webhooks
from service.database.queries.deliveries import MOST_WAITING
from service.database.tables import deliveries
from service.events.webhook_delivery import Deliverer, Sender
from service.events.webhook_secrets import SecretCipher, SecretUnreadable, encrypt_stored, new_key
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


OLD, NEW = new_key(), new_key()
SECRET = "whsec_" + "A" * 43 + "="


def cipher(*keys: str) -> SecretCipher:
    return SecretCipher(SecretStr(",".join(keys)) if keys else None)


def stored(plane: ControlPlane) -> list[str]:
    with plane.context.database.read() as connection:
        return [webhook.secret for webhook in webhooks.page(connection, None, Seek())]


class Site:
    """A control plane and its deliverer, started again with other keys."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.folder, self.receiver = folder, receiver
        self.plane: ControlPlane | None = None

    def start(self, *keys: str) -> ControlPlane:
        """Start the service: stored secrets are re-encrypted with the first key."""
        self.close()
        settings: dict[str, Any] = {"webhook_prefixes": (self.receiver.url,)}
        if keys:
            settings["encryption_key"] = ",".join(keys)
        self.plane = ControlPlane(self.folder, **settings)
        self.plane.clock.now = datetime.now(UTC)
        encrypt_stored(self.plane.context.database, cipher(*keys))
        return self.plane

    def deliver(self, *keys: str) -> None:
        """Send what is due."""
        assert self.plane is not None
        sender = Sender((self.receiver.url,), cipher=cipher(*keys))
        asyncio.run(Deliverer(self.plane.context.database, sender, self.plane.clock).round())

    def close(self) -> None:
        if self.plane is not None:
            self.plane.close()


@pytest.fixture
def site(tmp_path: Path, receiver: Receiver) -> Iterator[Site]:
    site = Site(tmp_path, receiver)
    yield site
    site.close()


def _make(site: Site) -> tuple[str, str]:
    """A webhook's id and its secret."""
    assert site.plane is not None
    made = site.plane.client.post("/v1/webhooks", json={"url": site.receiver.url}).json()
    return made["id"], made["secret"]


def _test_message(site: Site, webhook: str) -> None:
    assert site.plane is not None
    assert site.plane.client.post(f"/v1/webhooks/{webhook}/test").status_code == 202


def test_a_secret_is_stored_encrypted_and_still_signs(site: Site) -> None:
    plane = site.start(NEW)
    webhook, secret = _make(site)
    (found,) = stored(plane)
    assert secret.removeprefix("whsec_") not in found
    assert len(found) <= 128, "what the column holds"
    _test_message(site, webhook)
    site.deliver(NEW)
    (message,) = site.receiver.received
    assert Webhook(secret).verify(message.body, message.headers)["type"] == "webhook.test"


def test_a_start_encrypts_what_was_stored_before_and_after_a_key_was_exchanged(site: Site) -> None:
    plane = site.start()
    webhook, secret = _make(site)
    assert stored(plane) == [secret]
    for keys, readable in (((OLD,), OLD), ((NEW, OLD), NEW), ((NEW,), NEW)):
        plane = site.start(*keys)
        (found,) = stored(plane)
        assert cipher(readable).decrypt(found, webhook) == secret
        assert cipher(readable).is_current(found)
    _test_message(site, webhook)
    site.deliver(NEW)
    (message,) = site.receiver.received
    Webhook(secret).verify(message.body, message.headers)


def test_without_its_key_nothing_is_sent_and_the_delivery_says_why(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.start(OLD)
    webhook, secret = _make(site)
    plane = site.start(NEW)
    assert f"the secret of {webhook} cannot be decrypted" in caplog.text
    _test_message(site, webhook)
    site.deliver(NEW)
    assert site.receiver.received == []
    (delivery,) = plane.client.get(f"/v1/webhooks/{webhook}/deliveries").json()["items"]
    assert "with a key that CMCL_ENCRYPTION_KEY does not contain" in delivery["error"]
    site.start(OLD)
    (sealed,) = stored(site.plane or plane)
    assert cipher(OLD).decrypt(sealed, webhook) == secret


@pytest.mark.parametrize("malformed", ["A", "é", "", base64.b64encode(bytes(16)).decode()])
def test_a_malformed_secret_is_logged_and_left_and_the_others_are_encrypted(
    site: Site, caplog: pytest.LogCaptureFixture, malformed: str
) -> None:
    plane = site.start()
    (webhook, _), (other, secret) = _make(site), _make(site)
    with plane.context.database.read() as connection:
        seen = webhooks.find(connection, webhook)
    assert seen is not None
    with plane.context.database.write() as connection:
        webhooks.set_secret(connection, webhook, seen.secret, f"aesgcm:{malformed}")
    plane = site.start(NEW)
    assert f"the secret of {webhook} cannot be decrypted: the stored value is" in caplog.text
    with plane.context.database.read() as connection:
        left, found = (webhooks.find(connection, name) for name in (webhook, other))
    assert left is not None
    assert left.secret == f"aesgcm:{malformed}"
    assert found is not None
    assert cipher(NEW).decrypt(found.secret, other) == secret


def test_secrets_in_the_clear_are_warned_of_once_at_the_start(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.start()
    assert "unencrypted" not in caplog.text
    _make(site)
    _make(site)
    site.start()
    assert caplog.text.count("webhook secrets are stored unencrypted") == 1


def test_a_secret_of_another_webhook_is_not_taken() -> None:
    sealed = cipher(NEW).encrypt(SECRET, "wh-1")
    assert cipher(NEW).decrypt(sealed, "wh-1") == SECRET
    with pytest.raises(SecretUnreadable, match="was changed"):
        cipher(NEW).decrypt(sealed, "wh-2")
    with pytest.raises(SecretUnreadable, match="CMCL_ENCRYPTION_KEY does not contain"):
        cipher().decrypt(sealed, "wh-1")
    assert sealed != cipher(NEW).encrypt(SECRET, "wh-1")


@pytest.mark.parametrize(
    "key",
    ["short", "A" * 44, NEW[:-2], f"{NEW},", f"{NEW},x", ""],
    ids=["short", "not-random", "cut", "empty-second", "bad-second", "empty"],
)
def test_a_key_that_cannot_be_one_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(ValidationError, match="base64 of 32 random bytes") as refused:
        Settings(encryption_key=SecretStr(key), auth="off")
    assert NEW not in str(refused.value)
