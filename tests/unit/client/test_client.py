"""The client: what it sends, and whose words its errors are in."""

import base64
import socket
import struct
from collections.abc import Iterator

import pytest

from cmcl.client import FINAL_STATES, Client, CmclError, Json
from service.states import TERMINAL
from tests.unit.client.rest_server import Asked, RestServer, running
from workers.contract.dataset import ShardRef
from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec


@pytest.fixture
def server() -> Iterator[RestServer]:
    with running() as server:
        yield server


@pytest.fixture
def client(server: RestServer) -> Iterator[Client]:
    with Client(server.url, server.url, timeout=5) as client:
        yield client


def test_a_model_is_posted_with_every_value_resolved(server: RestServer, client: Client) -> None:
    spec = ModelSpec(width=8, modalities={"image": 4, "text": 3})
    server.always((201, {"name": "scenes"}))
    assert client.create_model("scenes", spec) == {"name": "scenes"}
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/models")
    assert asked.body.pop("name") == "scenes"
    assert ModelSpec.model_validate(asked.body) == spec


def test_a_dataset_is_posted_without_digests_that_nobody_gave(
    server: RestServer, client: Client
) -> None:
    server.always((202, {}))
    shards = [ShardRef(uri="s3://bucket/a"), ShardRef(uri="s3://bucket/b", sha256="0" * 64)]
    client.add_dataset("scenes", "first", ModalityPair(first="image", second="text"), shards)
    assert server.asked == [
        Asked(
            "POST",
            "/v1/datasets",
            {
                "model": "scenes",
                "name": "first",
                "pair": {"first": "image", "second": "text"},
                "shards": [
                    {"uri": "s3://bucket/a"},
                    {"uri": "s3://bucket/b", "sha256": "0" * 64},
                ],
                "evaluation_shards": [],
            },
        )
    ]


def test_embeddings_are_the_floats_that_were_sent_and_name_their_version(
    server: RestServer, client: Client
) -> None:
    vectors = [[0.5, -1.0], [0.1, 3e-8]]
    data = [base64.b64encode(struct.pack("<2f", *vector)).decode() for vector in vectors]
    answer = {"model": "scenes@12", "data": [{"embedding": text} for text in data]}
    server.always((200, answer))
    embeddings = client.embed("scenes", "image", [(1.0, 2.0), [3.0, 4.0]])
    assert embeddings.version == 12
    assert embeddings.vectors == [pytest.approx(vector, rel=1e-7) for vector in vectors]
    assert server.asked[0].body["input"] == [[1.0, 2.0], [3.0, 4.0]]


def test_a_list_is_read_to_its_last_page(server: RestServer, client: Client) -> None:
    server.always(
        (200, {"items": [{"id": 1}, {"id": 2}], "next_cursor": "a+b/c="}),
        (200, {"items": [{"id": 3}], "next_cursor": None}),
    )
    assert [item["id"] for item in client.jobs("scenes")] == [1, 2, 3]
    assert [asked.path for asked in server.asked] == [
        "/v1/jobs?model=scenes",
        "/v1/jobs?model=scenes&cursor=a%2Bb%2Fc%3D",
    ]


def test_rolling_back_says_why_if_there_is_a_reason(server: RestServer, client: Client) -> None:
    server.always((200, {}))
    client.promote("scenes", 3)
    client.promote("scenes", 2, "worse on birds")
    assert [(asked.method, asked.path) for asked in server.asked] == [
        ("PUT", "/v1/models/scenes/live")
    ] * 2
    assert [asked.body for asked in server.asked] == [
        {"version": 3},
        {"version": 2, "reason": "worse on birds"},
    ]


def test_watching_ends_with_the_job_and_tells_every_look(
    server: RestServer, client: Client
) -> None:
    states = ["queued", "running", "published"]
    server.always(*((200, {"state": state}) for state in states))
    seen: list[Json] = []
    ended = client.watch("j-1", seen.append, timeout=5, poll_seconds=0.001)
    assert ended == {"state": "published"}
    assert [job["state"] for job in seen] == states


def test_watching_gives_up_in_time(server: RestServer, client: Client) -> None:
    server.always((200, {"state": "running"}))
    with pytest.raises(CmclError, match=r"job j-1 did not end within 0\.02 seconds"):
        client.watch("j-1", timeout=0.02, poll_seconds=0.001)


def test_the_client_stops_watching_in_just_the_states_that_the_service_calls_terminal() -> None:
    assert {str(state) for state in TERMINAL} == FINAL_STATES


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"title": "Not Found", "detail": "there is no job 'j-1'"}, "there is no job 'j-1'"),
        ({"title": "Not Found"}, "Not Found"),
        ({}, "HTTP 404"),
        (
            {
                "detail": "the body cannot be used",
                "errors": [{"field": "width", "message": "it is 1, at least 2 is needed"}],
            },
            "the body cannot be used; width: it is 1, at least 2 is needed",
        ),
        ({"error": {"message": "there is no model 'x'", "type": "t"}}, "there is no model 'x'"),
        ("<html>a proxy's page</html>", "HTTP 404: <html>a proxy's page</html>"),
        ("", "HTTP 404: "),
        ('"only text"', 'HTTP 404: "only text"'),
        ("[1]", "HTTP 404: [1]"),
    ],
)
def test_a_refusal_is_told_in_the_words_of_whoever_refused(
    server: RestServer, client: Client, answer: object, words: str
) -> None:
    server.always((404, answer))
    with pytest.raises(CmclError) as caught:
        client.job("j-1")
    assert str(caught.value) == words
    assert caught.value.status == 404


def test_an_answer_that_is_no_json_is_an_error_of_ours(server: RestServer, client: Client) -> None:
    server.always((200, "<html>a login page</html>"))
    with pytest.raises(CmclError, match="login page") as caught:
        client.job("j-1")
    assert caught.value.status == 200


def test_an_odd_name_stays_one_part_of_the_path(server: RestServer, client: Client) -> None:
    server.always((404, {"detail": "no"}))
    with pytest.raises(CmclError):
        client.promote("../up?a#b", 1)
    assert server.asked[0].path == "/v1/models/..%2Fup%3Fa%23b/live"


def test_what_json_does_not_have_is_refused_in_words(client: Client) -> None:
    with pytest.raises(CmclError, match="cannot be written as JSON"):
        client.embed("scenes", "image", [[1.0, float("nan")]])


def test_a_server_that_does_not_answer_is_named() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with Client(url, timeout=1) as client, pytest.raises(CmclError, match=url) as caught:
            client.models()
    assert caught.value.status == 0
