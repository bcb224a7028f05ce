"""Authentication, open routes, and rate limits."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.types import Message

from service.auth.keys import parse
from service.auth.rate_limiter import FAILURES_PER_MINUTE
from service.telemetry.logs import JsonLines
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, KeyClient, secret_of
from tests.unit.service.page.browser import Browser

UNKNOWN = f"cmcl_{'0' * 12}_{'A' * 43}"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Everything that is logged, as it would be printed."""
    written: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(JsonLines().format(record))

    handler = Collect()
    caplog.set_level(logging.DEBUG)
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize(
    "header",
    [
        *("", "Bearer", "Bearer ", ADMIN_KEY, f"Basic {ADMIN_KEY}", f"Bearer {ADMIN_KEY} x"),
        *(f"Bearer {ADMIN_KEY[:-1]}", f"Bearer {ADMIN_KEY}x", f"Bearer {UNKNOWN}"),
        *("Bearer \xe4\xf6", f"Bearer {'x' * 20_000}", f"Bearer {'x.' * 9000}"),
    ],
)
def test_a_malformed_authorization_header_is_rejected(untouched: ControlPlane, header: str) -> None:
    headers = {"Authorization": header.encode("latin-1")}
    assert untouched.client.get("/v1/models", headers=headers).status_code == 401


def test_two_keys_at_once_are_none(untouched: ControlPlane) -> None:
    headers = [("Authorization", f"Bearer {ADMIN_KEY}")] * 2
    assert untouched.client.get("/v1/models", headers=headers).status_code == 401


def test_the_scheme_is_read_in_any_case(untouched: ControlPlane) -> None:
    headers = {"Authorization": f"bearer {ADMIN_KEY}"}
    assert untouched.client.get("/v1/models", headers=headers).status_code == 200


def test_a_key_in_the_address_is_no_key(operator: KeyClient) -> None:
    key = operator.make_key()["key"]
    for query in (f"?key={key}", f"?access_token={key}", f"?Authorization=Bearer%20{key}"):
        assert operator.plane.client.get(f"/v1/models{query}").status_code == 401


def test_the_body_of_an_unauthenticated_client_is_not_read(untouched: ControlPlane) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was asked for")

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/models",
        "raw_path": b"/v1/models",
        "query_string": b"",
        "headers": [],
        "client": ("192.0.2.1", 1),
        "scheme": "http",
    }
    asyncio.run(untouched.app(scope, receive, send))
    assert sent[0]["status"] == 401


def test_no_secret_is_logged_or_answered(operator: KeyClient, lines: list[str]) -> None:
    key = operator.make_key(scopes=["read"])["key"]
    secret = secret_of(key)
    answers = []
    for shown in (key, f"{key[:-1]}!", ADMIN_KEY, f"{ADMIN_KEY}x", "a.b." + secret):
        key_client = KeyClient(operator.plane, shown)
        body = {"name": "BAD NAME", "scopes": ["none"]}
        for path in ("/v1/keys", f"/v1/models?key={key}", "/v1/models/none/live", "/nowhere"):
            answers += [key_client.get(path).text, key_client.post(path, json=body).text]
    everything = "\n".join([*answers, *lines, repr(parse(key)), repr(operator.plane.context)])
    assert "invalid-request" in everything
    assert len(lines) >= len(answers)
    for hidden in (secret, secret[:-1], ADMIN_KEY):
        assert hidden not in everything


def test_an_internal_error_logs_no_secret(operator: KeyClient, lines: list[str]) -> None:
    key = operator.make_key()["key"]
    # A row that cannot be read is an internal error in the middle of a route.
    with operator.plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE api_keys SET scopes = '[\"gone\"]'")
    operator.plane.clock.advance(60)
    response = KeyClient(operator.plane, key).get("/v1/models")
    assert response.status_code == 500
    assert any("traceback" in line for line in lines)
    assert secret_of(key) not in "\n".join([response.text, *lines])


