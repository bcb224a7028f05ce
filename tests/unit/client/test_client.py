"""Requests of the client, and the messages of its errors."""

import base64
import socket
import struct

import pytest

from cmcl import Client, CmclError, Query
from cmcl.client import FINAL_STATES, Unreachable
from cmcl.contract.dataset import ShardRef
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from service.states import TERMINAL
from tests.unit.client.either import connected
from tests.unit.client.rest_server import RestServer

AT = "2026-11-24T00:00:00Z"
PAIR = ModalityPair(first="image", second="text")
MODEL = {
    "name": "scenes",
    "width": 8,
    "modalities": {"image": 4},
    "method": "nullspace",
    "conditioning": 0.3,
    "protection": {},
    "training": {},
    "seed": 0,
    "head_version": None,
    "live_version": None,
    "live_generation": 0,
    "created_at": AT,
}
JOB = {
    "id": "job-1",
    "model": "scenes",
    "dataset": "ds-1",
    "state": "running",
    "attempt": 1,
    "created_at": AT,
    "state_changed_at": AT,
}


def test_a_model_is_posted_with_every_value_resolved(server: RestServer, client: Client) -> None:
    spec = ModelSpec(width=8, modalities={"image": 4, "text": 3})
    server.always((201, MODEL))
    assert client.create_model("scenes", spec).name == "scenes"
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/models")
    assert asked.body.pop("name") == "scenes"
    assert ModelSpec.model_validate(asked.body) == spec


def test_a_dataset_is_posted_without_missing_digests(server: RestServer, client: Client) -> None:
    server.always((409, {}))
    shards = [ShardRef(uri="s3://bucket/a"), ShardRef(uri="s3://bucket/b", sha256="0" * 64)]
    with pytest.raises(CmclError):
        client.add_dataset("scenes", "first", PAIR, shards)
    assert server.asked[0].body == {
        "model": "scenes",
        "name": "first",
        "pair": {"first": "image", "second": "text"},
        "shards": [{"uri": "s3://bucket/a"}, {"uri": "s3://bucket/b", "sha256": "0" * 64}],
        "evaluation_shards": [],
    }


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


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"model": "scenes", "data": []},
        {"model": 1, "data": []},
        {"model": "a@1", "data": [{"embedding": "?"}]},
        {"model": "a@1", "data": [{"embedding": "AAA="}]},
    ],
)
def test_embeddings_of_unexpected_form_are_an_error(
    server: RestServer, client: Client, answer: object
) -> None:
    server.always((200, answer))
    with pytest.raises(CmclError, match="unexpected form"):
        client.embed("scenes", "image", [[1.0]])


MIGRATION = {
    "from_version": 1,
    "predicted_error": 0.03,
    "error_on_rows": 0.02,
    "rank": 256,
    "condition": 12.5,
    "exact": False,
}


def test_migrated_vectors_come_with_the_error_to_expect(server: RestServer, client: Client) -> None:
    vector = base64.b64encode(struct.pack("<2f", 0.5, -1.0)).decode()
    answer = {"model": "scenes@3", "data": [{"embedding": vector}], "migration": MIGRATION}
    server.always((200, answer))
    moved = client.migrate("scenes@3", "image", [[1.0, 2.0]], from_version=1, most_error=0.2)
    assert moved.vectors == [[0.5, -1.0]]
    assert (moved.version, moved.from_version) == (3, 1)
    assert (moved.predicted_error, moved.exact, moved.rank) == (0.03, False, 256)
    client.migrate("scenes", "image", [[1.0, 2.0]], from_version=1)
    exact, live = (each.body for each in server.asked)
    assert (exact["model"], exact["to_version"], exact["most_error"]) == ("scenes", 3, 0.2)
    assert "to_version" not in live


