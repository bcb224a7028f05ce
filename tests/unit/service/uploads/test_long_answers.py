"""A slow request with an idempotency key: one response, also after a crash or a late retry."""

import pytest

from service.api.dependencies import IdempotencyKey
from service.api.idempotency import respond_long, response_row
from service.api.operations import Health
from service.core.errors import Conflict, Unprocessable
from service.database.rows import ResponseRow
from tests.fakes.control_plane import ControlPlane
from tests.fakes.crashes import Crash
from tests.fakes.uploads import announce, send

KEY = IdempotencyKey("default", "key-1", "POST /v1/long", "0" * 64)


class Work:
    """Counts how often it was done."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.done = 0
        self._error = error

    def __call__(self) -> ResponseRow:
        if self._error is not None:
            raise self._error
        self.done += 1
        return response_row(KEY, 200, Health(status=f"done {self.done} times"))


def test_a_key_repeats_the_answer_of_long_work(plane: ControlPlane) -> None:
    work = Work()
    first = respond_long(plane.context, KEY, work)
    again = respond_long(plane.context, KEY, work)
    assert (first.body, work.done) == (again.body, 1)
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"


def test_a_second_request_gets_its_own_error_and_leaves_the_claim(plane: ControlPlane) -> None:
    """The claim of the first request stays."""

    def work() -> ResponseRow:
        with pytest.raises(Conflict, match="in use"):
            respond_long(plane.context, KEY, Work(Conflict("in use")))
        return Work()()

    respond_long(plane.context, KEY, work)
    assert respond_long(plane.context, KEY, Work()).headers["idempotency-replayed"] == "true"


def test_a_key_of_refused_work_can_be_used_again(plane: ControlPlane) -> None:
    with pytest.raises(Conflict):
        respond_long(plane.context, KEY, Work(Conflict("not now")))
    assert respond_long(plane.context, KEY, Work()).status_code == 200


def test_the_key_of_a_dead_request_is_answered_at_once(plane: ControlPlane) -> None:
    with pytest.raises(Crash):
        respond_long(plane.context, KEY, Work(Crash()))
    other = IdempotencyKey(KEY.owner, KEY.key, KEY.route, "1" * 64)
    with pytest.raises(Unprocessable):
        respond_long(plane.context, other, Work())
    first = respond_long(plane.context, KEY, Work())
    again = respond_long(plane.context, KEY, Work())
    assert (first.status_code, first.body) == (200, again.body)
    assert again.headers["idempotency-replayed"] == "true"


def test_a_late_response_does_not_replace_the_first(plane: ControlPlane) -> None:
    def slow() -> ResponseRow:
        respond_long(plane.context, KEY, Work())
        return response_row(KEY, 200, Health(status="late"))

    respond_long(plane.context, KEY, slow)
    assert b"done 1 times" in respond_long(plane.context, KEY, Work()).body


def test_completing_with_a_key_is_repeated(plane: ControlPlane) -> None:
    upload = announce(plane, 3)
    path, headers = f"/v1/uploads/{upload}/complete", {"Idempotency-Key": "key-1"}
    assert plane.client.post(path, headers=headers).status_code == 409
    send(plane, upload, 1, b"abc")
    first = plane.client.post(path, headers=headers)
    again = plane.client.post(path, headers=headers)
    assert (first.status_code, first.json()) == (200, again.json())
    assert again.headers["idempotency-replayed"] == "true"