def test_guessing_is_slowed_and_known_keys_still_work(operator: KeyClient) -> None:
    known, unused = operator.client_with_key(), operator.client_with_key()
    assert known.get("/v1/models").status_code == 200
    guesser = KeyClient(operator.plane, UNKNOWN)
    statuses = [guesser.get("/v1/models").status_code for _ in range(2 * FAILURES_PER_MINUTE + 2)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert statuses.count(401) <= 2 * FAILURES_PER_MINUTE
    # A key that was never seen could be a guess.
    refused = unused.get("/v1/models")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    operator.plane.clock.advance(3600)
    assert known.get("/v1/models").status_code == 200
    assert operator.get("/v1/models").status_code == 200


def test_all_keys_of_an_owner_share_its_requests(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY, requests_per_minute_per_owner=5)
    operator = KeyClient(plane, ADMIN_KEY)
    reds = [operator.client_with_key(owner="red") for _ in range(3)]
    other = operator.client_with_key(owner="blue")
    answers = [reds[number % 3].get("/v1/models") for number in range(11)]
    assert [answer.status_code for answer in answers[:5]] == [200] * 5
    assert {operator.get("/v1/models").status_code for _ in range(20)} == {200}
    refused = answers[-1]
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["type"] == "urn:cmcl:problem:too-many-requests"
    assert other.get("/v1/models").status_code == 200
    assert plane.client.get("/healthz").status_code == 200
    page, signed_in = Browser(plane), Browser(plane)
    shown = {"Authorization": f"Bearer {reds[0].key}"}
    assert page.get("/ui/jobs", headers=shown).status_code == 429
    signed_in.sign_in(reds[0].key or "")
    assert signed_in.get("/ui/jobs").status_code == 429
    plane.close()


def test_a_failed_write_of_key_use_rejects_no_request(
    operator: KeyClient, lines: list[str]
) -> None:
    made = operator.make_key()
    database = operator.plane.context.database
    with database.write() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE UPDATE ON api_keys "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    assert KeyClient(operator.plane, made["key"]).get("/v1/models").status_code == 200
    assert any(f"last use of {made['id']} was not written" in line for line in lines)


def test_without_keys_foreign_web_pages_are_rejected(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    statuses = {
        origin: plane.client.post(
            "/v1/jobs/job-000000000000/cancel", headers={"Origin": origin}
        ).status_code
        for origin in (
            *("http://127.0.0.1:8000", "http://localhost:3000", "http://[::1]:8000"),
            *("https://example.com", "null", "http://127.0.0.1.example.com", "http://localhost@x"),
            *("http://[", "x"),
        )
    }
    plane.close()
    assert list(statuses.values()) == [404] * 3 + [403] * 6


@pytest.mark.parametrize("auth", ["on", "off"])
def test_metrics_with_a_key_require_it(tmp_path: Path, auth: str) -> None:
    key = "scrapers-of-the-tests-0123456789abcdef"
    plane = ControlPlane(tmp_path, auth=auth, admin_key=ADMIN_KEY, metrics_key=key)
    statuses = {
        shown: KeyClient(plane, shown).get("/metrics").status_code
        for shown in (key, ADMIN_KEY, None)
    }
    assert statuses == {key: 200, ADMIN_KEY: 401, None: 401}
    assert KeyClient(plane, None).get("/healthz").status_code == 200
    # It opens nothing else.
    if auth == "on":
        assert KeyClient(plane, key).get("/v1/models").status_code == 401
    plane.close()


def test_without_keys_only_host_names_of_this_machine_are_accepted(tmp_path: Path) -> None:
    """DNS rebinding: a web page's own name can resolve to this address."""
    plane = ControlPlane(tmp_path, allowed_hosts=("cmcl.test",))
    ours = (
        "127.0.0.1:8000",
        "localhost",
        "localhost.:8000",
        "LOCALHOST:3000",
        "[::1]:8000",
        "127.8.0.1",
        "Cmcl.test:80",
    )
    others = (
        "evil.example",
        "evil.example:8000",
        "10.0.3.7",
        "localhost.evil.example",
        "[",
        "",
        "a@b",
    )
    for path, refused in (("/v1/models", 403), ("/metrics", 403), ("/healthz", 200)):
        for host in ours:
            assert plane.client.get(path, headers={"Host": host}).status_code == 200, host
        for host in others:
            assert plane.client.get(path, headers={"Host": host}).status_code == refused, host
    page = {"Host": "cmcl.test", "Origin": "http://cmcl.test:8000"}
    assert plane.client.get("/v1/models", headers=page).status_code == 200
    detail = plane.client.get("/v1/models", headers={"Host": "evil.example"}).json()["detail"]
    assert "'evil.example'" in detail
    assert "CMCL_ALLOWED_HOSTS" in detail
    plane.close()


def test_any_host_name_is_accepted_with_keys(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    operator = KeyClient(plane, ADMIN_KEY)
    assert operator.get("/v1/models", headers={"Host": "cmcl.example"}).status_code == 200
    plane.close()


def starts(plane: ControlPlane, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    with plane.client.running():
        pass
    return caplog.text


def test_a_service_without_keys_logs_how_to_create_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hint = "python -m service keys create"
    assert hint in starts(ControlPlane(tmp_path, auth="on"), caplog)
    assert hint not in starts(ControlPlane(tmp_path, auth="off"), caplog)
    operated = ControlPlane(tmp_path, auth="on", admin_key=ADMIN_KEY)
    assert hint not in starts(operated, caplog)
    KeyClient(operated, ADMIN_KEY).make_key()
    operated.close()
    assert hint not in starts(ControlPlane(tmp_path, auth="on"), caplog)