@pytest.mark.parametrize("answer", [{}, {"model": "a@1", "data": []}])
def test_migrations_of_unexpected_form_are_an_error(
    server: RestServer, client: Client, answer: object
) -> None:
    server.always((200, answer))
    with pytest.raises(CmclError, match="unexpected form"):
        client.migrate("scenes", "image", [[1.0]], from_version=1)


def test_similarity_gives_all_scores_or_the_best(server: RestServer, client: Client) -> None:
    queries = [Query("text", text="a red chair")]
    candidates = [Query("image", [2.0])]
    server.always((200, {"model": "scenes@3", "scores": [[0.5]]}))
    assert client.similarity("scenes", queries, candidates).scores == [[0.5]]
    packed = base64.b64encode(struct.pack("<f", 2.0)).decode()
    assert server.asked[0].body == {
        "model": "scenes",
        "queries": [{"modality": "text", "text": "a red chair"}],
        "candidates": [{"modality": "image", "feature": packed}],
    }
    server.always((200, {"model": "scenes@3", "results": [[{"index": 0, "score": 0.5}]]}))
    best = client.similarity("scenes", queries, candidates, top_k=1).results
    assert best is not None
    assert (best[0][0].index, best[0][0].score) == (0, 0.5)
    assert server.asked[1].body["top_k"] == 1


SERVED = {
    "id": "scenes",
    "version": 3,
    "width": 6,
    "modalities": {"image": 5},
    "encoders": {},
    "versions": {"resident": [1, 3], "lineage": [1, 3], "retired": [2]},
    "channels": {"live": 3, "candidate": None},
    "compatibility": {"1": {"image--text": 0.01}},
    "refusals": [],
}


def test_served_models_are_read_completely(server: RestServer, client: Client) -> None:
    server.always((200, {"object": "list", "data": [SERVED]}))
    (model,) = client.served_models()
    assert (model.id, model.versions.retired, model.channels.live) == ("scenes", [2], 3)
    assert model.compatibility == {"1": {"image--text": 0.01}}
    server.always((200, SERVED))
    assert client.served_model("scenes@3") == model
    assert [each.path for each in server.asked] == ["/v1/models", "/v1/models/scenes%403"]


def test_a_list_is_read_to_its_last_page(server: RestServer, client: Client) -> None:
    pages = [[{**JOB, "id": f"job-{n}"} for n in numbers] for numbers in ([1, 2], [3])]
    server.always(
        (200, {"items": pages[0], "next_cursor": "a+b/c="}),
        (200, {"items": pages[1], "next_cursor": None}),
    )
    assert [job.id for job in client.jobs("scenes")] == ["job-1", "job-2", "job-3"]
    assert [asked.path for asked in server.asked] == [
        "/v1/jobs?model=scenes",
        "/v1/jobs?model=scenes&cursor=a%2Bb%2Fc%3D",
    ]


def test_promoting_sends_reason_and_condition_if_given(server: RestServer, client: Client) -> None:
    server.always((200, {"version": 1, "generation": 2}))
    client.promote("scenes", 3)
    client.promote("scenes", 2, "worse on birds", if_generation=7)
    assert [asked.body for asked in server.asked] == [
        {"version": 3},
        {"version": 2, "reason": "worse on birds"},
    ]
    assert [asked.headers.get("if-match") for asked in server.asked] == [None, '"7"']


def test_unknown_fields_are_kept(server: RestServer, client: Client) -> None:
    server.always((200, {**JOB, "mood": "good", "progress": {"phase": "dreaming", "depth": 3}}))
    job = client.job("job-1")
    assert (job["mood"], job["state"], job.model_dump()["mood"]) == ("good", "running", "good")
    assert job.progress is not None
    assert (job.progress.phase, job.progress.get("depth")) == ("dreaming", 3)
    assert job.get("no such field", 5) == 5


def test_unknown_nested_fields_are_accepted(server: RestServer, client: Client) -> None:
    pair = {"first": "image", "second": "text", "smell": 1}
    dataset = {"id": "ds-1", "model": "m", "name": "n", "pair": pair, "created_at": AT}
    shards = [{"uri": "s3://b/a", "rows": 7}]
    server.always((200, {**dataset, "shards": shards}))
    found = client.dataset("ds-1")
    assert (str(found.pair), found.shards[0].uri) == ("image,text", "s3://b/a")


