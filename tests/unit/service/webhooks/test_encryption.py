"""With an encryption key, webhook secrets are stored encrypted."""

import asyncio
import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from standardwebhooks.webhooks import Webhook

from service.core.settings import Settings
from service.database.engine import Seek
from service.database.queries import webhooks
from service.events.webhook_delivery import Deliverer, Sender
from service.events.webhook_secrets import SecretCipher, SecretUnreadable, encrypt_stored, new_key
from tests.fakes.control_plane import ControlPlane
from tests.fakes.receiver import Receiver

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
