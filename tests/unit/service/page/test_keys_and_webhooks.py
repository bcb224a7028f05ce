"""Keys and webhooks on the page: created with a secret that is shown once, tried, revoked and deleted."""

import re
from pathlib import Path

import httpx
import pytest

from service.auth.keys import parse
from tests.fakes.control_plane import ControlPlane
from tests.fakes.receiver import receiving
from tests.unit.service.auth.key_client import KeyClient
from tests.unit.service.page.browser import Browser
from tests.unit.service.webhooks.harness import WebhookHarness

_KEY = re.compile(r"cmcl_[0-9a-f]{12}_[A-Za-z0-9_-]{43}")


def once_in(page: httpx.Response) -> str:
    """The value of the field `once`."""
    found = re.search(r'name="once" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return found[1]


@pytest.fixture
def owner(operator: KeyClient, guarded: ControlPlane) -> Browser:
    """A browser of an owner with every scope but `embed`."""
    browser = Browser(guarded)
    scopes = ["admin", "read", "train", "write"]
    browser.sign_in(operator.make_key("chief", scopes, owner="lab")["key"])
    return browser


def test_a_key_is_created_and_its_secret_is_shown_once(
    owner: Browser, guarded: ControlPlane
) -> None:
    page = owner.get("/ui/keys")
    assert 'value="train"' in page.text
    assert 'value="embed"' not in page.text, "a key grants what its creator has"
    assert 'name="owner"' not in page.text, "the operator alone may name another owner"
    form = {"once": once_in(page), "name": "nightly", "scopes": ["read", "write"]}
    made = owner.post("/ui/keys", data={**form, "expires_in_days": "30"})
    assert made.status_code == 200
    (key,) = set(_KEY.findall(made.text))
    assert KeyClient(guarded, key).get("/v1/whoami").json() == {
        "name": "nightly",
        "owner": "lab",
        "scopes": ["read", "write"],
    }
    again = owner.post("/ui/keys", data={**form, "expires_in_days": "30"})
    assert "The form was sent a second time" in again.text
    shown = parse(key)
    assert shown is not None
    for answer in (again, owner.get("/ui/keys")):
        assert shown.secret not in answer.text
        assert answer.text.count(">nightly<") == 1


def test_a_key_is_revoked_with_its_sessions(
    owner: Browser, operator: KeyClient, guarded: ControlPlane
) -> None:
    other = operator.make_key("other", ["read"], owner="lab")
    session = Browser(guarded)
    session.sign_in(other["key"])
    assert session.get("/ui/").status_code == 200
    page = owner.get(f"/ui/keys/{other['id']}/revoke")
    assert "Revoke other" in page.text
    assert "This browser is one of them" not in page.text
    after = owner.follow(owner.post(f"/ui/keys/{other['id']}/revoke"))
    assert "The key was revoked" in after.text
    assert session.get("/ui/").status_code == 303
    assert "It was revoked" in owner.get(f"/ui/keys/{other['id']}/revoke").text
    own = next(key for key in operator.get("/v1/keys").json()["items"] if key["name"] == "chief")
    assert "This browser is one of them" in owner.get(f"/ui/keys/{own['id']}/revoke").text
    owner.post(f"/ui/keys/{own['id']}/revoke")
    assert owner.get("/ui/keys").status_code == 303


def test_a_webhook_is_created_tested_and_deleted(tmp_path: Path) -> None:
    with receiving() as receiver:
        prefixes = (f"http://127.0.0.1:{receiver.port}",)
        plane = ControlPlane(tmp_path, webhook_prefixes=prefixes)
        person, harness = Browser(plane), WebhookHarness(plane)
        page = person.get("/ui/webhooks")
        assert "There is no webhook yet" in page.text
        form = {"once": once_in(page), "url": receiver.url, "kinds": ["job.failed", "job.held"]}
        made = person.post("/ui/webhooks", data=form)
        assert made.status_code == 200
        (secret,) = re.findall(r"whsec_[A-Za-z0-9+/=]+", made.text)
        again = person.post("/ui/webhooks", data=form)
        assert "The form was sent a second time" in again.text
        assert secret not in again.text
        (webhook,) = plane.client.get("/v1/webhooks").json()["items"]
        assert webhook["kinds"] == ["job.failed", "job.held"]
        address = f"/ui/webhooks/{webhook['id']}"
        assert "Nothing was sent yet" in person.get(address).text
        after = person.follow(person.post(f"{address}/test"))
        assert "A test message is on its way" in after.text
        assert "waits" in after.text
        harness.deliver()
        assert len(receiver.received) == 1
        assert "delivered" in person.get(f"{address}?fragment=live_deliveries").text
        person.post(f"{address}/test")
        page = person.get(f"{address}/delete")
        assert "1 message that waits to be delivered is dropped" in page.text
        after = person.follow(person.post(f"{address}/delete"))
        assert "The webhook was deleted" in after.text
        assert person.get(address).status_code == 404
        plane.close()


def test_a_webhook_that_cannot_be_tested_says_why(owner: Browser, guarded: ControlPlane) -> None:
    form = {"url": "https://example.com/x", "kinds": "job.failed"}
    owner.post("/ui/webhooks", data={"once": once_in(owner.get("/ui/webhooks")), **form})
    (webhook,) = re.findall(r"webhooks/(wh-[0-9a-f]{12})\"", owner.get("/ui/webhooks").text)[:1]
    with guarded.context.database.write() as connection:
        connection.exec_driver_sql(
            "UPDATE webhooks SET disabled_at = created_at, disabled_reason = 'x'"
        )
    answer = owner.post(f"/ui/webhooks/{webhook}/test")
    assert answer.status_code == 409
    assert "the webhook is disabled" in answer.text
    assert "disabled" in owner.get(f"/ui/webhooks/{webhook}").text
