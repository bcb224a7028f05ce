"""Delivery of messages: to checked addresses, at growing intervals, in order."""

import asyncio
import ipaddress
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from service.database.queries.deliveries import DeliveryRow
from service.database.queries.webhooks import WebhookRow
from service.events.webhook_delivery import (
    MAX_ATTEMPTS,
    AddressRejected,
    Answer,
    Sender,
    check_url,
    is_public,
    is_under,
    parse_retry_after,
    seconds_to_next,
    seconds_to_rest,
)
from tests.fakes.crashes import Crash, CrashingDatabase, FaultAtMoment
from tests.fakes.database_outage import outage
from tests.fakes.receiver import Receiver, receiving
from tests.unit.service.webhooks.harness import WebhookHarness


def test_a_message_says_what_happened_and_is_signed(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    harness.plane.clock.now = datetime.now(UTC)
    webhook = harness.make(receiver.url)
    job = harness.plane.post_dataset()
    harness.deliver()
    (message,) = receiver.received
    delivered = Webhook(webhook["secret"]).verify(message.body, message.headers)
    assert delivered["type"] == "job.queued"
    assert (delivered["data"]["job"], delivered["data"]["model"]) == (job, "scenes")
    assert message.headers["content-type"] == "application/json"
    (delivery,) = harness.deliveries(webhook["id"])
    assert delivery["id"] == message.headers["webhook-id"]
    assert (delivery["status"], delivery["attempts"], delivery["next_at"]) == (204, 1, None)
    assert harness.outcomes == ["delivered"]


def test_only_subscribed_events_are_delivered(harness: WebhookHarness, receiver: Receiver) -> None:
    harness.plane.create_model("sounds")
    harness.make(receiver.url, model="sounds", kinds=["job.queued", "job.cancelled"])
    harness.plane.post_dataset()
    job = harness.plane.post_dataset(model="sounds")
    harness.plane.client.post(f"/v1/jobs/{job}/cancel")
    harness.plane.tick(3)
    harness.deliver()
    delivered = [json.loads(message.body) for message in receiver.received]
    assert [message["type"] for message in delivered] == ["job.queued", "job.cancelled"]
    assert {message["data"]["job"] for message in delivered} == {job}


def test_all_events_of_a_job_are_delivered_in_order(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    kinds = ["job.running", "job.published", "version.published", "version.rolled_back"]
    harness.make(receiver.url, kinds=kinds)
    harness.plane.run_to_end(harness.plane.post_dataset("one"))
    harness.plane.run_to_end(harness.plane.post_dataset("two"))
    harness.plane.client.post("/v1/models/scenes/rollback", json={"reason": "worse"})
    harness.deliver()
    delivered = [json.loads(message.body)["type"] for message in receiver.received]
    assert delivered == [*kinds[:3], *kinds]


def test_it_is_tried_again_over_three_days_and_then_given_up(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    receiver.answers = [500]
    webhook = harness.make(receiver.url)
    harness.plane.post_dataset()
    began, attempts = harness.plane.clock.now, list[float]()
    while not attempts or harness.deliveries(webhook["id"])[0]["next_at"]:
        attempts.append((harness.plane.clock.now - began).total_seconds())
        harness.deliver()
        (delivery,) = harness.deliveries(webhook["id"])
        if delivery["next_at"]:
            harness.plane.clock.now = datetime.fromisoformat(delivery["next_at"]) - timedelta(
                seconds=1
            )
            harness.deliver()
            assert len(receiver.received) == len(attempts), "a second too early"
            harness.plane.clock.advance(2)
    waits = [later - earlier for earlier, later in itertools.pairwise(attempts)]
    recommended = [5, 300, 1800, *(3600 * hours for hours in (2, 5, 10, 14, 20, 24))]
    assert len(waits) == len(recommended)
    for wait, least in zip(waits, recommended, strict=True):
        assert least <= wait <= least * 1.2 + 2
    assert len({message.headers["webhook-id"] for message in receiver.received}) == 1
    assert len({message.body for message in receiver.received}) == 1
    assert delivery["error"] == "the response status was 500"
    assert harness.outcomes == ["retried"] * 9 + ["failed"]
    disabled = harness.webhook(webhook["id"])
    assert "nothing was delivered since 2026-11-24 12:00 UTC" in disabled["disabled_reason"]


def test_one_bad_message_does_not_disable_a_webhook(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    """It is dropped after three days; others were delivered in that time."""
    webhook = harness.make(receiver.url)
    bad = harness.plane.post_dataset("bad")
    receiver.judge = lambda message: 500 if bad.encode() in message.body else 204
    for number in range(10):
        harness.plane.post_dataset(f"good-{number}")
        harness.deliver()
        harness.plane.clock.advance(301)
        harness.deliver()
        harness.plane.clock.advance(29 * 3600)
    *good, given_up = harness.deliveries(webhook["id"])
    assert (given_up["attempts"], given_up["failed_at"] is None) == (10, False)
    assert {delivery["status"] for delivery in good} == {204}
    assert harness.webhook(webhook["id"])["disabled_at"] is None


def test_a_receiver_that_is_gone_is_left_alone(harness: WebhookHarness, receiver: Receiver) -> None:
    receiver.answers = [410]
    webhook = harness.make(receiver.url)
    harness.plane.post_dataset("one")
    harness.plane.post_dataset("two")
    harness.deliver()
    harness.plane.post_dataset("three")
    harness.plane.clock.advance(100 * 3600)
    harness.deliver()
    assert len(receiver.received) == 1
    assert "410" in harness.webhook(webhook["id"])["disabled_reason"]
    assert {delivery["next_at"] for delivery in harness.deliveries(webhook["id"])} == {None}
    response = harness.plane.client.post(f"/v1/webhooks/{webhook['id']}/test")
    assert (response.status_code, "410" in response.json()["detail"]) == (409, True)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_of_a_receiver_is_respected(
    harness: WebhookHarness, receiver: Receiver, form: str
) -> None:
    moment = harness.plane.clock.now + timedelta(seconds=900)
    wanted = {"seconds": "900", "date": moment.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    receiver.answers, receiver.headers = [503, 204], {"Retry-After": wanted[form]}
    harness.make(receiver.url)
    harness.plane.post_dataset("one")
    harness.deliver()
    harness.plane.post_dataset("two")
    harness.plane.clock.advance(890)
    harness.deliver()
    assert len(receiver.received) == 1, "also no other message"
    harness.plane.clock.advance(20)
    harness.deliver()
    assert len(receiver.received) == 3


@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_is_not_followed(
    harness: WebhookHarness, receiver: Receiver, other_receiver: Receiver, status: int
) -> None:
    receiver.answers, receiver.headers = [status], {"Location": other_receiver.url}
    webhook = harness.make(receiver.url)
    harness.plane.post_dataset()
    harness.deliver()
    assert other_receiver.received == []
    (delivery,) = harness.deliveries(webhook["id"])
    assert delivery["error"] == f"the response status was {status}; redirects are not followed"


def _says_nothing(connection: socket.socket) -> None:
    connection.recv(1)


def _drips(connection: socket.socket) -> None:
    """A byte now and then: no single read takes long."""
    for byte in b"HTTP/1.1 204 No Content\r\n" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def _speaks_another_language(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example ESMTP secret-banner\r\n")


def _never_stops(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (_says_nothing, "no response within 0.5 s"),
        (_drips, "no response within 0.5 s"),
        (_speaks_another_language, "the connection broke, or the response was not HTTP"),
        (
            lambda connection: connection.close(),
            "the connection broke, or the response was not HTTP",
        ),
    ],
)
def test_odd_receivers_are_failures_with_our_own_message(
    harness: WebhookHarness, receiver: Receiver, behaviour: object, error: str
) -> None:
    """The receiver's response is not shown: it could be a service of our own network."""
    receiver.answers = [behaviour]  # type: ignore[list-item]
    if "no response" in error:
        harness.answer_seconds = 0.5
    webhook = harness.make(receiver.url)
    harness.plane.post_dataset()
    harness.deliver()
    (delivery,) = harness.deliveries(webhook["id"])
    assert (delivery["error"], delivery["status"]) == (error, None)


def test_the_body_of_an_answer_is_not_read(harness: WebhookHarness, receiver: Receiver) -> None:
    receiver.answers = [_never_stops]
    webhook = harness.make(receiver.url)
    harness.plane.post_dataset()
    harness.deliver()
    assert harness.deliveries(webhook["id"])[0]["status"] == 200


def test_a_closed_port_is_a_failure(harness: WebhookHarness, closed_port: int) -> None:
    webhook = harness.make(f"http://127.0.0.1:{closed_port}")
    harness.plane.post_dataset()
    harness.deliver()
    assert harness.deliveries(webhook["id"])[0]["error"] == "no connection could be made"


def test_a_message_that_cannot_be_sent_does_not_delay_the_next(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    """An internal error counts as an attempt, too."""
    webhook = harness.make(receiver.url)
    harness.plane.post_dataset("one")
    with harness.plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE webhooks SET secret = 'whsec_'")
    harness.deliver()
    (delivery,) = harness.deliveries(webhook["id"])
    assert (delivery["attempts"], delivery["error"]) == (
        1,
        "internal server error; see the log of the service",
    )


def test_a_dead_receiver_does_not_delay_the_others(
    harness: WebhookHarness, receiver: Receiver, other_receiver: Receiver
) -> None:
    """None of four is answered before all four are being sent to."""
    together = threading.Barrier(4)

    def answers(status: bytes) -> Callable[[socket.socket], None]:
        def answer(connection: socket.socket) -> None:
            together.wait(60)
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

        return answer

    receiver.answers = [answers(b"503 Service Unavailable")]
    other_receiver.answers = [answers(b"204 No Content"), 204]
    dead = [harness.make(f"{receiver.url}/{number}") for number in range(3)]
    healthy = harness.make(other_receiver.url)
    for number in range(5):
        harness.plane.post_dataset(f"set-{number}")
    harness.deliver()
    assert {delivery["status"] for delivery in harness.deliveries(healthy["id"])} == {204}
    assert len(other_receiver.received) == 5
    for webhook in dead:
        tried = [delivery["status"] for delivery in harness.deliveries(webhook["id"])]
        assert sorted(tried, key=str) == [503, None, None, None, None]


@pytest.mark.parametrize("moment", range(1, 11))
def test_a_sender_that_dies_anywhere_leaves_nothing_undelivered(
    harness: WebhookHarness, receiver: Receiver, moment: int
) -> None:
    """A message may be delivered twice, with the same id."""
    webhook = harness.make(receiver.url)
    harness.plane.post_dataset()
    mortal = CrashingDatabase(harness.plane.context.database, FaultAtMoment(strikes_at=moment))
    died = False
    try:
        asyncio.run(harness.deliverer(mortal).round())
    except Crash:
        died = True
    assert died == (moment <= 9), "three transactions, three moments each"
    harness.plane.clock.advance(61)
    harness.deliver()
    assert 1 <= len(receiver.received) <= 2
    assert len({message.headers["webhook-id"] for message in receiver.received}) == 1
    (delivery,) = harness.deliveries(webhook["id"])
    assert delivery["delivered_at"] is not None


def test_the_loop_survives_an_outage_and_ends_when_stopped(
    harness: WebhookHarness, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Run for real, in a thread: without a database first, then with one."""
    harness.make(receiver.url)
    harness.plane.post_dataset()
    database, stop = harness.plane.context.database, threading.Event()
    deliverer = harness.deliverer(pause_seconds=0.05)
    thread = threading.Thread(target=deliverer.run, args=[stop], daemon=True)
    with outage(database):
        thread.start()
        _until(lambda: "webhooks are not delivered; will retry" in caplog.messages)
    _until(lambda: harness.outcomes == ["delivered"])
    assert thread.is_alive()
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert len(receiver.received) == 1


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


def test_messages_that_failed_together_are_retried_apart() -> None:
    assert len({seconds_to_next(2) for _ in range(20)}) > 10


def test_there_is_a_last_attempt() -> None:
    assert seconds_to_next(MAX_ATTEMPTS - 1) is not None
    assert seconds_to_next(MAX_ATTEMPTS) is None
    assert seconds_to_next(MAX_ATTEMPTS, retry_after=60) is None


def test_retry_after_is_respected_up_to_a_day() -> None:
    assert seconds_to_next(1, retry_after=600) == 600
    assert seconds_to_next(1, retry_after=10**9) == 86400
    assert seconds_to_rest(600, retry_after=600) == 600
    assert seconds_to_rest(7200) == 300


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        ("9" * 400, 86400),
        ("Tue, 24 Nov 2026 12:01:00 GMT", 60),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("Tue, 99 Nov 2026 12:01:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, NOW) == seconds


# Every block of the IANA registries of special-purpose addresses (IPv4, IPv6) and of multicast that
# is not for the public internet, and the blocks that carry an IPv4 address of the inside.
NOT_PUBLIC = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("::/96", "::ffff:7f00:0/104", "::ffff:0:0:0/96", "64:ff9b:1::/48", "100::/64"),
    *("100:0:0:1::/64", "2001::/23", "2001:db8::/32", "2002:a00::/24", "3fff::/20"),
    *("5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    *("64:ff9b::a00:0/104", "4000::/3", "8000::/1"),
)
# Where an IPv6 address contains an IPv4 address: the network, and the distance from the right.
CARRIERS = {
    "compatible": ("::", 0),
    "mapped": ("::ffff:0:0", 0),
    "translated": ("::ffff:0:0:0", 0),
    "NAT64": ("64:ff9b::", 0),
    "local NAT64": ("64:ff9b:1::", 0),
    "6to4": ("2002::", 80),
    "Teredo": ("2001::", 0),
}
_inside = st.sampled_from(
    [net for net in map(ipaddress.ip_network, NOT_PUBLIC) if net.version == 4]
)


@pytest.mark.parametrize("block", NOT_PUBLIC)
def test_no_address_of_a_special_purpose_block_is_public(block: str) -> None:
    network = ipaddress.ip_network(block)
    size = network.num_addresses
    for offset in {0, 1, size // 3, size // 2, size - 2, size - 1}:
        assert not is_public(network[offset]), network[offset]


@given(network=_inside, share=st.floats(0, 1), carrier=st.sampled_from(sorted(CARRIERS)))
def test_an_inner_ipv4_address_is_public_in_no_ipv6_form(
    network: ipaddress.IPv4Network, share: float, carrier: str
) -> None:
    inner = network[round(share * (network.num_addresses - 1))]
    base, shift = CARRIERS[carrier]
    address = ipaddress.IPv6Address(int(ipaddress.IPv6Address(base)) + (int(inner) << shift))
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "192.0.1.1", "192.88.98.1", "223.255.255.254"),
        *("2606:4700::1111", "2a00:1450:4001::200e", "2001:200::1", "3ffe::1"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
    ],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/hook", "https"),
        ("ftp://example.com", "it is not an address"),
        ("example.com/hook", "it is not an address"),
        ("https://", "it is not an address"),
        ("https:///hook", "it is not an address"),
        ("", "it is not an address"),
        ("https://exa mple.com", "it is not an address"),
        ("https://example.com:99999", "it is not an address"),
        ("https://example.com\n.evil.com", "it is not an address"),
        ("https://user:secret@example.com", "a user name, a password"),
        ("https://example.com/#part", "a # part"),
        ("https://127.0.0.1/hook", "not an address of the public internet"),
        ("https://[::1]/hook", "not an address of the public internet"),
        ("https://example.com/" + "x" * 1024, "characters"),
        ("javascript:alert(1)", "it is not an address"),
        ("file:///etc/passwd", "it is not an address"),
    ],
)
def test_a_bad_address_is_rejected_with_a_message(url: str, words: str) -> None:
    with pytest.raises(AddressRejected, match=words) as refused:
        check_url(url, ())
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "is_inside"),
    [
        ("http://hooks.internal:9000/cmcl", True),
        ("http://hooks.internal:9000/cmcl/one?x=1", True),
        ("http://HOOKS.internal:9000/cmcl/", True),
        ("http://hooks.internal:9000/cmclone", False),
        ("http://hooks.internal:9000/cmcl/../admin", False),
        ("http://hooks.internal:9000/cmcl/%2e%2e/admin", False),
        ("http://hooks.internal:9000/cmcl/..%2fadmin", False),
        ("http://hooks.internal:9000/cmcl\\..\\admin", False),
        ("http://hooks.internal:90001/cmcl", False),
        ("http://hooks.internal/cmcl", False),
        ("https://hooks.internal:9000/cmcl", False),
        ("http://hooks.internal.evil.com:9000/cmcl", False),
        ("http://hooks.internal:9000.evil.com/cmcl", False),
    ],
)
def test_a_prefix_ends_where_a_step_ends(url: str, is_inside: bool) -> None:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        assert not is_inside
        return
    assert is_under(parsed, httpx.URL("http://hooks.internal:9000/cmcl")) == is_inside


def test_with_prefixes_nothing_else_is_permitted() -> None:
    with pytest.raises(AddressRejected, match="permitted are addresses under: http://127"):
        check_url("https://example.com", ("http://127.0.0.1:9000",))


class Names:
    """A name server with prepared answers, one after another."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        return self.answers.pop(0)


def _send(sender: Sender, url: str) -> Answer:
    webhook = WebhookRow("wh-1", "default", url, "whsec_MDEyMzQ1Njc4OQ==", (), None, NOW)
    delivery = DeliveryRow(1, "dl-1", "wh-1", {}, 0, NOW, None, None, NOW, None, None)
    return asyncio.run(sender.send(webhook, delivery, NOW))


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["::1"]]
)
def test_a_name_that_leads_inside_is_not_connected_to(
    receiver: Receiver, addresses: list[str]
) -> None:
    answer = _send(Sender((), resolve=Names(addresses)), f"https://example.com:{receiver.port}/")
    assert answer.error == (
        "the address is not permitted: its host does not lead to the public internet"
    )
    assert receiver.received == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost"])
def test_other_spellings_of_loopback_are_recognized(receiver: Receiver, host: str) -> None:
    """By the system's resolver, which a connection would use."""
    answer = _send(Sender(()), f"https://{host}:{receiver.port}/")
    assert answer.status is None
    assert receiver.received == []


def test_what_was_checked_is_what_is_connected_to(receiver: Receiver) -> None:
    """The name is resolved once, so a second, different response cannot redirect the connection."""
    names = Names(["127.0.0.1"], ["203.0.113.1"])
    url = f"http://hooks.example:{receiver.port}/x"
    answer = _send(Sender((url,), resolve=names), url)
    assert answer.status == 204
    assert names.answers == [["203.0.113.1"]]
    assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
    assert receiver.received[0].path == "/x"


@pytest.mark.parametrize("name", ["hooks.example", "other.example"])
def test_the_certificate_must_be_that_of_the_name(tmp_path: Path, name: str) -> None:
    """The name is verified although the connection is made to a numeric address."""
    certificate, tls = _certificate(tmp_path, "hooks.example")
    with receiving(tls) as receiver:
        url = f"https://{name}:{receiver.port}/"
        trusting = ssl.create_default_context(cafile=str(certificate))
        sender = Sender((url,), resolve=Names(["127.0.0.1"]), tls=trusting)
        answer = _send(sender, url)
    assert (answer.status == 204) == (name == "hooks.example")
    assert answer.error == (
        None if name == "hooks.example" else "no trusted connection could be made"
    )


def test_an_unknown_certificate_is_refused(tmp_path: Path) -> None:
    _, tls = _certificate(tmp_path, "hooks.example")
    with receiving(tls) as receiver:
        url = f"https://hooks.example:{receiver.port}/"
        answer = _send(Sender((url,), resolve=Names(["127.0.0.1"])), url)
        assert receiver.received == []
    assert answer.error == "no trusted connection could be made"


def test_a_name_without_addresses_is_a_failure() -> None:
    assert _send(Sender((), resolve=Names([])), "https://x.example").error == (
        "its host has no address"
    )
    for host in ("no-such-host.invalid", f"{'x' * 64}.example", "a..example"):
        answer = _send(Sender(()), f"https://{host}/")
        assert answer.error == "its host name was not found"


def _certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A self-signed certificate, and a server context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path, private = folder / "certificate.pem", folder / "key.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(path, private)
    return path, tls
