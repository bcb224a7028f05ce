"""Retries: when, how often, with which key. Responses are prepared, so nothing waits."""

from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from cmcl import Client, CmclError, Retries, Unreachable
from cmcl.client import Live
from cmcl.client.errors import WrongServer
from tests.unit.client.driven import Driven
from tests.unit.client.rest_server import RestServer

LIVE = {"version": 1, "generation": 1}
RETRIES = Retries(attempts=4, first_pause=1.0, longest_pause=30.0, jitter=lambda: 1.0)
ONCE = Retries(attempts=1)
Outcomes = Sequence[httpx.Response | Exception]


def answer(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=LIVE if status == 200 else {}, headers=headers)


def post(outcomes: Outcomes, **options: Any) -> Driven:
    def call(client: Client) -> Live:
        return client._session.post(Live, "/v1/x", {"a": 1}, **options)

    return Driven(call, outcomes, RETRIES)


def delete(outcomes: Outcomes) -> Driven:
    return Driven(lambda client: client._session.delete("/v1/x"), outcomes, RETRIES)


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_transient_errors_are_retried_with_exponential_backoff(status: int) -> None:
    driven = post([answer(status)] * 3 + [answer(200)])
    assert driven.paused == [1.0, 2.0, 4.0]
    assert driven.result == Live(**LIVE)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 412, 422, 500])
def test_permanent_errors_are_not_retried(status: int) -> None:
    with pytest.raises(CmclError) as caught:
        post([answer(status)])
    assert caught.value.status == status


@pytest.mark.parametrize("status", [404, 500])
def test_proxy_errors_for_unavailable_replicas_are_retried(status: int) -> None:
    away = httpx.Response(status, text="Internal Server Error")
    assert post([away, answer(200)]).result == Live(**LIVE)


def test_all_attempts_of_a_post_have_one_key_and_two_posts_two() -> None:
    outcomes: Outcomes = [httpx.ReadError("lost"), answer(503), answer(200)]
    first, second = post(outcomes), post([answer(200)])
    keys = [{sent.headers["idempotency-key"] for sent in driven.sent} for driven in (first, second)]
    assert [len(used) for used in keys] == [1, 1]
    assert keys[0] != keys[1]


def test_a_retry_after_beyond_the_longest_pause_fails_at_once() -> None:
    with pytest.raises(CmclError) as caught:
        post([answer(429, **{"retry-after": "31"})])
    assert caught.value.status == 429


def test_a_request_in_progress_is_awaited() -> None:
    driven = post([answer(409, **{"retry-after": "2"}), answer(200)])
    assert driven.paused == [2.0]


@pytest.mark.parametrize(
    "error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError]
)
def test_no_response_is_an_error_after_the_last_attempt(error: type[httpx.TransportError]) -> None:
    with pytest.raises(Unreachable, match="lost"):
        post([error("lost")] * 4)


def test_a_conditional_request_is_not_retried_if_it_may_have_succeeded() -> None:
    """The retry would fail because of the first request's own change."""
    with pytest.raises(Unreachable):
        post([httpx.ReadError("lost")], if_match=3)
    with pytest.raises(CmclError):
        post([answer(502)], if_match=3)
    assert post([httpx.ConnectError("no"), answer(200)], if_match=3).result
    assert post([answer(429), answer(200)], if_match=3).result


def test_a_delete_after_a_lost_response_succeeds() -> None:
    gone = answer(404, **{"x-cmcl-server": "control-plane"})
    for lost in (httpx.ReadError("lost"), answer(502), answer(504)):
        assert delete([lost, gone]).result is None
    for never_done in (httpx.ConnectError("no"), answer(429)):
        with pytest.raises(CmclError) as caught:
            delete([never_done, gone])
        assert caught.value.status == 404
    with pytest.raises(CmclError):
        delete([gone])


def test_a_delete_that_another_server_answers_with_404_has_failed() -> None:
    elsewhere = httpx.Response(404, text="404 page not found")
    for before in ([], [httpx.ReadError("lost")]):
        with pytest.raises(WrongServer):
            delete([*before, *[elsewhere] * 4])


def test_a_closed_connection_is_retried(server: RestServer, client: Client) -> None:
    server.always(None, (503, {}), (200, LIVE))
    assert client.live("scenes").version == 1
    assert len(server.asked) == 3


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_pause": -1}, {"longest_pause": -1}])
def test_invalid_retries_are_rejected(wrong: dict[str, int]) -> None:
    with pytest.raises(CmclError, match="attempts must be at least 1"):
        Retries(**wrong)  # type: ignore[arg-type]
