"""The clients of the serving benchmarks, at a server of this process."""

import base64
import json
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import Response

from benchmarks.endpoint.load import (
    CUT,
    REFUSED,
    RIGHT,
    TOO_LATE,
    WRONG,
    Load,
    drive,
)
from benchmarks.endpoint.messages import (
    Expected,
    Form,
    feature_request,
    features,
    request,
    vectors,
)
from tests.fakes.served_app import served

ROWS_RBF = features(2, 3, 4)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """`/v1/embeddings` gives raw rows back as they came, as version 7; `/broken` answers 500."""
    app = FastAPI()

    @app.post("/v1/embeddings")
    async def echo(request: Request) -> Response:
        return Response(await request.body(), headers={"x-model-version": "7"})

    @app.post("/broken")
    async def broken() -> Response:
        return Response("no", 500)

    with served(app) as url:
        yield url


def raw_requests(address: str) -> list[bytes]:
    return [feature_request(address, "binary", rows, model="m", modality="x") for rows in ROWS_RBF]


def test_every_answer_is_compared_with_what_its_version_answers(address: str) -> None:
    load = Load(address, raw_requests(address), clients=3, seconds=0.2, check_each=True)
    answers = drive(load, Expected("binary", {7: ROWS_RBF}))
    assert len(answers) > 6
    assert set(answers["status"]) == {200}
    assert set(answers["version"]) == {7}
    assert set(answers["request"]) == {0, 1}
    assert set(answers["checked"]) == {RIGHT}


@pytest.mark.parametrize("by_version", [{7: ROWS_RBF[::-1]}, {6: ROWS_RBF}])
def test_an_answer_of_other_rows_or_another_version_is_wrong(
    address: str, by_version: dict[int, np.ndarray]
) -> None:
    load = Load(address, raw_requests(address), clients=1, seconds=0.1, check_each=True)
    assert set(drive(load, Expected("binary", by_version))["checked"]) == {WRONG}


def test_failures_are_kept_by_what_they_are(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silent = f"http://127.0.0.1:{listener.getsockname()[1]}"
        late = drive(Load(silent, [request(silent, "/", b"", "x")], 1, 0.3, timeout=0.1))
    refused = drive(Load(silent, [request(silent, "/", b"", "x")], 1, 0.05))
    broken = drive(Load(address, [request(address, "/broken", b"", "x")], 1, 0.1))
    assert [set(each["status"]) for each in (late, refused, broken)] == [
        {TOO_LATE},
        {REFUSED},
        {500},
    ]


def test_an_answer_that_ends_early_is_cut() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def hang_up() -> None:
            accepted, _ = listener.accept()
            accepted.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
            accepted.close()

        server = threading.Thread(target=hang_up)
        server.start()
        answers = drive(Load(place, [request(place, "/", b"", "x")], 1, 0.2, timeout=0.3))
        server.join()
    assert answers["status"][0] == CUT


@pytest.mark.parametrize("form", ["json", "base64"])
def test_rows_of_an_answer_are_read_in_either_form(form: Form) -> None:
    rows_BF = ROWS_RBF[0]
    written = {"json": rows_BF.tolist(), "base64": [_base64(row) for row in rows_BF]}[form]
    data = [{"embedding": each} for each in written]
    body = _json({"data": data})
    np.testing.assert_array_equal(vectors(form, body, 4), rows_BF)


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.tobytes()).decode()


def _json(body: object) -> bytes:
    return json.dumps(body).encode()
