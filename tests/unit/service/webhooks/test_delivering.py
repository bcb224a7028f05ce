"""Messages reach real receivers: signed, again after a failure, fairly, and at least once."""

import asyncio
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from tests.fakes.crashes import Crash, CrashingDatabase, FaultAtMoment
from tests.fakes.database_outage import outage
from tests.fakes.receiver import Receiver
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


@pytest.mark.parametrize("fault", ["body", "secret", "old", "early", "id"])
def test_a_forged_or_replayed_message_is_refused(
    harness: WebhookHarness, receiver: Receiver, fault: str
) -> None:
    """Verified with the specification's own library."""
    seconds = {"old": -301, "early": 400}.get(fault, 0)
    harness.plane.clock.now = datetime.now(UTC) + timedelta(seconds=seconds)
    webhook = harness.make(receiver.url)
    other = harness.make(receiver.url, kinds=["job.failed"])
    harness.plane.post_dataset()
    harness.deliver()
    (message,) = receiver.received
    body = message.body.replace(b"scenes", b"scents") if fault == "body" else message.body
    headers = {**message.headers, **({"webhook-id": "dl-x"} if fault == "id" else {})}
    secret = other["secret"] if fault == "secret" else webhook["secret"]
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers)


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


def test_two_services_do_not_send_to_a_webhook_at_once(
    harness: WebhookHarness, receiver: Receiver
) -> None:
    harness.make(receiver.url)
    for number in range(10):
        harness.plane.post_dataset(f"set-{number}")

    async def both() -> None:
        await asyncio.gather(harness.deliverer().round(), harness.deliverer().round())

    asyncio.run(both())
    ids = [message.headers["webhook-id"] for message in receiver.received]
    assert len(ids) == len(set(ids)) == 10


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