def test_a_response_without_a_required_field_is_an_error(
    server: RestServer, client: Client
) -> None:
    server.always((200, {"id": "job-1"}, {"x-request-id": "r-5"}))
    with pytest.raises(CmclError, match=r"Job\.model: Field required") as e:
        client.job("job-1")
    assert e.value.request_id == "r-5"


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
        ("<html>a\n proxy's page</html>", "HTTP 404: <html>a proxy's page</html>"),
        ("", "HTTP 404: "),
        ('"only text"', 'HTTP 404: "only text"'),
        ("[1]", "HTTP 404: [1]"),
        ({"errors": 5}, "HTTP 404"),
        ({"errors": [5, {}]}, "HTTP 404"),
    ],
)
def test_a_rejection_has_the_servers_message(
    server: RestServer, client: Client, answer: object, words: str
) -> None:
    server.always((404, answer, {"x-cmcl-server": "control-plane"}))
    with pytest.raises(CmclError) as caught:
        client.job("j-1")
    assert str(caught.value) == words
    assert caught.value.status == 404


def test_a_rejection_by_the_endpoint_has_its_message(server: RestServer, client: Client) -> None:
    server.always((404, {"error": {"message": "there is no model 'x'", "type": "t"}}))
    with pytest.raises(CmclError, match=r"^there is no model 'x'$"):
        client.served_model("x")


def test_an_error_has_type_fields_and_request_id(server: RestServer, client: Client) -> None:
    problem = {
        "type": "urn:cmcl:problem:invalid-request",
        "detail": "no",
        "errors": [{"field": "shards[0].uri", "message": "outside", "value": "file:///x"}],
    }
    server.always((422, problem, {"X-Request-ID": "r-7"}))
    with pytest.raises(CmclError) as caught:
        client.job("j-1")
    assert caught.value.type == "urn:cmcl:problem:invalid-request"
    assert [(each.field, each.value) for each in caught.value.fields] == [
        ("shards[0].uri", "file:///x")
    ]
    assert caught.value.request_id == "r-7"


def test_a_response_that_is_not_json_is_an_error(server: RestServer, client: Client) -> None:
    server.always((200, "<html>a login page</html>"))
    with pytest.raises(CmclError, match="login page") as caught:
        client.job("j-1")
    assert caught.value.status == 200


@pytest.mark.parametrize(
    ("name", "path"),
    [("../up?a#b", "..%2Fup%3Fa%23b"), ("..", "%2E%2E"), (".", "%2E"), ("ä b", "%C3%A4%20b")],
)
def test_a_special_name_stays_one_segment_of_the_path(
    server: RestServer, client: Client, name: str, path: str
) -> None:
    with pytest.raises(CmclError):
        client.promote(name, 1)
    assert server.asked[0].path == f"/v1/models/{path}/live"


def test_an_empty_name_is_never_sent(server: RestServer, client: Client) -> None:
    with pytest.raises(CmclError, match="a name is empty"):
        client.delete_model("")
    assert server.asked == []


def test_nan_and_infinity_are_rejected(client: Client) -> None:
    with pytest.raises(CmclError, match="cannot be encoded as JSON"):
        client.embed("scenes", "image", [[1.0, float("nan")]])


def test_a_server_that_does_not_respond_is_named(kind: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{held.getsockname()[1]}"
        url = f"http://anna:secret@{host}"
        with connected(kind, url) as client, pytest.raises(Unreachable, match=host) as caught:
            list(client.models())
    assert caught.value.status == 0
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://[::1"])
def test_an_invalid_address_is_rejected_at_once(url: str) -> None:
    with pytest.raises(CmclError, match="not a valid address"):
        Client(url)
