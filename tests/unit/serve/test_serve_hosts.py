"""Without keys, requests of foreign web pages through a browser are rejected."""

import json

import httpx
import pytest

from cmcl.contract.version import ANNOUNCEMENTS
from service.auth.signing import make_pair
from tests.unit.serve.conftest import MODEL, Replica

BODY = json.dumps({"model": MODEL, "modality": "image", "input": [1, 2, 3, 4, 5]})
NAMED = "embeddings.example.org"


def ask(replica: Replica, headers: dict[str, str], **changes: object) -> httpx.Response:
    replica.app = replica.app_of(
        replica.args.model_copy(update={"allowed_hosts": (NAMED,), **changes})
    )
    return replica.send(BODY.encode(), headers)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8001", "127.0.0.1:8001", "[::1]:8001", "10.1.2.3:8000"),
        *(NAMED.upper(), "localhost.", f"{NAMED}.:8001"),
    ],
)
def test_names_that_are_known_and_addresses_in_numbers_are_answered(
    serving: Replica, host: str
) -> None:
    assert ask(serving, {"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["rebound.example.com:8001", f"x.{NAMED}", "127.0.0.1.nip.io", "[", "localhost.."]
)
def test_a_name_that_a_page_has_led_here_is_refused(serving: Replica, host: str) -> None:
    refused = ask(serving, {"host": host})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "unknown_host")
    assert "allowed_hosts" in refused.text
    assert serving.metrics.statuses == [403]
    assert serving.metrics.batches == []


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example.com", 403),
        ("null", 403),
        ("http://192.168.1.7", 403),
        ("http://localhost:3000", 200),
        (f"https://{NAMED}", 200),
        ("http://10.1.2.3:8000", 200),
    ],
)
def test_a_page_of_elsewhere_is_refused(serving: Replica, origin: str, status: int) -> None:
    """`text/plain` needs no CORS pre-flight: a browser would send it from any page."""
    headers = {"host": "10.1.2.3:8000", "origin": origin, "content-type": "text/plain"}
    assert ask(serving, headers).status_code == status


def test_probes_and_announcements_come_by_any_name(serving: Replica) -> None:
    def status(method: str, path: str, body: bytes = b"") -> int:
        headers = {"host": "rebound.example.com"}
        asked = serving.run(lambda c: c.request(method, path, content=body, headers=headers))
        return asked.status_code

    assert status("GET", "/healthz") == status("GET", "/readyz") == 200
    news = json.dumps({"model": MODEL, "generation": 1, "revision": 1}).encode()
    assert status("POST", ANNOUNCEMENTS, news) == 202
    assert status("GET", "/v1/models") == 403


@pytest.mark.parametrize(
    "changes",
    [{"allowed_hosts": ("*",)}, {"access_public_key": make_pair().public}],
    ids=["any name", "keys are asked for"],
)
def test_any_host_name_is_accepted_if_configured_or_with_keys(
    serving: Replica, changes: dict[str, object]
) -> None:
    assert ask(serving, {"host": "any.example.com"}, **changes).status_code == 200
